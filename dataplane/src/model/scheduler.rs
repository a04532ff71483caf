//! How mode IPVS spreads the connections of a pool over its endpoints: the kernel's schedulers.

use std::{fmt, str::FromStr};

/// A scheduler and what it is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scheduler {
    /// Which one.
    pub kind: SchedulerKind,
    /// sh and mh: an endpoint of weight 0 is passed over (`IP_VS_SVC_F_SCHED_SH_FALLBACK`, `..._MH_FALLBACK`). Without
    /// it, the clients that it falls to are refused.
    pub fallback: bool,
    /// sh and mh: a client's port counts as well as its address (`IP_VS_SVC_F_SCHED_SH_PORT`, `..._MH_PORT`), so that its
    /// connections are spread.
    pub port: bool,
}

/// The kernel's schedulers (`net/netfilter/ipvs/ip_vs_*.c`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SchedulerKind {
    /// Round robin: one after the other, whatever their weights.
    RoundRobin,
    /// Weighted round robin: one after the other, each as often as its weight says. The usual one, so that weights count;
    /// where nobody gives any it is round robin.
    #[default]
    WeightedRoundRobin,
    /// Least connections.
    LeastConnections,
    /// Weighted least connections.
    WeightedLeastConnections,
    /// Weighted failover: always the one with the largest weight.
    Failover,
    /// Weighted overflow: the one with the largest weight until it has as many connections, then the next.
    Overflow,
    /// Locality-based least connections: a destination address stays with an endpoint. Every connection of a Service is to
    /// the same address, so that all go to one until it is overloaded.
    LocalityBased,
    /// The same with a set of endpoints for each address.
    LocalityBasedReplicated,
    /// Destination hashing: by the Service's address, so that all connections go to one endpoint.
    DestinationHashing,
    /// Source hashing: a client stays with an endpoint while their number and weights stay.
    SourceHashing,
    /// Maglev hashing: the same, and few clients move when endpoints come and go.
    MaglevHashing,
    /// Shortest expected delay.
    ShortestExpectedDelay,
    /// Never queue: one without a connection if there is any, else by shortest expected delay.
    NeverQueue,
    /// Of two at random, by weight, the one with fewer connections.
    PowerOfTwos,
}

impl SchedulerKind {
    /// All of them, in the order in which messages name them.
    pub const ALL: [Self; 14] = [
        Self::RoundRobin,
        Self::WeightedRoundRobin,
        Self::LeastConnections,
        Self::WeightedLeastConnections,
        Self::Failover,
        Self::Overflow,
        Self::LocalityBased,
        Self::LocalityBasedReplicated,
        Self::DestinationHashing,
        Self::SourceHashing,
        Self::MaglevHashing,
        Self::ShortestExpectedDelay,
        Self::NeverQueue,
        Self::PowerOfTwos,
    ];

    /// The kernel's name for it, `struct ip_vs_scheduler`'s `name`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "rr",
            Self::WeightedRoundRobin => "wrr",
            Self::LeastConnections => "lc",
            Self::WeightedLeastConnections => "wlc",
            Self::Failover => "fo",
            Self::Overflow => "ovf",
            Self::LocalityBased => "lblc",
            Self::LocalityBasedReplicated => "lblcr",
            Self::DestinationHashing => "dh",
            Self::SourceHashing => "sh",
            Self::MaglevHashing => "mh",
            Self::ShortestExpectedDelay => "sed",
            Self::NeverQueue => "nq",
            Self::PowerOfTwos => "twos",
        }
    }

    /// The kernel module that has it.
    #[must_use]
    pub fn module(self) -> String {
        format!("ip_vs_{self}")
    }

    /// Whether `fallback` and `port` mean something to it.
    #[must_use]
    pub fn has_flags(self) -> bool {
        matches!(self, Self::SourceHashing | Self::MaglevHashing)
    }
}

impl fmt::Display for SchedulerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SchedulerKind {
    type Err = BadScheduler;

    fn from_str(text: &str) -> Result<Self, BadScheduler> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| BadScheduler::Unknown(beginning(text)))
    }
}

impl Scheduler {
    /// A scheduler by its name, and its flags, each `fallback` or `port`, in whatever case.
    ///
    /// # Errors
    /// When there is no such scheduler or flag, or the scheduler has no flags.
    pub fn parse<'a>(name: &str, flags: impl IntoIterator<Item = &'a str>) -> Result<Self, BadScheduler> {
        let mut scheduler = Self::from(name.parse::<SchedulerKind>()?);
        for flag in flags {
            if !scheduler.kind.has_flags() {
                return Err(BadScheduler::NoFlags {
                    kind: scheduler.kind,
                    flag: beginning(flag),
                });
            }
            match flag.to_ascii_lowercase().as_str() {
                "fallback" => scheduler.fallback = true,
                "port" => scheduler.port = true,
                _ => return Err(BadScheduler::UnknownFlag(beginning(flag))),
            }
        }
        Ok(scheduler)
    }
}

impl From<SchedulerKind> for Scheduler {
    fn from(kind: SchedulerKind) -> Self {
        Self {
            kind,
            ..Self::default()
        }
    }
}

impl fmt::Display for Scheduler {
    /// As `ipvsadm` lists it: `mh (fallback,port)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        match (self.fallback, self.port) {
            (false, false) => Ok(()),
            (true, false) => f.write_str(" (fallback)"),
            (false, true) => f.write_str(" (port)"),
            (true, true) => f.write_str(" (fallback,port)"),
        }
    }
}

/// Why something names no scheduler.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadScheduler {
    /// No scheduler of the kernel.
    #[error("there is no scheduler {0:?}, only {names}", names = names())]
    Unknown(String),
    /// No flag.
    #[error("there is no scheduler's flag {0:?}, only fallback and port")]
    UnknownFlag(String),
    /// A scheduler without flags has some.
    #[error("scheduler {kind} has no flag {flag:?}: only sh and mh have flags, fallback and port")]
    NoFlags {
        /// The scheduler.
        kind: SchedulerKind,
        /// The flag.
        flag: String,
    },
}

/// How much of a bad name is repeated to its owner.
const REPEATED: usize = 60;

fn beginning(text: &str) -> String {
    text.chars().take(REPEATED).collect()
}

fn names() -> String {
    SchedulerKind::ALL.map(SchedulerKind::as_str).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scheduler_of_the_kernel_is_known_by_its_name() {
        let names = "rr wrr lc wlc fo ovf lblc lblcr dh sh mh sed nq twos";
        let found: Vec<SchedulerKind> = names.split(' ').map(|name| name.parse().unwrap()).collect();
        assert_eq!(found, SchedulerKind::ALL);
        assert_eq!(SchedulerKind::ALL.map(SchedulerKind::as_str).join(" "), names);
        assert_eq!(Scheduler::default().to_string(), "wrr");
        assert_eq!(SchedulerKind::PowerOfTwos.module(), "ip_vs_twos");
    }

    #[test]
    fn only_the_hashing_schedulers_of_clients_have_flags() {
        let flagged = SchedulerKind::ALL.into_iter().filter(|kind| kind.has_flags());
        assert_eq!(
            flagged.map(SchedulerKind::as_str).collect::<Vec<_>>(),
            ["sh", "mh"]
        );
        let cases = [
            ("mh", vec![], "mh"),
            ("mh", vec!["port"], "mh (port)"),
            ("sh", vec!["Fallback"], "sh (fallback)"),
            ("mh", vec!["Port", "fallback", "port"], "mh (fallback,port)"),
        ];
        for (name, flags, listed) in cases {
            assert_eq!(Scheduler::parse(name, flags).unwrap().to_string(), listed);
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_what_there_is() {
        let said = |name, flags: &[&str]| {
            let flags = flags.iter().copied();
            Scheduler::parse(name, flags).unwrap_err().to_string()
        };
        assert_eq!(
            said("WLC", &[]),
            "there is no scheduler \"WLC\", only rr, wrr, lc, wlc, fo, ovf, lblc, lblcr, dh, sh, mh, sed, nq, twos"
        );
        assert_eq!(
            said("mh", &["port", "ports"]),
            "there is no scheduler's flag \"ports\", only fallback and port"
        );
        assert_eq!(
            said("wlc", &["port"]),
            "scheduler wlc has no flag \"port\": only sh and mh have flags, fallback and port"
        );
        assert!(said(&"x".repeat(500), &[]).len() < 200);
    }
}

//! What every way of programming the kernel has in common.

use std::fmt;
use std::time::{Duration, Instant};

use crate::model::{Diff, Family, ForwardingTable, SchedulerKind};
use crate::netlink::ipvs::IpvsError;
use crate::netlink::route::RouteError;

/// Makes the kernel of this node, in one IP family, forward as a [`ForwardingTable`] says.
///
/// A backend changes only objects that it made. Its calls block: they run on the programming thread, never on
/// the one that talks to the API server.
pub trait Backend: Send {
    /// The family that it programs.
    fn family(&self) -> Family;

    /// The names of the nf_tables tables of its family that hold what it writes. Where somebody else changed one of
    /// them, it is to be observed.
    fn tables(&self) -> &'static [&'static str];

    /// Brings the kernel from the table before `diff` to `table`, which already contains it. Work follows the
    /// size of `diff`, not of `table`; where all is new ([`Diff::all`]) it is [`Backend::sync`].
    ///
    /// # Errors
    /// When the kernel did not take the change. It then holds the state before, or part of the change in a
    /// safe order, and the caller repairs it by [`Backend::sync`].
    fn apply(&mut self, table: &ForwardingTable, diff: &Diff) -> Result<Report, Error>;

    /// Brings the kernel to `table` from whatever it holds: at the start, after an error, after drift.
    /// Connections and packets of Services that were right already are not disturbed.
    ///
    /// # Errors
    /// When the kernel did not take the table.
    fn sync(&mut self, table: &ForwardingTable) -> Result<Report, Error>;

    /// Reads the kernel back and compares it with what was last applied, without changing it.
    ///
    /// # Errors
    /// When the kernel could not be read.
    fn observe(&mut self) -> Result<Observed, Error>;

    /// Removes everything that this backend made, for new connections: established ones go on until they end, or until
    /// `limit` has passed since the first call. Works without a preceding [`Backend::sync`], so it cleans up after a process
    /// that is gone.
    ///
    /// # Errors
    /// When something is left in the kernel that should not be; the error names it.
    fn teardown(&mut self, limit: Option<Duration>) -> Result<Remaining, Error>;

    /// When [`Backend::tend`] has something to do, if nothing else happens.
    fn tend_at(&self) -> Option<Instant> {
        None
    }

    /// Does what has become due by itself.
    ///
    /// # Errors
    /// When the kernel did not do it: it is to be brought to the table by [`Backend::sync`].
    fn tend(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// What the kernel has not got that the table asks for, each with what is done instead and what to install.
    fn lacking(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What a teardown left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remaining {
    /// Nothing that has to be looked after.
    Nothing,
    /// So many connections that only go on with what was left for them: teardown is to be called again.
    Connections(u64),
}

/// What a change cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Kernel objects (rules and chains, elements, destinations) that were written or removed.
    pub objects: usize,
    /// Bytes handed to the kernel or to the program that talks to it.
    pub bytes: usize,
    /// Of a backend that writes iptables rules: those of nat and of filter.
    pub iptables: Option<[IptablesRules; 2]>,
}

/// How many rules of a table are ours, jumps in built-in chains apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IptablesRules {
    /// Written by this change.
    pub written: usize,
    /// All of them, after it.
    pub total: usize,
}

/// Forwarded packets that were dropped because connection tracking calls them invalid
/// ([`crate::model::Settings::accept_invalid`]).
pub const INVALID: &str = "invalid";
/// Connections that were dropped because they found no endpoint at their slot, twice: while a pool shrinks, at most.
pub const MISSES: &str = "misses";
/// Connections of Services with session affinity whose client could not be remembered: its map is full.
pub const FORGOTTEN: &str = "affinity-full";

/// How the kernel compares with what was last applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// What differs; empty when nothing does. Each names the object and what is wrong with it. At most a few
    /// are spelled out; `more` counts the rest.
    pub differences: Vec<String>,
    /// Differences beyond those that are spelled out.
    pub more: usize,
    /// Packets that counters of the backend's own have counted since they were made. Those that there are:
    /// [`INVALID`], and in mode NFTables [`MISSES`] and [`FORGOTTEN`].
    pub counters: Vec<(&'static str, u64)>,
}

impl Observed {
    /// Whether the kernel holds what was meant.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.differences.is_empty()
    }
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.differences.join("; "))?;
        if self.more > 0 {
            write!(f, "; and {} more", self.more)?;
        }
        Ok(())
    }
}

/// Why the kernel does not hold what was meant.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program that the backend needs is not there.
    #[error("{program} cannot be run: {source}: install the package that has it (Debian: {package})")]
    MissingProgram {
        /// The program.
        program: String,
        /// Debian's package with it.
        package: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The kernel lacks something that the backend needs.
    #[error("the kernel has no {what}: {hint}")]
    MissingKernelFeature {
        /// What it lacks.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// A program refused its input or failed.
    #[error("{program} failed ({status}): {stderr}")]
    Failed {
        /// The program.
        program: String,
        /// Its exit status.
        status: String,
        /// What it said.
        stderr: String,
    },
    /// A program did not end in time.
    #[error(
        "{program} did not end within {seconds} s and was stopped: is another program holding the xtables lock?"
    )]
    TimedOut {
        /// The program.
        program: String,
        /// The limit.
        seconds: u64,
    },
    /// nf_tables did not do what was asked.
    #[error(transparent)]
    Netlink(#[from] crate::netlink::socket::NetlinkError),
    /// IPVS cannot be talked to.
    #[error(transparent)]
    Ipvs(IpvsError),
    /// Routes and links cannot be talked of.
    #[error(transparent)]
    Route(RouteError),
    /// The kernel has no such scheduler.
    #[error("the kernel has no IPVS scheduler {0}: load the module {module} on the node", module = .0.module())]
    MissingScheduler(SchedulerKind),
    /// The kernel refused a part of it.
    #[error("{0}")]
    Refused(String),
    /// The table has more of something than the kernel's maps can number.
    #[error("the node cannot forward this much in this mode: {0}")]
    TooMuch(String),
    /// Reading or writing failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the operating system said.
        source: std::io::Error,
    },
}

impl From<IpvsError> for Error {
    fn from(error: IpvsError) -> Self {
        match error {
            IpvsError::Absent => Self::MissingKernelFeature {
                what: "IPVS".to_owned(),
                hint: "load the module ip_vs on the node (CONFIG_IP_VS; Debian: in linux-image), or choose another mode"
                    .to_owned(),
            },
            other => Self::Ipvs(other),
        }
    }
}

impl From<RouteError> for Error {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::NoDummy => Self::MissingKernelFeature {
                what: "dummy links".to_owned(),
                hint: "load the module dummy on the node (CONFIG_DUMMY; Debian: in linux-image), or choose another mode"
                    .to_owned(),
            },
            other => Self::Route(other),
        }
    }
}

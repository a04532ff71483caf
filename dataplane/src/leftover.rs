//! Rules that a kube-proxy left on the node, or that one which still runs keeps there.
//!
//! Our translation comes before kube-proxy's, but a drop or reject in somebody else's filter chain ends a packet whatever
//! ours say. Of kube-proxy's verdicts (1.36) most come after translation and are about Service addresses, which a packet
//! that we translated no longer has. What is left hits our packets and cannot be outranked:
//! - filter chains that hang before the translation: `firewall-check` of mode nftables, for load balancer addresses;
//! - drops that ask for no destination: that of packets which conntrack calls invalid, in iptables' `KUBE-FORWARD`.
//!
//! It is found by structure, since versions differ, and told; nothing of it is ever changed. What a kube-proxy in mode
//! ipvs keeps outside of netfilter's rules is not looked for.
//!
//! - [`verdicts`]: which verdicts of a table count, pure;
//! - [`tables`]: reading nf_tables;
//! - [`crate::iptables::kube_proxy`]: reading iptables.

mod tables;
mod verdicts;

use std::collections::HashMap;
use std::fmt;

use crate::iptables::Variant;
use crate::iptables::kube_proxy::{self, KubeProxyChains};
use crate::model::Family;
use crate::netlink::socket::{NetlinkError, Socket};
use tables::{InTables, TABLE, name_of};
use verdicts::Verdicts;

/// How many chains, rules and addresses are spelled out of each kind.
const SPELLED_OUT: usize = 4;

/// Where kube-proxy's rules were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The nf_tables table `kube-proxy` of the family.
    Table,
    /// Chains of iptables tables, in this variant.
    Iptables(Variant),
}

/// kube-proxy's rules in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// The family that they are for.
    pub family: Family,
    /// Where they are.
    pub place: Place,
    /// What there drops or refuses packets before they are translated: base chains. At most a few, as of all lists here.
    pub before: Vec<String>,
    /// The destinations that those name, sorted.
    pub destinations: Vec<String>,
    /// Destinations beyond those.
    pub more: usize,
    /// What there drops or refuses packets wherever they go: base chains of a table, rules of iptables.
    pub anywhere: Vec<String>,
}

impl Leftover {
    /// Whether some of it ends packets that our rules would forward.
    #[must_use]
    pub fn outranks(&self) -> bool {
        !self.before.is_empty() || !self.anywhere.is_empty()
    }

    /// The command that removes it.
    #[must_use]
    pub fn removal(&self) -> String {
        match self.place {
            Place::Table => format!("nft delete table {} {TABLE}", name_of(self.family)),
            Place::Iptables(_) => "kube-proxy --cleanup".to_owned(),
        }
    }

    fn of_table(family: Family, found: Verdicts) -> Self {
        let few = |names: &mut dyn Iterator<Item = String>| names.take(SPELLED_OUT).collect();
        let named = found.destinations.len();
        Self {
            family,
            place: Place::Table,
            before: few(&mut found.before.into_iter()),
            destinations: few(&mut found.destinations.iter().map(ToString::to_string)),
            more: named.saturating_sub(SPELLED_OUT) + found.unnamed,
            anywhere: few(&mut found.anywhere.into_iter()),
        }
    }

    fn of_iptables(family: Family, variant: Variant, mut found: KubeProxyChains) -> Self {
        found.anywhere.truncate(SPELLED_OUT);
        Self {
            family,
            place: Place::Iptables(variant),
            before: Vec::new(),
            destinations: Vec::new(),
            more: 0,
            anywhere: found.anywhere,
        }
    }
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::Table => write!(f, "table {} {TABLE}", name_of(self.family))?,
            Place::Iptables(variant) => write!(f, "KUBE- chains of iptables ({variant}, {})", self.family)?,
        }
        if !self.before.is_empty() {
            let before = self.before.join(", ");
            write!(
                f,
                ": before the agent's rules, {before} can drop or refuse packets"
            )?;
            let more = match (self.destinations.is_empty(), self.more) {
                (_, 0) => String::new(),
                (true, more) => format!("{more} destinations"),
                (false, more) => format!(" and {more} more"),
            };
            if !self.destinations.is_empty() || self.more > 0 {
                write!(f, " to {}{more}", self.destinations.join(", "))?;
            }
        }
        if !self.anywhere.is_empty() {
            let anywhere = self.anywhere.join("`, `");
            write!(
                f,
                ": `{anywhere}` drops or refuses packets whatever their destination"
            )?;
        }
        Ok(())
    }
}

/// What a look at the node came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// kube-proxy's rules, by family and place.
    pub rules: Vec<Leftover>,
    /// What could not be read, each with why and what to do.
    pub unread: Vec<String>,
}

/// Looks for kube-proxy's rules in the network namespace of the thread that calls it first.
#[derive(Debug, Default)]
pub struct Search {
    socket: Option<Socket>,
    /// What nf_tables held, and in which generation of the ruleset.
    known: HashMap<Family, (u32, InTables)>,
}

impl Search {
    /// Looks. Where nobody changed nf_tables since the last look, that costs one question; the legacy variant of iptables
    /// is read every time, where the kernel has tables of it.
    pub fn look(&mut self, families: &[Family]) -> Found {
        let mut found = Found::default();
        for family in families {
            match self.in_tables(*family) {
                Ok(InTables { table, iptables }) => {
                    found.rules.extend(table);
                    if iptables {
                        found.read_iptables(*family, Variant::Nft, &["filter"]);
                    }
                }
                Err(NetlinkError::Absent) => (),
                Err(error) => {
                    // A socket that failed is opened again.
                    self.socket = None;
                    found.unread.push(format!("{family}: {error}"));
                }
            }
            let legacy = kube_proxy::legacy_tables(*family);
            if !legacy.is_empty() {
                found.read_iptables(*family, Variant::Legacy, &legacy);
            }
        }
        found
    }

    fn in_tables(&mut self, family: Family) -> Result<InTables, NetlinkError> {
        let mut socket = match self.socket.take() {
            Some(socket) => socket,
            None => Socket::open()?,
        };
        let generation = socket.generation()?;
        let known = self.known.get(&family);
        let found = match known {
            Some((of, known)) if *of == generation => Ok(known.clone()),
            _ => tables::read(&mut socket, family).map(|(generation, found)| {
                self.known.insert(family, (generation, found.clone()));
                found
            }),
        };
        self.socket = Some(socket);
        match (found, self.known.get(&family)) {
            // While a kube-proxy that runs has much to write, what was found before is told on.
            (Err(NetlinkError::Unsteady), Some((_, known))) => Ok(known.clone()),
            (found, _) => found,
        }
    }
}

impl Found {
    /// Reads tables of iptables. In the nf_tables variant kube-proxy's chains are known to be there.
    fn read_iptables(&mut self, family: Family, variant: Variant, tables: &[&str]) {
        match kube_proxy::read(family, variant, tables) {
            Ok(chains) if variant == Variant::Nft || chains.count > 0 => {
                self.rules.push(Leftover::of_iptables(family, variant, chains));
            }
            Ok(_) => (),
            Err(why) => {
                if variant == Variant::Nft {
                    let chains = KubeProxyChains::default();
                    self.rules.push(Leftover::of_iptables(family, variant, chains));
                }
                self.unread.push(format!("iptables ({variant}, {family}): {why}"));
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! Which verdicts of kube-proxy's table end packets that our rules would forward. Pure: what reads the kernel is given.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;

use crate::model::Family;
use crate::netlink::expression::{Course, Verdict};
use crate::netlink::nftables::answer::BaseRead;

/// `NF_INET_PRE_ROUTING` and `NF_INET_LOCAL_OUT`: the hooks where destinations are translated.
const TRANSLATING: [u32; 2] = [0, 3];
/// `NF_IP_PRI_NAT_DST`. Ours is -101 or, in mode IPTables, this; where two chains have one priority, either may be first.
const TRANSLATION: i32 = -100;
/// kube-proxy has a chain for each address that it restricts. Beyond so many they count as the others did: as dropping.
const CHAINS_READ: usize = 256;

/// Where a packet goes to, as an element of a map names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Destination {
    address: IpAddr,
    /// IP protocol and port.
    port: (u8, u16),
}

impl Destination {
    /// Reads a key of address, protocol and port.
    fn read(family: Family, key: &[u8]) -> Option<Self> {
        let (address, rest) = match family {
            Family::V4 => {
                let (address, rest) = key.split_first_chunk::<4>()?;
                (IpAddr::from(*address), rest)
            }
            Family::V6 => {
                let (address, rest) = key.split_first_chunk::<16>()?;
                (IpAddr::from(*address), rest)
            }
        };
        // Each part of a key is padded to four bytes.
        let [protocol, _, _, _, high, low, _, _] = *rest else {
            return None;
        };
        Some(Self {
            address,
            port: (protocol, u16::from_be_bytes([high, low])),
        })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (protocol, port) = self.port;
        write!(f, "{} port {port}/", self.address)?;
        match protocol {
            6 => f.write_str("TCP"),
            17 => f.write_str("UDP"),
            132 => f.write_str("SCTP"),
            other => write!(f, "{other}"),
        }
    }
}

/// A table's verdicts that cannot be outranked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdicts {
    /// Base chains that drop or refuse before destinations are translated.
    pub(super) before: BTreeSet<String>,
    /// What they drop or refuse packets to, as far as maps name it.
    pub(super) destinations: BTreeSet<Destination>,
    /// Elements of those maps whose keys are of another kind.
    pub(super) unnamed: usize,
    /// Base chains that drop or refuse after it, without asking where a packet goes.
    pub(super) anywhere: BTreeSet<String>,
}

/// The rules and maps of a table.
pub(super) trait Rules {
    /// Why they cannot be read.
    type Error;
    /// The rules of a chain, in their order.
    fn rules(&mut self, chain: &str) -> Result<Vec<Course>, Self::Error>;
    /// The elements of a map that lead to verdicts.
    fn elements(&mut self, map: &str) -> Result<Vec<(Vec<u8>, Verdict)>, Self::Error>;
}

/// Follows packets through a table's base chains.
pub(super) fn verdicts<R: Rules>(
    family: Family,
    bases: &[(String, BaseRead)],
    rules: &mut R,
) -> Result<Verdicts, R::Error> {
    let mut walk = Walk {
        family,
        rules,
        leads: HashMap::new(),
        maps: HashMap::new(),
        found: Verdicts::default(),
    };
    for (name, base) in bases {
        // A chain that translates is not asked about packets that are translated already (`nf_nat_inet_fn`).
        if base.kind == "nat" {
            continue;
        }
        let early = TRANSLATING.contains(&base.number) && base.priority <= TRANSLATION;
        let ends = if early {
            walk.early(name)?
        } else {
            walk.late(name)?
        };
        if ends || !base.accepts {
            let found = match early {
                true => &mut walk.found.before,
                false => &mut walk.found.anywhere,
            };
            found.insert(name.clone());
        }
    }
    Ok(walk.found)
}

struct Walk<'a, R> {
    family: Family,
    rules: &'a mut R,
    /// Whether packets in a chain can be dropped or refused, as far as known.
    leads: HashMap<String, bool>,
    /// The same of maps.
    maps: HashMap<String, bool>,
    found: Verdicts,
}

impl<R: Rules> Walk<'_, R> {
    /// Whether a base chain that packets pass untranslated can drop or refuse some. Destinations are noted.
    fn early(&mut self, base: &str) -> Result<bool, R::Error> {
        let mut ends = false;
        let mut maps = BTreeSet::new();
        for course in self.reachable(base, |_| true)? {
            ends |= ends_packets(&course);
            maps.extend(course.map);
        }
        for map in maps {
            ends |= self.map_ends(map)?;
        }
        Ok(ends)
    }

    /// Whether a map leads packets to being dropped or refused. Their destinations are noted.
    fn map_ends(&mut self, map: String) -> Result<bool, R::Error> {
        if let Some(known) = self.maps.get(&map) {
            return Ok(*known);
        }
        let mut ends = false;
        for (key, verdict) in self.rules.elements(&map)? {
            if !self.can_end(&verdict)? {
                continue;
            }
            ends = true;
            match Destination::read(self.family, &key) {
                Some(destination) => {
                    self.found.destinations.insert(destination);
                }
                None => self.found.unnamed += 1,
            }
        }
        self.maps.insert(map, ends);
        Ok(ends)
    }

    /// Whether a base chain that packets pass translated drops or refuses some without asking what they are.
    fn late(&mut self, base: &str) -> Result<bool, R::Error> {
        let blind = |course: &Course| !course.reads_packet;
        let reachable = self.reachable(base, blind)?;
        Ok(reachable
            .iter()
            .any(|course| blind(course) && ends_packets(course)))
    }

    /// The rules that a packet meets from a chain on, by jumps of rules for which `follows` holds.
    fn reachable(&mut self, from: &str, follows: impl Fn(&Course) -> bool) -> Result<Vec<Course>, R::Error> {
        let mut met = Vec::new();
        let mut seen = HashSet::from([from.to_owned()]);
        let mut waiting = vec![from.to_owned()];
        while let Some(chain) = waiting.pop() {
            for course in self.rules.rules(&chain)? {
                if let Some(Verdict::Jump(to) | Verdict::Goto(to)) = &course.verdict
                    && follows(&course)
                    && seen.len() < CHAINS_READ
                    && seen.insert(to.clone())
                {
                    waiting.push(to.clone());
                }
                met.push(course);
            }
        }
        Ok(met)
    }

    fn can_end(&mut self, verdict: &Verdict) -> Result<bool, R::Error> {
        match verdict {
            Verdict::Drop => Ok(true),
            Verdict::Accept | Verdict::Return => Ok(false),
            Verdict::Jump(chain) | Verdict::Goto(chain) => self.leads_to_end(chain),
        }
    }

    fn leads_to_end(&mut self, chain: &str) -> Result<bool, R::Error> {
        if let Some(known) = self.leads.get(chain) {
            return Ok(*known);
        }
        if self.leads.len() >= CHAINS_READ {
            return Ok(true);
        }
        let met = self.reachable(chain, |_| true)?;
        let ends = met.iter().any(ends_packets);
        self.leads.insert(chain.to_owned(), ends);
        Ok(ends)
    }
}

fn ends_packets(course: &Course) -> bool {
    course.refuses || course.verdict == Some(Verdict::Drop)
}

#[cfg(test)]
mod tests;

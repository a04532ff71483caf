//! What the kernel holds of our table.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::entry::{Entry, Map};
use super::layout::{Chain, TABLE, table};
use super::sets::{affinity_seconds, affinity_set, set};
use crate::model::Family;
use crate::netlink::expression::is_rule;
use crate::netlink::nftables::{self, Listing, SET_ANONYMOUS, SetSpec};
use crate::netlink::socket::{NetlinkError, Socket};

/// How often everything is read again because somebody committed meanwhile.
const TRIES: usize = 5;

/// The table as it was read.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    /// The ruleset's generation that it was read in.
    pub(super) generation: u32,
    pub(super) is_there: bool,
    pub(super) sets: BTreeMap<String, SetSpec>,
    /// The rules of each chain, as they came.
    pub(super) chains: BTreeMap<String, Vec<Vec<u8>>>,
    /// The names of our counters that are there.
    pub(super) counters: Vec<String>,
    /// Whether an element was read that is none of ours.
    pub(super) has_strange_elements: bool,
}

/// What a map's elements come to: how many, and a sum that does not depend on their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Digest {
    pub(super) count: usize,
    sum: u64,
}

/// The digests of all maps.
pub(super) type Digests = HashMap<Map, Digest>;

pub(super) fn add_to(digests: &mut Digests, entry: &Entry) {
    let mut hasher = DefaultHasher::new();
    entry.hash(&mut hasher);
    let digest = digests.entry(entry.map()).or_default();
    digest.count += 1;
    digest.sum = digest.sum.wrapping_add(hasher.finish());
}

impl Snapshot {
    /// Reads the table, each of its elements to `each`. When the ruleset changes meanwhile, `again` is called and
    /// everything is read once more.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub(super) fn read(
        socket: &mut Socket,
        family: Family,
        mut again: impl FnMut(),
        mut each: impl FnMut(Entry),
    ) -> Result<Self, NetlinkError> {
        for _ in 0..TRIES {
            let generation = socket.generation()?;
            let mut snapshot = Self {
                generation,
                ..Self::default()
            };
            let read = snapshot.read_once(socket, family, &mut again, &mut each);
            let is_same = socket.generation()? == generation;
            match read {
                Ok(()) if is_same => return Ok(snapshot),
                Err(error) if is_same => return Err(error),
                // What was listed may have gone before its elements were read.
                _ => again(),
            }
        }
        Err(NetlinkError::Unsteady)
    }

    fn read_once(
        &mut self,
        socket: &mut Socket,
        family: Family,
        again: &mut impl FnMut(),
        each: &mut impl FnMut(Entry),
    ) -> Result<(), NetlinkError> {
        let name = table(family);
        let mut is_there = false;
        socket.list(
            name,
            Listing::Tables,
            || (),
            |message| {
                is_there |= nftables::table(message) == Some(TABLE);
            },
        )?;
        self.is_there = is_there;
        if !is_there {
            return Ok(());
        }
        let sets = &mut self.sets;
        socket.list(
            name,
            Listing::Sets,
            || (),
            |message| {
                if let Some(set) = nftables::set(message).filter(|set| set.flags & SET_ANONYMOUS == 0) {
                    sets.insert(set.name.clone(), set);
                }
            },
        )?;
        let chains = &mut self.chains;
        socket.list(
            name,
            Listing::Chains,
            || (),
            |message| {
                if let Some((TABLE, chain, _)) = nftables::chain(message) {
                    chains.insert(chain.to_owned(), Vec::new());
                }
            },
        )?;
        let chains = std::cell::RefCell::new(chains);
        socket.list(
            name,
            Listing::Rules,
            || chains.borrow_mut().values_mut().for_each(Vec::clear),
            |message| {
                if let Some(rule) = nftables::rule(message).filter(|rule| rule.table == TABLE)
                    && let Some(rules) = chains.borrow_mut().get_mut(rule.chain)
                {
                    rules.push(rule.expressions.to_vec());
                }
            },
        )?;
        let counters = &mut self.counters;
        socket.list(
            name,
            Listing::Counters,
            || (),
            |message| {
                if let Some((TABLE, counter, _)) = nftables::counter(message) {
                    counters.push(counter.to_owned());
                }
            },
        )?;
        let mut strange = false;
        for map in Map::ALL
            .into_iter()
            .filter(|map| self.sets.contains_key(map.name()))
        {
            // An interrupted listing makes the generation differ, so that everything is read again.
            let again = &mut *again;
            socket.list(name, Listing::Elements(map.name()), again, |message| {
                nftables::elements(message, |element| match Entry::read(map, family, &element) {
                    Some(entry) => each(entry),
                    None => strange = true,
                });
            })?;
        }
        self.has_strange_elements = strange;
        Ok(())
    }

    /// Why the table cannot be brought to what is wanted step by step; none when it can. The sets decide: chains are
    /// written anew where they differ.
    pub(super) fn is_foreign(&self, family: Family) -> Option<String> {
        for map in Map::ALL {
            match self.sets.get(map.name()) {
                Some(found) if is_same(found, &set(map, family)) => (),
                Some(_) => return Some(format!("map {} is of another kind", map.name())),
                None => return Some(format!("map {} is missing", map.name())),
            }
        }
        for (name, found) in &self.sets {
            let known = Map::ALL.iter().any(|map| map.name() == name)
                || affinity_seconds(name)
                    .is_some_and(|seconds| is_same(found, &affinity_set(seconds, family)));
            if !known {
                return Some(format!("set {name} is not one of ours"));
            }
        }
        self.has_strange_elements
            .then(|| "a map has elements that are not ours".to_owned())
    }

    /// Whether a chain has just these rules.
    pub(super) fn has(&self, chain: &Chain) -> bool {
        self.chains.get(&chain.name).is_some_and(|found| {
            found.len() == chain.rules.len()
                && chain
                    .rules
                    .iter()
                    .zip(found)
                    .all(|(rule, found)| is_rule(rule, found))
        })
    }
}

fn is_same(found: &SetSpec, wanted: &SetSpec) -> bool {
    (
        found.flags,
        found.key_length,
        found.data,
        found.size,
        &found.fields,
    ) == (
        wanted.flags,
        wanted.key_length,
        wanted.data,
        wanted.size,
        &wanted.fields,
    )
}

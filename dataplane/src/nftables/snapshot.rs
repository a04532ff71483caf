//! What the kernel holds of our table.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::entry::{Entry, Map};
use super::layout::{Chain, Layout};
use super::sets::{affinity_seconds, affinity_set, set};
use crate::netlink::expression::is_rule;
use crate::netlink::nftables::answer::{self, BaseRead};
use crate::netlink::nftables::{Listing, SET_ANONYMOUS, SetSpec, TABLE_DORMANT};
use crate::netlink::socket::{NetlinkError, Socket};

/// The table as it was read.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    /// The ruleset's generation that it was read in.
    pub(super) generation: u32,
    pub(super) is_there: bool,
    is_dormant: bool,
    /// Whether the table that stands in during a replacement is there.
    pub(super) has_deputy: bool,
    pub(super) sets: BTreeMap<String, SetSpec>,
    pub(super) chains: BTreeMap<String, ChainFound>,
    /// The names of our counters that are there.
    pub(super) counters: Vec<String>,
    /// Whether an element was read that is none of ours.
    pub(super) has_strange_elements: bool,
}

/// A chain as it was read.
#[derive(Debug)]
pub(super) struct ChainFound {
    /// For a base chain, where it hangs.
    base: Option<BaseRead>,
    /// Its rules, as they came.
    rules: Vec<Vec<u8>>,
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
        layout: Layout,
        mut again: impl FnMut(),
        mut each: impl FnMut(Entry),
    ) -> Result<Self, NetlinkError> {
        let (generation, snapshot) = socket.steadily(|socket, attempt| {
            if attempt > 0 {
                again();
            }
            let mut snapshot = Self::default();
            snapshot.read_outline(socket, layout)?;
            snapshot.read_elements(socket, layout, &mut again, &mut each)?;
            Ok(snapshot)
        })?;
        Ok(Self {
            generation,
            ..snapshot
        })
    }

    /// Reads everything but the elements.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub(super) fn outline(socket: &mut Socket, layout: Layout) -> Result<Self, NetlinkError> {
        let (generation, snapshot) = socket.steadily(|socket, _| {
            let mut snapshot = Self::default();
            snapshot.read_outline(socket, layout)?;
            Ok(snapshot)
        })?;
        Ok(Self {
            generation,
            ..snapshot
        })
    }

    fn read_outline(&mut self, socket: &mut Socket, layout: Layout) -> Result<(), NetlinkError> {
        let (name, own, deputy) = (layout.table(), layout.name(), layout.deputy_name());
        let (mut flags, mut has_deputy) = (None, false);
        socket.list(
            name,
            Listing::Tables,
            || (),
            |message| match answer::table(message) {
                Some((table, found)) if table == own => flags = Some(found),
                Some((table, _)) if table == deputy => has_deputy = true,
                _ => (),
            },
        )?;
        self.has_deputy = has_deputy;
        self.is_there = flags.is_some();
        self.is_dormant = flags.is_some_and(|flags| flags & TABLE_DORMANT != 0);
        if !self.is_there {
            return Ok(());
        }
        let sets = &mut self.sets;
        socket.list(
            name,
            Listing::Sets,
            || (),
            |message| {
                if let Some(set) = answer::set(message).filter(|set| set.flags & SET_ANONYMOUS == 0) {
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
                if let Some(chain) = answer::chain(message).filter(|chain| chain.table == own) {
                    let (base, rules) = (chain.base, Vec::new());
                    chains.insert(chain.name.to_owned(), ChainFound { base, rules });
                }
            },
        )?;
        let chains = std::cell::RefCell::new(chains);
        socket.list(
            name,
            Listing::Rules,
            || {
                chains
                    .borrow_mut()
                    .values_mut()
                    .for_each(|chain| chain.rules.clear())
            },
            |message| {
                if let Some(rule) = answer::rule(message).filter(|rule| rule.table == own)
                    && let Some(chain) = chains.borrow_mut().get_mut(rule.chain)
                {
                    chain.rules.push(rule.expressions.to_vec());
                }
            },
        )?;
        let counters = &mut self.counters;
        socket.list(
            name,
            Listing::Counters,
            || (),
            |message| {
                if let Some((table, counter, _)) = answer::counter(message)
                    && table == own
                {
                    counters.push(counter.to_owned());
                }
            },
        )
    }

    fn read_elements(
        &mut self,
        socket: &mut Socket,
        layout: Layout,
        again: &mut impl FnMut(),
        each: &mut impl FnMut(Entry),
    ) -> Result<(), NetlinkError> {
        let mut strange = false;
        for map in layout.maps().filter(|map| self.sets.contains_key(map.name())) {
            // An interrupted listing makes the generation differ, so that everything is read again.
            let again = &mut *again;
            socket.list(layout.table(), Listing::Elements(map.name()), again, |message| {
                answer::elements(message, |element| {
                    match Entry::read(map, layout.family, &element) {
                        Some(entry) => each(entry),
                        None => strange = true,
                    }
                });
            })?;
        }
        self.has_strange_elements = strange;
        Ok(())
    }

    /// Why the table cannot be brought to what is wanted step by step; none when it can. Sets and hooks decide: the
    /// rules of chains are written anew where they differ.
    pub(super) fn is_foreign(&self, wanted: &[Chain], layout: Layout) -> Option<String> {
        let family = layout.family;
        if self.is_dormant {
            return Some("the table is dormant".to_owned());
        }
        for (name, found) in &self.chains {
            let ours = wanted.iter().find(|chain| chain.name == *name);
            let hangs_right = match (&found.base, ours.and_then(|chain| chain.hook)) {
                (None, None) => true,
                (Some(base), Some(hook)) => base.is(&hook),
                _ => false,
            };
            if !hangs_right {
                return Some(format!("chain {name} does not hang where it should"));
            }
        }
        for map in layout.maps() {
            match self.sets.get(map.name()) {
                Some(found) if is_same(found, &set(map, family)) => (),
                Some(_) => return Some(format!("map {} is of another kind", map.name())),
                None => return Some(format!("map {} is missing", map.name())),
            }
        }
        for (name, found) in &self.sets {
            let known = layout.maps().any(|map| map.name() == name)
                || affinity_seconds(name)
                    .is_some_and(|seconds| is_same(found, &affinity_set(seconds, family)));
            if !known {
                return Some(format!("set {name} is not one of ours"));
            }
        }
        self.has_strange_elements
            .then(|| "a map has elements that are not ours".to_owned())
    }

    /// The chains that hang at a hook.
    pub(super) fn base_chains(&self) -> Vec<String> {
        let hung = self.chains.iter().filter(|(_, chain)| chain.base.is_some());
        hung.map(|(name, _)| name.clone()).collect()
    }

    /// Whether a chain has just these rules.
    pub(super) fn has(&self, chain: &Chain) -> bool {
        self.chains.get(&chain.name).is_some_and(|found| {
            found.rules.len() == chain.rules.len()
                && chain
                    .rules
                    .iter()
                    .zip(&found.rules)
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

//! What an agent that starts makes of a table that is there: whatever can be kept keeps its numbers, so that only
//! differences are written. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::entry::{Class, Entry};
use super::layout::Purpose;
use super::number::{DROP, EXTERNAL, FIRST_CLASS, FIRST_POOL, ID, RESTRICTED, mark_of, of_class, upper};
use super::pool::{Slot, Slots};
use super::state::{Change, ClassInUse, Full, Restriction, State, Written};
use crate::model::{Action, ForwardingTable, Frontend, FrontendKey, IpPort, PoolKey};

/// The table's elements, by what they are.
#[derive(Debug, Default)]
pub(super) struct Found {
    frontends: HashMap<FrontendKey, u32>,
    pools: HashMap<u32, u16>,
    classes: HashMap<u16, Class>,
    endpoints: HashMap<u32, BTreeMap<u32, IpPort>>,
    stable: HashMap<(u32, u32), u32>,
    members: HashMap<u32, IpPort>,
    outside: HashMap<u32, u32>,
    restricted: HashMap<u32, u32>,
    sources: HashMap<u32, Vec<ipnet::IpNet>>,
    /// How many elements pools have in `stable`, and in `members`.
    counts: HashMap<u32, [usize; 2]>,
    /// All numbers of pools that appear anywhere.
    ids: BTreeSet<u32>,
    /// All of them.
    entries: HashSet<Entry>,
}

impl Found {
    pub(super) fn add(&mut self, entry: Entry) {
        self.entries.insert(entry);
        match entry {
            Entry::Frontend(key, number) => {
                self.frontends.insert(key, number);
            }
            Entry::Pool(id, number) => {
                self.ids.insert(id);
                if number & ID == id {
                    self.pools.insert(id, upper(number));
                }
            }
            Entry::Class(number, class) => {
                self.classes.insert(number, class);
            }
            Entry::Endpoint(pool, slot, endpoint) => {
                self.ids.insert(pool);
                self.endpoints.entry(pool).or_default().insert(slot, endpoint);
            }
            Entry::Stable(pool, slot, member) => {
                self.ids.insert(pool);
                self.counts.entry(pool).or_default()[0] += 1;
                self.stable.insert((pool, slot), member);
            }
            Entry::Member(member, endpoint) => {
                self.ids.insert(member & ID);
                self.counts.entry(member & ID).or_default()[1] += 1;
                self.members.insert(member, endpoint);
            }
            Entry::Outside(id, outside) => {
                self.outside.insert(id, outside);
            }
            Entry::Restricted(number, behind) => {
                self.restricted.insert(number, behind);
            }
            Entry::Source(number, range) => self.sources.entry(number).or_default().push(range),
            Entry::Mark(id, _) => {
                self.ids.insert(id);
            }
            Entry::ClusterIp(_) | Entry::NodeAddress(_) | Entry::Hairpin(_) | Entry::Vip(_) => (),
        }
    }

    /// The state of a table, made of what was found, and what is to be written for it.
    pub(super) fn become_table(self, table: &ForwardingTable, empty: State) -> Result<(State, Change), Full> {
        let missing = State::fixed(empty.layout.purpose)
            .iter()
            .copied()
            .filter(|entry| !self.entries.contains(entry));
        let missing: Vec<_> = missing.collect();
        let (mut state, strays) = self.adopt(table, empty);
        let mut change = state.become_table(table)?;
        change.stages.switch_in.extend(missing);
        change.stages.remove_strays(strays);
        Ok((state, change))
    }

    /// The state that this is, as far as `table` still has a use for it, and the elements that are in no state: they
    /// are to go. What the chains of a class have is not looked at here.
    fn adopt(mut self, table: &ForwardingTable, mut state: State) -> (State, Vec<Entry>) {
        let family = state.layout.family;
        let mut by_class: HashMap<Class, ClassInUse> = HashMap::new();
        for (&number, &class) in self.classes.iter().filter(|(number, _)| **number >= FIRST_CLASS) {
            by_class.entry(class).or_insert(ClassInUse { number, pools: 0 });
        }
        state.classes = by_class;
        let mut taken = HashSet::new();
        for (key, frontend) in table.frontends().filter(|(key, _)| key.family == family) {
            let Some(&number) = self.frontends.get(key) else {
                continue;
            };
            for (pool, id) in self.pools_of(number, frontend) {
                if !state.pools.contains_key(pool)
                    && id >= FIRST_POOL
                    && let Some(slots) = self.slots(id, &state)
                    && taken.insert(id)
                {
                    if let Some(known) = slots.class().and_then(|class| state.classes.get_mut(&class)) {
                        known.pools += 1;
                    }
                    state.pools.insert(pool.clone(), slots);
                }
            }
        }
        let mut restrictions = HashSet::new();
        for (key, &number) in &self.frontends {
            // Of a restriction that is not whole, or that two frontends have, what is left goes with the strays.
            let behind = self.restricted.get(&number).copied();
            let behind = behind.filter(|_| number & RESTRICTED != 0 && restrictions.insert(number));
            let restriction = behind.map(|behind| {
                let mut sources = self.sources.get(&number).cloned().unwrap_or_default();
                sources.sort_unstable();
                Box::new(Restriction { behind, sources })
            });
            let effective = behind.unwrap_or(number);
            let mut outside = 0;
            if effective & EXTERNAL != 0 {
                // Counted as it would be had this agent written it.
                outside = self.outside.get(&(effective & ID)).copied().unwrap_or(DROP);
                state.outside.add(effective & ID, outside);
            }
            self.ids.extend([effective & ID, outside & ID]);
            let written = Written {
                number,
                outside,
                restriction,
            };
            state.adopt_frontend(*key, written);
        }
        state.outside.adopt(std::mem::take(&mut self.outside));
        let mut hairpins = HashMap::new();
        let (mut marks, mut vips) = (HashMap::new(), HashMap::new());
        for entry in &self.entries {
            match entry {
                Entry::Mark(id, mark) if *mark == mark_of(family, *id) => {
                    marks.insert(*id, ());
                }
                Entry::Vip(ip) => {
                    vips.insert(*ip, ());
                }
                Entry::Hairpin(ip) => {
                    hairpins.insert(*ip, ());
                }
                Entry::ClusterIp(ip) => {
                    state.cluster_ips.insert(*ip);
                }
                Entry::NodeAddress(ip) => {
                    state.node_addresses.insert(*ip);
                }
                _ => (),
            }
        }
        state.hairpins.adopt(hairpins);
        state.marks.adopt(marks);
        state.vips.adopt(vips);
        state.idle = state
            .classes
            .iter()
            .filter(|(_, known)| known.pools == 0)
            .map(|(class, _)| (*class, 0))
            .collect();

        let sorted = |ids: HashSet<u32>| {
            let mut ids: Vec<u32> = ids.into_iter().collect();
            ids.sort_unstable();
            ids
        };
        // Numbers of what is to go are not handed out before it has gone.
        let pools = self.ids.iter().copied().filter(|id| *id >= FIRST_POOL);
        state.pool_ids.adopt(&sorted(pools.collect()));
        let classes = self.classes.keys().filter(|number| **number >= FIRST_CLASS);
        state
            .class_ids
            .adopt(&sorted(classes.map(|number| u32::from(*number)).collect()));
        let restrictions = self
            .restricted
            .keys()
            .chain(self.sources.keys())
            .map(|number| number & ID);
        state.restriction_ids.adopt(&sorted(restrictions.collect()));

        for entry in state.entries() {
            self.entries.remove(&entry);
        }
        (state, self.entries.into_iter().collect())
    }

    /// The pools that a frontend uses, each with the number that it has in the kernel.
    fn pools_of<'a>(&self, number: u32, frontend: &'a Frontend) -> Vec<(&'a PoolKey, u32)> {
        let number = if number & RESTRICTED != 0 {
            self.restricted.get(&number).copied().unwrap_or_default()
        } else {
            number
        };
        let is_external = number & EXTERNAL != 0;
        match &frontend.action {
            Action::Balance { pool, .. } if !is_external => vec![(pool, number & ID)],
            Action::External { inside, outside } if is_external => {
                let other = self.outside.get(&(number & ID)).copied();
                let other = outside.as_ref().zip(other);
                std::iter::once((inside, number & ID)).chain(other).collect()
            }
            _ => Vec::new(),
        }
    }

    /// A pool's slots, if they are in order and of a class that is. IPVS has them otherwise.
    fn slots(&self, id: u32, state: &State) -> Option<Slots> {
        if state.layout.purpose == Purpose::Admit {
            return Some(Slots::new(id));
        }
        let class = self.classes.get(self.pools.get(&id)?)?;
        let known = state.classes.get(class)?;
        if of_class(known.number, id) != of_class(*self.pools.get(&id)?, id) {
            return None;
        }
        let endpoints = self.endpoints.get(&id)?;
        let affinity = match class {
            Class::Sticky(_, seconds) => Some(*seconds),
            _ => None,
        };
        let mut slots = Vec::with_capacity(endpoints.len());
        for (expected, (&at, &endpoint)) in endpoints.iter().enumerate() {
            if usize::try_from(at) != Ok(expected) {
                return None;
            }
            let member = match affinity {
                None => None,
                Some(_) => {
                    let member = *self.stable.get(&(id, at))?;
                    (member & ID == id && self.members.get(&member) == Some(&endpoint)).then_some(())?;
                    Some(upper(member))
                }
            };
            slots.push(Slot { endpoint, member });
        }
        // What a change that was not finished left behind would be in the way of the next one.
        let members: HashSet<_> = slots.iter().filter_map(|slot| slot.member).collect();
        let remembered = if affinity.is_some() { slots.len() } else { 0 };
        if self.counts.get(&id).copied().unwrap_or_default() != [remembered, members.len()] {
            return None;
        }
        let slots = Slots::read(id, affinity, &slots);
        (slots.class() == Some(*class)).then_some(slots)
    }
}

#[cfg(test)]
mod tests;

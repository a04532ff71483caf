//! A pool's slots: which endpoint is at which, so that a change moves as few as possible. An endpoint has as many as
//! its share says. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::entry::{Class, Entry};
use super::number::{LAST_MEMBER, of_class, of_member};
use crate::model::{IpPort, Pool, PoolEndpoint};

/// What the kernel has of a pool. Small: the endpoints are the model's, and slots say which of them they have.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    /// Its number in the maps.
    pub(super) id: u32,
    pool: Arc<Pool>,
    /// The place of each slot's endpoint in `pool`.
    places: Box<[u32]>,
    /// The member of each slot; empty without affinity.
    members: Box<[Option<u16>]>,
    /// How many seconds clients keep their endpoint.
    affinity: Option<u32>,
    /// Where the search for a free member begins, so that one that is gone is given away as late as possible.
    next_member: u16,
}

/// What a slot has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) endpoint: IpPort,
    /// With affinity, the endpoint's member: the same in all of its slots, so that who is remembered stays whatever
    /// becomes of them.
    pub(super) member: Option<u16>,
}

/// What is written for a change of a pool, by when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stages {
    /// The kernel has nothing yet: what it is to have is not noted here, which would hold a large table twice.
    pub(super) all: bool,
    /// First: nothing leads to these yet.
    pub(super) grow: Vec<Entry>,
    /// Then, at once: what a packet may meet changes from the old to the new.
    pub(super) switch_out: Vec<Entry>,
    pub(super) switch_in: Vec<Entry>,
    /// Last: nothing leads to these any more.
    pub(super) shrink: Vec<Entry>,
}

impl Stages {
    /// Takes in elements that were found and are nobody's. One in the place of an element that is written goes at once
    /// with it.
    pub(super) fn remove_strays(&mut self, strays: Vec<Entry>) {
        if strays.is_empty() {
            return;
        }
        let place = |entry: &Entry| (entry.map(), entry.key());
        let strays: HashMap<_, _> = strays.iter().map(|entry| (place(entry), *entry)).collect();
        let (taken, free): (Vec<_>, Vec<_>) = std::mem::take(&mut self.grow)
            .into_iter()
            .partition(|entry| strays.contains_key(&place(entry)));
        self.grow = free;
        self.switch_in.extend(taken);
        let written: HashSet<_> = self.switch_in.iter().map(place).collect();
        for (place, stray) in strays {
            if written.contains(&place) {
                self.switch_out.push(stray);
            } else {
                self.shrink.push(stray);
            }
        }
    }

    /// Elements that others will lead to.
    pub(super) fn grow(&mut self, entries: impl IntoIterator<Item = Entry>) {
        if !self.all {
            self.grow.extend(entries);
        }
    }

    /// An element whose value changes.
    pub(super) fn switch(&mut self, before: Option<Entry>, after: Option<Entry>) {
        if before != after && !self.all {
            self.switch_out.extend(before);
            self.switch_in.extend(after);
        }
    }

    /// An element that something else leads to: added before and removed after.
    pub(super) fn support(&mut self, before: Option<Entry>, after: Option<Entry>) {
        match (before, after) {
            (None, Some(after)) => self.grow([after]),
            (Some(before), None) => self.shrink.push(before),
            _ => self.switch(before, after),
        }
    }
}

impl Slots {
    pub(super) fn new(id: u32) -> Self {
        Self::read(id, None, &[])
    }

    /// All slots, in their order.
    pub(super) fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        let places = self.places.iter().enumerate();
        places.filter_map(|(at, place)| {
            Some(Slot {
                endpoint: self.pool.endpoints.get(*place as usize)?.address,
                member: self.members.get(at).copied().flatten(),
            })
        })
    }

    /// The addresses of endpoints on this node.
    pub(super) fn local(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let local = self.pool.endpoints.iter().filter(|endpoint| endpoint.local);
        local.map(|endpoint| endpoint.address.ip())
    }

    /// Takes in what the model has of a pool that IPVS picks from: nothing is in slots.
    pub(super) fn hold(&mut self, pool: Arc<Pool>) {
        self.affinity = pool.affinity;
        self.pool = pool;
    }

    /// Whether clients keep their endpoint.
    pub(super) fn has_affinity(&self) -> bool {
        self.affinity.is_some()
    }

    /// How a packet of the pool picks; none while it has no slot.
    pub(super) fn class(&self) -> Option<Class> {
        let slots = u32::try_from(self.places.len()).ok().filter(|slots| *slots > 0)?;
        Some(match self.affinity {
            Some(seconds) => Class::Sticky(slots, seconds),
            None => Class::Pick(slots),
        })
    }

    /// Takes in what the model has, or that the pool is gone, and notes what is to be written. Endpoints that stay keep
    /// their slots, as many as they still have a right to, unless they are behind the end.
    pub(super) fn change(&mut self, pool: Option<&Arc<Pool>>, stages: &mut Stages) {
        let before: Vec<Slot> = self.slots().collect();
        let had_affinity = self.affinity.is_some();
        let wanted: &[_] = pool.map(|pool| pool.endpoints.as_ref()).unwrap_or_default();
        let mut known: HashMap<IpPort, u16> = before
            .iter()
            .filter_map(|slot| Some((slot.endpoint, slot.member?)))
            .collect();
        // More endpoints than there are members, those counted that go now: clients are not remembered.
        let new = wanted.iter().filter(|it| !known.contains_key(&it.address));
        let has_room = new.count() + known.len() <= usize::from(LAST_MEMBER);
        self.affinity = pool.and_then(|pool| pool.affinity).filter(|_| has_room);
        let keeps_members = self.affinity.is_some();
        let mut missing: HashMap<IpPort, u8> = wanted.iter().map(|it| (it.address, it.share)).collect();
        let count = wanted.iter().map(|it| usize::from(it.share)).sum();
        let mut slots: Vec<Option<IpPort>> = vec![None; count];
        for (place, slot) in slots.iter_mut().zip(&before) {
            if let Some(missing) = missing.get_mut(&slot.endpoint).filter(|missing| **missing > 0) {
                *missing -= 1;
                *place = Some(slot.endpoint);
            }
        }
        let homeless = wanted.iter().flat_map(|it| {
            let missing = missing.get(&it.address).copied().unwrap_or_default();
            std::iter::repeat_n(it.address, missing.into())
        });
        let mut homeless = homeless.collect::<Vec<_>>().into_iter();
        let slots = slots
            .into_iter()
            .filter_map(|slot| slot.or_else(|| homeless.next()));
        let mut used: Vec<bool> = Vec::new();
        if keeps_members {
            used = vec![false; usize::from(LAST_MEMBER) + 1];
            for member in before.iter().filter_map(|slot| slot.member) {
                if let Some(used) = used.get_mut(usize::from(member)) {
                    *used = true;
                }
            }
        }
        let endpoints: Vec<IpPort> = slots.collect();
        let mut slots = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            let member = if keeps_members {
                let member = known.get(&endpoint).copied();
                let member = member.or_else(|| self.free_member(&mut used));
                member.inspect(|member| {
                    known.insert(endpoint, *member);
                })
            } else {
                None
            };
            slots.push(Slot { endpoint, member });
        }
        self.have(pool.map_or_else(none, Arc::clone), &slots);
        self.write(&before, &slots, had_affinity, stages);
    }

    /// Remembers the slots, whose endpoints are the pool's.
    fn have(&mut self, pool: Arc<Pool>, slots: &[Slot]) {
        let place = |slot: &Slot| {
            let place = pool
                .endpoints
                .binary_search_by_key(&slot.endpoint, |it| it.address);
            place.ok().and_then(|place| u32::try_from(place).ok())
        };
        self.places = slots.iter().filter_map(place).collect();
        let members = slots.iter().map(|slot| slot.member);
        self.members = match members.clone().all(|member| member.is_none()) {
            true => Box::default(),
            false => members.collect(),
        };
        self.pool = pool;
    }

    /// A member that no endpoint has. Those of endpoints that go in this very change count as taken.
    fn free_member(&mut self, used: &mut [bool]) -> Option<u16> {
        for _ in 0..used.len() {
            let member = self.next_member;
            self.next_member = if member >= LAST_MEMBER { 0 } else { member + 1 };
            if let Some(taken) = used.get_mut(usize::from(member))
                && !*taken
            {
                *taken = true;
                return Some(member);
            }
        }
        None
    }

    /// Notes what differs from the slots before.
    fn write(&self, before: &[Slot], after: &[Slot], had_affinity: bool, stages: &mut Stages) {
        let id = self.id;
        let count = after.len().max(before.len());
        for at in 0..count {
            let number = u32::try_from(at).unwrap_or(u32::MAX);
            let (old, new) = (before.get(at), after.get(at));
            let endpoint = |slot: &Slot| Entry::Endpoint(id, number, slot.endpoint);
            let stable = |slot: &Slot| Some(Entry::Stable(id, number, of_member(slot.member?, id)));
            stages.support(old.map(endpoint), new.map(endpoint));
            stages.support(old.and_then(stable), new.and_then(stable));
        }
        if !had_affinity && self.affinity.is_none() {
            return;
        }
        let members = |slots: &[Slot]| -> HashMap<u16, IpPort> {
            let members = slots
                .iter()
                .filter_map(|slot| Some((slot.member?, slot.endpoint)));
            members.collect()
        };
        let (old, new) = (members(before), members(after));
        let member = |(member, endpoint): (&u16, &IpPort)| Entry::Member(of_member(*member, id), *endpoint);
        let added = new
            .iter()
            .filter(|(member, _)| !old.contains_key(member))
            .map(member);
        stages.grow(added);
        // A client must not be led to an endpoint that is gone: its member goes with the switch.
        let gone = old
            .iter()
            .filter(|(member, _)| !new.contains_key(member))
            .map(member);
        stages.switch_out.extend(gone);
    }

    /// The pool's own element: how packets pick, where its class has this number.
    pub(super) fn entry(&self, class: u16) -> Entry {
        Entry::Pool(self.id, of_class(class, self.id))
    }

    /// The elements of its endpoints.
    pub(super) fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        let id = self.id;
        let slots = self.slots().enumerate();
        let mut told = HashSet::new();
        slots.flat_map(move |(at, slot)| {
            let at = u32::try_from(at).unwrap_or(u32::MAX);
            let member = slot.member.map(|member| of_member(member, id));
            let endpoint = Entry::Endpoint(id, at, slot.endpoint);
            let stable = member.map(|member| Entry::Stable(id, at, member));
            let member = member.filter(|member| told.insert(*member));
            let member = member.map(|member| Entry::Member(member, slot.endpoint));
            std::iter::once(endpoint).chain(stable).chain(member)
        })
    }

    /// A pool as it was read from the kernel.
    pub(super) fn read(id: u32, affinity: Option<u32>, slots: &[Slot]) -> Self {
        let last = slots.iter().filter_map(|slot| slot.member).max();
        let mut this = Self {
            id,
            pool: none(),
            places: Box::default(),
            members: Box::default(),
            affinity,
            next_member: last.map_or(0, |last| if last >= LAST_MEMBER { 0 } else { last + 1 }),
        };
        let endpoints: BTreeSet<IpPort> = slots.iter().map(|slot| slot.endpoint).collect();
        let endpoint = |address| PoolEndpoint {
            address,
            local: false,
            share: 1,
        };
        let pool = Pool {
            endpoints: endpoints.into_iter().map(endpoint).collect(),
            affinity,
            scheduler: None,
            unit: 1,
            draining: Box::default(),
        };
        this.have(Arc::new(pool), slots);
        this
    }
}

/// A pool without endpoints.
fn none() -> Arc<Pool> {
    Arc::new(Pool {
        endpoints: Box::default(),
        affinity: None,
        scheduler: None,
        unit: 1,
        draining: Box::default(),
    })
}

#[cfg(test)]
mod tests;

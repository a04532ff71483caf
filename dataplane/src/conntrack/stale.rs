//! Which entries are stale: what frontends allow, against where connections go. Pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::entry::Entry;
use crate::model::{Destination, Family, FrontendKey, IpPort, Pool, Protocol};

/// Where connections to a frontend may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// To an endpoint of these pools, or one of theirs that terminates and still serves, and nowhere else: a datagram
    /// that is not translated went astray before the frontend had endpoints.
    Pools([Option<Arc<Pool>>; 2]),
    /// Nowhere: the frontend refuses or drops. What is not translated is none of a proxy's business.
    Nobody,
    /// Nowhere: the frontend is gone. If NodePorts answer on its address, the one of the same number has its packets.
    Gone,
    /// To whatever still exists, in whatever condition; sorted.
    Existing(Arc<[IpPort]>),
    /// Anywhere.
    Anybody,
}

impl Allowed {
    fn fits(&self, entry: &Entry) -> bool {
        let target = entry.reply.source;
        match self {
            Self::Pools(pools) => pools.iter().flatten().any(|pool| has(pool, target)),
            Self::Nobody | Self::Gone => !entry.is_translated(),
            Self::Existing(addresses) => !entry.is_translated() || addresses.binary_search(&target).is_ok(),
            Self::Anybody => true,
        }
    }

    /// Whether everything that `before` allowed is allowed: then nothing has become stale.
    pub(super) fn covers(&self, before: &Self) -> bool {
        match (self, before) {
            (Self::Anybody, _) | (Self::Nobody | Self::Gone, Self::Nobody | Self::Gone) => true,
            (Self::Pools(now), Self::Pools(before)) => before.iter().flatten().all(|before| {
                now.iter().flatten().any(|now| Arc::ptr_eq(now, before))
                    || (before.endpoints.iter().map(|endpoint| endpoint.address))
                        .chain(before.draining.iter().copied())
                        .all(|address| now.iter().flatten().any(|now| has(now, address)))
            }),
            (Self::Existing(now), Self::Existing(before)) => {
                before.iter().all(|address| now.binary_search(address).is_ok())
            }
            _ => false,
        }
    }
}

/// Both lists of a pool are sorted by address.
fn has(pool: &Pool, address: IpPort) -> bool {
    let endpoints = &pool.endpoints;
    endpoints
        .binary_search_by_key(&address, |endpoint| endpoint.address)
        .is_ok()
        || pool.draining.binary_search(&address).is_ok()
}

/// A frontend that is to be compared with the entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) allowed: Allowed,
    /// Whether there may be stale entries. Otherwise nobody has to look, but who looks anyway must know it.
    pub(super) suspect: bool,
}

/// What is known of destinations that no frontend has any more, in one family, when all frontends are compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rest {
    /// Ranges that ClusterIPs are allocated from.
    pub service_cidrs: Vec<IpNet>,
    /// Ranges that the policy leaves alone.
    pub exclude_cidrs: Vec<IpNet>,
    /// Endpoints of Services that are none of ours: another proxy may forward to them.
    pub foreign: HashSet<IpAddr>,
}

/// Frontends whose entries are to be looked at, as they are now or, when they are gone, were.
///
/// An entry is compared with the frontend that its original destination has. All others are left alone, and so is
/// every entry outside of the default zone: bridges and other software that use zones track the same packets there for
/// themselves, before or after translation, and none of our rules leads packets into a zone. An administrator's rule
/// may (`CT --zone`); stale entries of such packets end by their timeouts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Review {
    pub(super) subjects: HashMap<FrontendKey, Subject>,
    /// Addresses of the node that NodePorts answer on, and ones where they do so no more (false).
    pub(super) node_addresses: BTreeMap<IpAddr, bool>,
    pub(super) rest: BTreeMap<Family, Rest>,
}

impl Review {
    /// Whether an entry stands in the way of what the frontends say now.
    #[must_use]
    pub fn is_stale(&self, entry: &Entry) -> bool {
        if entry.zone != 0 {
            return false;
        }
        match self.find(entry) {
            Some((subject, true)) => !subject.allowed.fits(entry),
            // Gone, for this address. TCP connections of frontends that are gone go on.
            Some((_, false)) => entry.protocol == Protocol::Udp && entry.is_translated(),
            None => self.is_orphan(entry),
        }
    }

    /// The frontend that an entry's original destination has, and whether it still answers on that address.
    fn find(&self, entry: &Entry) -> Option<(&Subject, bool)> {
        let (key, answers) = self.key(entry)?;
        self.subjects.get(&key).map(|subject| (subject, answers))
    }

    fn key(&self, entry: &Entry) -> Option<(FrontendKey, bool)> {
        let destination = entry.original.destination;
        let key = |at| FrontendKey {
            family: entry.family(),
            destination: at,
            protocol: entry.protocol,
            port: destination.port(),
        };
        let by_address = key(Destination::Address(destination.ip()));
        let own = self.subjects.get(&by_address);
        if own.is_some_and(|subject| subject.allowed != Allowed::Gone) {
            return Some((by_address, true));
        }
        let by_port = key(Destination::NodePort);
        match self.node_addresses.get(&destination.ip()) {
            Some(answers) if self.subjects.contains_key(&by_port) => Some((by_port, *answers)),
            _ => own.map(|_| (by_address, true)),
        }
    }

    /// Whether a Service that is gone left this entry behind, as far as that can be told when all frontends are known
    /// and this is none of theirs: the destination is a ClusterIP, and somebody translated it. Not to an endpoint of a
    /// Service that another proxy may look after.
    fn is_orphan(&self, entry: &Entry) -> bool {
        let within = |ranges: &[IpNet]| {
            ranges
                .iter()
                .any(|range| range.contains(&entry.original.destination.ip()))
        };
        entry.protocol == Protocol::Udp
            && entry.is_translated()
            && self.rest.get(&entry.family()).is_some_and(|rest| {
                within(&rest.service_cidrs)
                    && !within(&rest.exclude_cidrs)
                    && !rest.foreign.contains(&entry.reply.source.ip())
            })
    }

    /// Whether an entry that was stale by what was known before is stale by this as well, as far as it speaks of it.
    /// If not, it is to be looked at again: whoever knows it to be good now may not be the last to speak.
    pub(super) fn confirms(&mut self, entry: &Entry) -> bool {
        let Some((key, _)) = self.key(entry) else {
            // All frontends are known, and this is none of theirs any more.
            let all = self.rest.contains_key(&entry.family());
            return !all || (entry.protocol == Protocol::Udp && entry.is_translated());
        };
        let stale = self.is_stale(entry);
        if let Some(subject) = self.subjects.get_mut(&key) {
            subject.suspect |= !stale;
        }
        stale
    }

    /// Whether there may be stale entries.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        !self.rest.is_empty() || self.subjects.values().any(|subject| subject.suspect)
    }

    /// The families and protocols in which there may be stale entries.
    #[must_use]
    pub fn scope(&self) -> BTreeMap<Family, Vec<Protocol>> {
        let mut scope: BTreeMap<Family, Vec<Protocol>> = BTreeMap::new();
        let whole = self.rest.keys().map(|family| (*family, Protocol::Udp));
        let suspects = self.subjects.iter().filter(|(_, subject)| subject.suspect);
        for (family, protocol) in whole.chain(suspects.map(|(key, _)| (key.family, key.protocol))) {
            let protocols = scope.entry(family).or_default();
            if !protocols.contains(&protocol) {
                protocols.push(protocol);
            }
        }
        scope
    }

    /// Puts a frontend in, in place of what was known of it.
    pub(super) fn put(&mut self, key: FrontendKey, mut subject: Subject) {
        subject.suspect |= self.subjects.get(&key).is_some_and(|before| before.suspect);
        self.subjects.insert(key, subject);
    }

    /// Adds what is known later.
    pub(super) fn merge(&mut self, newer: Self) {
        for (key, subject) in newer.subjects {
            self.put(key, subject);
        }
        self.node_addresses.extend(newer.node_addresses);
        self.rest.extend(newer.rest);
    }

    /// Takes out what it says of one family.
    pub(super) fn take_family(&mut self, family: Family) -> Self {
        let mut taken = Self {
            subjects: self.subjects.extract_if(|key, _| key.family == family).collect(),
            ..Self::default()
        };
        self.node_addresses.retain(|address, answers| {
            let of_family = Family::of(*address) == family;
            if of_family {
                taken.node_addresses.insert(*address, *answers);
            }
            !of_family
        });
        taken.rest = self.rest.remove_entry(&family).into_iter().collect();
        taken
    }
}

#[cfg(test)]
mod tests;

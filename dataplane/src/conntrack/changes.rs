//! What a change of the table means for entries: which frontends to compare them with.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
};

use super::stale::{Allowed, Rest, Review, Subject};
use crate::model::{
    Destination, Diff, Family, ForwardingTable, Frontend, FrontendKey, Pool, PoolKey, PortKey, Protocol,
};

impl Review {
    /// The frontends that `diff` changed, up to `table`, which already contains it. `answered` are the addresses that
    /// NodePorts answered on before, in each family. The cost follows the diff; when the addresses of NodePorts changed,
    /// which compiles every Service anew, it follows the table.
    #[must_use]
    pub fn of_changes(
        table: &ForwardingTable,
        diff: &Diff,
        answered: &BTreeMap<Family, Vec<IpAddr>>,
    ) -> Self {
        let mut review = Self::default();
        let now = View {
            table,
            diff,
            before: false,
        };
        let before = View { before: true, ..now };
        let resets = table.context().settings.reset_removed || diff.context;
        for (key, change) in &diff.frontends {
            match key.protocol {
                Protocol::Udp => {
                    let (was, is) = (change.before.as_ref(), change.after.as_ref());
                    review.compare(*key, &before.udp(was), now.udp(is));
                }
                // Who has the key now says what exists; nothing has gone by that.
                Protocol::Tcp if resets => {
                    let allowed = now.tcp(key, change.after.as_ref());
                    let suspect = false;
                    review.put(*key, Subject { allowed, suspect });
                }
                // As in kube-proxy, nothing is done about SCTP: its peers notice by themselves.
                Protocol::Tcp | Protocol::Sctp => {}
            }
        }
        let changed = diff
            .pools
            .keys()
            .filter(|pool| pool.owner.protocol == Protocol::Udp);
        for pool in changed {
            for (key, frontend) in table.frontends_of(&pool.owner.service) {
                let uses = frontend.action.pools().any(|used| used == pool);
                if uses && !review.subjects.contains_key(key) {
                    review.compare(*key, &before.udp(Some(frontend)), now.udp(Some(frontend)));
                }
            }
        }
        for (port, change) in &diff.existing {
            // A port that was unknown is new, unless it is the setting that is new.
            let was = match (&change.before, diff.context) {
                (Some(addresses), _) => Allowed::Existing(Arc::clone(addresses)),
                (None, true) => Allowed::Anybody,
                (None, false) => Allowed::Existing(Arc::default()),
            };
            for (key, frontend) in table.frontends_of(&port.owner.service) {
                if key.family == port.family && frontend.owner == port.owner {
                    review.compare(*key, &was, now.tcp(key, Some(frontend)));
                }
            }
        }
        for family in Family::ALL {
            let answering = table.context().node_port_addresses(family);
            let known = answered.get(&family).map(Vec::as_slice).unwrap_or_default();
            review.node_ports(now, family, known, &answering);
        }
        review
    }

    /// All frontends of a family, and what can be told of those that are gone without anybody having seen it.
    /// `foreign` are the endpoints of Services that are none of ours.
    #[must_use]
    pub fn of_all(table: &ForwardingTable, family: Family, foreign: HashSet<IpAddr>) -> Self {
        let diff = Diff::default();
        let now = View {
            table,
            diff: &diff,
            before: false,
        };
        let mut review = Self::default();
        for (key, frontend) in table.frontends().filter(|(key, _)| key.family == family) {
            let allowed = match key.protocol {
                Protocol::Udp => now.udp(Some(frontend)),
                Protocol::Tcp => match now.tcp(key, Some(frontend)) {
                    Allowed::Anybody => continue,
                    allowed => allowed,
                },
                Protocol::Sctp => continue,
            };
            review.put(
                *key,
                Subject {
                    allowed,
                    suspect: true,
                },
            );
        }
        let answering = table.context().node_port_addresses(family);
        review.node_addresses = answering.into_iter().map(|address| (address, true)).collect();
        let context = table.context();
        let rest = Rest {
            service_cidrs: context.service_cidrs.clone(),
            exclude_cidrs: context.settings.exclude_cidrs.clone(),
            foreign,
        };
        review.rest.insert(family, rest);
        review
    }

    fn compare(&mut self, key: FrontendKey, before: &Allowed, allowed: Allowed) {
        let suspect = !allowed.covers(before);
        self.put(key, Subject { allowed, suspect });
    }

    /// Adds what NodePorts need: the addresses that they answer on, or did, and who comes before or after them. A
    /// frontend with an address of its own comes before a NodePort on the same address and port.
    fn node_ports(&mut self, now: View<'_>, family: Family, answered: &[IpAddr], answering: &[IpAddr]) {
        let table = now.table;
        let addresses = answered.iter().chain(answering);
        let addresses: BTreeSet<IpAddr> = addresses.copied().collect();
        let mut needed = answered != answering;
        if needed {
            let all = table.frontends().filter(|(key, _)| {
                let concerned = match key.destination {
                    Destination::NodePort => true,
                    Destination::Address(address) => addresses.contains(&address),
                };
                key.family == family && key.protocol == Protocol::Udp && concerned
            });
            for (key, frontend) in all {
                let allowed = now.udp(Some(frontend));
                let suspect = true;
                self.put(*key, Subject { allowed, suspect });
            }
        }
        let of_family = self.subjects.keys().filter(|key| key.family == family);
        for key in of_family.copied().collect::<Vec<_>>() {
            match key.destination {
                Destination::NodePort => {
                    needed = true;
                    for &address in &addresses {
                        let own = FrontendKey {
                            destination: Destination::Address(address),
                            ..key
                        };
                        let frontend = table.frontend(&own);
                        if frontend.is_some() && !self.subjects.contains_key(&own) {
                            let allowed = now.of(&own, frontend);
                            let suspect = false;
                            self.put(own, Subject { allowed, suspect });
                        }
                    }
                }
                Destination::Address(address) => {
                    if addresses.contains(&address) && table.frontend(&key).is_none() {
                        needed = true;
                        let port = FrontendKey {
                            destination: Destination::NodePort,
                            ..key
                        };
                        let (allowed, suspect) = (now.of(&port, table.frontend(&port)), true);
                        self.put(port, Subject { allowed, suspect });
                    } else if addresses.contains(&address) && now.is_new(&key) {
                        // Until now the NodePort had the packets.
                        let suspect = true;
                        let allowed = now.of(&key, table.frontend(&key));
                        self.put(key, Subject { allowed, suspect });
                    }
                }
            }
        }
        if needed {
            let known = addresses.into_iter();
            self.node_addresses
                .extend(known.map(|address| (address, answering.contains(&address))));
        }
    }
}

/// The table as it is, or as it was before a diff.
#[derive(Clone, Copy)]
struct View<'a> {
    table: &'a ForwardingTable,
    diff: &'a Diff,
    before: bool,
}

impl View<'_> {
    fn pool(&self, key: &PoolKey) -> Option<Arc<Pool>> {
        match self.diff.pools.get(key) {
            Some(change) if self.before => change.before.clone(),
            _ => self.table.pool(key).cloned(),
        }
    }

    fn is_new(&self, key: &FrontendKey) -> bool {
        self.diff
            .frontends
            .get(key)
            .is_some_and(|change| change.before.is_none())
    }

    fn of(&self, key: &FrontendKey, frontend: Option<&Frontend>) -> Allowed {
        match key.protocol {
            Protocol::Udp => self.udp(frontend),
            Protocol::Tcp => self.tcp(key, frontend),
            Protocol::Sctp => Allowed::Anybody,
        }
    }

    fn udp(&self, frontend: Option<&Frontend>) -> Allowed {
        let Some(frontend) = frontend else {
            return Allowed::Gone;
        };
        let mut pools = frontend.action.pools().map(|key| self.pool(key));
        match [pools.next().flatten(), pools.next().flatten()] {
            [None, None] => Allowed::Nobody,
            pools => Allowed::Pools(pools),
        }
    }

    fn tcp(&self, key: &FrontendKey, frontend: Option<&Frontend>) -> Allowed {
        let owner = frontend.map(|frontend| PortKey {
            owner: Arc::clone(&frontend.owner),
            family: key.family,
        });
        let existing = owner.and_then(|owner| self.table.existing(&owner));
        existing.map_or(Allowed::Anybody, |addresses| {
            Allowed::Existing(Arc::clone(addresses))
        })
    }
}

#[cfg(test)]
mod tests;

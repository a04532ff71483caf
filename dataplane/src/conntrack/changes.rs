//! What a change of the table means for entries: which frontends to compare them with.

use std::{
    collections::{BTreeMap, HashSet},
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
            review.node_ports(table, family, known, &answering);
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

    /// Adds what NodePorts need: the addresses that they answer on, and, where a frontend with an address of its own
    /// comes before a NodePort on the same address and port, or did so until now, what holds there.
    fn node_ports(
        &mut self,
        table: &ForwardingTable,
        family: Family,
        answered: &[IpAddr],
        answering: &[IpAddr],
    ) {
        let now = View {
            table,
            diff: &Diff::default(),
            before: false,
        };
        if answered != answering {
            let gone = answered.iter().filter(|address| !answering.contains(address));
            self.node_addresses.extend(gone.map(|address| (*address, false)));
            let all = table.frontends().filter(|(key, _)| {
                key.family == family
                    && key.destination == Destination::NodePort
                    && key.protocol == Protocol::Udp
            });
            for (key, frontend) in all {
                let allowed = now.udp(Some(frontend));
                self.put(
                    *key,
                    Subject {
                        allowed,
                        suspect: true,
                    },
                );
            }
        }
        let keys: Vec<_> = self
            .subjects
            .keys()
            .filter(|key| key.family == family)
            .copied()
            .collect();
        for key in keys {
            match key.destination {
                Destination::NodePort => {
                    self.node_addresses
                        .extend(answering.iter().map(|address| (*address, true)));
                    for &address in answering {
                        let shadow = FrontendKey {
                            destination: Destination::Address(address),
                            ..key
                        };
                        if let Some(frontend) = table
                            .frontend(&shadow)
                            .filter(|_| !self.subjects.contains_key(&shadow))
                        {
                            let allowed = now.of(&shadow, Some(frontend));
                            self.put(
                                shadow,
                                Subject {
                                    allowed,
                                    suspect: false,
                                },
                            );
                        }
                    }
                }
                Destination::Address(address) => {
                    let port = FrontendKey {
                        destination: Destination::NodePort,
                        ..key
                    };
                    let uncovered = table.frontend(&key).is_none() && answering.contains(&address);
                    if let Some(frontend) = table.frontend(&port).filter(|_| uncovered) {
                        let allowed = now.of(&port, Some(frontend));
                        self.put(
                            key,
                            Subject {
                                allowed,
                                suspect: true,
                            },
                        );
                    }
                }
            }
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

    fn of(&self, key: &FrontendKey, frontend: Option<&Frontend>) -> Allowed {
        match key.protocol {
            Protocol::Udp => self.udp(frontend),
            Protocol::Tcp => self.tcp(key, frontend),
            Protocol::Sctp => Allowed::Anybody,
        }
    }

    fn udp(&self, frontend: Option<&Frontend>) -> Allowed {
        let Some(frontend) = frontend else {
            return Allowed::Nobody;
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

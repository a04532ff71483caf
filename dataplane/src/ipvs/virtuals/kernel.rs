//! A kernel that has nothing but virtual services: what it refuses, and whom its connections are with.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use nix::errno::Errno;

use super::super::listing::Listed;
use super::super::options::{Options, is_ours};
use crate::model::SchedulerKind;
use crate::netlink::ipvs::{
    Command, Destination, DestinationState, Forwarding, ServiceKey, Statistics, VirtualService,
};

/// A destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct There {
    pub(super) weight: u32,
    pub(super) connections: u32,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Kernel {
    pub(super) services: BTreeMap<ServiceKey, (VirtualService, BTreeMap<SocketAddr, There>)>,
    /// Schedulers that it has not got.
    pub(super) missing: BTreeSet<SchedulerKind>,
}

impl Kernel {
    /// Does a command, or says what the kernel says (`ip_vs_genl_set_cmd`).
    pub(super) fn take(&mut self, command: Command) -> Result<(), Errno> {
        match command {
            Command::NewService(service) => {
                if self.services.contains_key(&service.key) {
                    return Err(Errno::EEXIST);
                }
                self.has_scheduler(&service)?;
                self.services.insert(service.key, (service, BTreeMap::new()));
            }
            Command::SetService(service) => {
                self.has_scheduler(&service)?;
                self.service(&service.key)?.0 = service;
            }
            Command::DeleteService(key) => {
                self.services.remove(&key).ok_or(Errno::ESRCH)?;
            }
            Command::NewDestination(key, destination) => {
                let there = There {
                    weight: destination.weight,
                    connections: 0,
                };
                let (_, all) = self.service(&key)?;
                if all.insert(destination.address, there).is_some() {
                    return Err(Errno::EEXIST);
                }
            }
            Command::SetDestination(key, destination) => {
                let (_, all) = self.service(&key)?;
                all.get_mut(&destination.address).ok_or(Errno::ENOENT)?.weight = destination.weight;
            }
            Command::DeleteDestination(key, address) => {
                let (_, all) = self.service(&key)?;
                all.remove(&address).ok_or(Errno::ENOENT)?;
            }
            Command::SetTimeouts(_) => {}
        }
        Ok(())
    }

    fn service(
        &mut self,
        key: &ServiceKey,
    ) -> Result<&mut (VirtualService, BTreeMap<SocketAddr, There>), Errno> {
        self.services.get_mut(key).ok_or(Errno::ESRCH)
    }

    fn has_scheduler(&self, service: &VirtualService) -> Result<(), Errno> {
        let kind: SchedulerKind = service.scheduler.as_str().parse().unwrap();
        // A module that is used cannot go.
        let is_used = self
            .services
            .values()
            .any(|(other, _)| other.scheduler == service.scheduler);
        match self.missing.contains(&kind) && !is_used {
            true => Err(Errno::ENOENT),
            false => Ok(()),
        }
    }

    /// What a service is, beside its destinations.
    pub(super) fn options(&self, key: &ServiceKey) -> Options {
        let (service, _) = self.services.get(key).unwrap();
        assert!(is_ours(service), "{service:?}");
        Options::read(service).unwrap()
    }

    /// Its destinations, as they are listed.
    pub(super) fn listed(&self, key: &ServiceKey) -> Vec<Listed> {
        let (_, all) = self.services.get(key).unwrap();
        let listed = all.iter().map(|(address, there)| Listed {
            address: *address,
            is_translated: true,
            weight: there.weight,
            connections: there.connections.into(),
        });
        listed.collect()
    }

    /// Its destinations, as netlink tells them.
    pub(super) fn states(&self, key: &ServiceKey) -> Vec<DestinationState> {
        let all = self.services.get(key).map(|(_, all)| all);
        let states = all
            .into_iter()
            .flatten()
            .map(|(address, there)| DestinationState {
                destination: Destination {
                    forwarding: Forwarding::Masquerade,
                    ..Destination::new(*address, there.weight)
                },
                active: there.connections,
                inactive: 0,
                persistent: 0,
                statistics: Statistics::default(),
            });
        states.collect()
    }

    /// Every destination that takes connections gets one; or all connections end.
    pub(super) fn connect(&mut self, begin: bool) {
        for there in self.services.values_mut().flat_map(|(_, all)| all.values_mut()) {
            match begin {
                true => there.connections += u32::from(there.weight > 0),
                false => there.connections = 0,
            }
        }
    }

    /// Whoever sends to this service gets to an endpoint, whatever the scheduler draws.
    pub(super) fn serves(&self, key: &ServiceKey) {
        let Some((_, all)) = self.services.get(key) else {
            panic!("{key} is not there");
        };
        assert!(
            all.values().any(|there| there.weight > 0),
            "{key} has nobody: {all:?}"
        );
        let scheduler = self.options(key).scheduler;
        let refuses = scheduler.kind.has_flags() && !scheduler.fallback;
        let refuses = refuses || scheduler.kind == SchedulerKind::DestinationHashing;
        assert!(
            !refuses || all.values().all(|there| there.weight > 0),
            "{key} refuses some clients, by {scheduler}: {all:?}"
        );
    }
}

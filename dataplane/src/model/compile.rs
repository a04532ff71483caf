//! One Service and its slices, turned into frontends and pools.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::context::Context;
use super::endpoints::{Candidates, Chosen, existing, impossible};
use super::frontend::{
    Action, Destination, Frontend, FrontendKey, FrontendKind, Masquerade, Pool, PoolKey, PortKey, TrafficSide,
};
use super::input::{EndpointSlice, Service, ServicePort, TrafficPolicy};
use super::names::{Family, IpPort, Protocol, ServiceName, ServicePortName};
use super::problem::Problem;

/// What a Service means on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// The Service.
    pub service: ServiceName,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// Its frontends; no key twice.
    pub frontends: Vec<(FrontendKey, Frontend)>,
    /// The pools that those use; none is empty, no key twice.
    pub pools: Vec<(PoolKey, Pool)>,
    /// The addresses that slices name for its TCP ports, in whatever condition, sorted: an endpoint that terminates
    /// leaves the pools, and its connections go on until it is gone from here. Only with
    /// [`super::Settings::reset_removed`].
    pub existing: Vec<(PortKey, Arc<[IpPort]>)>,
    /// Its ClusterIPs, those apart that the policy leaves alone. What is addressed to one of them and to no frontend
    /// is refused.
    pub cluster_ips: Vec<IpAddr>,
    /// What load balancers are told of this node, by family.
    pub health_checks: Vec<(Family, HealthCheck)>,
    /// Its ports that have endpoints, but none here that policy Local lets them use.
    pub without_local: Vec<(Family, TrafficSide)>,
    /// Whether clients are to go to the pods directly.
    pub direct_access: bool,
    /// What could not be used.
    pub problems: Vec<Problem>,
}

impl Compiled {
    /// A Service that means nothing, or is gone.
    #[must_use]
    pub fn nothing(service: ServiceName) -> Self {
        Self {
            service,
            ..Self::default()
        }
    }
}

/// What the server at a `healthCheckNodePort` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// `spec.healthCheckNodePort`.
    pub port: u16,
    /// The different addresses of this node's ready endpoints, those of all ports together. Ones that only serve while
    /// they terminate do not count: load balancers are to look elsewhere.
    pub local_endpoints: usize,
}

/// Turns a Service into what it means on this node. Pure; the order of `slices` does not matter.
///
/// Of the context only this counts: excluded ranges, `masqueradeAll`, `reset_removed`, the node's InternalIPs and its zone.
#[must_use]
pub fn compile<'a>(
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice> + Clone,
    context: &Context,
) -> Compiled {
    let mut compiled = Compiled {
        created: service.created,
        direct_access: service.direct_access,
        ..Compiled::nothing(service.name.clone())
    };
    let families = cluster_ips(service, &mut compiled.problems);
    report_wrong_families(service, &families, &mut compiled.problems);
    report_impossible_endpoints(&service.name, slices.clone(), &mut compiled.problems);
    let cluster_ips = families.values().copied();
    compiled.cluster_ips = cluster_ips.filter(|ip| !context.is_excluded(*ip)).collect();

    let mut local_ready: BTreeMap<Family, BTreeSet<IpAddr>> = BTreeMap::new();
    let mut seen = Vec::new();
    for port in &service.ports {
        if seen.contains(&(port.protocol, port.port)) {
            compiled.problems.push(Problem::DuplicatePort {
                service: service.name.clone(),
                port: port.port,
            });
            continue;
        }
        seen.push((port.protocol, port.port));
        let owner = Arc::new(ServicePortName {
            service: service.name.clone(),
            port: Arc::clone(&port.name),
            protocol: port.protocol,
        });
        for (&family, &cluster_ip) in &families {
            let candidates = if service.direct_access {
                Candidates::default()
            } else {
                Candidates::of(
                    &owner,
                    family,
                    slices.clone(),
                    &service.weights,
                    context.node.zone.as_deref(),
                )
            };
            local_ready
                .entry(family)
                .or_default()
                .extend(candidates.local_ready());
            let place = Place {
                service,
                port,
                owner: &owner,
                family,
                cluster_ip,
            };
            let before = compiled.frontends.len();
            place.compile(&candidates, context, &mut compiled);
            let leads_here = compiled.frontends.len() > before;
            if leads_here && context.settings.reset_removed && port.protocol == Protocol::Tcp {
                let key = PortKey {
                    owner: Arc::clone(&owner),
                    family,
                };
                let addresses = existing(&owner, family, slices.clone());
                compiled.existing.push((key, addresses));
            }
        }
    }
    if let Some(port) = service.health_check_port {
        let counts = local_ready.into_iter().map(|(family, addresses)| {
            let local_endpoints = addresses.len();
            (
                family,
                HealthCheck {
                    port,
                    local_endpoints,
                },
            )
        });
        compiled.health_checks = counts.collect();
    }
    compiled
}

/// One port of a Service in one family.
struct Place<'a> {
    service: &'a Service,
    port: &'a ServicePort,
    owner: &'a Arc<ServicePortName>,
    family: Family,
    cluster_ip: IpAddr,
}

impl Place<'_> {
    fn compile(&self, candidates: &Candidates, context: &Context, compiled: &mut Compiled) {
        let destinations = self.destinations(context);
        let (internal, external) = (self.service.internal_policy, self.service.external_policy);
        let has = |side| destinations.iter().any(|(.., kind)| kind.side() == side);
        let (is_internal, is_external) = (has(TrafficSide::Internal), has(TrafficSide::External));
        // Even with external policy Local what comes from this node goes to everybody.
        let uses_cluster = is_external || (is_internal && internal == TrafficPolicy::Cluster);
        let uses_local = (is_external && external == TrafficPolicy::Local)
            || (is_internal && internal == TrafficPolicy::Local);

        let mut pool = |policy, used: bool, endpoints: &dyn Fn() -> Chosen| {
            let (endpoints, unit) = if used { endpoints() } else { Chosen::default() };
            if endpoints.is_empty() {
                return None;
            }
            let key = self.pool(policy);
            let (affinity, scheduler) = (self.service.affinity, self.service.scheduler);
            // Two ports of one name, which a file can have, share it.
            if compiled.pools.iter().all(|(other, _)| *other != key) {
                let draining = match self.port.protocol {
                    Protocol::Udp => candidates.draining(policy, &endpoints),
                    // TCP connections go on by themselves.
                    Protocol::Tcp | Protocol::Sctp => Box::default(),
                };
                let pool = Pool {
                    endpoints,
                    unit,
                    affinity,
                    scheduler,
                    draining,
                };
                compiled.pools.push((key.clone(), pool));
            }
            Some(key)
        };
        let cluster = pool(TrafficPolicy::Cluster, uses_cluster, &|| candidates.cluster());
        let local = pool(TrafficPolicy::Local, uses_local, &|| candidates.local());

        for (destination, port, kind) in destinations {
            let key = FrontendKey {
                family: self.family,
                destination,
                protocol: self.port.protocol,
                port,
            };
            if compiled.frontends.iter().any(|(other, _)| *other == key) {
                continue;
            }
            let action = if candidates.is_empty() {
                Action::Reject
            } else if kind.side() == TrafficSide::Internal {
                let masquerade = if context.settings.masquerade_all {
                    Masquerade::Always
                } else {
                    Masquerade::NonLocal
                };
                balance(
                    if internal == TrafficPolicy::Local {
                        &local
                    } else {
                        &cluster
                    },
                    masquerade,
                )
            } else {
                match (external, &cluster) {
                    (TrafficPolicy::Local, Some(inside)) => Action::External {
                        inside: inside.clone(),
                        outside: local.clone(),
                    },
                    _ => balance(&cluster, Masquerade::Always),
                }
            };
            let restricted = kind == FrontendKind::LoadBalancerIP && action != Action::Reject;
            let sources = if restricted { self.sources(context) } else { None };
            let owner = Arc::clone(self.owner);
            compiled.frontends.push((
                key,
                Frontend {
                    owner,
                    kind,
                    action,
                    sources,
                },
            ));
        }

        if !candidates.is_empty() && local.is_none() {
            let sides = [
                (TrafficSide::Internal, is_internal, internal),
                (TrafficSide::External, is_external, external),
            ];
            let without = sides
                .iter()
                .filter(|(_, has, policy)| *has && *policy == TrafficPolicy::Local);
            compiled
                .without_local
                .extend(without.map(|(side, ..)| (self.family, *side)));
        }
    }

    fn pool(&self, policy: TrafficPolicy) -> PoolKey {
        PoolKey {
            owner: Arc::clone(self.owner),
            family: self.family,
            policy,
        }
    }

    /// Every address and port number.
    fn destinations(&self, context: &Context) -> Vec<(Destination, u16, FrontendKind)> {
        let external = self
            .service
            .external_ips
            .iter()
            .map(|&address| (address, FrontendKind::ExternalIP));
        let balanced = self
            .service
            .load_balancer_ips
            .iter()
            .map(|&address| (address, FrontendKind::LoadBalancerIP));
        let mut found: Vec<_> = [(self.cluster_ip, FrontendKind::ClusterIP)]
            .into_iter()
            .chain(balanced)
            .chain(external)
            .filter(|(address, _)| Family::of(*address) == self.family && !context.is_excluded(*address))
            .map(|(address, kind)| (Destination::Address(address), self.port.port, kind))
            .collect();
        if let Some(number) = self.port.node_port {
            found.push((Destination::NodePort, number, FrontendKind::NodePort));
        }
        found
    }

    /// Who may use a load balancer IP. As kube-proxy has it, ranges of the other family restrict nobody of this one,
    /// and where the node itself may, so may the Service's load balancer IPs: on some platforms they are addresses of
    /// the node, and the source of what it sends to them.
    fn sources(&self, context: &Context) -> Option<Arc<[IpNet]>> {
        let all = self.service.source_ranges.as_ref()?;
        let mut ranges: Vec<IpNet> = all
            .iter()
            .filter(|range| Family::of(range.addr()) == self.family)
            .copied()
            .collect();
        if ranges.is_empty() && !all.is_empty() {
            return None;
        }
        let node = &context.node.internal_ips;
        let includes_node = node
            .iter()
            .any(|ip| ranges.iter().any(|range| range.contains(ip)));
        if includes_node {
            let own = self.service.load_balancer_ips.iter().copied();
            let own = own.filter(|address| Family::of(*address) == self.family);
            ranges.extend(own.map(IpNet::from));
        }
        ranges.sort_unstable();
        ranges.dedup();
        Some(ranges.into())
    }
}

/// Balances among a pool, where the policy has any endpoint in it.
fn balance(pool: &Option<PoolKey>, masquerade: Masquerade) -> Action {
    pool.clone()
        .map_or(Action::Drop, |pool| Action::Balance { pool, masquerade })
}

/// The Service's families, each with its ClusterIP.
fn cluster_ips(service: &Service, problems: &mut Vec<Problem>) -> BTreeMap<Family, IpAddr> {
    let mut families = BTreeMap::new();
    for &address in &service.cluster_ips {
        match families.entry(Family::of(address)) {
            Entry::Vacant(vacant) => {
                vacant.insert(address);
            }
            Entry::Occupied(_) => {
                problems.push(Problem::SecondClusterIp {
                    service: service.name.clone(),
                    address,
                });
            }
        }
    }
    families
}

fn report_wrong_families(
    service: &Service,
    families: &BTreeMap<Family, IpAddr>,
    problems: &mut Vec<Problem>,
) {
    for &address in service.external_ips.iter().chain(&service.load_balancer_ips) {
        let family = Family::of(address);
        if !families.contains_key(&family) {
            problems.push(Problem::WrongFamily {
                service: service.name.clone(),
                address,
                family,
            });
        }
    }
}

fn report_impossible_endpoints<'a>(
    service: &ServiceName,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    problems: &mut Vec<Problem>,
) {
    for slice in slices {
        for endpoint in &slice.endpoints {
            if let Some(why) = impossible(endpoint, slice.family) {
                problems.push(Problem::ImpossibleEndpoint {
                    service: service.clone(),
                    address: endpoint.address,
                    why,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! One Service and its slices, turned into frontends and pools.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use super::context::Context;
use super::frontend::{
    Action, Destination, Frontend, FrontendKey, FrontendKind, Masquerade, Pool, PoolEndpoint, PoolKey,
};
use super::input::{Endpoint, EndpointSlice, Service, ServicePort};
use super::names::{Family, ServiceName, ServicePortName};
use super::problem::Problem;

/// What a Service means on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// The Service.
    pub service: ServiceName,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// Its frontends; no key twice.
    pub frontends: Vec<(FrontendKey, Frontend)>,
    /// The pools that those use; none is empty.
    pub pools: Vec<(PoolKey, Pool)>,
    /// What could not be used.
    pub problems: Vec<Problem>,
}

/// Turns a Service into what it means on this node. Pure; the order of `slices` does not matter.
///
/// Of the context only what decides about frontends counts: excluded ranges and `masqueradeAll`.
#[must_use]
pub fn compile<'a>(
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice> + Clone,
    context: &Context,
) -> Compiled {
    let mut compiled = Compiled {
        service: service.name.clone(),
        created: service.created,
        frontends: Vec::new(),
        pools: Vec::new(),
        problems: Vec::new(),
    };
    let families = cluster_ips(service, &mut compiled.problems);
    report_wrong_families(service, &families, &mut compiled.problems);
    report_impossible_endpoints(&service.name, slices.clone(), &mut compiled.problems);

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
            let endpoints = pool(&owner, family, slices.clone());
            let key = PoolKey {
                owner: Arc::clone(&owner),
                family,
            };
            let has_endpoints = !endpoints.is_empty();
            for (destination, number, kind) in destinations(service, port, family, cluster_ip, context) {
                let masquerade = match kind {
                    FrontendKind::ClusterIP if !context.settings.masquerade_all => Masquerade::NonLocal,
                    _ => Masquerade::Always,
                };
                let action = if has_endpoints {
                    Action::Balance {
                        pool: key.clone(),
                        masquerade,
                    }
                } else {
                    Action::Reject
                };
                let at = FrontendKey {
                    family,
                    destination,
                    protocol: port.protocol,
                    port: number,
                };
                if compiled.frontends.iter().all(|(other, _)| *other != at) {
                    compiled.frontends.push((
                        at,
                        Frontend {
                            owner: Arc::clone(&owner),
                            kind,
                            action,
                        },
                    ));
                }
            }
            if has_endpoints {
                compiled.pools.push((key, Pool { endpoints }));
            }
        }
    }
    if compiled.frontends.is_empty() {
        compiled.pools.clear();
    }
    compiled
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

/// Every address and port number of one Service port in one family.
fn destinations(
    service: &Service,
    port: &ServicePort,
    family: Family,
    cluster_ip: IpAddr,
    context: &Context,
) -> Vec<(Destination, u16, FrontendKind)> {
    let external = service
        .external_ips
        .iter()
        .map(|&address| (address, FrontendKind::ExternalIP));
    let balanced = service
        .load_balancer_ips
        .iter()
        .map(|&address| (address, FrontendKind::LoadBalancerIP));
    let mut found: Vec<_> = [(cluster_ip, FrontendKind::ClusterIP)]
        .into_iter()
        .chain(balanced)
        .chain(external)
        .filter(|(address, _)| Family::of(*address) == family && !context.is_excluded(*address))
        .map(|(address, kind)| (Destination::Address(address), port.port, kind))
        .collect();
    if let Some(number) = port.node_port {
        found.push((Destination::NodePort, number, FrontendKind::NodePort));
    }
    found
}

/// The endpoints that get a Service port's connections: the ready ones; when there is none, those that still
/// serve while they terminate (KEP-1669).
fn pool<'a>(
    owner: &ServicePortName,
    family: Family,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> Box<[PoolEndpoint]> {
    // Keyed by address: while an endpoint moves from one slice to another both may have it.
    let mut ready = BTreeMap::new();
    let mut fallback = BTreeMap::new();
    for slice in slices.into_iter().filter(|slice| slice.family == family) {
        let named = slice
            .ports
            .iter()
            .filter(|p| p.name == owner.port && p.protocol == owner.protocol);
        for port in named {
            for endpoint in slice.endpoints.iter().filter(|e| impossible(e, family).is_none()) {
                let group = if endpoint.ready {
                    &mut ready
                } else if endpoint.serving && endpoint.terminating {
                    &mut fallback
                } else {
                    continue;
                };
                let local: &mut bool = group
                    .entry(SocketAddr::new(endpoint.address, port.port))
                    .or_insert(false);
                *local |= endpoint.local;
            }
        }
    }
    let chosen = if ready.is_empty() { fallback } else { ready };
    chosen
        .into_iter()
        .map(|(address, local)| PoolEndpoint { address, local })
        .collect()
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

/// Why this can be no endpoint, by the rules that the API server validates slices with
/// (`ValidateNonSpecialIP`) and the slice's own address type.
fn impossible(endpoint: &Endpoint, family: Family) -> Option<&'static str> {
    let address = endpoint.address;
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if Family::of(address) != family {
        Some("of another family than its slice's addressType")
    } else if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_loopback() {
        Some("a loopback address")
    } else if link_local {
        Some("a link-local address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else if address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        // The API server accepts it, and multicast as well (ValidateEndpointIP).
        Some("the broadcast address")
    } else {
        None
    }
}

#[cfg(test)]
mod tests;

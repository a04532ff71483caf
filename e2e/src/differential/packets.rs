//! What is asked of both sides after a step.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{
    random::Random,
    world::{
        EXTERNALS, Family, Kind, NODE_ITSELF, NODE_PORTS, PORTS, Place, Protocol, Service, VIPS, World,
        external, node, pod, vip, wire,
    },
};

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sender {
    /// A pod of the node that is no endpoint.
    Pod,
    /// A pod of the node that may be an endpoint.
    Endpoint(u8),
    /// The node itself.
    Node,
    /// A pod of the other node, by way of this one.
    Remote,
    /// An outside host, with its first address.
    Outside,
    /// Many outside hosts: every attempt comes from another address.
    Crowd,
}

impl Sender {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Pod,
        Self::Endpoint(0),
        Self::Endpoint(1),
        Self::Node,
        Self::Remote,
        Self::Outside,
        Self::Crowd,
    ];

    /// The source address of an attempt; none where the kernel chooses it.
    #[must_use]
    pub fn source(self, family: Family, attempt: usize) -> Option<IpAddr> {
        match self {
            Self::Pod | Self::Endpoint(_) | Self::Node => None,
            Self::Remote => Some(Place::Remote(0).address(family)),
            Self::Outside => Some(wire(family, FIRST_OUTSIDE)),
            Self::Crowd => {
                let number = u8::try_from(attempt % usize::from(CROWD)).unwrap_or(0);
                Some(wire(family, FIRST_OUTSIDE + number))
            }
        }
    }
}

/// The last byte of the outside host's first address.
pub const FIRST_OUTSIDE: u8 = 200;
/// How many addresses the outside host has.
pub const CROWD: u8 = 40;
/// The place of the node's second address on the wire.
pub const SECOND: u8 = 111;

/// One question: a sender and what it sends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Question {
    /// Who sends.
    pub sender: Sender,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// What it is sent to.
    pub target: SocketAddr,
}

/// How an address and port belong to a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// A ClusterIP.
    ClusterIp,
    /// An external IP.
    External,
    /// A load balancer IP that is the node's business.
    Ingress,
    /// A node port at the node's primary address.
    NodePort,
}

/// Who claims an address and port: the Services' slots and how, in no order of rank.
#[must_use]
pub fn claims(world: &World, protocol: Protocol, target: SocketAddr) -> Vec<(u8, Claim)> {
    let family = Family::of(target.ip());
    let mut found = Vec::new();
    for (&slot, service) in &world.services {
        if !service.is_forwarded() || !service.families.contains(&family) {
            continue;
        }
        for port in service.ports.iter().filter(|port| port.protocol == protocol) {
            if port.port == target.port() {
                found.extend(addresses(service, family, target.ip()).map(|claim| (slot, claim)));
            }
            if service.node_port(port) == Some(target.port()) && target.ip() == node(family, 1) {
                found.push((slot, Claim::NodePort));
            }
        }
    }
    found
}

/// How a Service has an address, whatever the port.
fn addresses(service: &Service, family: Family, address: IpAddr) -> impl Iterator<Item = Claim> {
    let cluster = (vip(family, service.vip) == address).then_some(Claim::ClusterIp);
    let is_it = move |number: &u8| external(family, *number) == address;
    let external = service.external.iter().any(is_it).then_some(Claim::External);
    let balanced = service.kind == Kind::LoadBalancer
        && service
            .ingress
            .iter()
            .any(|(number, mode)| *mode != Some("Proxy") && is_it(number));
    let ingress = balanced.then_some(Claim::Ingress);
    [cluster, external, ingress].into_iter().flatten()
}

/// The Service whose ClusterIP this is, among those that a proxy is to forward.
#[must_use]
pub fn owner_of_vip(world: &World, address: IpAddr) -> Option<u8> {
    let family = Family::of(address);
    let services = world.services.iter();
    services
        .filter(|(_, it)| it.is_forwarded() && it.families.contains(&family))
        .find(|(_, it)| vip(family, it.vip) == address)
        .map(|(&slot, _)| slot)
}

/// Whether a Service has this as an external or load balancer address, whatever the port.
#[must_use]
pub fn is_external(world: &World, address: IpAddr) -> bool {
    let family = Family::of(address);
    let mut services = world.services.values();
    services.any(|it| {
        let forwarded = it.is_forwarded() && it.families.contains(&family);
        forwarded && addresses(it, family, address).any(|claim| claim != Claim::ClusterIp)
    })
}

/// What to ask: mostly what some Service claims, sometimes what none does.
#[must_use]
pub fn questions(world: &World, count: usize, random: &mut Random) -> Vec<Question> {
    let all = targets();
    let (claimed, other): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|(protocol, target)| !claims(world, *protocol, *target).is_empty());
    let mut asked = Vec::new();
    for number in 0..count {
        let from = if number % 6 == 0 || claimed.is_empty() {
            &other
        } else {
            &claimed
        };
        let (Some((protocol, target)), Some(sender)) = (random.pick(from), random.pick(&Sender::ALL)) else {
            continue;
        };
        // Nobody but the node reaches its loopback.
        let sender = if target.ip().is_loopback() {
            Sender::Node
        } else {
            sender
        };
        asked.push(Question {
            sender,
            protocol,
            target,
        });
    }
    asked.sort_unstable();
    asked.dedup();
    asked
}

/// Every address and port that a Service could have, and what is beside them.
fn targets() -> Vec<(Protocol, SocketAddr)> {
    let mut found = Vec::new();
    for family in Family::ALL {
        let vips = VIPS.map(|number| vip(family, number));
        let externals = EXTERNALS.map(|number| external(family, number));
        let itself = external(family, NODE_ITSELF);
        let service_addresses: Vec<IpAddr> = vips.into_iter().chain(externals).chain([itself]).collect();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for &address in &service_addresses {
                found.extend(PORTS.map(|port| (protocol, SocketAddr::new(address, port))));
            }
            let loopback = match family {
                Family::V4 => IpAddr::from(Ipv4Addr::LOCALHOST),
                Family::V6 => Ipv6Addr::LOCALHOST.into(),
            };
            // The node's second address, its address on a pod's link, a Service's address: node ports are on none.
            let beside = [wire(family, SECOND), pod(family, 1, 1), loopback, vip(family, 1)];
            for address in [node(family, 1)].into_iter().chain(beside) {
                found.extend(NODE_PORTS.map(|port| (protocol, SocketAddr::new(address, port))));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::generate;

    fn world() -> World {
        let mut world = World::default();
        for number in 0..50 {
            let stages = generate::step(&world, &mut Random::of(5, number));
            world = stages.last().map(|stage| stage.world.clone()).unwrap_or_default();
        }
        world
    }

    #[test]
    fn most_questions_are_about_services() {
        let world = world();
        let asked = questions(&world, 60, &mut Random::new(1));
        let claimed = asked
            .iter()
            .filter(|it| !claims(&world, it.protocol, it.target).is_empty());
        assert!(claimed.count() * 2 > asked.len(), "{asked:?}");
        assert_eq!(asked, questions(&world, 60, &mut Random::new(1)));
    }

    #[test]
    fn a_port_of_a_service_is_claimed_where_it_is_and_nowhere_else() {
        let world = world();
        let (&slot, service) = world
            .services
            .iter()
            .find(|(_, it)| it.is_forwarded() && it.families.contains(&Family::V4))
            .unwrap();
        let port = &service.ports[0];
        let at = |port| SocketAddr::new(vip(Family::V4, service.vip), port);
        assert_eq!(
            claims(&world, port.protocol, at(port.port)),
            [(slot, Claim::ClusterIp)]
        );
        assert_eq!(claims(&world, port.protocol, at(1)), []);
        assert_eq!(owner_of_vip(&world, at(1).ip()), Some(slot));
        assert_eq!(owner_of_vip(&world, vip(Family::V4, 99)), None);
    }
}

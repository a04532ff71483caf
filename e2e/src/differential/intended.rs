//! The differences that are meant, all of them, each with its reason.

use std::collections::BTreeMap;

use super::{
    arena::{Detect, Setup},
    defects::IPVS,
    packets::{Claim, Question, SECOND, Sender, claims, owner_of_vip},
    seen::{Failure, Seen},
    world::{Endpoint, Family, Place, Port, Service, World, pod, wire},
};
use crate::{control_plane::SERVICE_CIDRS, peer::PeerMode};

/// A difference between both sides.
#[derive(Clone, Copy, Debug)]
pub struct Difference<'a> {
    /// What the API server held.
    pub world: &'a World,
    /// What was asked.
    pub question: Question,
    /// What Pointsman did.
    pub ours: &'a Seen,
    /// What kube-proxy did.
    pub theirs: &'a Seen,
    /// How both sides are set up.
    pub setup: Setup,
}

/// A kind of difference that is meant.
#[derive(Debug)]
pub struct Intended {
    /// A few words.
    pub name: &'static str,
    /// Why it is meant.
    pub reason: &'static str,
    pub(super) applies: fn(&Difference<'_>) -> bool,
}

/// All of them, beside what mode ipvs of kube-proxy is known for.
pub const INTENDED: &[Intended] = &[
    Intended {
        name: "undefined port of a ClusterIP",
        reason: "kube-proxy in iptables mode lets the packet go on to wherever the node's routes lead; Pointsman refuses it \
                 in every mode, as kube-proxy in nftables mode does, so that a client learns at once",
        applies: |it| {
            it.setup.peer == PeerMode::Iptables
                && owner_of_vip(it.world, it.question.target.ip()).is_some()
                && it.claims().is_empty()
                && it.ours.is_only(&Failure::Refused)
                && it.theirs.is_only(&Failure::Unreachable)
        },
    },
    Intended {
        name: "ClusterIP that no Service has",
        reason: "kube-proxy in iptables and ipvs mode lets the packet go on; Pointsman drops it in every mode, as kube-proxy in \
                 nftables mode does, where the cluster's ServiceCIDRs are known",
        applies: |it| {
            let target = it.question.target.ip();
            let ranges = SERVICE_CIDRS
                .iter()
                .filter_map(|range| range.parse::<ipnet::IpNet>().ok());
            it.setup.peer != PeerMode::Nftables
                && ranges.into_iter().any(|range| range.contains(&target))
                && owner_of_vip(it.world, target).is_none()
                && it.claims().is_empty()
                && it.ours.is_only(&Failure::Dropped)
                && it.theirs.is_only(&Failure::Unreachable)
        },
    },
    Intended {
        name: "the node itself to an external address without endpoints",
        reason: "kube-proxy in iptables mode refuses these in INPUT and FORWARD only, so that what the node sends goes \
                 out unrefused; Pointsman refuses it as it refuses everybody's, as kube-proxy in nftables mode does",
        applies: |it| {
            let claims = it.claims();
            it.setup.peer == PeerMode::Iptables
                && it.question.sender == Sender::Node
                && !claims.is_empty()
                && claims
                    .iter()
                    .all(|(_, claim)| matches!(claim, Claim::External | Claim::Ingress))
                && it.ours.is_only(&Failure::Refused)
                && it.theirs.is_only(&Failure::Unreachable)
        },
    },
    Intended {
        name: "address and port of several Services",
        reason: "who gets what several Services claim depends on the order of kube-proxy's rules, which follows names; \
                 Pointsman has an order that nobody can take an address over with: ClusterIP and node port, load \
                 balancer IP, external IP, then the older Service",
        applies: |it| {
            let mut slots: Vec<u8> = it.claims().iter().map(|(slot, _)| *slot).collect();
            slots.sort_unstable();
            slots.dedup();
            slots.len() > 1
        },
    },
    Intended {
        name: "source ranges of a load balancer IP that is an external IP as well",
        reason: "kube-proxy in iptables mode looks for external IPs first and then restricts nobody; Pointsman restricts, as \
                 kube-proxy in nftables mode does: what an owner closed stays closed",
        applies: |it| {
            let claims = it.claims();
            let restricted = |slot: &u8| {
                it.world
                    .services
                    .get(slot)
                    .is_some_and(|it| !it.ranges.is_empty())
            };
            it.setup.peer == PeerMode::Iptables
                && claims.iter().any(|(slot, claim)| {
                    *claim == Claim::Ingress && restricted(slot) && claims.contains(&(*slot, Claim::External))
                })
                && it.ours.failures.iter().eq([&Failure::Dropped])
                && it.ours.answers.is_subset(&it.theirs.answers)
                && it.theirs.failures.is_empty()
        },
    },
    Intended {
        name: "source ranges without endpoints",
        reason: "kube-proxy in nftables and ipvs mode drops whom the ranges leave out before it looks for endpoints; Pointsman refuses \
                 everybody, as kube-proxy in iptables mode does: nothing is there that ranges could guard",
        applies: |it| {
            let restricted = |slot: &u8| {
                it.world
                    .services
                    .get(slot)
                    .is_some_and(|it| !it.ranges.is_empty())
            };
            it.setup.peer != PeerMode::Iptables
                && it
                    .claims()
                    .iter()
                    .any(|(slot, claim)| *claim == Claim::Ingress && restricted(slot))
                && it.ours.is_only(&Failure::Refused)
                && it.theirs.answers.is_empty()
                && it.theirs.failures.contains(&Failure::Dropped)
        },
    },
    Intended {
        name: "a pod of another node to itself by way of this node",
        reason: "kube-proxy masquerades every endpoint that calls itself; Pointsman those of its own node, because a pod's \
                 traffic to Services is translated on its own node. It shows only where detectLocal calls other nodes' \
                 pods local and a route leads them through this node",
        applies: |it| {
            let itself = Place::Remote(0);
            it.setup.detect == Detect::Cluster
                && it.question.sender == Sender::Remote
                && it
                    .claimed_ports()
                    .any(|(slot, _)| it.has_endpoint(slot, |endpoint| endpoint.place == itself))
                && it.ours.failures.contains(&Failure::Dropped)
        },
    },
    Intended {
        name: "an endpoint without a node that calls itself",
        reason: "kube-proxy in nftables mode masquerades only endpoints whose nodeName is the node's when they call \
                 themselves, so that one without nodeName gets no answer; Pointsman, as kube-proxy in iptables mode, also \
                 those that no slice gives a node to: they may be here",
        applies: |it| {
            let itself = match it.question.sender {
                Sender::Endpoint(number) => Place::Local(number),
                Sender::Remote => Place::Remote(0),
                _ => return false,
            };
            it.setup.peer == PeerMode::Nftables
                && it.claimed_ports().any(|(slot, _)| {
                    it.has_endpoint(slot, |endpoint| endpoint.place == itself && !endpoint.named)
                })
                && it.ours.failures.is_empty()
                && it
                    .theirs
                    .failures
                    .iter()
                    .all(|failure| *failure == Failure::Dropped)
                && it.theirs.answers.is_subset(&it.ours.answers)
        },
    },
    Intended {
        name: "node port of policy Local beside the node port addresses",
        reason: "where no endpoint is on the node, kube-proxy in iptables mode drops at every address of the node, also at \
                 those that node ports do not answer on; Pointsman leaves these to whoever listens there",
        applies: |it| {
            it.setup.peer == PeerMode::Iptables
                && it.claims().is_empty()
                && it.is_beside_node_port(|service| service.external_local)
                && it.ours.is_only(&Failure::Refused)
                && it.theirs.is_only(&Failure::Dropped)
        },
    },
    Intended {
        name: "an endpoint that two slices tell different things of",
        reason: "kube-proxy believes one of them, by the order of a Go map where both or none terminate; to Pointsman what \
                 one of them says is true, so that an endpoint that moves between slices does not flap",
        applies: |it| {
            let mut ports = it.claimed_ports();
            ports.any(|(slot, name)| it.has_contradiction(slot, name))
        },
    },
];

impl Difference<'_> {
    pub(super) fn claims(&self) -> Vec<(u8, Claim)> {
        claims(self.world, self.question.protocol, self.question.target)
    }

    /// The ports of Services that have what was asked for.
    fn claimed_ports(&self) -> impl Iterator<Item = (u8, &'static str)> {
        let (protocol, target) = (self.question.protocol, self.question.target);
        self.claims().into_iter().filter_map(move |(slot, claim)| {
            let service = self.world.services.get(&slot)?;
            let has = |port: &&Port| {
                let number = match claim {
                    Claim::NodePort => service.node_port(port),
                    _ => Some(port.port),
                };
                port.protocol == protocol && number == Some(target.port())
            };
            Some((slot, service.ports.iter().find(has)?.name))
        })
    }

    /// Whether this is an address of the node that node ports do not answer on, and a port that is the node port of such
    /// a Service.
    fn is_beside_node_port(&self, such: impl Fn(&Service) -> bool) -> bool {
        let (family, target) = (self.family(), self.question.target);
        let beside =
            target.ip().is_loopback() || [wire(family, SECOND), pod(family, 1, 1)].contains(&target.ip());
        let has = |service: &Service| {
            let mut ports = service.ports.iter();
            ports.any(|port| {
                port.protocol == self.question.protocol && service.node_port(port) == Some(target.port())
            })
        };
        let mut services = self.world.services.values();
        let forwarded = |it: &Service| it.is_forwarded() && it.families.contains(&family);
        beside && services.any(|it| forwarded(it) && such(it) && has(it))
    }

    /// Whether a slice of a Service has such an endpoint.
    fn has_endpoint(&self, slot: u8, such: impl Fn(&Endpoint) -> bool) -> bool {
        let slices = self.world.slices.range((slot, 0)..=(slot, u8::MAX));
        let mut endpoints = slices.flat_map(|(_, slice)| &slice.endpoints);
        endpoints.any(such)
    }

    /// Whether two slices have an endpoint of a Service's port in common, and do not say the same of it.
    fn has_contradiction(&self, slot: u8, name: &str) -> bool {
        let mut said: BTreeMap<(Place, u16), &Endpoint> = BTreeMap::new();
        let slices = self.world.slices.range((slot, 0)..=(slot, u8::MAX));
        let slices = slices.filter(|(_, slice)| slice.family == self.family() && !slice.headless);
        let mut contradicts = false;
        for (_, slice) in slices {
            let protocol = self.question.protocol;
            let ports = slice
                .ports
                .iter()
                .filter(|port| (port.0, port.1) == (name, protocol));
            for (.., number) in ports {
                for endpoint in &slice.endpoints {
                    let before = said.insert((endpoint.place, *number), endpoint);
                    contradicts |= before.is_some_and(|before| before != endpoint);
                }
            }
        }
        contradicts
    }

    /// Which of the intended ones it is.
    #[must_use]
    pub fn intended(&self) -> Option<&'static Intended> {
        let mut all = INTENDED.iter().chain(IPVS);
        all.find(|it| (it.applies)(self))
    }

    /// The family of the packet.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.question.target.ip())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        IptablesVariant,
        differential::world::{Kind, Protocol, external, vip},
        traffic::Outcome,
    };

    fn world() -> World {
        let service = Service {
            kind: Kind::NodePort,
            families: vec![Family::V4],
            vip: 1,
            ports: vec![Port {
                name: "one",
                protocol: Protocol::Tcp,
                port: 80,
                node_port: Some(30001),
            }],
            external: vec![1],
            ingress: Vec::new(),
            affinity: None,
            internal_local: false,
            external_local: true,
            ranges: Vec::new(),
            label: None,
            publish_not_ready: false,
        };
        World {
            services: [(0, service)].into(),
            ..World::default()
        }
    }

    /// The name of the intended difference, if it is one.
    fn judge(
        sender: Sender,
        target: (std::net::IpAddr, u16),
        ours: Outcome,
        theirs: Outcome,
    ) -> Option<&'static str> {
        let seen = |outcome| {
            let mut seen = Seen::default();
            seen.add(&outcome, None);
            seen
        };
        let difference = Difference {
            world: &world(),
            question: Question {
                sender,
                protocol: Protocol::Tcp,
                target: target.into(),
            },
            ours: &seen(ours),
            theirs: &seen(theirs),
            setup: Setup::of(1, [PeerMode::Iptables; 2], IptablesVariant::Nft),
        };
        difference.intended().map(|it| it.name)
    }

    #[test]
    fn a_port_that_the_service_has_is_no_undefined_one() {
        let at = |port| (vip(Family::V4, 1), port);
        let refused = || (Outcome::Refused, Outcome::Unreachable);
        let (ours, theirs) = refused();
        let name = judge(Sender::Pod, at(81), ours, theirs);
        assert_eq!(name, Some("undefined port of a ClusterIP"));
        let (ours, theirs) = refused();
        assert_eq!(judge(Sender::Pod, at(80), ours, theirs), None);
        // The other way around nobody meant it.
        let (theirs, ours) = refused();
        assert_eq!(judge(Sender::Pod, at(81), ours, theirs), None);
    }

    #[test]
    fn only_the_node_may_go_past_a_refusal() {
        let at = (external(Family::V4, 1), 80);
        let by = |sender| judge(sender, at, Outcome::Refused, Outcome::Unreachable);
        assert!(by(Sender::Node).is_some());
        assert_eq!(by(Sender::Pod), None);
        assert_eq!(by(Sender::Outside), None);
    }

    #[test]
    fn node_ports_may_differ_beside_their_addresses_only() {
        let at = |address| judge(Sender::Pod, (address, 30001), Outcome::Refused, Outcome::TimedOut);
        assert!(at(wire(Family::V4, SECOND)).is_some());
        assert_eq!(at(super::super::world::node(Family::V4, 1)), None);
        let other = (wire(Family::V4, SECOND), 30002);
        assert_eq!(
            judge(Sender::Pod, other, Outcome::Refused, Outcome::TimedOut),
            None
        );
    }
}

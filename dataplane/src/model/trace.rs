//! What becomes of a packet, as the table has it: the model's answer to what a kernel does.

use std::net::IpAddr;

use super::context::LocalTraffic;
use super::frontend::{Action, Destination, FrontendKey, Masquerade, PoolEndpoint, PoolKey};
use super::names::{Family, IpPort, Protocol};
use super::table::ForwardingTable;

/// The first packet of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Who sent it.
    pub source: IpAddr,
    /// What it is addressed to.
    pub destination: IpAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its destination port.
    pub port: u16,
    /// How it got here.
    pub ingress: Ingress,
}

/// How a packet got to the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ingress {
    /// The node itself sent it.
    Host,
    /// It came in through the interface of this name.
    Interface(String),
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// One of these gets the connection, each with a chance by its share.
    Balance(Vec<Target>),
    /// It is refused.
    Reject,
    /// It is dropped.
    Drop,
    /// No frontend takes it: the kernel routes it as if there were no proxy.
    Pass,
}

/// Who may get a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The endpoint.
    pub address: IpPort,
    /// Whether it sees the node's address as the source.
    pub masqueraded: bool,
    /// How many connections it gets while one with share 1 gets one.
    pub share: u8,
}

impl ForwardingTable {
    /// What becomes of a packet.
    #[must_use]
    pub fn trace(&self, packet: &Packet) -> Verdict {
        let family = Family::of(packet.destination);
        let key = |destination| FrontendKey {
            family,
            destination,
            protocol: packet.protocol,
            port: packet.port,
        };
        let frontend = self
            .frontend(&key(Destination::Address(packet.destination)))
            .or_else(|| {
                let answers = self
                    .context()
                    .node_port_addresses(family)
                    .contains(&packet.destination);
                if answers {
                    self.frontend(&key(Destination::NodePort))
                } else {
                    None
                }
            });
        let Some(frontend) = frontend else {
            return if self.is_cluster_ip(packet.destination) {
                Verdict::Reject
            } else if self.context().is_service_address(packet.destination) {
                Verdict::Drop
            } else {
                Verdict::Pass
            };
        };
        if !frontend.allows(packet.source) {
            return Verdict::Drop;
        }
        match &frontend.action {
            Action::Reject => Verdict::Reject,
            Action::Drop => Verdict::Drop,
            Action::Balance { pool, masquerade } => {
                let all = match masquerade {
                    Masquerade::Always => true,
                    Masquerade::NonLocal => {
                        self.origin(packet) != Some(Origin::Pod) && self.tells_pods(family)
                    }
                };
                self.balance(pool, packet, all)
            }
            Action::External { inside, outside } => match (self.origin(packet), outside) {
                (Some(Origin::Host), _) => self.balance(inside, packet, true),
                (Some(Origin::Pod), _) => self.balance(inside, packet, false),
                (None, Some(outside)) => self.balance(outside, packet, false),
                (None, None) => Verdict::Drop,
            },
        }
    }

    fn balance(&self, pool: &PoolKey, packet: &Packet, masquerade: bool) -> Verdict {
        let endpoints = self
            .pool(pool)
            .map(|pool| pool.endpoints.as_ref())
            .unwrap_or_default();
        let target = |endpoint: &PoolEndpoint| Target {
            address: endpoint.address,
            masqueraded: masquerade || (endpoint.local && endpoint.address.ip() == packet.source),
            share: endpoint.share,
        };
        Verdict::Balance(endpoints.iter().map(target).collect())
    }

    /// Whether pods can be told from others at all.
    fn tells_pods(&self, family: Family) -> bool {
        self.context().local_traffic(family) != LocalTraffic::Unknown
    }

    /// Which part of this node a packet comes from; none for everybody else.
    fn origin(&self, packet: &Packet) -> Option<Origin> {
        let interface = match &packet.ingress {
            Ingress::Host => "",
            Ingress::Interface(name) => name,
        };
        let is_pod = match self.context().local_traffic(Family::of(packet.source)) {
            LocalTraffic::Unknown => false,
            LocalTraffic::From(ranges) => ranges.iter().any(|range| range.contains(&packet.source)),
            LocalTraffic::Interface(name) => interface == &*name,
            LocalTraffic::InterfacePrefix(prefix) => interface.starts_with(&*prefix),
        };
        if is_pod {
            Some(Origin::Pod)
        } else if packet.ingress == Ingress::Host {
            Some(Origin::Host)
        } else {
            None
        }
    }
}

/// A part of this node that packets come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Pod,
    Host,
}

#[cfg(test)]
mod tests;

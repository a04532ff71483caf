//! What becomes of a packet, as the table has it: the model's answer to what a kernel does.

use std::net::{IpAddr, SocketAddr};

use super::context::LocalTraffic;
use super::frontend::{Action, Destination, FrontendKey, Masquerade};
use super::names::{Family, Protocol};
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
    /// One of these gets the connection, all with the same chance.
    Balance(Vec<Target>),
    /// It is refused.
    Reject,
    /// No frontend takes it: the kernel routes it as if there were no proxy.
    Pass,
}

/// Who may get a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The endpoint.
    pub address: SocketAddr,
    /// Whether it sees the node's address as the source.
    pub masqueraded: bool,
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
            return Verdict::Pass;
        };
        match &frontend.action {
            Action::Reject => Verdict::Reject,
            Action::Balance { pool, masquerade } => {
                let all = match masquerade {
                    Masquerade::Never => false,
                    Masquerade::Always => true,
                    Masquerade::NonLocal => !self.is_local(packet),
                };
                let endpoints = self
                    .pool(pool)
                    .map(|pool| pool.endpoints.as_ref())
                    .unwrap_or_default();
                let target = |endpoint: &super::PoolEndpoint| Target {
                    address: endpoint.address,
                    masqueraded: all || (endpoint.local && endpoint.address.ip() == packet.source),
                };
                Verdict::Balance(endpoints.iter().map(target).collect())
            }
        }
    }

    /// Whether a packet counts as one of this node's pods'.
    fn is_local(&self, packet: &Packet) -> bool {
        let interface = match &packet.ingress {
            Ingress::Host => "",
            Ingress::Interface(name) => name,
        };
        match self.context().local_traffic(Family::of(packet.source)) {
            LocalTraffic::Unknown => true,
            LocalTraffic::From(ranges) => ranges.iter().any(|range| range.contains(&packet.source)),
            LocalTraffic::Interface(name) => interface == &*name,
            LocalTraffic::InterfacePrefix(prefix) => interface.starts_with(&*prefix),
        }
    }
}

#[cfg(test)]
mod tests;

//! The elements of our maps and sets: typed, and as bytes.
//!
//! Numbers that a packet's priority or a random choice is compared with are in the machine's byte order, addresses and
//! ports in the network's; each part of a key takes a multiple of four bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::model::{Destination, Family, FrontendKey, IpPort, Protocol};
use crate::netlink::expression::Verdict;
use crate::netlink::nftables::{Element, Value};

/// A set or map with elements that follow the Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Map {
    /// Address, protocol and port to a number.
    Frontends,
    /// Protocol and port to a number.
    NodePorts,
    /// Addresses whose other ports are refused.
    ClusterIps,
    /// The node's addresses that node ports answer on.
    NodeAddresses,
    /// A pool to its class and itself.
    Pools,
    /// Class to chain.
    Classes,
    /// A pool's endpoints by slot, from 0.
    Endpoints,
    /// The same for pools with affinity: the member that has the slot.
    Stable,
    /// Members of pools with affinity.
    Members,
    /// The pool for everybody outside, by the one for this node.
    Outside,
    /// A restriction's number for those who may.
    Restricted,
    /// A restriction's sources.
    Sources,
    /// A pool to the mark by which IPVS knows it.
    Marks,
    /// Addresses of Services that are the node's own one by one: their other ports are refused, too.
    Vips,
    /// Local endpoints, each as source and destination: those that call themselves through a Service.
    Hairpins,
}

/// An element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Entry {
    Frontend(FrontendKey, u32),
    ClusterIp(IpAddr),
    NodeAddress(IpAddr),
    Pool(u32, u32),
    Class(u16, Class),
    Endpoint(u32, u32, IpPort),
    Stable(u32, u32, u32),
    Member(u32, IpPort),
    Outside(u32, u32),
    Restricted(u32, u32),
    Source(u32, IpNet),
    Hairpin(IpAddr),
    Mark(u32, u32),
    Vip(IpAddr),
}

/// How an endpoint is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Class {
    /// Refused.
    Refuse,
    /// Dropped.
    Drop,
    /// One of so many slots.
    Pick(u32),
    /// One of so many slots, which the client keeps for so many seconds after its last new connection.
    Sticky(u32, u32),
}

impl Class {
    fn verdict(self) -> Verdict {
        match self {
            Self::Drop => Verdict::Drop,
            _ => Verdict::Goto(self.chain()),
        }
    }

    /// How long clients are remembered, where they are.
    pub(super) fn seconds(self) -> Option<u32> {
        match self {
            Self::Sticky(_, seconds) => Some(seconds),
            _ => None,
        }
    }

    /// The chain that packets of the class go to.
    pub(super) fn chain(self) -> String {
        match self {
            Self::Refuse => "refuse".to_owned(),
            Self::Drop => "drop".to_owned(),
            Self::Pick(slots) => format!("pick-{slots}"),
            Self::Sticky(slots, seconds) => format!("sticky-{slots}-{seconds}"),
        }
    }

    /// The class that has a chain of this name.
    pub(super) fn of_chain(name: &str) -> Option<Self> {
        let class = if name == "refuse" {
            Self::Refuse
        } else if let Some(slots) = name.strip_prefix("pick-") {
            Self::Pick(slots.parse().ok()?)
        } else {
            let (slots, seconds) = name.strip_prefix("sticky-")?.split_once('-')?;
            Self::Sticky(slots.parse().ok()?, seconds.parse().ok()?)
        };
        // "pick-+3" and "pick-03" are somebody else's.
        (class.chain() == name).then_some(class)
    }
}

impl Map {
    /// All of them, those before that others refer to.
    pub(super) const ALL: [Self; 15] = [
        Self::Endpoints,
        Self::Members,
        Self::Stable,
        Self::Hairpins,
        Self::Sources,
        Self::Marks,
        Self::Vips,
        Self::Classes,
        Self::Pools,
        Self::Outside,
        Self::Restricted,
        Self::NodeAddresses,
        Self::ClusterIps,
        Self::Frontends,
        Self::NodePorts,
    ];

    /// Whether a packet looks it up by what it is addressed to, not by what another one said.
    pub(super) fn is_first(self) -> bool {
        matches!(
            self,
            Self::NodeAddresses | Self::ClusterIps | Self::Vips | Self::Frontends | Self::NodePorts
        )
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Frontends => "frontends",
            Self::NodePorts => "node-ports",
            Self::ClusterIps => "cluster-ips",
            Self::NodeAddresses => "node-addresses",
            Self::Pools => "pools",
            Self::Classes => "classes",
            Self::Endpoints => "endpoints",
            Self::Stable => "stable",
            Self::Members => "members",
            Self::Outside => "outside",
            Self::Restricted => "restricted",
            Self::Sources => "sources",
            Self::Hairpins => "hairpins",
            Self::Marks => "marks",
            Self::Vips => "vips",
        }
    }
}

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn protocol_of(number: u8) -> Option<Protocol> {
    Some(match number {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        132 => Protocol::Sctp,
        _ => return None,
    })
}

fn put_address(bytes: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => bytes.extend(v4.octets()),
        IpAddr::V6(v6) => bytes.extend(v6.octets()),
    }
}

fn put_port(bytes: &mut Vec<u8>, port: u16) {
    bytes.extend(port.to_be_bytes());
    bytes.extend([0; 2]);
}

fn socket(address: IpPort) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(20);
    put_address(&mut bytes, address.ip());
    put_port(&mut bytes, address.port());
    bytes
}

impl Entry {
    /// The map that it is in.
    pub(super) fn map(&self) -> Map {
        match self {
            Self::Frontend(key, _) => match key.destination {
                Destination::Address(_) => Map::Frontends,
                Destination::NodePort => Map::NodePorts,
            },
            Self::ClusterIp(_) => Map::ClusterIps,
            Self::NodeAddress(_) => Map::NodeAddresses,
            Self::Pool(..) => Map::Pools,
            Self::Class(..) => Map::Classes,
            Self::Endpoint(..) => Map::Endpoints,
            Self::Stable(..) => Map::Stable,
            Self::Member(..) => Map::Members,
            Self::Outside(..) => Map::Outside,
            Self::Restricted(..) => Map::Restricted,
            Self::Source(..) => Map::Sources,
            Self::Hairpin(_) => Map::Hairpins,
            Self::Mark(..) => Map::Marks,
            Self::Vip(_) => Map::Vips,
        }
    }

    /// Whole, to be added.
    pub(super) fn element(&self) -> Element {
        let data = |number: u32| Some(Value::Data(number.to_ne_bytes().to_vec()));
        let value = match self {
            Self::Frontend(_, number)
            | Self::Pool(_, number)
            | Self::Stable(.., number)
            | Self::Outside(_, number)
            | Self::Restricted(_, number)
            | Self::Mark(_, number) => data(*number),
            Self::Class(_, class) => Some(Value::Verdict(class.verdict())),
            Self::Endpoint(.., address) | Self::Member(_, address) => Some(Value::Data(socket(*address))),
            Self::ClusterIp(_)
            | Self::NodeAddress(_)
            | Self::Source(..)
            | Self::Hairpin(_)
            | Self::Vip(_) => None,
        };
        Element { value, ..self.key() }
    }

    /// Its key, to be removed.
    pub(super) fn key(&self) -> Element {
        let mut key = Vec::with_capacity(24);
        let mut key_end = None;
        match self {
            Self::Frontend(frontend, _) => {
                if let Destination::Address(address) = frontend.destination {
                    put_address(&mut key, address);
                }
                key.extend([protocol_number(frontend.protocol), 0, 0, 0]);
                put_port(&mut key, frontend.port);
            }
            Self::ClusterIp(address) | Self::NodeAddress(address) | Self::Vip(address) => {
                put_address(&mut key, *address)
            }
            Self::Class(class, _) => key.extend((u32::from(*class) << 20).to_ne_bytes()),
            Self::Pool(number, _)
            | Self::Outside(number, _)
            | Self::Restricted(number, _)
            | Self::Member(number, _)
            | Self::Mark(number, _) => {
                key.extend(number.to_ne_bytes());
            }
            Self::Endpoint(pool, slot, _) | Self::Stable(pool, slot, _) => {
                key.extend(pool.to_ne_bytes());
                key.extend(slot.to_ne_bytes());
            }
            Self::Source(restriction, range) => {
                // Sets of intervals are ordered, so all parts are in network byte order.
                let mut end = restriction.to_be_bytes().to_vec();
                key.extend(&end);
                put_address(&mut key, range.network());
                put_address(&mut end, range.broadcast());
                key_end = Some(end);
            }
            Self::Hairpin(address) => {
                put_address(&mut key, *address);
                put_address(&mut key, *address);
            }
        }
        Element {
            key,
            key_end,
            value: None,
        }
    }

    /// What an element read from the kernel is; none when it is nothing that we write.
    pub(super) fn read(map: Map, family: Family, element: &Element) -> Option<Self> {
        let mut key = Bytes(&element.key);
        let number = || match &element.value {
            Some(Value::Data(bytes)) => Bytes(bytes).number(),
            _ => None,
        };
        let target = || match &element.value {
            Some(Value::Data(bytes)) => Bytes(bytes).socket(family),
            _ => None,
        };
        let entry = match map {
            Map::Frontends | Map::NodePorts => {
                let destination = match map {
                    Map::Frontends => Destination::Address(key.address(family)?),
                    _ => Destination::NodePort,
                };
                let protocol = protocol_of(*key.take(4)?.first()?)?;
                let port = key.port()?;
                let frontend = FrontendKey {
                    family,
                    destination,
                    protocol,
                    port,
                };
                Self::Frontend(frontend, number()?)
            }
            Map::ClusterIps => Self::ClusterIp(key.address(family)?),
            Map::NodeAddresses => Self::NodeAddress(key.address(family)?),
            Map::Pools => Self::Pool(key.number()?, number()?),
            Map::Classes => {
                let class = super::number::upper(key.number()?);
                match &element.value {
                    Some(Value::Verdict(Verdict::Drop)) => Self::Class(class, Class::Drop),
                    Some(Value::Verdict(Verdict::Goto(chain))) => Self::Class(class, Class::of_chain(chain)?),
                    _ => return None,
                }
            }
            Map::Endpoints => Self::Endpoint(key.number()?, key.number()?, target()?),
            Map::Stable => Self::Stable(key.number()?, key.number()?, number()?),
            Map::Members => Self::Member(key.number()?, target()?),
            Map::Outside => Self::Outside(key.number()?, number()?),
            Map::Restricted => Self::Restricted(key.number()?, number()?),
            Map::Sources => {
                let restriction = u32::from_be_bytes(key.take(4)?.try_into().ok()?);
                let first = key.address(family)?;
                let mut end = Bytes(element.key_end.as_deref().unwrap_or(&element.key));
                end.take(4)?;
                Self::Source(restriction, range(first, end.address(family)?)?)
            }
            Map::Hairpins => Self::Hairpin(key.address(family)?),
            Map::Vips => Self::Vip(key.address(family)?),
            Map::Marks => Self::Mark(key.number()?, number()?),
        };
        // What is not written in just this way is not ours.
        (entry.element().key == element.key).then_some(entry)
    }
}

/// The range that has these ends; none if no prefix has.
fn range(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let (bits, length) = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => (u128::from(first.to_bits() ^ last.to_bits()), 32),
        (IpAddr::V6(first), IpAddr::V6(last)) => (first.to_bits() ^ last.to_bits(), 128),
        _ => return None,
    };
    let host_bits = 128 - bits.leading_zeros();
    let range = IpNet::new(first, u8::try_from(length - host_bits).ok()?).ok()?;
    (range.network() == first && range.broadcast() == last).then_some(range)
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.take(4)?.try_into().ok()?))
    }

    fn port(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(4)?.get(..2)?.try_into().ok()?))
    }

    fn address(&mut self, family: Family) -> Option<IpAddr> {
        Some(match family {
            Family::V4 => Ipv4Addr::from(<[u8; 4]>::try_from(self.take(4)?).ok()?).into(),
            Family::V6 => Ipv6Addr::from(<[u8; 16]>::try_from(self.take(16)?).ok()?).into(),
        })
    }

    fn socket(&mut self, family: Family) -> Option<IpPort> {
        Some(IpPort::new(self.address(family)?, self.port()?))
    }
}

#[cfg(test)]
mod tests;

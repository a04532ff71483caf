//! One tracked connection, as ctnetlink tells it (`ctnetlink_fill_info`).

use std::net::{IpAddr, Ipv6Addr};

use crate::model::{Family, IpPort, Protocol};
use crate::netlink::attribute::{Attributes, Writer, array};

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;

const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_TUPLE_ZONE: u16 = 3;

const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;

const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Who sends.
    pub source: IpPort,
    /// To whom.
    pub destination: IpPort,
}

/// A tracked connection of a protocol with ports.
///
/// A packet of the original direction has the addresses of `original`, an answer those of `reply`. Where nothing is
/// translated, the one is the other turned round; `reply.source` is whom the connection really goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The protocol.
    pub protocol: Protocol,
    /// As the first packet came.
    pub original: Tuple,
    /// As its answers come.
    pub reply: Tuple,
    /// `enum ip_conntrack_status`; bits that nobody here reads.
    pub status: u32,
    /// The zone of the original direction; 0 unless rules or a bridge put the packet into another one.
    pub zone: u16,
    /// Tells this connection from a later one with the same addresses, unless that one took over its memory
    /// (`nf_ct_get_id`).
    pub id: u32,
}

impl Entry {
    /// The entry in a message's attributes; none when it is of another protocol, or cannot be read.
    #[must_use]
    pub fn parse<'a>(attributes: impl Iterator<Item = (u16, &'a [u8])>) -> Option<Self> {
        let (mut original, mut reply, mut id) = (None, None, None);
        let (mut status, mut zone) = (0, 0);
        for (kind, content) in attributes {
            match kind {
                CTA_TUPLE_ORIG => original = Some(Direction::parse(content)?),
                CTA_TUPLE_REPLY => reply = Some(Direction::parse(content)?),
                CTA_STATUS => status = u32::from_be_bytes(array(content, 0)?),
                CTA_ZONE => zone = u16::from_be_bytes(array(content, 0)?),
                CTA_ID => id = Some(u32::from_be_bytes(array(content, 0)?)),
                _ => {}
            }
        }
        let (original, reply) = (original?, reply?);
        Some(Self {
            protocol: original.protocol,
            original: original.tuple,
            reply: reply.tuple,
            status,
            // A zone that holds for one direction only is told with that direction.
            zone: original.zone.unwrap_or(zone),
            id: id?,
        })
    }

    /// The family of the original direction.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.original.destination.ip())
    }

    /// Whether the destination is translated.
    #[must_use]
    pub fn is_translated(&self) -> bool {
        self.reply.source != self.original.destination
    }

    /// Writes what names this very entry to the kernel: its addresses, zone and number.
    pub(super) fn write_name(&self, writer: &mut Writer) {
        writer.nested(CTA_TUPLE_ORIG, |tuple| {
            write_tuple(tuple, self.protocol, &self.original)
        });
        if self.zone != 0 {
            writer.put(CTA_ZONE, &self.zone.to_be_bytes());
        }
        writer.put_u32(CTA_ID, self.id);
    }
}

/// A protocol's number (IANA).
pub(super) fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn write_tuple(writer: &mut Writer, protocol: Protocol, tuple: &Tuple) {
    writer.nested(CTA_TUPLE_IP, |ip| {
        let ends = [
            (tuple.source, CTA_IP_V4_SRC, CTA_IP_V6_SRC),
            (tuple.destination, CTA_IP_V4_DST, CTA_IP_V6_DST),
        ];
        for (end, v4, v6) in ends {
            match end.ip() {
                IpAddr::V4(address) => ip.put(v4, &address.octets()),
                IpAddr::V6(address) => ip.put(v6, &address.octets()),
            }
        }
    });
    writer.nested(CTA_TUPLE_PROTO, |proto| {
        proto.put(CTA_PROTO_NUM, &[number(protocol)]);
        proto.put(CTA_PROTO_SRC_PORT, &tuple.source.port().to_be_bytes());
        proto.put(CTA_PROTO_DST_PORT, &tuple.destination.port().to_be_bytes());
    });
}

struct Direction {
    protocol: Protocol,
    tuple: Tuple,
    zone: Option<u16>,
}

impl Direction {
    fn parse(content: &[u8]) -> Option<Self> {
        let (mut source, mut destination, mut zone) = (None, None, None);
        let (mut protocol, mut source_port, mut destination_port) = (None, None, None);
        for (kind, content) in Attributes(content) {
            match kind {
                CTA_TUPLE_IP => {
                    for (kind, content) in Attributes(content) {
                        match kind {
                            CTA_IP_V4_SRC | CTA_IP_V6_SRC => source = Some(address(kind, content)?),
                            CTA_IP_V4_DST | CTA_IP_V6_DST => destination = Some(address(kind, content)?),
                            _ => {}
                        }
                    }
                }
                CTA_TUPLE_PROTO => {
                    for (kind, content) in Attributes(content) {
                        match kind {
                            CTA_PROTO_NUM => protocol = content.first().copied(),
                            CTA_PROTO_SRC_PORT => source_port = port(content),
                            CTA_PROTO_DST_PORT => destination_port = port(content),
                            _ => {}
                        }
                    }
                }
                CTA_TUPLE_ZONE => zone = port(content),
                _ => {}
            }
        }
        let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .into_iter()
            .find(|known| Some(number(*known)) == protocol)?;
        Some(Self {
            protocol,
            tuple: Tuple {
                source: IpPort::new(source?, source_port?),
                destination: IpPort::new(destination?, destination_port?),
            },
            zone,
        })
    }
}

fn address(kind: u16, content: &[u8]) -> Option<IpAddr> {
    match kind {
        CTA_IP_V4_SRC | CTA_IP_V4_DST => array::<4>(content, 0).map(IpAddr::from),
        _ => array::<16>(content, 0).map(|octets| Ipv6Addr::from(octets).into()),
    }
}

/// A number of two bytes, in network byte order as everything that ctnetlink tells.
fn port(content: &[u8]) -> Option<u16> {
    array(content, 0).map(u16::from_be_bytes)
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// Writes all of an entry, as the kernel tells it.
    pub(in super::super) fn write(entry: &Entry, writer: &mut Writer) {
        entry.write_name(writer);
        writer.nested(CTA_TUPLE_REPLY, |tuple| {
            write_tuple(tuple, entry.protocol, &entry.reply)
        });
        writer.put_u32(CTA_STATUS, entry.status);
    }

    /// A connection of 10.244.9.9:4000 to `to` that goes to `goes_to`.
    pub(in super::super) fn entry(protocol: Protocol, to: &str, goes_to: &str) -> Entry {
        let (to, goes_to): (IpPort, IpPort) = (to.parse().unwrap(), goes_to.parse().unwrap());
        let client = if to.ip().is_ipv4() {
            "10.244.9.9:4000"
        } else {
            "[fd00:9::9]:4000"
        };
        let client = client.parse().unwrap();
        Entry {
            protocol,
            original: Tuple {
                source: client,
                destination: to,
            },
            reply: Tuple {
                source: goes_to,
                destination: client,
            },
            status: 0x1a8,
            zone: 0,
            id: 7,
        }
    }
}

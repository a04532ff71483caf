//! The parts that rules are made of. Pure.

use std::net::IpAddr;

use ipnet::IpNet;

use super::entry::Map;
use crate::backend::MISSES;
use crate::model::{Family, LocalTraffic};
use crate::netlink::expression::{Base, Expression as E, Meta, Register, Verdict};
use crate::netlink::nftables::nfproto;

/// One rule.
pub(super) type Rule = Vec<E>;

/// Packets that are to be masqueraded, as kube-proxy marks them.
pub(super) const MARK: u32 = 0x4000;
/// Stands for a set of TCP, UDP and SCTP that belongs to its rule. nft takes a rule that translates ports only behind
/// such a match, so with it what it lists can be loaded again.
pub(super) const PROTOCOLS: &str = "__set%d";

/// Where a family's header has its addresses.
#[derive(Clone, Copy)]
pub(super) struct Header {
    pub(super) number: u8,
    pub(super) source: u8,
    pub(super) destination: u8,
    pub(super) length: u8,
    pub(super) unreachable: u8,
}

impl Header {
    pub(super) fn of(family: Family) -> Self {
        match family {
            Family::V4 => Self {
                number: nfproto(family),
                source: 12,
                destination: 16,
                length: 4,
                // ICMP_PORT_UNREACH.
                unreachable: 3,
            },
            Family::V6 => Self {
                number: nfproto(family),
                source: 8,
                destination: 24,
                length: 16,
                // ICMPV6_PORT_UNREACH.
                unreachable: 4,
            },
        }
    }

    pub(super) fn load_source(self, to: Register) -> E {
        load(Base::Network, self.source, self.length, to)
    }

    pub(super) fn load_destination(self, to: Register) -> E {
        load(Base::Network, self.destination, self.length, to)
    }
}

pub(super) fn load(base: Base, offset: u8, length: u8, to: Register) -> E {
    E::Payload {
        base,
        offset,
        length,
        to,
    }
}

pub(super) const R0: Register = Register(0);

pub(super) fn number(value: u32) -> Vec<u8> {
    value.to_ne_bytes().to_vec()
}

/// The packet's number, or the part of it under a mask, into a register.
pub(super) fn load_number(mask: u32, to: Register) -> Vec<E> {
    let mut rule = vec![E::MetaLoad(Meta::Priority, to)];
    if mask != u32::MAX {
        rule.push(E::Bitwise {
            at: to,
            mask: number(mask),
            xor: number(0),
        });
    }
    rule
}

pub(super) fn has_flag(flag: u32) -> Vec<E> {
    let mut rule = load_number(flag, R0);
    rule.push(E::Compare {
        at: R0,
        equal: true,
        value: number(flag),
    });
    rule
}

/// Adds a flag to the packet's number.
pub(super) fn set_flag(flag: u32) -> Vec<E> {
    change_number(!flag, flag)
}

/// Takes a flag from the packet's number.
pub(super) fn without_flag(flag: u32) -> Vec<E> {
    change_number(!flag, 0)
}

fn change_number(mask: u32, xor: u32) -> Vec<E> {
    vec![
        E::MetaLoad(Meta::Priority, R0),
        E::Bitwise {
            at: R0,
            mask: number(mask),
            xor: number(xor),
        },
        E::MetaSet(Meta::Priority, R0),
    ]
}

pub(super) fn mark() -> Vec<E> {
    vec![
        E::MetaLoad(Meta::Mark, R0),
        E::Bitwise {
            at: R0,
            mask: number(!MARK),
            xor: number(MARK),
        },
        E::MetaSet(Meta::Mark, R0),
    ]
}

pub(super) fn look_up(map: Map, key: Register, to: Option<Register>) -> E {
    E::Lookup {
        set: map.name().to_owned(),
        id: 0,
        key,
        to,
    }
}

/// Looks a number up by the packet's, and puts it in its place.
pub(super) fn replace_number(mask: u32, map: Map) -> Vec<E> {
    let mut rule = load_number(mask, R0);
    rule.push(look_up(map, R0, Some(R0)));
    rule.push(E::MetaSet(Meta::Priority, R0));
    rule
}

pub(super) fn goto(chain: &str) -> E {
    E::Verdict(Verdict::Goto(chain.to_owned()))
}

pub(super) fn jump(chain: &str) -> E {
    E::Verdict(Verdict::Jump(chain.to_owned()))
}

pub(super) fn back() -> E {
    E::Verdict(Verdict::Return)
}

pub(super) fn counted_drop() -> Rule {
    vec![E::Counter(MISSES.to_owned()), E::Verdict(Verdict::Drop)]
}

pub(super) fn is_forwarded_protocol() -> Vec<E> {
    vec![
        E::MetaLoad(Meta::Protocol, R0),
        E::Lookup {
            set: PROTOCOLS.to_owned(),
            id: 0,
            key: R0,
            to: None,
        },
    ]
}

pub(super) fn dnat(header: Header) -> E {
    E::Dnat {
        family: header.number,
        address: R0,
        port: R0.after(header.length),
    }
}

/// Matches an address at this offset; nothing for a range that has all.
pub(super) fn within(offset: u8, range: &IpNet) -> Vec<E> {
    let network = match range.network() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let bits = usize::from(range.prefix_len());
    if bits == 0 {
        return Vec::new();
    }
    let bytes = bits.div_ceil(8);
    let whole = bits.is_multiple_of(8);
    let length = if whole { bytes } else { network.len() };
    let mut rule = vec![load(Base::Network, offset, u8::try_from(length).unwrap_or(0), R0)];
    if !whole {
        let mask = match range.netmask() {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        rule.push(E::Bitwise {
            at: R0,
            xor: vec![0; mask.len()],
            mask,
        });
    }
    rule.push(E::Compare {
        at: R0,
        equal: true,
        value: network.get(..length).unwrap_or_default().to_vec(),
    });
    rule
}

/// Matches the interface that a packet comes in through.
pub(super) fn interface(name: &str, whole: bool) -> Vec<E> {
    let mut value = name.as_bytes().to_vec();
    if whole {
        // IFNAMSIZ.
        value.resize(16, 0);
    }
    vec![
        E::MetaLoad(Meta::InterfaceName, R0),
        E::Compare {
            at: R0,
            equal: true,
            value,
        },
    ]
}

/// For each way to tell a pod of this node the beginning of a rule that only its packets pass.
pub(super) fn pods(traffic: &LocalTraffic, header: Header) -> Vec<Rule> {
    match traffic {
        LocalTraffic::Unknown => Vec::new(),
        LocalTraffic::From(ranges) => ranges.iter().map(|range| within(header.source, range)).collect(),
        LocalTraffic::Interface(name) => vec![interface(name, true)],
        LocalTraffic::InterfacePrefix(prefix) => vec![interface(prefix, false)],
    }
}

pub(super) fn ending(rule: Rule, end: E) -> Rule {
    [rule, vec![end]].concat()
}

//! What the sets and maps are made as. Pure.

use super::entry::Map;
use super::words::Header;
use crate::model::Family;
use crate::netlink::nftables::{
    DATA_TYPE_VERDICT, SET_CONCAT, SET_EVAL, SET_INTERVAL, SET_MAP, SET_TIMEOUT, SetSpec,
};

/// Clients that are remembered for each timeout. The kernel makes half as many buckets at once, 8 bytes each.
const CLIENTS: u32 = 1 << 18;

/// nft's numbers for types (`enum datatypes`), six bits each in a key of several parts.
mod types {
    pub(super) const INTEGER: u32 = 4;
    pub(super) const IPV4: u32 = 7;
    pub(super) const IPV6: u32 = 8;
    pub(super) const PROTOCOL: u32 = 12;
    pub(super) const SERVICE: u32 = 13;
    pub(super) const MARK: u32 = 19;
    pub(super) const CLASSID: u32 = 23;
}

/// The set or map of this name.
pub(super) fn set(map: Map, family: Family) -> SetSpec {
    let header = Header::of(family);
    let (address, size) = (address_type(family), u32::from(header.length));
    let number = Some((types::CLASSID, 4));
    let target = Some((concat(&[address, types::SERVICE]), size + 4));
    let (key, length, data): (&[u32], u32, _) = match map {
        Map::Frontends => (&[address, types::PROTOCOL, types::SERVICE], size + 8, number),
        Map::NodePorts => (&[types::PROTOCOL, types::SERVICE], 8, number),
        Map::ClusterIps | Map::NodeAddresses | Map::Vips => (&[address], size, None),
        Map::Pools | Map::Outside | Map::Restricted => (&[types::CLASSID], 4, number),
        Map::Marks => (&[types::CLASSID], 4, Some((types::MARK, 4))),
        Map::Classes => (&[types::CLASSID], 4, Some((DATA_TYPE_VERDICT, 16))),
        Map::Endpoints => (&[types::CLASSID, types::INTEGER], 8, target),
        Map::Stable => (&[types::CLASSID, types::INTEGER], 8, number),
        Map::Members => (&[types::CLASSID], 4, target),
        Map::Sources => (&[types::CLASSID, address], 4 + size, None),
        Map::Hairpins => (&[address, address], 2 * size, None),
    };
    let userdata = match map {
        // nft has no name for the type of a slot: it takes it from an expression.
        Map::Endpoints => [
            udata::BYTE_ORDERS,
            &udata::slot_key(),
            &udata::target(family),
            udata::NO_DATA_INTERVAL,
        ]
        .concat(),
        Map::Stable => [
            udata::BYTE_ORDERS_NUMBER,
            &udata::slot_key(),
            &udata::priority(),
            udata::NO_DATA_INTERVAL,
        ]
        .concat(),
        // Numbers are in the machine's byte order: without a word nft would take them for the network's.
        Map::Pools | Map::Outside | Map::Restricted | Map::Marks => udata::HOST_TO_HOST.to_vec(),
        Map::Classes | Map::Members => udata::HOST_KEY.to_vec(),
        Map::Frontends | Map::NodePorts => udata::HOST_DATA.to_vec(),
        Map::ClusterIps | Map::NodeAddresses | Map::Vips | Map::Sources | Map::Hairpins => Vec::new(),
    };
    let intervals = map == Map::Sources;
    SetSpec {
        name: map.name().to_owned(),
        flags: if data.is_some() { SET_MAP } else { 0 }
            | if intervals { SET_INTERVAL | SET_CONCAT } else { 0 },
        key_type: concat(key),
        key_length: length,
        data,
        size: None,
        fields: if intervals { vec![4, size] } else { Vec::new() },
        userdata,
        id: 0,
    }
}

/// The map of clients with their endpoints, for one timeout in seconds.
pub(super) fn affinity_set(seconds: u32, family: Family) -> SetSpec {
    let header = Header::of(family);
    SetSpec {
        name: affinity_name(seconds),
        flags: SET_MAP | SET_TIMEOUT | SET_EVAL,
        key_type: concat(&[types::CLASSID, address_type(family)]),
        key_length: 4 + u32::from(header.length),
        data: Some((types::CLASSID, 4)),
        size: Some(CLIENTS),
        fields: Vec::new(),
        userdata: udata::HOST_DATA.to_vec(),
        id: 0,
    }
}

pub(super) fn affinity_name(seconds: u32) -> String {
    format!("affinity-{seconds}")
}

/// The timeout of an affinity map's name.
pub(super) fn affinity_seconds(name: &str) -> Option<u32> {
    let seconds = name.strip_prefix("affinity-")?.parse().ok()?;
    (affinity_name(seconds) == name).then_some(seconds)
}

fn address_type(family: Family) -> u32 {
    match family {
        Family::V4 => types::IPV4,
        Family::V6 => types::IPV6,
    }
}

fn concat(parts: &[u32]) -> u32 {
    parts.iter().fold(0, |key, part| (key << 6) | part)
}

/// What libnftnl keeps beside a set so that nft can list it (`NFTNL_UDATA_SET_*`): entries of a type, a length, and so
/// many bytes; numbers in the machine's byte order.
mod udata {
    use crate::model::Family;

    const KEY_ORDER: u8 = 0;
    const DATA_ORDER: u8 = 1;
    const KEY_EXPRESSION: u8 = 3;
    const DATA_EXPRESSION: u8 = 4;
    const DATA_INTERVAL: u8 = 6;
    /// `BYTEORDER_HOST_ENDIAN`.
    const HOST: u8 = 1;

    const fn order(of: u8, order: u8) -> [u8; 6] {
        let [a, b, c, d] = (order as u32).to_ne_bytes();
        [of, 4, a, b, c, d]
    }

    const fn pair(key: u8, data: u8) -> [u8; 12] {
        let (key, data) = (order(KEY_ORDER, key), order(DATA_ORDER, data));
        [
            key[0], key[1], key[2], key[3], key[4], key[5], data[0], data[1], data[2], data[3], data[4],
            data[5],
        ]
    }

    pub(super) const BYTE_ORDERS: &[u8] = &pair(0, 0);
    pub(super) const BYTE_ORDERS_NUMBER: &[u8] = &pair(0, HOST);
    pub(super) const HOST_DATA: &[u8] = &pair(0, HOST);
    pub(super) const HOST_KEY: &[u8] = &pair(HOST, 0);
    pub(super) const HOST_TO_HOST: &[u8] = &pair(HOST, HOST);
    pub(super) const NO_DATA_INTERVAL: &[u8] = &order(DATA_INTERVAL, 0);

    /// `EXPR_PAYLOAD`, `EXPR_META`, `EXPR_CONCAT`, `EXPR_NUMGEN` of nft.
    const PAYLOAD: u32 = 7;
    const META: u32 = 9;
    const CONCAT: u32 = 13;
    const NUMGEN: u32 = 23;
    /// `PROTO_DESC_TH`, `_IP`, `_IP6`.
    const TRANSPORT: u32 = 11;
    const IP: u32 = 12;
    const IP6: u32 = 13;

    fn entry(kind: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind, u8::try_from(content.len()).unwrap_or(0)];
        bytes.extend_from_slice(content);
        bytes
    }

    fn number(kind: u8, value: u32) -> Vec<u8> {
        entry(kind, &value.to_ne_bytes())
    }

    /// An expression: its type and what belongs to it.
    fn expression(of: u32, data: &[u8]) -> Vec<u8> {
        [number(0, of), entry(1, data)].concat()
    }

    fn concat(parts: &[Vec<u8>]) -> Vec<u8> {
        let parts: Vec<u8> = parts
            .iter()
            .enumerate()
            .flat_map(|(at, part)| entry(u8::try_from(at).unwrap_or(0), part))
            .collect();
        expression(CONCAT, &parts)
    }

    fn meta_priority() -> Vec<u8> {
        expression(META, &number(0, 2))
    }

    fn payload(protocol: u32, field: u32) -> Vec<u8> {
        expression(PAYLOAD, &[number(0, protocol), number(1, field)].concat())
    }

    /// `meta priority . numgen random mod 2`.
    pub(super) fn slot_key() -> Vec<u8> {
        let random = [number(0, 1), number(1, 2), number(2, 0)].concat();
        entry(
            KEY_EXPRESSION,
            &concat(&[meta_priority(), expression(NUMGEN, &random)]),
        )
    }

    /// `ip daddr . th dport`.
    pub(super) fn target(family: Family) -> Vec<u8> {
        let address = match family {
            Family::V4 => payload(IP, 12),
            Family::V6 => payload(IP6, 9),
        };
        entry(DATA_EXPRESSION, &concat(&[address, payload(TRANSPORT, 2)]))
    }

    /// `meta priority`.
    pub(super) fn priority() -> Vec<u8> {
        entry(DATA_EXPRESSION, &meta_priority())
    }
}

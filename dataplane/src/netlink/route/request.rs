//! What is asked of rtnetlink, as bytes.

use std::net::IpAddr;

use super::super::attribute::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, Writer,
};
use super::super::conversation::Datagram;
use super::{
    Change, DELETE_ADDRESS, DELETE_LINK, DELETE_ROUTE, GET_ADDRESS, GET_LINK, GET_ROUTE, LocalRoute,
    NEW_ADDRESS, NEW_LINK, NEW_ROUTE, PROTOCOL, SCOPE_HOST, TABLE_LOCAL, TYPE_LOCAL, UP, address, link,
    local,
};
use crate::model::Family;

/// No check whether somebody else has it (`IFA_F_NODAD`), and no route in the main table beside the local one
/// (`IFA_F_NOPREFIXROUTE`): only IPv6 has either.
const ONLY_AN_ADDRESS: u32 = 0x2 | 0x200;

/// Changes that go to the kernel at once: one datagram of up to 4,000.
#[derive(Clone, Debug)]
pub struct Batch {
    datagram: Datagram,
    changes: Vec<Change>,
}

impl Batch {
    /// An empty one, whose messages are numbered from `sequence`.
    #[must_use]
    pub fn new(sequence: u32) -> Self {
        Self {
            datagram: Datagram::new(sequence),
            changes: Vec::new(),
        }
    }

    /// Adds a change.
    pub fn push(&mut self, change: Change) {
        let create = NLM_F_CREATE | NLM_F_EXCL;
        match change {
            Change::AddAddress(link, ip) => self.address(NEW_ADDRESS, create, link, ip),
            Change::DeleteAddress(link, ip) => self.address(DELETE_ADDRESS, 0, link, ip),
            Change::AddRoute(of) => self.route(NEW_ROUTE, create, &of),
            Change::ReplaceRoute(of) => self.route(NEW_ROUTE, NLM_F_CREATE | NLM_F_REPLACE, &of),
            Change::DeleteRoute(of) => self.route(DELETE_ROUTE, 0, &of),
        }
        self.changes.push(change);
    }

    fn address(&mut self, kind: u16, flags: u16, link: u32, ip: IpAddr) {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        let header = address_header(Family::of(ip), bits, link);
        self.datagram.request(kind, flags, &header, |list| {
            put_address(list, address::LOCAL, ip);
            put_address(list, address::ADDRESS, ip);
            if ip.is_ipv6() {
                list.put_host_u32(address::FLAGS, ONLY_AN_ADDRESS);
            }
        });
    }

    fn route(&mut self, kind: u16, flags: u16, of: &LocalRoute) {
        let family = Family::of(of.destination.addr());
        // The kernel takes the scope from routes that are made and compares it in those that go.
        let header = route_header(family, of.destination.prefix_len(), SCOPE_HOST);
        self.datagram.request(kind, flags, &header, |list| {
            put_address(list, local::DESTINATION, of.destination.network());
            list.put_host_u32(local::LINK, of.link);
            if let Some(source) = of.source {
                put_address(list, local::SOURCE, source);
            }
        });
    }

    /// Whether it has to be sent before another change is added.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.datagram.is_full()
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Ends it: what is sent, and what that is about.
    pub(super) fn finish(mut self) -> (Datagram, Vec<Change>) {
        self.datagram.finish();
        (self.datagram, self.changes)
    }

    /// What is sent.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.finish().0.bytes().to_vec()
    }
}

/// Asks for a link by its name.
pub(super) fn link_by_name(name: &str, sequence: u32) -> Vec<u8> {
    about_link(GET_LINK, 0, sequence, (0, 0, 0), |list| {
        list.put_text(link::NAME, name);
    })
}

/// Asks for a dummy that is up.
pub(super) fn new_dummy(name: &str, sequence: u32) -> Vec<u8> {
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    about_link(NEW_LINK, flags, sequence, (0, UP, UP), |list| {
        list.put_text(link::NAME, name);
        list.nested(link::INFO, |info| info.put_text(link::INFO_KIND, "dummy"));
    })
}

/// Asks that a link be up or down.
pub(super) fn set_up(index: u32, up: bool, sequence: u32) -> Vec<u8> {
    let flags = if up { UP } else { 0 };
    about_link(NEW_LINK, 0, sequence, (index, flags, UP), |_| ())
}

/// Asks that a link go.
pub(super) fn delete_link(index: u32, sequence: u32) -> Vec<u8> {
    about_link(DELETE_LINK, 0, sequence, (index, 0, 0), |_| ())
}

/// A message with a `struct ifinfomsg`, of which the index, the flags and which flags count are given.
fn about_link(
    kind: u16,
    flags: u16,
    sequence: u32,
    (index, set, change): (u32, u32, u32),
    attributes: impl FnOnce(&mut Writer),
) -> Vec<u8> {
    let mut header = [0; 16];
    for (place, number) in header.chunks_exact_mut(4).skip(1).zip([index, set, change]) {
        place.copy_from_slice(&number.to_ne_bytes());
    }
    let mut writer = Writer::default();
    let begun = writer.begin(kind, NLM_F_REQUEST | NLM_F_ACK | flags, sequence, &header);
    attributes(&mut writer);
    writer.end_message(begun);
    writer.into_bytes()
}

/// Asks for the addresses of a family that a link has. A kernel before 4.20 tells those of all links.
pub(super) fn addresses(family: Family, link: u32, sequence: u32) -> Vec<u8> {
    let mut writer = Writer::default();
    let header = address_header(family, 0, link);
    let begun = writer.begin(GET_ADDRESS, NLM_F_REQUEST | NLM_F_DUMP, sequence, &header);
    writer.end_message(begun);
    writer.into_bytes()
}

/// Asks for the local routes of a family that are ours. A kernel before 4.20 tells all routes.
pub(super) fn routes(family: Family, sequence: u32) -> Vec<u8> {
    let mut writer = Writer::default();
    let header = route_header(family, 0, 0);
    let begun = writer.begin(GET_ROUTE, NLM_F_REQUEST | NLM_F_DUMP, sequence, &header);
    writer.end_message(begun);
    writer.into_bytes()
}

/// `struct ifaddrmsg`.
fn address_header(family: Family, bits: u8, link: u32) -> [u8; 8] {
    let [a, b, c, d] = link.to_ne_bytes();
    [family_number(family), bits, 0, 0, a, b, c, d]
}

/// `struct rtmsg`.
fn route_header(family: Family, bits: u8, scope: u8) -> [u8; 12] {
    let family = family_number(family);
    [
        family,
        bits,
        0,
        0,
        TABLE_LOCAL,
        PROTOCOL,
        scope,
        TYPE_LOCAL,
        0,
        0,
        0,
        0,
    ]
}

pub(super) fn put_address(list: &mut Writer, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => list.put(kind, &address.octets()),
        IpAddr::V6(address) => list.put(kind, &address.octets()),
    }
}

/// `AF_INET`, `AF_INET6`.
pub(super) fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

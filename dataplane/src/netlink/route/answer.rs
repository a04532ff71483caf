//! Reading what rtnetlink tells.

use std::net::IpAddr;

use ipnet::IpNet;

use super::super::attribute::{Attributes, Message, array};
use super::{
    Link, LocalRoute, NEW_ADDRESS, NEW_LINK, NEW_ROUTE, NO_ARP, PROTOCOL, TABLE_LOCAL, TYPE_LOCAL, UP,
    address, link, local,
};
use crate::model::Family;

/// A link in an answer.
#[must_use]
pub fn link(message: &Message<'_>) -> Option<Link> {
    let attributes = attributes(message, NEW_LINK, 16)?;
    let flags = u32::from_ne_bytes(array(message.payload, 8)?);
    Some(Link {
        index: u32::from_ne_bytes(array(message.payload, 4)?),
        kind: attributes
            .nested(link::INFO)
            .text(link::INFO_KIND)
            .map(str::to_owned),
        is_up: flags & UP != 0,
        resolves: flags & NO_ARP == 0,
    })
}

/// An address of a family in an answer, with the number of its link. Whose prefix is not that of a host has it here, too.
#[must_use]
pub fn address(message: &Message<'_>, family: Family) -> Option<(u32, IpNet)> {
    let attributes = attributes(message, NEW_ADDRESS, 8)?;
    let [number, bits, ..] = array::<4>(message.payload, 0)?;
    // IPv4 tells the address by both, and when they differ, ADDRESS is the other end's.
    let bytes = attributes
        .get(address::LOCAL)
        .or_else(|| attributes.get(address::ADDRESS))?;
    let address = ip(bytes, number).filter(|ip| Family::of(*ip) == family)?;
    let index = u32::from_ne_bytes(array(message.payload, 4)?);
    Some((index, IpNet::new(address, bits).ok()?))
}

/// A local route of a family in an answer, if it is marked as ours.
#[must_use]
pub fn local_route(message: &Message<'_>, family: Family) -> Option<LocalRoute> {
    let attributes = attributes(message, NEW_ROUTE, 12)?;
    let [number, bits, _, _, table, protocol, _, kind] = array(message.payload, 0)?;
    let table = attributes
        .host_u32(local::TABLE)
        .unwrap_or_else(|| u32::from(table));
    if (table, protocol, kind) != (u32::from(TABLE_LOCAL), PROTOCOL, TYPE_LOCAL) {
        return None;
    }
    let destination = match attributes.get(local::DESTINATION) {
        Some(bytes) => ip(bytes, number)?,
        None => ip(&[0; 16], number)?,
    };
    if Family::of(destination) != family {
        return None;
    }
    Some(LocalRoute {
        destination: IpNet::new(destination, bits).ok()?,
        link: attributes.host_u32(local::LINK)?,
        source: attributes.get(local::SOURCE).and_then(|bytes| ip(bytes, number)),
    })
}

/// The attributes behind a header of this size, in a message of this type.
fn attributes<'a>(message: &Message<'a>, kind: u16, header: usize) -> Option<Attributes<'a>> {
    let behind = message.payload.get(header..)?;
    (message.kind == kind).then_some(Attributes(behind))
}

/// An address of the family with this number.
fn ip(bytes: &[u8], family: u8) -> Option<IpAddr> {
    match family {
        2 => array::<4>(bytes, 0).map(IpAddr::from),
        10 => array::<16>(bytes, 0).map(IpAddr::from),
        _ => None,
    }
}

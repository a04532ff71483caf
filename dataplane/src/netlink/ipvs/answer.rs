//! Reading what IPVS tells. What it does not tell is nothing, 0 or none; attributes that are not known are passed over.

use std::net::{IpAddr, SocketAddr};

use super::super::attribute::{Attributes, Message, array};
use super::super::generic::command as command_of;
use super::{
    Destination, DestinationState, Flags, Forwarding, Information, NEW_DESTINATION, NEW_SERVICE, Name,
    SET_CONFIG, SET_INFO, ServiceKey, ServiceState, Statistics, Timeouts, VirtualService, command,
    destination, service,
};
use crate::model::{Family, Protocol};

/// A virtual service in an answer; none when it is of a protocol that is not TCP, UDP or SCTP.
#[must_use]
pub fn service_state(message: &Message<'_>) -> Option<ServiceState> {
    if command_of(message) != Some(NEW_SERVICE) {
        return None;
    }
    let attributes = message.attributes().nested(command::SERVICE);
    let key = key(attributes)?;
    let flags = attributes.get(service::FLAGS)?;
    let netmask = match key.family() {
        Family::V4 => attributes.u32(service::NETMASK),
        Family::V6 => attributes.host_u32(service::NETMASK),
    };
    let service = VirtualService {
        key,
        scheduler: Name::new(attributes.text(service::SCHEDULER)?)?,
        flags: Flags(u32::from_ne_bytes(array(flags, 0)?) & !Flags::HASHED.0),
        timeout: attributes.host_u32(service::TIMEOUT).unwrap_or(0),
        netmask: netmask?,
        engine: attributes.text(service::ENGINE).and_then(Name::new),
    };
    Some(ServiceState {
        service,
        statistics: statistics(attributes.nested(service::STATISTICS)),
    })
}

/// A destination in an answer, of a service of this family.
#[must_use]
pub fn destination_state(message: &Message<'_>, family: Family) -> Option<DestinationState> {
    if command_of(message) != Some(NEW_DESTINATION) {
        return None;
    }
    let attributes = message.attributes().nested(command::DESTINATION);
    let number = |kind| attributes.host_u32(kind).unwrap_or(0);
    Some(DestinationState {
        destination: Destination {
            address: destination_address(attributes, family)?,
            forwarding: Forwarding::read(attributes.host_u32(destination::FORWARDING)?),
            weight: attributes.host_u32(destination::WEIGHT)?,
            upper: number(destination::UPPER),
            lower: number(destination::LOWER),
        },
        active: number(destination::ACTIVE),
        inactive: number(destination::INACTIVE),
        persistent: number(destination::PERSISTENT),
        statistics: statistics(attributes.nested(destination::STATISTICS)),
    })
}

/// The timeouts in an answer.
#[must_use]
pub fn timeouts(message: &Message<'_>) -> Option<Timeouts> {
    let attributes = message.attributes();
    let number = |kind| attributes.host_u32(kind).unwrap_or(0);
    (command_of(message)? == SET_CONFIG).then(|| Timeouts {
        tcp: number(command::TIMEOUT_TCP),
        tcp_fin: number(command::TIMEOUT_TCP_FIN),
        udp: number(command::TIMEOUT_UDP),
    })
}

/// What IPVS says of itself (`IPVS_INFO_ATTR_*`).
#[must_use]
pub fn information(message: &Message<'_>) -> Option<Information> {
    if command_of(message)? != SET_INFO {
        return None;
    }
    let attributes = message.attributes();
    let [_, major, minor, patch] = attributes.host_u32(1)?.to_be_bytes();
    Some(Information {
        version: (major, minor, patch),
        connection_buckets: attributes.host_u32(2).unwrap_or(0),
    })
}

/// What the service in these attributes is known by.
pub(super) fn key(attributes: Attributes<'_>) -> Option<ServiceKey> {
    let family = family(attributes.host_u16(service::FAMILY)?)?;
    if let Some(mark) = attributes.host_u32(service::MARK) {
        return Some(ServiceKey::Mark(family, mark));
    }
    let protocol = match attributes.host_u16(service::PROTOCOL)? {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        132 => Protocol::Sctp,
        _ => return None,
    };
    let address = address(attributes.get(service::ADDRESS)?, family)?;
    let port = port(attributes.get(service::PORT)?)?;
    Some(ServiceKey::Address(protocol, SocketAddr::new(address, port)))
}

/// What the destination in these attributes is known by, in a service of this family.
pub(super) fn destination_address(attributes: Attributes<'_>, of_service: Family) -> Option<SocketAddr> {
    let family = match attributes.host_u16(destination::FAMILY) {
        // Kernels before 3.18 know no other.
        None | Some(0) => of_service,
        Some(number) => family(number)?,
    };
    let address = address(attributes.get(destination::ADDRESS)?, family)?;
    Some(SocketAddr::new(
        address,
        port(attributes.get(destination::PORT)?)?,
    ))
}

/// `IPVS_STATS_ATTR_*` with 64 bits each, as there are since Linux 4.1.
fn statistics(attributes: Attributes<'_>) -> Statistics {
    let number = |kind| attributes.host_u64(kind).unwrap_or(0);
    Statistics {
        connections: number(1),
        incoming_packets: number(2),
        outgoing_packets: number(3),
        incoming_bytes: number(4),
        outgoing_bytes: number(5),
    }
}

fn family(number: u16) -> Option<Family> {
    match number {
        2 => Some(Family::V4),
        10 => Some(Family::V6),
        _ => None,
    }
}

fn address(bytes: &[u8], family: Family) -> Option<IpAddr> {
    match family {
        Family::V4 => array::<4>(bytes, 0).map(IpAddr::from),
        Family::V6 => array::<16>(bytes, 0).map(IpAddr::from),
    }
}

fn port(bytes: &[u8]) -> Option<u16> {
    bytes.try_into().ok().map(u16::from_be_bytes)
}

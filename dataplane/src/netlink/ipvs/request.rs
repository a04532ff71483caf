//! Commands, as bytes.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::super::attribute::{Message, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, Writer};
use super::super::conversation::Datagram;
use super::super::generic::{command as command_of, header};
use super::{
    DELETE_DESTINATION, DELETE_SERVICE, Destination, GET_CONFIG, GET_DESTINATION, GET_INFO, GET_SERVICE,
    NEW_DESTINATION, NEW_SERVICE, SET_CONFIG, SET_DESTINATION, SET_SERVICE, ServiceKey, Timeouts, VERSION,
    VirtualService, answer, command, destination, service,
};
use crate::model::{Family, Protocol};

/// All bits of a service's flags count (`struct ip_vs_flags`).
const ALL_FLAGS: u32 = u32::MAX;

/// Something that is to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Makes a service that is not there.
    NewService(VirtualService),
    /// Gives a service that is there all of this.
    SetService(VirtualService),
    /// Removes a service with its destinations.
    DeleteService(ServiceKey),
    /// Adds a destination to a service.
    NewDestination(ServiceKey, Destination),
    /// Gives a destination all of this.
    SetDestination(ServiceKey, Destination),
    /// Removes a destination. Its connections end as `net.ipv4.vs.expire_nodest_conn` says.
    DeleteDestination(ServiceKey, SocketAddr),
    /// Sets the timeouts that are not 0.
    SetTimeouts(Timeouts),
}

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// `IPVS_CMD_NEW_*`.
    New,
    /// `IPVS_CMD_SET_*`.
    Set,
    /// `IPVS_CMD_DEL_*`.
    Delete,
}

/// What a command is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Request {
    /// A service.
    Service(Verb, ServiceKey),
    /// A destination of a service.
    Destination(Verb, ServiceKey, SocketAddr),
    /// The timeouts.
    Timeouts,
}

impl Request {
    /// Reads what a message that was sent is about; none when it is no command.
    #[must_use]
    pub fn read(message: &Message<'_>) -> Option<Self> {
        let attributes = message.attributes();
        let (verb, of_destination) = match command_of(message)? {
            NEW_SERVICE => (Verb::New, false),
            SET_SERVICE => (Verb::Set, false),
            DELETE_SERVICE => (Verb::Delete, false),
            NEW_DESTINATION => (Verb::New, true),
            SET_DESTINATION => (Verb::Set, true),
            DELETE_DESTINATION => (Verb::Delete, true),
            SET_CONFIG => return Some(Self::Timeouts),
            _ => return None,
        };
        let key = answer::key(attributes.nested(command::SERVICE))?;
        if of_destination {
            let destination = attributes.nested(command::DESTINATION);
            let address = answer::destination_address(destination, key.family())?;
            Some(Self::Destination(verb, key, address))
        } else {
            Some(Self::Service(verb, key))
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |verb: &Verb| match verb {
            Verb::New => "new",
            Verb::Set => "change of",
            Verb::Delete => "removal of",
        };
        match self {
            Self::Service(verb, key) => write!(f, "{} virtual service {key}", word(verb)),
            Self::Destination(verb, key, address) => {
                write!(f, "{} destination {address} of virtual service {key}", word(verb))
            }
            Self::Timeouts => f.write_str("change of the timeouts"),
        }
    }
}

/// Commands that go to the kernel at once: one datagram of up to 4,000.
#[derive(Clone, Debug)]
pub struct Batch {
    family: u16,
    datagram: Datagram,
}

impl Batch {
    /// An empty one for the family's number; its messages are numbered from `sequence`.
    #[must_use]
    pub fn new(family: u16, sequence: u32) -> Self {
        Self {
            family,
            datagram: Datagram::new(sequence),
        }
    }

    /// Adds a command.
    pub fn push(&mut self, command: &Command) {
        let (kind, key) = match command {
            Command::NewService(service) => (NEW_SERVICE, Some(service.key)),
            Command::SetService(service) => (SET_SERVICE, Some(service.key)),
            Command::DeleteService(key) => (DELETE_SERVICE, Some(*key)),
            Command::NewDestination(key, _) => (NEW_DESTINATION, Some(*key)),
            Command::SetDestination(key, _) => (SET_DESTINATION, Some(*key)),
            Command::DeleteDestination(key, _) => (DELETE_DESTINATION, Some(*key)),
            Command::SetTimeouts(_) => (SET_CONFIG, None),
        };
        self.datagram
            .request(self.family, 0, &header(kind, VERSION), |writer| {
                if let Some(key) = key {
                    writer.nested(command::SERVICE, |list| {
                        put_key(list, &key);
                        if let Command::NewService(of) | Command::SetService(of) = command {
                            put_options(list, of);
                        }
                    });
                }
                match command {
                    Command::NewDestination(_, of) | Command::SetDestination(_, of) => {
                        put_destination(writer, of);
                    }
                    Command::DeleteDestination(_, address) => {
                        writer.nested(command::DESTINATION, |list| put_destination_key(list, *address));
                    }
                    Command::SetTimeouts(timeouts) => put_timeouts(writer, *timeouts),
                    _ => (),
                }
            });
    }

    /// Whether it has to be sent before another command is added.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.datagram.is_full()
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.datagram.len() == 0
    }

    /// Ends it.
    pub(super) fn finish(mut self) -> Datagram {
        self.datagram.finish();
        self.datagram
    }

    /// What is sent.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.finish().bytes().to_vec()
    }
}

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question<'a> {
    /// All services.
    Services,
    /// One service.
    Service(&'a ServiceKey),
    /// The destinations of a service.
    Destinations(&'a ServiceKey),
    /// The timeouts.
    Timeouts,
    /// What IPVS says of itself.
    Information,
}

/// A question, as bytes.
#[must_use]
pub(super) fn question(family: u16, question: Question<'_>, sequence: u32) -> Vec<u8> {
    let (kind, flags) = match question {
        Question::Services => (GET_SERVICE, NLM_F_DUMP),
        Question::Service(_) => (GET_SERVICE, NLM_F_ACK),
        Question::Destinations(_) => (GET_DESTINATION, NLM_F_DUMP),
        Question::Timeouts => (GET_CONFIG, NLM_F_ACK),
        Question::Information => (GET_INFO, NLM_F_ACK),
    };
    let mut writer = Writer::default();
    let begun = writer.begin(family, NLM_F_REQUEST | flags, sequence, &header(kind, VERSION));
    if let Question::Service(key) | Question::Destinations(key) = question {
        writer.nested(command::SERVICE, |list| put_key(list, key));
    }
    writer.end_message(begun);
    writer.into_bytes()
}

pub(super) fn put_key(list: &mut Writer, key: &ServiceKey) {
    list.put_host_u16(service::FAMILY, family_number(key.family()));
    match key {
        ServiceKey::Address(protocol, address) => {
            list.put_host_u16(service::PROTOCOL, protocol_number(*protocol));
            put_address(list, service::ADDRESS, address.ip());
            list.put(service::PORT, &address.port().to_be_bytes());
        }
        ServiceKey::Mark(_, mark) => list.put_host_u32(service::MARK, *mark),
    }
}

pub(super) fn put_options(list: &mut Writer, of: &VirtualService) {
    list.put_text(service::SCHEDULER, of.scheduler.as_str());
    if let Some(engine) = of.engine {
        list.put_text(service::ENGINE, engine.as_str());
    }
    let [flags, mask] = [of.flags.0.to_ne_bytes(), ALL_FLAGS.to_ne_bytes()];
    list.put(service::FLAGS, &[flags, mask].concat());
    list.put_host_u32(service::TIMEOUT, of.timeout);
    match of.key.family() {
        Family::V4 => list.put_u32(service::NETMASK, of.netmask),
        Family::V6 => list.put_host_u32(service::NETMASK, of.netmask),
    }
}

fn put_destination(writer: &mut Writer, of: &Destination) {
    writer.nested(command::DESTINATION, |list| {
        put_destination_key(list, of.address);
        put_destination_options(list, of);
    });
}

pub(super) fn put_destination_options(list: &mut Writer, of: &Destination) {
    list.put_host_u32(destination::FORWARDING, of.forwarding.number());
    list.put_host_u32(destination::WEIGHT, of.weight);
    list.put_host_u32(destination::UPPER, of.upper);
    list.put_host_u32(destination::LOWER, of.lower);
}

pub(super) fn put_destination_key(list: &mut Writer, address: SocketAddr) {
    // Kernels before 3.18 pass over the family, and take the service's.
    let family = family_number(Family::of(address.ip()));
    list.put_host_u16(destination::FAMILY, family);
    put_address(list, destination::ADDRESS, address.ip());
    list.put(destination::PORT, &address.port().to_be_bytes());
}

fn put_timeouts(writer: &mut Writer, timeouts: Timeouts) {
    writer.put_host_u32(command::TIMEOUT_TCP, timeouts.tcp);
    writer.put_host_u32(command::TIMEOUT_TCP_FIN, timeouts.tcp_fin);
    writer.put_host_u32(command::TIMEOUT_UDP, timeouts.udp);
}

/// An address takes the room of the longest (`union nf_inet_addr`).
fn put_address(list: &mut Writer, kind: u16, address: IpAddr) {
    let mut bytes = [0; 16];
    match address {
        IpAddr::V4(address) => {
            for (byte, of) in bytes.iter_mut().zip(address.octets()) {
                *byte = of;
            }
        }
        IpAddr::V6(address) => bytes = address.octets(),
    }
    list.put(kind, &bytes);
}

/// `AF_INET`, `AF_INET6`.
fn family_number(family: Family) -> u16 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn protocol_number(protocol: Protocol) -> u16 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

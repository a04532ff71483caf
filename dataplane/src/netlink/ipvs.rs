//! Messages of IPVS's generic netlink family (`include/uapi/linux/ip_vs.h`; the kernel's side is
//! `net/netfilter/ipvs/ip_vs_ctl.c`): virtual services, their destinations, and timeouts.
//!
//! | Room | |
//! |---|---|
//! | `request` | commands as bytes, and bytes as what they are about |
//! | `answer` | reading what the kernel tells |
//! | `socket` | the conversation |
//!
//! What to know of the kernel:
//!
//! - There are no transactions. Commands are handled one after the other, and somebody else's may come in between.
//! - A port is in network byte order, every other number in the machine's. An address takes 16 bytes, whatever its
//!   family. The netmask of persistence is a mask in network byte order for IPv4, and a prefix length for IPv6.
//! - `SET_SERVICE` takes everything anew: scheduler, flags, timeout, netmask and persistence engine. Another scheduler
//!   costs a grace period of RCU (`synchronize_rcu` in `ip_vs_edit_service`), so that changing thousands takes long.
//! - A service or destination that is there already is `EEXIST` to `NEW_*`. A service that is not there is `ESRCH` to
//!   everything else, a destination `ENOENT`. `ENOENT` to `NEW_SERVICE` and `SET_SERVICE` is a scheduler or persistence
//!   engine that the kernel has not got, and to anything, that the module was unloaded.
//! - A destination that is deleted while it has connections waits in a trash list, with its counters. One with the same
//!   address and port that is added to the service again is that one.
//! - A dump says nothing of changes in its midst: IPVS never sets `NLM_F_DUMP_INTR`. It goes on at a number in the
//!   list, so that a service may be told twice, or not at all, while others come and go. Whoever misses one asks for it
//!   by itself ([`Ipvs::service`]).
//! - Destinations can be dumped of one service only. Those of a service that is not there are none, without an error.
//! - Flushing (`IPVS_CMD_FLUSH`) is not here on purpose: it would take others' services along.

use std::fmt;
use std::net::SocketAddr;

use crate::model::{Family, Protocol};

pub mod answer;
mod request;
mod socket;

pub use request::{Batch, Command, Request, Verb};
pub use socket::{Ipvs, IpvsError, Outcome, Refusal};

/// Name of the family (`IPVS_GENL_NAME`).
pub const FAMILY_NAME: &str = "IPVS";
/// `IPVS_GENL_VERSION`.
const VERSION: u8 = 1;

const NEW_SERVICE: u8 = 1;
const SET_SERVICE: u8 = 2;
const DELETE_SERVICE: u8 = 3;
const GET_SERVICE: u8 = 4;
const NEW_DESTINATION: u8 = 5;
const SET_DESTINATION: u8 = 6;
const DELETE_DESTINATION: u8 = 7;
const GET_DESTINATION: u8 = 8;
const SET_CONFIG: u8 = 12;
const GET_CONFIG: u8 = 13;
/// `IPVS_CMD_SET_INFO`, the answer to the next.
const SET_INFO: u8 = 14;
const GET_INFO: u8 = 15;

/// `IPVS_CMD_ATTR_*`.
mod command {
    pub const SERVICE: u16 = 1;
    pub const DESTINATION: u16 = 2;
    pub const TIMEOUT_TCP: u16 = 4;
    pub const TIMEOUT_TCP_FIN: u16 = 5;
    pub const TIMEOUT_UDP: u16 = 6;
}

/// `IPVS_SVC_ATTR_*`.
mod service {
    pub const FAMILY: u16 = 1;
    pub const PROTOCOL: u16 = 2;
    pub const ADDRESS: u16 = 3;
    pub const PORT: u16 = 4;
    pub const MARK: u16 = 5;
    pub const SCHEDULER: u16 = 6;
    pub const FLAGS: u16 = 7;
    pub const TIMEOUT: u16 = 8;
    pub const NETMASK: u16 = 9;
    pub const ENGINE: u16 = 11;
    pub const STATISTICS: u16 = 12;
}

/// `IPVS_DEST_ATTR_*`.
mod destination {
    pub const ADDRESS: u16 = 1;
    pub const PORT: u16 = 2;
    pub const FORWARDING: u16 = 3;
    pub const WEIGHT: u16 = 4;
    pub const UPPER: u16 = 5;
    pub const LOWER: u16 = 6;
    pub const ACTIVE: u16 = 7;
    pub const INACTIVE: u16 = 8;
    pub const PERSISTENT: u16 = 9;
    pub const FAMILY: u16 = 11;
    pub const STATISTICS: u16 = 12;
}

/// What a virtual service is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceKey {
    /// What packets are sent to. Port 0 is every port that no other service of the address has; the kernel takes any, but
    /// only a persistent one is scheduled (`ip_vs_schedule`).
    Address(Protocol, SocketAddr),
    /// The mark of packets of a family, not 0. Such a service is looked for before those of the packet's address.
    Mark(Family, u32),
}

impl ServiceKey {
    /// The family of its packets.
    #[must_use]
    pub fn family(&self) -> Family {
        match self {
            Self::Address(_, address) => Family::of(address.ip()),
            Self::Mark(family, _) => *family,
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(protocol, address) => write!(f, "{protocol} {address}"),
            Self::Mark(family, mark) => write!(f, "firewall mark {mark:#x} ({family})"),
        }
    }
}

/// The name of a scheduler or of a persistence engine: up to 15 bytes (`IP_VS_SCHEDNAME_MAXLEN`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name([u8; 16]);

impl Name {
    /// The scheduler that every kernel with IPVS is expected to have.
    pub const ROUND_ROBIN: Self = Self(*b"rr\0\0\0\0\0\0\0\0\0\0\0\0\0\0");

    /// A name; none when it is empty, too long, or has a zero in it.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        let fits = !name.is_empty() && name.len() < bytes.len() && !name.contains('\0');
        fits.then(|| {
            for (byte, of) in bytes.iter_mut().zip(name.bytes()) {
                *byte = of;
            }
            Self(bytes)
        })
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(0);
        // It was made of a text.
        std::str::from_utf8(self.0.get(..end).unwrap_or_default()).unwrap_or_default()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// Flags of a virtual service (`IP_VS_SVC_F_*`). What the scheduler's flags mean, each scheduler says itself: sh and
/// mh know two, the others none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flags(pub u32);

impl Flags {
    /// A client keeps its destination until it made no connection for the service's timeout.
    pub const PERSISTENT: Self = Self(0x1);
    /// UDP: every packet is scheduled by itself.
    pub const ONE_PACKET: Self = Self(0x4);
    /// sh, mh: a destination of weight 0 or over its threshold is passed over. Without it, its clients are refused.
    pub const FALLBACK: Self = Self(0x8);
    /// sh, mh: the client's port counts as well as its address.
    pub const PORT: Self = Self(0x10);
    /// The third flag of a scheduler, which none of the kernel's has a meaning for.
    pub const SCHEDULER_3: Self = Self(0x20);
    /// The kernel's own: the service is in its table (`IP_VS_SVC_F_HASHED`). Never here.
    const HASHED: Self = Self(0x2);

    /// Whether it has all of these.
    #[must_use]
    pub fn has(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }
}

impl std::ops::BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A virtual service, as it is told to the kernel and read from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VirtualService {
    /// What it is known by.
    pub key: ServiceKey,
    /// How destinations are picked: `rr`, `wlc`, ...
    pub scheduler: Name,
    /// Its flags.
    pub flags: Flags,
    /// How long a client that makes no connection is remembered, in seconds. The kernel multiplies it by its clock's
    /// frequency in 32 bits: at most some 49 days.
    pub timeout: u32,
    /// Which clients are one client to persistence. IPv4: a mask, 255.255.255.255 being 0xffff_ffff. IPv6: a prefix
    /// length from 1 to 128.
    pub netmask: u32,
    /// What else but its address tells a client from others: `sip`.
    pub engine: Option<Name>,
}

impl VirtualService {
    /// A service without persistence.
    #[must_use]
    pub fn new(key: ServiceKey, scheduler: Name) -> Self {
        Self {
            key,
            scheduler,
            flags: Flags::default(),
            timeout: 0,
            netmask: whole_address(key.family()),
            engine: None,
        }
    }

    /// The same whose clients, each by its whole address, keep their destination for so many seconds.
    #[must_use]
    pub fn persistent(self, timeout: u32) -> Self {
        Self {
            flags: self.flags | Flags::PERSISTENT,
            timeout,
            ..self
        }
    }
}

/// The netmask by which every address is a client of its own.
#[must_use]
pub fn whole_address(family: Family) -> u32 {
    match family {
        Family::V4 => u32::MAX,
        Family::V6 => 128,
    }
}

/// How packets get to a destination (`IP_VS_CONN_F_FWD_MASK`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Forwarding {
    /// Their destination is translated.
    #[default]
    Masquerade,
    /// They stay on this node, untranslated.
    Local,
    /// In a tunnel.
    Tunnel,
    /// To the destination's link address, untranslated.
    Direct,
    /// Past all destinations; nobody is known to set it.
    Bypass,
    /// What later kernels may have, up to 7.
    Other(u8),
}

impl Forwarding {
    const MASK: u32 = 0x7;

    fn number(self) -> u32 {
        match self {
            Self::Masquerade => 0,
            Self::Local => 1,
            Self::Tunnel => 2,
            Self::Direct => 3,
            Self::Bypass => 4,
            Self::Other(number) => u32::from(number) & Self::MASK,
        }
    }

    fn read(number: u32) -> Self {
        match number & Self::MASK {
            0 => Self::Masquerade,
            1 => Self::Local,
            2 => Self::Tunnel,
            3 => Self::Direct,
            4 => Self::Bypass,
            5 => Self::Other(5),
            6 => Self::Other(6),
            _ => Self::Other(7),
        }
    }
}

/// Where a virtual service's packets may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// What it is known by within its service. Only a tunnel may lead to another family than the service's.
    pub address: SocketAddr,
    /// How packets get there.
    pub forwarding: Forwarding,
    /// Its share of new connections, at most 2,147,483,647. 0: none, but established ones go on, and clients that
    /// persistence remembers come back to it unless `net.ipv4.vs.expire_quiescent_template` is 1.
    pub weight: u32,
    /// With so many connections it gets no more; 0 for no limit.
    pub upper: u32,
    /// With fewer than so many it gets some again; 0 for three quarters of the upper one.
    pub lower: u32,
}

impl Destination {
    /// A destination that is reached by translation and has no thresholds.
    #[must_use]
    pub fn new(address: SocketAddr, weight: u32) -> Self {
        Self {
            address,
            forwarding: Forwarding::Masquerade,
            weight,
            upper: 0,
            lower: 0,
        }
    }
}

/// What passed, since the service or destination was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Connections that were scheduled.
    pub connections: u64,
    /// Packets from clients.
    pub incoming_packets: u64,
    /// Packets to clients.
    pub outgoing_packets: u64,
    /// Their bytes.
    pub incoming_bytes: u64,
    /// Their bytes.
    pub outgoing_bytes: u64,
}

/// A virtual service in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceState {
    /// The service.
    pub service: VirtualService,
    /// What passed through it.
    pub statistics: Statistics,
}

/// A destination in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestinationState {
    /// The destination.
    pub destination: Destination,
    /// Connections that are established.
    pub active: u32,
    /// Those that the kernel remembers otherwise: closing ones, and all of UDP.
    pub inactive: u32,
    /// Clients that persistence remembers for it.
    pub persistent: u32,
    /// What passed through it.
    pub statistics: Statistics,
}

/// How long connections are remembered that nothing is sent on, in seconds. A part of IPVS that the kernel was built
/// without tells 0, and setting 0 leaves what is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP connections.
    pub tcp: u32,
    /// TCP connections that one side has ended.
    pub tcp_fin: u32,
    /// UDP.
    pub udp: u32,
}

/// What IPVS says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Information {
    /// Its version: major, minor, patch.
    pub version: (u8, u8, u8),
    /// How many buckets its table of connections has.
    pub connection_buckets: u32,
}

#[cfg(test)]
mod tests;

//! Messages of rtnetlink (`include/uapi/linux/rtnetlink.h`): a link that is there for its addresses, the addresses, and
//! routes of type `local`, which make a whole range of addresses the node's own.
//!
//! Of what the kernel tells of links, routes and addresses only a few attributes are of interest here, so they are read by
//! hand: an attribute that a later kernel has in another shape cannot make the whole message unreadable. And what is
//! changed goes out as IPVS's commands do, many at once with one answer.
//!
//! What to know of the kernel:
//!
//! - Addresses of a link are a list that every new one walks (`__inet_insert_ifa`): n of them cost n² steps. Routes are
//!   a trie.
//! - A local route needs no address. A packet to an address in it is received as one to the node's own; ICMP echo is
//!   answered, and so are listeners on the unspecified address.
//! - Who sends from the node to an address in a local route has the route's source address if it has one
//!   ([`LocalRoute::source`]). Otherwise it is the destination itself for IPv4 (`ip_route_output_key_hash_rcu`), and for
//!   IPv6 one that the node has. An address of a link is its own source.
//! - A route that is there already is `EEXIST`, whoever made it. One that is not there is `ESRCH`, an address
//!   `EADDRNOTAVAIL`.
//! - A link that goes takes its addresses and routes along, and one that is set down its routes, which do not come back.
//! - When the node loses the address that is a route's source, an IPv6 route goes on without it; an IPv4 route of the table
//!   `local` keeps it (`fib_sync_down_addr` looks at the main table), and clients on the node get no answers any more.
//!   Whoever gives a source follows the node's addresses.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

pub mod answer;
mod request;
mod socket;

pub use request::Batch;
pub use socket::{Outcome, Refusal, RouteError, Rtnetlink};

/// The protocol that marks routes as ours (`rtm_protocol`). Up to 4 are the kernel's, DHCP's and the administrator's;
/// routing daemons and network plugins have 8 to 18, 42, 80, 84, 99 and 186 to 198. The kernel passes on what it does not
/// know, and `ip route` shows the number.
pub const PROTOCOL: u8 = 112;

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;

/// The table of what is the node's own (`RT_TABLE_LOCAL`).
const TABLE_LOCAL: u8 = 255;
/// `RTN_LOCAL`.
const TYPE_LOCAL: u8 = 2;
/// `RT_SCOPE_HOST`.
const SCOPE_HOST: u8 = 254;

/// `IFF_UP`.
const UP: u32 = 0x1;
/// `IFF_NOARP`.
const NO_ARP: u32 = 0x80;

/// `IFLA_*`.
mod link {
    pub const NAME: u16 = 3;
    pub const INFO: u16 = 18;
    pub const INFO_KIND: u16 = 1;
}

/// `IFA_*`.
mod address {
    pub const ADDRESS: u16 = 1;
    pub const LOCAL: u16 = 2;
    pub const FLAGS: u16 = 8;
}

/// `RTA_*`.
mod local {
    pub const DESTINATION: u16 = 1;
    pub const LINK: u16 = 4;
    pub const SOURCE: u16 = 7;
    pub const TABLE: u16 = 15;
}

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number, as long as it lives.
    pub index: u32,
    /// What kind of virtual link it is: `dummy`.
    pub kind: Option<String>,
    /// Whether it is up. One that is down has no routes.
    pub is_up: bool,
    /// Whether it asks and answers who has an address. A dummy does not, and its IPv6 addresses are not checked for
    /// being somebody else's.
    pub resolves: bool,
}

/// A range of addresses that is the node's own, by a route of type `local` in the table `local`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocalRoute {
    /// The range, without bits behind its prefix.
    pub destination: IpNet,
    /// The number of the link that it goes with.
    pub link: u32,
    /// The source address of who sends there from the node: an address that the node has already.
    pub source: Option<IpAddr>,
}

/// Something that is to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Gives the link with this number an address, as a host's: /32 or /128.
    AddAddress(u32, IpAddr),
    /// Takes it away.
    DeleteAddress(u32, IpAddr),
    /// Makes a route that is marked as ours.
    AddRoute(LocalRoute),
    /// Puts a route in the place of the one that is there to this destination.
    ReplaceRoute(LocalRoute),
    /// Removes a route that is marked as ours.
    DeleteRoute(LocalRoute),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddAddress(link, address) => write!(f, "new address {address} of link {link}"),
            Self::DeleteAddress(link, address) => write!(f, "removal of address {address} of link {link}"),
            Self::AddRoute(route) => write!(f, "new local route to {}", route.destination),
            Self::ReplaceRoute(route) => write!(f, "another local route to {}", route.destination),
            Self::DeleteRoute(route) => write!(f, "removal of the local route to {}", route.destination),
        }
    }
}

#[cfg(test)]
mod tests;

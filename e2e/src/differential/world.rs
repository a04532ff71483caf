//! A small cluster at one moment, as values that can be compared, changed and shrunk.
//!
//! Addresses and ports come from short lists, so that Services that come and go meet each other's leavings.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::traffic;

/// How many Services there are at most.
pub const SLOTS: u8 = 4;
/// How many slices a Service has at most.
pub const SLICES: u8 = 4;
/// Service ports.
pub const PORTS: [u16; 3] = [80, 81, 82];
/// Ports of endpoints. A server listens on each of them at every endpoint's address, on TCP and UDP.
pub const TARGETS: [u16; 3] = [8080, 8081, 8082];
/// Node ports.
pub const NODE_PORTS: [u16; 24] = [
    30001, 30002, 30003, 30004, 30005, 30006, 30007, 30008, 30009, 30010, 30011, 30012, 30127, 30128, 30129,
    30130, 30131, 30132, 30255, 30256, 30257, 30258, 30259, 30260,
];
/// Numbers of ClusterIPs. There are more than Services, so that one that is free again is not taken at once.
pub const VIPS: [u8; 6] = [1, 2, 3, 4, 5, 6];
/// Numbers of external and load balancer addresses.
pub const EXTERNALS: [u8; 5] = [1, 2, 3, 4, 5];
/// The external number that is the node's own address.
pub const NODE_ITSELF: u8 = 9;
/// Zones of the node, and of hints those that are not the last one.
pub const ZONES: [&str; 3] = ["zone-a", "zone-b", "zone-c"];
/// What `loadBalancerSourceRanges` is made of: one outside host, some of them, all, the node, pods, nobody.
pub const RANGES: [&str; 9] = [
    "192.168.77.200/32",
    "192.168.77.200/30",
    "192.168.77.192/26",
    "192.168.77.11/32",
    "10.244.1.0/24",
    "198.51.100.0/24",
    "fd00:77::c8/128",
    "fd00:77::/64",
    "fd00:10:244:1::/64",
];

/// All objects of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// By slot.
    pub services: BTreeMap<u8, Service>,
    /// By the slot of their Service, which need not be there, and their own number.
    pub slices: BTreeMap<(u8, u8), Slice>,
    /// The node's zone, as an index of [`ZONES`].
    pub zone: usize,
}

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// The protocol of a port; nothing is sent by SCTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// As servers and clients have it.
    #[must_use]
    pub fn traffic(self) -> Option<traffic::Protocol> {
        match self {
            Self::Tcp => Some(traffic::Protocol::Tcp),
            Self::Udp => Some(traffic::Protocol::Udp),
            Self::Sctp => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// The type of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ClusterIP.
    ClusterIp,
    /// NodePort.
    NodePort,
    /// LoadBalancer.
    LoadBalancer,
    /// ClusterIP with `clusterIP: None`.
    Headless,
    /// ExternalName.
    ExternalName,
}

impl Kind {
    /// Kinds of one class can become each other while the ClusterIPs stay.
    #[must_use]
    pub fn class(self) -> u8 {
        match self {
            Self::ClusterIp | Self::NodePort | Self::LoadBalancer => 0,
            Self::Headless => 1,
            Self::ExternalName => 2,
        }
    }
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its type.
    pub kind: Kind,
    /// Its families, the first one first.
    pub families: Vec<Family>,
    /// The number of its ClusterIPs.
    pub vip: u8,
    /// Its ports, never none.
    pub ports: Vec<Port>,
    /// `externalIPs`, both families of each number.
    pub external: Vec<u8>,
    /// `status.loadBalancer.ingress`, both families of each number, and `ipMode`.
    pub ingress: Vec<(u8, Option<&'static str>)>,
    /// `sessionAffinity: ClientIP` with this timeout.
    pub affinity: Option<u32>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `loadBalancerSourceRanges`, as indices of [`RANGES`].
    pub ranges: Vec<usize>,
    /// A label: the one that gives it to another proxy, or the one that means something on slices only.
    pub label: Option<&'static str>,
    /// `publishNotReadyAddresses`.
    pub publish_not_ready: bool,
}

/// One of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name; empty for the only port of a Service.
    pub name: &'static str,
    /// Its protocol.
    pub protocol: Protocol,
    /// One of [`PORTS`].
    pub port: u16,
    /// One of [`NODE_PORTS`].
    pub node_port: Option<u16>,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Its address type.
    pub family: Family,
    /// Its ports: name, protocol, and one of [`TARGETS`].
    pub ports: Vec<(&'static str, Protocol, u16)>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Whether it has the label that takes it away from the proxy.
    pub headless: bool,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub place: Place,
    /// Whether `nodeName` is there.
    pub named: bool,
    /// `conditions.ready`.
    pub ready: Option<bool>,
    /// `conditions.serving`.
    pub serving: Option<bool>,
    /// `conditions.terminating`.
    pub terminating: Option<bool>,
    /// `hints.forZones`, as indices of [`ZONES`].
    pub zones: Vec<usize>,
    /// `hints.forNodes`, by the numbers of nodes.
    pub nodes: Vec<u8>,
}

/// Where an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A pod of the node under test: the first or the second one.
    Local(u8),
    /// A pod of the other node.
    Remote(u8),
    /// The node under test, in its own network.
    Host,
}

impl Place {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Local(0),
        Self::Local(1),
        Self::Remote(0),
        Self::Remote(1),
        Self::Host,
    ];

    /// Its address. The fabric gives these: see [`crate::network`].
    #[must_use]
    pub fn address(self, family: Family) -> IpAddr {
        match self {
            Self::Local(number) => pod(family, 1, 2 + number),
            Self::Remote(number) => pod(family, 2, 2 + number),
            Self::Host => node(family, 1),
        }
    }

    /// Its `nodeName`.
    #[must_use]
    pub fn node(self) -> &'static str {
        match self {
            Self::Local(_) | Self::Host => NODE,
            Self::Remote(_) => OTHER_NODE,
        }
    }
}

/// How the names of all Services and slices begin.
pub const SERVICE_PREFIX: &str = "service-";
/// The node under test.
pub const NODE: &str = "node-1";
/// The other node.
pub const OTHER_NODE: &str = "node-2";

/// A pod's address on a node.
#[must_use]
pub fn pod(family: Family, node: u8, place: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 244, node, place).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x244, node.into(), 0, 0, 0, place.into()).into(),
    }
}

/// A node's address.
#[must_use]
pub fn node(family: Family, number: u8) -> IpAddr {
    wire(family, 10 + number)
}

/// An address on the wire.
#[must_use]
pub fn wire(family: Family, place: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 168, 77, place).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, place.into()).into(),
    }
}

/// A ClusterIP.
#[must_use]
pub fn vip(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 96, 50, number).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x5000 + u16::from(number)).into(),
    }
}

/// An external or load balancer address.
#[must_use]
pub fn external(family: Family, number: u8) -> IpAddr {
    if number == NODE_ITSELF {
        return node(family, 1);
    }
    match family {
        Family::V4 => Ipv4Addr::new(203, 0, 113, number).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, number.into()).into(),
    }
}

/// The label that gives a Service to another proxy.
pub const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The label that takes a slice away from every proxy.
pub const HEADLESS: &str = "service.kubernetes.io/headless";

impl Service {
    /// Whether it has ClusterIPs.
    #[must_use]
    pub fn has_vip(&self) -> bool {
        !matches!(self.kind, Kind::Headless | Kind::ExternalName)
    }

    /// Whether a proxy is to forward it.
    #[must_use]
    pub fn is_forwarded(&self) -> bool {
        self.has_vip() && self.label != Some(PROXY_NAME)
    }

    /// Whether the API server allows it an `externalTrafficPolicy`.
    pub(super) fn has_external_policy(&self) -> bool {
        matches!(self.kind, Kind::NodePort | Kind::LoadBalancer) || !self.external.is_empty()
    }

    /// Its name.
    #[must_use]
    pub fn name(slot: u8) -> String {
        format!("{SERVICE_PREFIX}{slot}")
    }

    /// The node port of a port, where the Service's type has any.
    #[must_use]
    pub fn node_port(&self, port: &Port) -> Option<u16> {
        let has = matches!(self.kind, Kind::NodePort | Kind::LoadBalancer);
        port.node_port.filter(|_| has)
    }
}

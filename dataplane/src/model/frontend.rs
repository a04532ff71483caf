//! Frontends and pools: what a packet can be sent to, and whom it then reaches.

use std::{fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::input::TrafficPolicy;
use super::names::{Family, IpPort, Protocol, ServicePortName};
use super::scheduler::Scheduler;

/// What a packet must be addressed to for a frontend to take it. At most one frontend has a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    /// The family; with [`Destination::NodePort`] it cannot be told from the destination.
    pub family: Family,
    /// The address.
    pub destination: Destination,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port.
    pub port: u16,
}

/// The address part of a [`FrontendKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Destination {
    /// One address: a ClusterIP, an external IP, a load balancer IP.
    Address(IpAddr),
    /// Every address of the node that NodePorts answer on ([`super::Context::node_port_addresses`]).
    NodePort,
}

/// Which field of the Service a frontend comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIP,
    /// `spec.externalIPs`.
    ExternalIP,
    /// `status.loadBalancer.ingress[].ip`.
    LoadBalancerIP,
    /// `spec.ports[].nodePort`.
    NodePort,
}

impl FrontendKind {
    /// Whose policy applies to it.
    #[must_use]
    pub fn side(self) -> TrafficSide {
        match self {
            Self::ClusterIP => TrafficSide::Internal,
            Self::ExternalIP | Self::LoadBalancerIP | Self::NodePort => TrafficSide::External,
        }
    }
}

/// To which traffic a traffic policy applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrafficSide {
    /// To that of ClusterIPs (`internalTrafficPolicy`).
    Internal,
    /// To that of node ports, external IPs and load balancer IPs (`externalTrafficPolicy`).
    External,
}

impl fmt::Display for FrontendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClusterIP => "cluster IP",
            Self::ExternalIP => "external IP",
            Self::LoadBalancerIP => "load balancer IP",
            Self::NodePort => "node port",
        })
    }
}

/// What happens to packets that are addressed to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// The Service port that has the key.
    pub owner: Arc<ServicePortName>,
    /// Where the key comes from.
    pub kind: FrontendKind,
    /// What is done.
    pub action: Action,
    /// Who may connect, whatever the action says; everybody else is dropped. None means everybody. Only load
    /// balancer IPs have it (`spec.loadBalancerSourceRanges`), and never together with [`Action::Reject`].
    pub sources: Option<Arc<[IpNet]>>,
}

impl Frontend {
    /// Whether this source address may connect.
    #[must_use]
    pub fn allows(&self, source: IpAddr) -> bool {
        self.sources
            .as_ref()
            .is_none_or(|ranges| ranges.iter().any(|range| range.contains(&source)))
    }
}

/// What is done with a new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// One of the pool's endpoints gets it.
    Balance {
        /// The pool; it is in the same table and is not empty.
        pool: PoolKey,
        /// Whether the source address becomes the node's own.
        masquerade: Masquerade,
    },
    /// `externalTrafficPolicy: Local`, with endpoints somewhere. What comes from this node is treated as if it had
    /// gone out and come back through a load balancer, which would find an endpoint on any node.
    External {
        /// Who gets connections of the node itself, masqueraded, and of its pods ([`super::LocalTraffic`]), which keep
        /// their source address.
        inside: PoolKey,
        /// Who gets all others, with their source address; none when no endpoint is on this node: they are dropped,
        /// so that a load balancer tries another node.
        outside: Option<PoolKey>,
    },
    /// It is refused: TCP reset or ICMP port unreachable. No endpoint exists anywhere, or clients are to go to the
    /// pods directly.
    Reject,
    /// It is dropped: `internalTrafficPolicy: Local`, and no endpoint is on this node.
    Drop,
}

impl Action {
    /// The pools that connections can go to.
    pub fn pools(&self) -> impl Iterator<Item = &PoolKey> {
        let pools = match self {
            Self::Balance { pool, .. } => [Some(pool), None],
            Self::External { inside, outside } => [Some(inside), outside.as_ref()],
            Self::Reject | Self::Drop => [None, None],
        };
        pools.into_iter().flatten()
    }
}

/// Whose source address becomes the node's own, hairpin connections apart: those are always masqueraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Masquerade {
    /// That of everybody who is not a pod of this node ([`super::LocalTraffic`]).
    NonLocal,
    /// Everybody's.
    Always,
}

/// Names a pool: the endpoints of one Service port in one family, as one of the traffic policies has them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolKey {
    /// The Service port.
    pub owner: Arc<ServicePortName>,
    /// The family.
    pub family: Family,
    /// The policy.
    pub policy: TrafficPolicy,
}

/// Names a Service port in one family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey {
    /// The Service port.
    pub owner: Arc<ServicePortName>,
    /// The family.
    pub family: Family,
}

/// Endpoints that share the connections of one or more frontends. Sorted by address, without duplicates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The endpoints.
    pub endpoints: Box<[PoolEndpoint]>,
    /// The weight that a share of 1 stands for, up to rounding: shares are the smallest numbers that are to each other as
    /// weights are, and some schedulers of IPVS ask for more than that (ovf: how many connections an endpoint takes). 1 to
    /// 100, 1 where nobody gives weights.
    pub unit: u8,
    /// How long a client keeps its endpoint after its last new connection, in seconds. What is remembered belongs to
    /// the Service port: both of its pools share it.
    pub affinity: Option<u32>,
    /// How mode IPVS spreads connections, where the Service says it; otherwise as the policy does
    /// ([`super::IpvsSettings::scheduler`]).
    pub scheduler: Option<Scheduler>,
    /// UDP only, sorted: endpoints that get no new flows because they terminate or have weight 0, but still serve those
    /// that they have.
    pub draining: Box<[IpPort]>,
}

/// One endpoint of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolEndpoint {
    /// Address and port of the endpoint.
    pub address: IpPort,
    /// Whether it runs on this node, or nothing says where: it can call itself through the Service (hairpin).
    pub local: bool,
    /// How many connections it gets while an endpoint with share 1 gets one: 1 to 100, 1 where all get the same. Those of
    /// a pool have no common divisor.
    pub share: u8,
}

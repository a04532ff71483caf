//! Frontends and pools: what a packet can be sent to, and whom it then reaches.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::names::{Family, Protocol, ServicePortName};

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
    /// It is refused: TCP reset or ICMP port unreachable. No endpoint exists anywhere.
    Reject,
}

/// Whose source address becomes the node's own, hairpin connections apart: those are always masqueraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Masquerade {
    /// Nobody's.
    Never,
    /// That of everybody who is not a pod of this node ([`super::LocalTraffic`]).
    NonLocal,
    /// Everybody's.
    Always,
}

/// Names a pool: the endpoints of one Service port in one family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolKey {
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
}

/// One endpoint of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolEndpoint {
    /// Address and port of the endpoint.
    pub address: SocketAddr,
    /// Whether it runs on this node, so that it can call itself through the Service (hairpin).
    pub local: bool,
}

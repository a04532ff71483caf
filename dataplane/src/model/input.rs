//! What the model reads of Services and EndpointSlices: only the fields that have a meaning for a proxy.

use std::{net::IpAddr, sync::Arc};

use super::names::{Family, Protocol, ServiceName};

/// A Service that a proxy forwards: not headless, not an ExternalName.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ServiceName,
    /// `metadata.creationTimestamp` in seconds since 1970. Of two Services that claim one address and port the
    /// older one has it.
    pub created: i64,
    /// `spec.clusterIPs`; at most one of each family is used.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` where `ipMode` is not Proxy.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
}

/// One of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `name`; empty when there is none.
    pub name: Arc<str>,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`, of the ClusterIP, external IPs and load balancer IPs.
    pub port: u16,
    /// `nodePort`; none for a Service without one.
    pub node_port: Option<u16>,
}

/// The part of an EndpointSlice that a proxy reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// `addressType`.
    pub family: Family,
    /// `ports`; a port without a number is left out.
    pub ports: Vec<EndpointPort>,
    /// `endpoints`, each with its first address only, as kube-proxy has it.
    pub endpoints: Vec<Endpoint>,
}

/// One of a slice's `ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// `name`; joins the slice to the Service's port of the same name.
    pub name: Arc<str>,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`.
    pub port: u16,
}

/// One of a slice's `endpoints`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]`.
    pub address: IpAddr,
    /// `conditions.ready`; absent means true.
    pub ready: bool,
    /// `conditions.serving`; absent means the same as ready.
    pub serving: bool,
    /// `conditions.terminating`; absent means false.
    pub terminating: bool,
    /// Whether `nodeName` is this node's name.
    pub local: bool,
}

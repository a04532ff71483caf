//! What the model reads of Services and EndpointSlices: only the fields that have a meaning for a proxy.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::names::{Family, Protocol, ServiceName};
use super::scheduler::Scheduler;
use super::weight::{Weight, Weights};

/// A Service that a proxy forwards: not headless, not an ExternalName.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// `spec.internalTrafficPolicy`, of the ClusterIPs.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`, of node ports, external IPs and load balancer IPs.
    pub external_policy: TrafficPolicy,
    /// `spec.sessionAffinity: ClientIP`: how long a client keeps its endpoint after its last new connection, in
    /// seconds.
    pub affinity: Option<u32>,
    /// `spec.loadBalancerSourceRanges`: who may use the load balancer IPs; none means everybody.
    pub source_ranges: Option<Vec<IpNet>>,
    /// `spec.healthCheckNodePort`, of a Service of type LoadBalancer with external policy Local.
    pub health_check_port: Option<u16>,
    /// Annotation `networking.alpha.kubernetes.io/direct-access: "true"`: clients go to the pods directly, and
    /// every frontend refuses.
    pub direct_access: bool,
    /// Annotation `pointsman.dev/weights`.
    pub weights: Weights,
    /// Annotations `pointsman.dev/scheduler` and `pointsman.dev/scheduler-flags`: how mode IPVS spreads connections; none
    /// where the policy says it.
    pub scheduler: Option<Scheduler>,
}

/// Which endpoints a frontend may use (KEP-2086 and `spec.externalTrafficPolicy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrafficPolicy {
    /// Those of all nodes.
    #[default]
    Cluster,
    /// Those of this node.
    Local,
}

impl TrafficPolicy {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Cluster, Self::Local];
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]`.
    pub address: IpAddr,
    /// `conditions.ready`; absent means true.
    pub ready: bool,
    /// `conditions.serving`; absent means true.
    pub serving: bool,
    /// `conditions.terminating`; absent means false.
    pub terminating: bool,
    /// Whether `nodeName` is this node's name.
    pub local: bool,
    /// Whether there is no `nodeName`, as in slices that people write: it may run anywhere, on this node too.
    pub unplaced: bool,
    /// `hints.forNodes`: whether this node is among them; none when there are none.
    pub for_nodes: Option<bool>,
    /// What many endpoints have in common, in memory that they share; none where nothing of it is said.
    pub common: Option<Arc<Common>>,
}

/// What endpoints of a slice mostly have the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Common {
    /// `hints.forZones`; none when there are none.
    pub for_zones: Option<Box<[Box<str>]>>,
    /// What says which share of connections they get.
    pub weight: Weight,
}

impl Endpoint {
    /// `hints.forZones`; none when there are none.
    #[must_use]
    pub fn for_zones(&self) -> Option<&[Box<str>]> {
        self.common.as_ref()?.for_zones.as_deref()
    }

    /// What says which share of connections it gets.
    #[must_use]
    pub fn weight(&self) -> &Weight {
        self.common
            .as_ref()
            .map_or(&Weight::USUAL, |common| &common.weight)
    }

    /// The same endpoint with another weight.
    #[must_use]
    pub fn weighing(self, weight: Weight) -> Self {
        let common = self.common.as_deref().cloned().unwrap_or_default();
        Self {
            common: Some(Arc::new(Common { weight, ..common })),
            ..self
        }
    }
}

//! What holds for all Services of a node: settings and facts about the node.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::names::Family;
use super::scheduler::Scheduler;

/// The part of the policy that decides where packets go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Service addresses in these ranges are left alone.
    pub exclude_cidrs: Vec<IpNet>,
    /// How pod traffic is told from other traffic.
    pub detect_local: DetectLocal,
    /// Whether pods' traffic to ClusterIPs is masqueraded as well.
    pub masquerade_all: bool,
    /// Where NodePorts answer; any of these.
    pub node_port_addresses: Vec<NodePortAddresses>,
    /// Whether forwarded packets that conntrack calls invalid go on. Dropped otherwise: an answer out of window would
    /// leave untranslated, and the client would reset the connection (kubernetes/kubernetes#74839).
    pub accept_invalid: bool,
    /// Whether TCP connections end whose endpoint is gone; only then [`super::Compiled::existing`] is filled in.
    pub reset_removed: bool,
    /// What mode IPVS is told.
    pub ipvs: IpvsSettings,
}

/// What mode IPVS is told. Times are in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IpvsSettings {
    /// How the connections of a pool are spread whose Service says nothing ([`super::Pool::scheduler`]).
    pub scheduler: Scheduler,
    /// How long an idle TCP connection is remembered; none: as the kernel has it.
    pub tcp_timeout: Option<u32>,
    /// How long a TCP connection is remembered after a FIN; none: as the kernel has it.
    pub tcp_fin_timeout: Option<u32>,
    /// How long an idle UDP flow is remembered; none: as the kernel has it.
    pub udp_timeout: Option<u32>,
    /// How long an endpoint that left its pool stays for the connections that it has; none: until the last one ended.
    pub graceful: Option<u32>,
}

/// How pod traffic is told from other traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DetectLocal {
    /// By the Node's podCIDRs.
    #[default]
    NodeCidr,
    /// By the given ranges.
    ClusterCidr(Vec<IpNet>),
    /// By the name of the interface that it comes in through.
    BridgeInterface(Arc<str>),
    /// By the beginning of that name.
    InterfaceNamePrefix(Arc<str>),
}

/// A choice of the node's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The InternalIPs of the Node object.
    Primary,
    /// Every address of every interface, loopback apart.
    All,
    /// Every address of every interface in this range.
    Within(IpNet),
}

/// What is known of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// InternalIPs of the Node object, `status.addresses`.
    pub internal_ips: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// The addresses of the node's interfaces, loopback and link-local ones left out, sorted.
    pub interface_addresses: Vec<IpAddr>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
}

/// Settings and facts together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// The settings.
    pub settings: Settings,
    /// The facts.
    pub node: NodeFacts,
    /// The ranges that ClusterIPs are allocated from, `spec.cidrs` of all ServiceCIDR objects, sorted, without
    /// duplicates. Empty where they are not known.
    pub service_cidrs: Vec<IpNet>,
}

/// How the packets of this node's pods are recognised, in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalTraffic {
    /// They are not: nothing is known to tell them by, so nobody is masqueraded towards ClusterIPs.
    Unknown,
    /// By source address.
    From(Vec<IpNet>),
    /// By the interface that they come in through.
    Interface(Arc<str>),
    /// By the beginning of that interface's name.
    InterfacePrefix(Arc<str>),
}

impl Context {
    /// Whether the policy leaves this Service address alone.
    #[must_use]
    pub fn is_excluded(&self, address: IpAddr) -> bool {
        self.settings
            .exclude_cidrs
            .iter()
            .any(|range| range.contains(&address))
    }

    /// Whether this address is in a range that ClusterIPs are allocated from, and the policy does not leave it
    /// alone.
    #[must_use]
    pub fn is_service_address(&self, address: IpAddr) -> bool {
        !self.is_excluded(address) && self.service_cidrs.iter().any(|range| range.contains(&address))
    }

    /// How this node's pods are recognised.
    #[must_use]
    pub fn local_traffic(&self, family: Family) -> LocalTraffic {
        let of_family = |ranges: &[IpNet]| -> LocalTraffic {
            let ranges: Vec<IpNet> = ranges
                .iter()
                .filter(|range| Family::of(range.addr()) == family)
                .copied()
                .collect();
            if ranges.is_empty() {
                LocalTraffic::Unknown
            } else {
                LocalTraffic::From(ranges)
            }
        };
        match &self.settings.detect_local {
            DetectLocal::NodeCidr => of_family(&self.node.pod_cidrs),
            DetectLocal::ClusterCidr(ranges) => of_family(ranges),
            DetectLocal::BridgeInterface(name) => LocalTraffic::Interface(Arc::clone(name)),
            DetectLocal::InterfaceNamePrefix(prefix) => LocalTraffic::InterfacePrefix(Arc::clone(prefix)),
        }
    }

    /// The node's addresses that NodePorts answer on, sorted, without duplicates.
    #[must_use]
    pub fn node_port_addresses(&self, family: Family) -> Vec<IpAddr> {
        let mut chosen: Vec<IpAddr> = self
            .settings
            .node_port_addresses
            .iter()
            .flat_map(|choice| {
                let node = &self.node;
                let (from, range) = match choice {
                    NodePortAddresses::Primary => (&node.internal_ips, None),
                    NodePortAddresses::All => (&node.interface_addresses, None),
                    NodePortAddresses::Within(range) => (&node.interface_addresses, Some(range)),
                };
                from.iter()
                    .copied()
                    .filter(move |address| range.is_none_or(|range| range.contains(address)))
            })
            .filter(|address| Family::of(*address) == family)
            .collect();
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }
}

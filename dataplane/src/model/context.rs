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

    /// The ranges that ClusterIPs of a family are allocated from, without what the policy leaves alone: no two overlap.
    #[must_use]
    pub fn service_ranges(&self, family: Family) -> Vec<IpNet> {
        let excluded = &self.settings.exclude_cidrs;
        let of_family = |range: &&IpNet| Family::of(range.addr()) == family;
        let mut ranges = Vec::new();
        let mut rest: Vec<IpNet> = self
            .service_cidrs
            .iter()
            .filter(of_family)
            .map(IpNet::trunc)
            .collect();
        while let Some(range) = rest.pop() {
            if excluded.iter().any(|other| other.contains(&range)) {
                continue;
            }
            match range.subnets(range.prefix_len() + 1) {
                Ok(halves) if excluded.iter().any(|other| range.contains(other)) => rest.extend(halves),
                _ => ranges.push(range),
            }
        }
        let mut ranges = IpNet::aggregate(&ranges);
        ranges.sort_unstable();
        ranges
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

#[cfg(test)]
mod tests {
    use super::super::testing::context;
    use super::*;

    fn ranges(cidrs: &[&str], excluded: &[&str], family: Family) -> Vec<String> {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let mut context = context();
        context.service_cidrs = parse(cidrs);
        context.settings.exclude_cidrs = parse(excluded);
        let ranges = context.service_ranges(family);
        ranges.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn service_ranges_are_what_is_not_excluded() {
        use Family::{V4, V6};
        let both = ["10.96.0.0/16", "fd00:96::/112"];
        assert_eq!(ranges(&both, &[], V4), ["10.96.0.0/16"]);
        assert_eq!(ranges(&both, &["10.96.0.0/16"], V6), ["fd00:96::/112"]);
        assert_eq!(ranges(&both, &["10.0.0.0/8"], V4), [""; 0]);
        assert_eq!(
            ranges(&["10.96.0.0/30"], &["10.96.0.1/32"], V4),
            ["10.96.0.0/32", "10.96.0.2/31"]
        );
        assert_eq!(
            ranges(
                &["10.96.0.0/16"],
                &["10.96.128.0/17", "10.96.0.0/18", "10.97.0.0/16"],
                V4
            ),
            ["10.96.64.0/18"]
        );
        // Written with bits behind the prefix, and overlapping.
        assert_eq!(
            ranges(&["10.96.1.1/16", "10.96.7.0/24"], &["0.0.0.0/32"], V4),
            ["10.96.0.0/16"]
        );
        assert_eq!(ranges(&["10.96.0.0/16"], &["0.0.0.0/0"], V4), [""; 0]);
    }

    #[test]
    fn an_excluded_address_splits_a_large_range_into_few() {
        let left = ranges(&["fd00:96::/64"], &["fd00:96::1/128"], Family::V6);
        assert_eq!(left.len(), 64);
        assert!(!left.iter().any(|range| {
            let range: IpNet = range.parse().unwrap();
            range.contains(&"fd00:96::1".parse::<IpAddr>().unwrap())
        }));
    }
}

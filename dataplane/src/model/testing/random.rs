//! Random objects, for properties: of few addresses, names and ports, so that they meet each other.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::ip;
use crate::model::{
    Common, Context, DetectLocal, Endpoint, EndpointPort, EndpointSlice, Family, Ingress, IpvsSettings,
    NodeFacts, NodePortAddresses, Packet, Protocol, Scheduler, SchedulerKind, Service, ServiceName,
    ServicePort, Settings, TrafficPolicy, Weight, Weights,
};

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
const NAMES: [&str; 3] = ["", "a", "b"];

/// Addresses of Services, of nodes, of pods: each kind may turn up in place of another.
const ADDRESSES: [&str; 14] = [
    "10.96.0.1",
    "10.96.0.2",
    "10.96.0.3",
    "203.0.113.1",
    "203.0.113.2",
    "192.168.0.1",
    "192.168.0.77",
    "10.244.1.1",
    "10.244.2.1",
    "fd00:96::1",
    "fd00:96::2",
    "2001:db8::1",
    "fd00::1",
    "fd00:1::1",
];

const RANGES: [&str; 8] = [
    "192.168.0.0/24",
    "192.168.0.77/32",
    "10.244.0.0/16",
    "10.96.0.0/31",
    "0.0.0.0/0",
    "fd00::/64",
    "fd00:96::/112",
    "2001:db8::/32",
];

fn addresses(from: &'static [&'static str], most: usize) -> impl Strategy<Value = Vec<IpAddr>> {
    subsequence(from, 0..=most).prop_map(|texts| texts.into_iter().map(ip).collect())
}

fn ranges(most: usize) -> impl Strategy<Value = Vec<IpNet>> {
    subsequence(&RANGES[..], 0..=most)
        .prop_map(|texts| texts.into_iter().map(|text| text.parse().unwrap()).collect())
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    select(&TrafficPolicy::ALL[..])
}

fn name() -> impl Strategy<Value = Arc<str>> {
    select(&NAMES[..]).prop_map(Arc::from)
}

fn protocol() -> impl Strategy<Value = Protocol> {
    select(&PROTOCOLS[..])
}

/// The name of one of six Services.
pub(in crate::model) fn any_name() -> impl Strategy<Value = ServiceName> {
    (0_u8..6).prop_map(|number| ServiceName::new("default", &format!("s{number}")))
}

/// One of six Services.
pub(in crate::model) fn any_service() -> impl Strategy<Value = Service> {
    let port = (name(), protocol(), 80_u16..82, option::of(30_080_u16..30_083)).prop_map(
        |(name, protocol, port, node_port)| ServicePort {
            name,
            protocol,
            port,
            node_port,
        },
    );
    let addresses = (
        addresses(&["10.96.0.1", "10.96.0.2", "fd00:96::1", "fd00:96::2"], 3),
        addresses(&ADDRESSES, 2),
        addresses(&ADDRESSES, 2),
        option::of(ranges(2)),
    );
    let rest = (
        option::of(select(vec![60, 10_800])),
        option::of(31_000_u16..31_002),
        prop::bool::weighted(0.1),
        weights(),
        scheduler(),
    );
    let ports = prop::collection::vec(port, 1..4);
    (any_name(), 0_i64..3, addresses, ports, policy(), policy(), rest).prop_map(
        |(name, created, addresses, ports, internal_policy, external_policy, rest)| {
            let (cluster_ips, external_ips, load_balancer_ips, source_ranges) = addresses;
            let (affinity, health_check_port, direct_access, weights, scheduler) = rest;
            Service {
                name,
                created,
                cluster_ips,
                external_ips,
                load_balancer_ips,
                ports,
                internal_policy,
                external_policy,
                affinity,
                source_ranges,
                health_check_port,
                direct_access,
                weights,
                scheduler,
            }
        },
    )
}

fn scheduler() -> impl Strategy<Value = Option<Scheduler>> {
    let hashing = Scheduler {
        kind: SchedulerKind::MaglevHashing,
        fallback: true,
        port: false,
    };
    option::weighted(0.3, select(vec![Scheduler::default(), hashing]))
}

fn weights() -> impl Strategy<Value = Weights> {
    subsequence(&[("web", 0), ("web-canary", 100), ("db", 3)][..], 0..=3).prop_map(|entries| {
        let mut weights = Weights::default();
        for (workload, weight) in entries {
            weights.add(workload, weight);
        }
        weights
    })
}

fn weight() -> impl Strategy<Value = Weight> {
    let workload = select(vec!["web-1", "web-canary-1", "db"]);
    prop_oneof![
        2 => Just(Weight::USUAL),
        1 => (0_u8..12).prop_map(|weight| Weight::Given(Some(weight))),
        2 => workload.prop_map(|name| Weight::Workload(name.into())),
    ]
}

fn endpoint(family: Family) -> impl Strategy<Value = Endpoint> {
    let conditions = select(vec![
        (true, true, false),
        (true, true, false),
        (false, true, true),
        (false, false, true),
        (false, false, false),
    ]);
    let zones = subsequence(&["zone-a", "zone-b"][..], 0..=2)
        .prop_map(|zones| zones.into_iter().map(Box::from).collect::<Box<[Box<str>]>>());
    let hints = (option::of(any::<bool>()), option::of(zones));
    (0_u8..6, conditions, hints, weight()).prop_map(
        move |(last, (ready, serving, terminating), (for_nodes, for_zones), weight)| {
            // The first is no possible endpoint, half of the others are this node's.
            let address = match (family, last) {
                (Family::V4, 0) => "127.0.0.1".to_owned(),
                (Family::V6, 0) => "::1".to_owned(),
                (Family::V4, last) => format!("10.244.{}.{last}", last % 2),
                (Family::V6, last) => format!("fd00:{}::{last}", last % 2),
            };
            Endpoint {
                address: ip(&address),
                ready,
                serving,
                terminating,
                local: last % 2 == 1,
                unplaced: last == 4,
                for_nodes,
                common: Some(Arc::new(Common { for_zones, weight })),
            }
        },
    )
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    select(&Family::ALL[..]).prop_flat_map(|family| {
        let port = (name(), protocol(), 8080_u16..8082).prop_map(|(name, protocol, port)| EndpointPort {
            name,
            protocol,
            port,
        });
        let ports = prop::collection::vec(port, 0..4);
        let endpoints = prop::collection::vec(endpoint(family), 0..5);
        (ports, endpoints).prop_map(move |(ports, endpoints)| EndpointSlice {
            family,
            ports,
            endpoints,
        })
    })
}

/// The slices of one Service.
pub(in crate::model) fn any_slices() -> impl Strategy<Value = Vec<EndpointSlice>> {
    prop::collection::vec(slice(), 0..4)
}

/// Settings and facts of a node.
pub(in crate::model) fn any_context() -> impl Strategy<Value = Context> {
    let detect_local = prop_oneof![
        Just(DetectLocal::NodeCidr),
        ranges(2).prop_map(DetectLocal::ClusterCidr),
        Just(DetectLocal::BridgeInterface("cbr0".into())),
        Just(DetectLocal::InterfaceNamePrefix("veth".into())),
    ];
    let choices = vec![
        NodePortAddresses::Primary,
        NodePortAddresses::All,
        NodePortAddresses::Within("192.168.0.0/24".parse().unwrap()),
    ];
    let settings = (
        ranges(1),
        detect_local,
        any::<bool>(),
        subsequence(choices, 0..=2),
        any::<bool>(),
    )
        .prop_map(
            |(exclude_cidrs, detect_local, masquerade_all, node_port_addresses, reset_removed)| Settings {
                exclude_cidrs,
                detect_local,
                masquerade_all,
                node_port_addresses,
                accept_invalid: false,
                reset_removed,
                ipvs: IpvsSettings::default(),
            },
        );
    let node = (
        addresses(&["192.168.0.1", "fd00::1"], 2),
        ranges(2),
        option::of(select(vec!["zone-a", "zone-c"])),
    );
    (settings, node, ranges(2)).prop_map(|(settings, (internal_ips, pod_cidrs, zone), service_cidrs)| {
        Context {
            settings,
            node: NodeFacts {
                internal_ips,
                pod_cidrs,
                interface_addresses: ["192.168.0.1", "192.168.0.2", "fd00::1"].map(ip).to_vec(),
                zone: zone.map(Arc::from),
            },
            service_cidrs,
        }
    })
}

/// A packet that is likely to meet one of the Services.
pub(in crate::model) fn any_packet() -> impl Strategy<Value = Packet> {
    let ingress = prop_oneof![
        Just(Ingress::Host),
        select(vec!["eth0", "cbr0", "veth7"]).prop_map(|name| Ingress::Interface(name.to_owned())),
    ];
    let port = select(vec![80, 81, 82, 30_080, 30_081, 0, 65_535]);
    let address = || select(&ADDRESSES[..]).prop_map(ip);
    (address(), address(), protocol(), port, ingress).prop_map(
        |(source, destination, protocol, port, ingress)| Packet {
            source,
            destination,
            protocol,
            port,
            ingress,
        },
    )
}

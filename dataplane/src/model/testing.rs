//! Objects for the model's tests.

pub(crate) mod history;
pub(crate) mod random;

use std::net::IpAddr;

use super::{
    Context, Endpoint, EndpointPort, EndpointSlice, Family, NodeFacts, NodePortAddresses, Protocol, Service,
    ServiceName, ServicePort, Settings, TrafficPolicy, Weights,
};

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A TCP Service `default/<name>` with port 80 and target port 8080.
pub(super) fn service(name: &str, cluster_ips: &[&str]) -> Service {
    Service {
        name: ServiceName::new("default", name),
        created: 0,
        cluster_ips: cluster_ips.iter().map(|text| ip(text)).collect(),
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        ports: vec![port("", Protocol::Tcp, 80)],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity: None,
        source_ranges: None,
        health_check_port: None,
        direct_access: false,
        weights: Weights::default(),
        scheduler: None,
    }
}

pub(super) fn port(name: &str, protocol: Protocol, number: u16) -> ServicePort {
    ServicePort {
        name: name.into(),
        protocol,
        port: number,
        node_port: None,
    }
}

/// A slice with ready endpoints on the unnamed TCP port 8080.
pub(super) fn slice(addresses: &[&str]) -> EndpointSlice {
    EndpointSlice {
        family: Family::of(ip(addresses.first().unwrap_or(&"10.0.0.1"))),
        ports: vec![EndpointPort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        endpoints: addresses.iter().map(|text| ready(text)).collect(),
    }
}

pub(super) fn ready(address: &str) -> Endpoint {
    Endpoint {
        address: ip(address),
        ready: true,
        serving: true,
        terminating: false,
        local: false,
        for_nodes: None,
        unplaced: false,
        common: None,
    }
}

/// A node 192.168.0.1 with pods in 10.244.1.0/24, NodePorts on its primary address.
pub(super) fn context() -> Context {
    Context {
        settings: Settings {
            node_port_addresses: vec![NodePortAddresses::Primary],
            ..Settings::default()
        },
        node: NodeFacts {
            internal_ips: vec![ip("192.168.0.1"), ip("fd00::1")],
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()],
            interface_addresses: vec![ip("192.168.0.1"), ip("172.16.0.1"), ip("fd00::1")],
            zone: Some("zone-a".into()),
        },
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
    }
}

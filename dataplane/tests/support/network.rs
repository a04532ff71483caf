//! The network of the flow tables ([`super::flows::world`]) out of namespaces: a node with pods, endpoints on other nodes,
//! clients outside, and the rest of the world, which sees what leaves the node untranslated. In both families at once.
//!
//! ```text
//! outside ── client0 ┐         ┌ veth5, veth6, veth7, veth9 ── pods
//!   world ─── up0 ── node ─────┼ cbr0 ── bridged pod
//!                              └ servers0 ── endpoints on other nodes
//! ```

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use pointsman_dataplane::model::Protocol;

use super::flows::families::Families;
use super::flows::world::{self, Place};
use super::namespace::Namespace;
use super::talk::{Ending, knock, serve_one};

/// The rest of the world's own address.
const WORLD_GATEWAY: &str = "172.16.0.2";

/// All namespaces.
pub struct Network {
    pub host: Namespace,
    pods: Vec<Namespace>,
    bridged: Namespace,
    others: Namespace,
    outside: Namespace,
    world: Namespace,
    serving: Mutex<HashSet<(SocketAddr, Protocol)>>,
    next_port: AtomicU16,
}

impl Network {
    pub fn new() -> Self {
        let host = Namespace::new();
        host.become_router();
        let [bridged, others, outside, rest] = [(); 4].map(|()| Namespace::new());
        let pods: Vec<Namespace> = world::PODS.iter().map(|_| Namespace::new()).collect();
        host.ip("link add cbr0 type bridge\nlink set cbr0 up");
        for (at, pod) in pods.iter().enumerate() {
            let name = world::interface(Place::Pod(at)).unwrap();
            host.join(&name, pod, "eth0");
            behind(&host, &name, pod, world::PODS[at]);
        }
        host.join("port20", &bridged, "eth0");
        host.ip("link set port20 master cbr0");
        behind(&host, "cbr0", &bridged, world::BRIDGED);
        host.join("servers0", &others, "eth0");
        give(&host, "servers0", &[world::NODE_TO_OTHERS]);
        give(&others, "eth0", &world::OTHERS);
        host.join("client0", &outside, "eth0");
        give(&host, "client0", &[world::NODE, world::NODE_SECOND]);
        give(&outside, "eth0", &world::OUTSIDE[..2]);
        host.join("up0", &rest, "eth0");
        give(&host, "up0", &[world::NODE_TO_WORLD]);
        give(&rest, "eth0", &[WORLD_GATEWAY]);
        for (namespace, gateway) in [
            (&host, WORLD_GATEWAY),
            (&rest, world::NODE_TO_WORLD),
            (&others, world::NODE_TO_OTHERS),
            (&outside, world::NODE),
        ] {
            for gateway in world::both(gateway) {
                namespace.ip(&format!("route add default via {gateway}"));
            }
        }
        // Whole ranges of addresses, without naming each. IPv6 has to be told that they can be used.
        for namespace in [&host, &outside, &rest] {
            namespace.sysctl("ipv6/ip_nonlocal_bind", "1");
        }
        for (namespace, ranges) in [(&outside, &[world::CROWD][..]), (&rest, &world::WORLD[..])] {
            for range in ranges.iter().flat_map(|range| both_ranges(range)) {
                namespace.ip(&format!("route add local {range} dev lo"));
            }
        }
        for address in world::both(world::OUTSIDE[2]) {
            outside.ip(&format!(
                "addr add {}{} dev eth0",
                IpNet::from(address),
                nodad(address)
            ));
        }
        let far = both_ranges(world::CROWD)
            .into_iter()
            .zip(world::both(world::OUTSIDE[2]));
        for ((range, pod), gateway) in far.zip(world::both(world::OUTSIDE[0])) {
            host.ip(&format!(
                "route add {range} via {gateway}\nroute add {pod} via {gateway}"
            ));
        }
        Self {
            host,
            pods,
            bridged,
            others,
            outside,
            world: rest,
            serving: Mutex::default(),
            next_port: AtomicU16::new(FIRST_PORT),
        }
    }

    /// Asks once. Each time from another port: what conntrack remembers of UDP does not matter then.
    pub fn knock(&self, protocol: Protocol, from: IpAddr, to: SocketAddr, patience: Duration) -> Ending {
        let port = self.next_port.fetch_add(1, Ordering::Relaxed);
        assert!(
            port >= FIRST_PORT,
            "more packets were sent than there are ports: use a second Network"
        );
        knock(protocol, SocketAddr::new(from, port), to, patience)
    }

    /// The namespace where packets of a place begin.
    pub fn place(&self, place: Place) -> &Namespace {
        match place {
            Place::Node => &self.host,
            Place::Pod(at) => &self.pods[at],
            Place::Bridged => &self.bridged,
            Place::Outside => &self.outside,
        }
    }

    /// Makes an endpoint answer.
    pub fn serve_endpoint(&self, at: SocketAddr, protocol: Protocol) {
        let namespace = match world::place_of(at.ip()) {
            Some(place @ Place::Pod(_)) => self.place(place),
            _ => &self.others,
        };
        self.serve(namespace, at, protocol);
    }

    /// Makes whoever gets what is sent there, when nobody translates it, answer: the node, or the rest of the world.
    pub fn serve_untranslated(&self, at: SocketAddr, protocol: Protocol) {
        let namespace = match world::place_of(at.ip()) {
            Some(Place::Node) => &self.host,
            _ => &self.world,
        };
        self.serve(namespace, at, protocol);
    }

    fn serve(&self, namespace: &Namespace, at: SocketAddr, protocol: Protocol) {
        // One raw socket receives what is sent to all ports.
        let port = if protocol == Protocol::Sctp { 0 } else { at.port() };
        let mut serving = self.serving.lock().unwrap();
        if serving.insert((SocketAddr::new(at.ip(), port), protocol)) {
            serve_one(namespace, protocol, at);
        }
    }
}

/// Above all ports that are served, node ports among them: the node sends from the addresses that it serves at.
const FIRST_PORT: u16 = 35_000;

/// Gives an interface addresses with the range around them, in both families.
fn give(namespace: &Namespace, interface: &str, addresses: &[&str]) {
    for address in addresses.iter().flat_map(|address| world::both(address)) {
        let length = if address.is_ipv4() { 24 } else { 112 };
        namespace.ip(&format!(
            "addr add {address}/{length}{} dev {interface}",
            nodad(address)
        ));
    }
}

/// Joins a pod to the node as the CNI plugin ptp does: nothing but the node is next to it.
fn behind(host: &Namespace, interface: &str, pod: &Namespace, address: &str) {
    for (address, gateway) in world::both(address)
        .into_iter()
        .zip(world::both(world::NODE_TO_PODS))
    {
        let single = |address: IpAddr| format!("{}{}", IpNet::from(address), nodad(address));
        host.ip(&format!(
            "addr add {} dev {interface}\nroute add {address} dev {interface}",
            single(gateway)
        ));
        pod.ip(&format!(
            "addr add {} dev eth0\nroute add {gateway} dev eth0\nroute add default via {gateway} dev eth0",
            single(address)
        ));
    }
}

/// Without duplicate address detection an IPv6 address can be used at once.
fn nodad(address: IpAddr) -> &'static str {
    if address.is_ipv6() { " nodad" } else { "" }
}

fn both_ranges(range: &str) -> [IpNet; 2] {
    let range: IpNet = range.parse().unwrap();
    [range, Families::Swapped.net(range).unwrap()]
}

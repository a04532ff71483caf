//! What tests of the IPVS backend share.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use pointsman_dataplane::model::Protocol;
use pointsman_dataplane::netlink::ipvs::{DestinationState, Ipvs, ServiceKey};

use super::node::Node;

/// Below /proc/sys/net: what the agent sets in mode IPVS.
pub const PARAMETERS: [(&str, &str); 4] = [
    ("ipv4/vs/conntrack", "1"),
    ("ipv4/vs/conn_reuse_mode", "1"),
    ("ipv4/vs/expire_nodest_conn", "1"),
    ("ipv4/vs/expire_quiescent_template", "1"),
];

/// The weight of each destination of the virtual service of an address and port; none where it is not there.
pub fn weights(node: &Node, protocol: Protocol, at: SocketAddr) -> Option<BTreeMap<IpAddr, u32>> {
    let key = ServiceKey::Address(protocol, at);
    node.host.run(|| {
        let mut ipvs = Ipvs::open().unwrap();
        ipvs.service(&key).unwrap()?;
        let destinations = ipvs.destinations(&key).unwrap().into_iter();
        let weight = |state: DestinationState| (state.destination.address.ip(), state.destination.weight);
        Some(destinations.map(weight).collect())
    })
}

/// Waits for what is due next, and does it; false when nothing is.
pub fn tend(node: &mut Node) -> bool {
    let Some(at) = node.backend.tend_at() else {
        return false;
    };
    thread::sleep(at.saturating_duration_since(Instant::now()));
    let host = node.host.clone();
    host.run(|| node.backend.tend()).unwrap();
    true
}

/// Does what is due until nothing is any more.
pub fn tend_to_the_end(node: &mut Node) {
    let begin = Instant::now();
    while tend(node) {
        // The kernel knows the longest of what is waited for here, a connection that was reset, for 10 s.
        assert!(begin.elapsed() < Duration::from_secs(120), "it is not done");
    }
}

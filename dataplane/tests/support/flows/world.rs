//! The network that all files speak of, in IPv4; in IPv6 everything is there once more, under its counterpart.

use std::net::IpAddr;

use super::families::counterpart;

/// The node's InternalIP.
pub const NODE: &str = "192.0.2.1";
/// Another address of the same interface.
pub const NODE_SECOND: &str = "192.0.2.91";
/// The node's address towards its pods, and towards those of other nodes.
pub const NODE_TO_PODS: &str = "10.244.1.1";
pub const NODE_TO_OTHERS: &str = "10.244.2.1";
/// The node's address towards the rest of the world, where its default route leads.
pub const NODE_TO_WORLD: &str = "172.16.0.1";
/// Its pods, each with an interface `veth<last digits>` of its own.
pub const PODS: [&str; 4] = ["10.244.1.5", "10.244.1.6", "10.244.1.7", "10.244.1.9"];
/// A pod behind the bridge `cbr0`, in no range of the node's.
pub const BRIDGED: &str = "10.245.0.20";
/// Endpoints on other nodes.
pub const OTHERS: [&str; 4] = ["10.244.2.11", "10.244.2.12", "10.244.2.13", "10.244.2.14"];
/// Clients outside, and a pod of another node.
pub const OUTSIDE: [&str; 3] = ["192.0.2.2", "192.0.2.3", "10.244.3.9"];
/// Many clients outside.
pub const CROWD: &str = "198.18.0.0/24";
/// What the rest of the world answers for: a packet that leaves the node untranslated is seen there.
pub const WORLD: [&str; 4] = [
    "10.96.0.0/16",
    "10.97.0.0/16",
    "203.0.113.0/24",
    "198.51.100.0/24",
];
/// The node's own pods, ranges of Services, and its zone, where a file says nothing else.
pub const POD_RANGE: &str = "10.244.1.0/24";
pub const SERVICE_RANGE: &str = "10.96.0.0/16";
pub const ZONE: &str = "zone-a";
/// The node's name, as hints have it.
pub const NAME: &str = "here";

/// Where a packet begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Node,
    /// Index of [`PODS`].
    Pod(usize),
    Bridged,
    Outside,
}

/// The address of a place that files call by a word.
pub fn address_of(word: &str) -> Option<&'static str> {
    Some(match word {
        "node" => NODE,
        "pod" => PODS[3],
        "bridged" => BRIDGED,
        "outside" => OUTSIDE[0],
        "other-pod" => OUTSIDE[2],
        "crowd" => CROWD,
        _ => return None,
    })
}

/// Who has an address, written in any family.
pub fn place_of(address: IpAddr) -> Option<Place> {
    let address = in_v4(address)?;
    let is = |text: &str| text == address;
    let mut node = node_addresses().chain(["127.0.0.1"]);
    if node.any(is) {
        Some(Place::Node)
    } else if let Some(at) = PODS.into_iter().position(is) {
        Some(Place::Pod(at))
    } else if is(BRIDGED) {
        Some(Place::Bridged)
    } else if OUTSIDE.into_iter().any(is) || address.starts_with("198.18.0.") {
        Some(Place::Outside)
    } else {
        None
    }
}

/// The name of the node's interface to a place; none for the node itself.
pub fn interface(place: Place) -> Option<String> {
    match place {
        Place::Node => None,
        Place::Pod(at) => Some(format!("veth{}", PODS[at].rsplit('.').next().unwrap_or_default())),
        Place::Bridged => Some("cbr0".to_owned()),
        Place::Outside => Some("client0".to_owned()),
    }
}

/// The addresses of the node's interfaces, loopback apart.
pub fn node_addresses() -> impl Iterator<Item = &'static str> {
    [NODE, NODE_SECOND, NODE_TO_PODS, NODE_TO_OTHERS, NODE_TO_WORLD].into_iter()
}

/// Whether an endpoint runs on this node; none when the network has no such endpoint.
pub fn endpoint_is_local(address: IpAddr) -> Option<bool> {
    let address = in_v4(address)?;
    if PODS.contains(&address.as_str()) {
        Some(true)
    } else if OTHERS.contains(&address.as_str()) {
        Some(false)
    } else {
        None
    }
}

/// An address of the lists above, in both families.
pub fn both(text: &str) -> [IpAddr; 2] {
    let address: IpAddr = text.parse().unwrap();
    [address, counterpart(address).unwrap()]
}

fn in_v4(address: IpAddr) -> Option<String> {
    match address {
        IpAddr::V4(_) => Some(address.to_string()),
        IpAddr::V6(_) => counterpart(address).ok().map(|address| address.to_string()),
    }
}

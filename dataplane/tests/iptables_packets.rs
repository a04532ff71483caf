//! Packets through the rules that the iptables backend writes, in namespaces of the test's own, in both variants and
//! both families. Needs root, iptables and iproute2; without them it fails and says what to do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends by failing")]

mod support;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use pointsman_dataplane::iptables::Variant;
use pointsman_dataplane::model::{DetectLocal, Family, Protocol};

use support::node::{NODE_PORT, Node, PORT};
use support::talk::{Connection, ask, outcome};

/// Makes a test of each function, for each variant and family.
macro_rules! on_every_kind {
    ($($name:ident)*) => {
        mod legacy_v4 { $(#[test] fn $name() { super::$name(super::Node::new(super::Variant::Legacy, super::Family::V4)); })* }
        mod legacy_v6 { $(#[test] fn $name() { super::$name(super::Node::new(super::Variant::Legacy, super::Family::V6)); })* }
        mod nft_v4 { $(#[test] fn $name() { super::$name(super::Node::new(super::Variant::Nft, super::Family::V4)); })* }
        mod nft_v6 { $(#[test] fn $name() { super::$name(super::Node::new(super::Variant::Nft, super::Family::V6)); })* }
    };
}

on_every_kind! {
    a_cluster_ip_reaches_all_endpoints_about_equally
    every_kind_of_address_answers
}

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

fn a_cluster_ip_reaches_all_endpoints_about_equally(mut node: Node) {
    node.serve(&[node.at.servers[0], node.at.servers[1], node.at.servers[2], node.at.pod]);
    for protocol in BOTH {
        let mut shares: BTreeMap<IpAddr, u32> = BTreeMap::new();
        for _ in 0..200 {
            *shares.entry(ask(&node.client, protocol, node.vip()).unwrap().who).or_default() += 1;
        }
        // 200 draws of 4: a share below 20 or above 90 has less than one chance in a million.
        assert_eq!(shares.len(), 4, "{protocol}: {shares:?}");
        assert!(shares.values().all(|share| (20..90).contains(share)), "{protocol}: {shares:?}");
    }
}

fn every_kind_of_address_answers(mut node: Node) {
    node.serve(&node.at.servers.clone());
    let node_ip = node.at.node;
    for (address, port) in [
        (node.at.vip, PORT),
        (node.at.external, PORT),
        (node.at.balanced, PORT),
        (node_ip, NODE_PORT),
    ] {
        for protocol in BOTH {
            let to = SocketAddr::new(address, port);
            let answer = ask(&node.client, protocol, to).unwrap_or_else(|error| panic!("{protocol} {to}: {error}"));
            assert!(node.at.servers.contains(&answer.who));
            // From the pod, too, and from the node itself.
            for from in [&node.pod, &node.host] {
                ask(from, protocol, to).unwrap_or_else(|error| panic!("{protocol} {to} from inside: {error}"));
            }
        }
    }
    // A port that no Service has is not translated: nobody answers for it.
    assert_ne!(outcome(&node.host, Protocol::Tcp, SocketAddr::new(node_ip, NODE_PORT + 1)), "answered");
}

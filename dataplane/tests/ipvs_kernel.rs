//! Whether the test kernel is one that IPVS can be tested on. Runs in it by itself; see CONTRIBUTING.md. Needs the packages of
//! e2e/packages.sh; without them it fails and says what to do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by failing"
)]

mod support;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use pointsman_dataplane::model::Protocol;

use support::namespace::Namespace;
use support::talk::{Answer, ask, serve};

pointsman_test_kernel::run_inside!();

const SCHEDULERS: [&str; 14] = [
    "rr", "wrr", "lc", "wlc", "fo", "ovf", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "twos",
];

/// A client and two servers, each a namespace, with a node between them.
struct Network {
    node: Namespace,
    client: Namespace,
    servers: [Namespace; 2],
}

/// The last byte of a network's number, and who is there.
const CLIENT: &str = "10.1.0.2";
const SERVERS: [&str; 2] = ["10.1.1.2", "10.1.2.2"];

impl Network {
    fn new() -> Self {
        let [node, client, first, second] = [(); 4].map(|()| Namespace::new());
        node.become_router();
        let servers = [first, second];
        let places = [
            (&client, CLIENT),
            (&servers[0], SERVERS[0]),
            (&servers[1], SERVERS[1]),
        ];
        for (number, (namespace, address)) in places.into_iter().enumerate() {
            let interface = format!("to{number}");
            node.join(&interface, namespace, "eth0");
            for (at, gateway) in [
                (format!("{address}/24"), format!("10.1.{number}.1/24")),
                (format!("{}/64", v6(address)), format!("fd00:1:{number}::1/64")),
            ] {
                let nodad = if at.contains("::") { " nodad" } else { "" };
                node.ip(&format!("addr add {gateway}{nodad} dev {interface}"));
                let via = gateway.split('/').next().unwrap();
                namespace.ip(&format!(
                    "addr add {at}{nodad} dev eth0\nroute add default via {via}"
                ));
            }
        }
        Self {
            node,
            client,
            servers,
        }
    }

    fn ipvsadm(&self, words: &str) -> String {
        let words: Vec<&str> = ["ipvsadm"].into_iter().chain(words.split_whitespace()).collect();
        self.node.program(&words, "")
    }
}

fn v6(address: &str) -> String {
    let number = address.split('.').nth(2).unwrap();
    format!("fd00:1:{number}::2")
}

#[test]
fn every_scheduler_is_there() {
    let network = Network::new();
    for (number, scheduler) in SCHEDULERS.into_iter().enumerate() {
        for vip in ["10.96.0.1", "[fd00:10:96::1]"] {
            let service = format!("{vip}:{}", 1000 + number);
            network.ipvsadm(&format!("-A -t {service} -s {scheduler}"));
            let listed = network.ipvsadm("-Sn");
            let line = format!("-A -t {service} -s {scheduler}");
            assert!(
                listed.lines().any(|has| has.starts_with(&line)),
                "{line} is not in\n{listed}"
            );
        }
    }
    let (found, _, said) = network
        .node
        .try_program(&["ipvsadm", "-A", "-t", "10.96.0.1:1", "-s", "nosuch"], "");
    assert!(!found, "a scheduler that nobody has: {said}");
}

#[test]
fn a_virtual_service_is_balanced_with_masquerade() {
    let network = Network::new();
    network.node.ip("link add vips type dummy\nlink set vips up");
    let pairs = SERVERS.map(|address| (address.to_owned(), v6(address)));
    let families = [
        ("10.96.0.1", CLIENT.to_owned(), pairs.clone().map(|(v4, _)| v4)),
        ("fd00:10:96::1", v6(CLIENT), pairs.map(|(_, v6)| v6)),
    ];
    for (vip, client, servers) in families {
        let [vip, client]: [IpAddr; 2] = [vip, &client].map(|address| address.parse().unwrap());
        let nodad = if vip.is_ipv6() { " nodad" } else { "" };
        network
            .node
            .ip(&format!("addr add {}{nodad} dev vips", ipnet::IpNet::from(vip)));
        let to = SocketAddr::new(vip, 80);
        let ends = servers.map(|address| SocketAddr::new(address.parse().unwrap(), 8080));
        for option in ["-t", "-u"] {
            network.ipvsadm(&format!("-A {option} {to} -s rr"));
            for end in ends {
                network.ipvsadm(&format!("-a {option} {to} -r {end} -m"));
            }
        }
        for (end, namespace) in ends.iter().zip(&network.servers) {
            serve(namespace, *end);
        }
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let mut seen: BTreeMap<SocketAddr, usize> = BTreeMap::new();
            for _ in 0..20 {
                let Answer { who, port, saw } = ask(&network.client, protocol, to).unwrap();
                assert_eq!(saw, client, "IPVS leaves the client its address");
                *seen.entry(SocketAddr::new(who, port)).or_default() += 1;
            }
            assert_eq!(seen, ends.map(|end| (end, 10)).into(), "{protocol:?} {to}");
        }
    }
    // Its first network namespace has nothing of it: tests at the same time do not meet.
    let outside = std::process::Command::new("ipvsadm").arg("-Sn").output().unwrap();
    assert!(
        outside.status.success() && outside.stdout.is_empty(),
        "{outside:?}"
    );
}

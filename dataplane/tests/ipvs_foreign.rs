//! What is somebody else's stays in mode IPVS, also where it has the address and port of a Service. Runs in the test kernel
//! by itself; see CONTRIBUTING.md. Needs the packages of e2e/packages.sh; without them it fails and says what to do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by failing"
)]

mod support;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use pointsman_dataplane::backend::{Error, Remaining, Report};
use pointsman_dataplane::ipvs::Ipvs;
use pointsman_dataplane::model::{Family, Protocol};

use support::node::{Mode, NODE_PORT, Node, PORT, TARGET};
use support::talk::{Connection, ask, outcome};

pointsman_test_kernel::run_inside!();

/// Makes a test of each function, for each family.
macro_rules! in_both_families {
    ($($name:ident)*) => {
        mod v4 { $(#[test] fn $name() { super::$name(super::Node::new(super::Mode::Ipvs, super::Family::V4)); })* }
        mod v6 { $(#[test] fn $name() { super::$name(super::Node::new(super::Mode::Ipvs, super::Family::V6)); })* }
    };
}

in_both_families! {
    what_others_have_stays
    a_service_whose_address_and_port_others_have_is_served
    a_service_that_comes_to_what_others_have_is_served
    what_others_take_over_is_theirs
    clients_of_a_service_whose_address_others_have_keep_their_endpoint
}

fn ipvsadm(node: &Node, words: &str) -> String {
    let words: Vec<&str> = ["ipvsadm"].into_iter().chain(words.split_whitespace()).collect();
    node.host.program(&words, "")
}

/// All virtual services and destinations, each a line.
fn saved(node: &Node) -> BTreeSet<String> {
    ipvsadm(node, "-Sn")
        .lines()
        .map(|line| line.trim().to_owned())
        .collect()
}

/// What there is of somebody else's, beside IPVS.
fn others(node: &Node) -> String {
    let show = |words: &[&str]| node.host.program(words, "");
    [
        show(&["nft", "list", "table", "inet", "theirs"]),
        show(&["ip", "-o", "link", "show", "theirs"]),
        show(&["ip", "-o", "addr", "show", "theirs"]),
        show(&["ip", "-4", "route", "show", "table", "local", "dev", "theirs"]),
        show(&["ip", "-6", "route", "show", "table", "local", "dev", "theirs"]),
    ]
    .concat()
}

/// Somebody else's things, none of which has to do with our Services; a virtual service of theirs is served.
fn make_others(node: &Node) -> SocketAddr {
    let [address, route, mark, nodad] = match node.family {
        Family::V4 => ["198.51.100.200", "198.51.100.128/26", "7", ""],
        Family::V6 => ["2001:db8:77::1", "2001:db8:78::/64", "7 -6", "nodad"],
    };
    let address: IpAddr = address.parse().unwrap();
    let to = SocketAddr::new(address, 90);
    node.host.ip(&format!(
        "link add theirs type dummy\nlink set theirs up\naddr add {} {nodad} dev theirs\n\
         route add local {route} dev theirs table local\n",
        ipnet::IpNet::from(address)
    ));
    let rules = format!(
        "table inet theirs {{ set ports {{ type inet_service; elements = {{ 22, 443 }} }}\n\
         chain masquerades {{ type nat hook postrouting priority 90; ct original {} daddr {address} masquerade\n }}\n }}\n",
        if node.family == Family::V4 { "ip" } else { "ip6" }
    );
    node.host.program(&["nft", "-f", "-"], &rules);
    let end = SocketAddr::new(node.at.servers[2], TARGET);
    for service in [format!("-t {to}"), format!("-u {to}"), format!("-f {mark}")] {
        ipvsadm(node, &format!("-A {service} -s rr"));
        ipvsadm(node, &format!("-a {service} -r {end} -m -w 3"));
    }
    to
}

fn what_others_have_stays(mut node: Node) {
    let theirs = make_others(&node);
    let (virtuals, rest) = (saved(&node), others(&node));
    let look = |node: &Node, when: &str| {
        let now = saved(node);
        assert!(virtuals.is_subset(&now), "{when}: {now:?}");
        assert_eq!(others(node), rest, "{when}");
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let answer = ask(&node.client, protocol, theirs).unwrap();
            assert_eq!(answer.who, node.at.servers[2], "{when}");
        }
    };
    look(&node, "before");
    node.sync();
    look(&node, "a sync of nothing");
    let servers = node.at.servers;
    for endpoints in [&servers[..], &servers[..1], &[]] {
        node.serve(endpoints);
        look(&node, "a change");
        assert_eq!(node.observe().to_string(), "");
    }
    node.serve(&servers);
    assert_eq!(outcome(&node.client, Protocol::Tcp, node.vip()), "answered");
    node.restart();
    node.sync();
    look(&node, "a restart");
    // What they change is no difference.
    ipvsadm(&node, "-A -t 192.0.2.200:1 -s rr");
    ipvsadm(&node, "-D -t 192.0.2.200:1");
    assert_eq!(node.observe().to_string(), "");
    // With a connection there is something to wait for.
    let mut held = Connection::open(&node.client, node.vip()).unwrap();
    held.ask().unwrap();
    let host = node.host.clone();
    let left = host.run(|| node.backend.teardown(None)).unwrap();
    assert!(matches!(left, Remaining::Connections(_)), "{left:?}");
    look(&node, "a teardown that waits");
    held.ask().unwrap();
    host.run(|| Ipvs::new(node.family).remove_all()).unwrap();
    look(&node, "everything removed");
    assert_eq!(saved(&node), virtuals, "nothing of ours is left");
    let links = node.host.program(&["ip", "link"], "");
    assert!(!links.contains("pointsman"), "{links}");
    let ruleset = node.host.program(&["nft", "list", "ruleset"], "");
    assert!(!ruleset.contains("pointsman"), "{ruleset}");
    // And again.
    node.restart();
    node.sync();
    look(&node, "another start");
    assert_eq!(outcome(&node.client, Protocol::Tcp, node.vip()), "answered");
}

/// Somebody else's virtual services at our Service's address and port, and at its node port.
fn squat(node: &Node) -> BTreeSet<String> {
    let end = SocketAddr::new(node.at.servers[2], TARGET);
    for at in [node.vip(), SocketAddr::new(node.at.node, NODE_PORT)] {
        for service in [format!("-t {at}"), format!("-u {at}")] {
            ipvsadm(node, &format!("-A {service} -s sh"));
            ipvsadm(node, &format!("-a {service} -r {end} -m -w 5"));
        }
    }
    saved(node)
        .into_iter()
        .filter(|line| line.contains("-s sh") || line.contains("-w 5"))
        .collect()
}

/// Our endpoints, and no others, get what is sent to the Service.
fn reaches(node: &Node, endpoints: &[IpAddr], when: &str) {
    let [external, balanced] = [node.at.external, node.at.balanced].map(|ip| SocketAddr::new(ip, PORT));
    for to in [
        node.vip(),
        SocketAddr::new(node.at.node, NODE_PORT),
        external,
        balanced,
    ] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for from in [&node.client, &node.pod, &node.host] {
                let who = |_| ask(from, protocol, to).unwrap().who;
                let reached: BTreeSet<IpAddr> = endpoints.iter().map(who).collect();
                assert_eq!(
                    reached,
                    endpoints.iter().copied().collect(),
                    "{when}: {protocol} {to}"
                );
            }
        }
    }
}

fn a_service_whose_address_and_port_others_have_is_served(mut node: Node) {
    let theirs = squat(&node);
    assert_eq!(theirs.len(), 8);
    let servers = node.at.servers;
    let look = |node: &Node, when| {
        let now = saved(node);
        assert!(theirs.is_subset(&now), "{when}: {now:?}");
    };
    node.sync();
    node.serve(&servers[..2]);
    reaches(&node, &servers[..2], "at first");
    look(&node, "at first");
    assert_eq!(node.observe().to_string(), "");
    node.restart();
    assert_eq!(node.sync(), Report::default());
    node.serve(&servers[..1]);
    reaches(&node, &servers[..1], "after a change");
    node.serve(&[]);
    assert_eq!(
        outcome(&node.client, Protocol::Tcp, node.vip()),
        "refused",
        "not theirs"
    );
    node.serve(&servers);
    reaches(&node, &servers, "with endpoints again");
    look(&node, "with endpoints again");
    node.teardown();
    look(&node, "a teardown");
    node.sync();
    reaches(&node, &servers, "another start");
    // When theirs are gone, ours are served as any other.
    let mut held = Connection::open(&node.client, node.vip()).unwrap();
    let who = held.ask().unwrap().who;
    for at in [node.vip(), SocketAddr::new(node.at.node, NODE_PORT)] {
        ipvsadm(&node, &format!("-D -t {at}"));
        ipvsadm(&node, &format!("-D -u {at}"));
    }
    reaches(&node, &servers, "theirs gone");
    assert_eq!(node.observe().to_string(), "");
    node.sync();
    reaches(&node, &servers, "taken over");
    assert_eq!(held.ask().unwrap().who, who, "it goes on");
    let ours = saved(&node);
    assert!(
        ours.iter()
            .any(|line| line.contains(&format!("-A -t {}", node.vip()))),
        "{ours:?}"
    );
}

/// What is there since the last sync is met by a change, which is refused; a sync after it takes it in.
fn a_service_that_comes_to_what_others_have_is_served(mut node: Node) {
    let servers = node.at.servers;
    node.sync();
    let theirs = squat(&node);
    let service = node.service("web");
    node.set(&service, &servers[..2]);
    let (host, diff) = (node.host.clone(), std::mem::take(&mut node.diff));
    let error = host.run(|| node.backend.apply(&node.table, &diff)).unwrap_err();
    assert!(
        matches!(&error, Error::Refused(said) if said.contains(&node.vip().to_string())),
        "{error}"
    );
    node.sync();
    reaches(&node, &servers[..2], "after a sync");
    assert!(theirs.is_subset(&saved(&node)));
    assert_eq!(node.observe().to_string(), "");
}

/// A service without our flag is no longer ours.
fn what_others_take_over_is_theirs(mut node: Node) {
    let servers = node.at.servers;
    node.serve(&servers);
    let to = node.vip();
    ipvsadm(&node, &format!("-E -t {to} -s sh"));
    let taken = |node: &Node| -> BTreeSet<String> {
        let lines = saved(node).into_iter();
        lines.filter(|line| line.contains(&format!("-t {to} "))).collect()
    };
    let theirs = taken(&node);
    assert!(!node.observe().is_clean());
    node.sync();
    reaches(&node, &servers, "taken over");
    assert_eq!(taken(&node), theirs);
    assert_eq!(node.observe().to_string(), "");
    node.serve(&servers[..1]);
    reaches(&node, &servers[..1], "a change");
    assert_eq!(taken(&node), theirs);
}

fn clients_of_a_service_whose_address_others_have_keep_their_endpoint(mut node: Node) {
    let servers = node.at.servers;
    squat(&node);
    node.sync();
    let mut service = node.service("web");
    service.affinity = Some(600);
    node.set(&service, &servers);
    node.apply();
    let who = ask(&node.client, Protocol::Tcp, node.vip()).unwrap().who;
    let mut others = servers.to_vec();
    for _ in 0..2 {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for _ in 0..8 {
                assert_eq!(ask(&node.client, protocol, node.vip()).unwrap().who, who);
            }
        }
        // Another endpoint goes.
        others.remove(others.iter().position(|other| *other != who).unwrap());
        node.set(&service, &others);
        node.apply();
    }
    let others: Vec<IpAddr> = servers.into_iter().filter(|other| *other != who).collect();
    node.set(&service, &others);
    node.apply();
    assert_ne!(ask(&node.client, Protocol::Tcp, node.vip()).unwrap().who, who);
}

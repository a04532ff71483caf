//! What others do to the objects of mode IPVS is seen and repaired. Runs in the test kernel by itself; see CONTRIBUTING.md.
//! Needs the packages of e2e/packages.sh; without them it fails and says what to do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by failing"
)]

mod support;

use std::net::{IpAddr, SocketAddr};

use pointsman_dataplane::backend::Report;
use pointsman_dataplane::model::{Family, Protocol, Service, TrafficPolicy};

use support::node::{Mode, NODE_PORT, Node, PORT, TARGET};
use support::talk::{ask, outcome};

pointsman_test_kernel::run_inside!();

/// Makes a test of each function, for each family.
macro_rules! in_both_families {
    ($($name:ident)*) => {
        mod v4 { $(#[test] fn $name() { super::$name(super::Node::new(super::Mode::Ipvs, super::Family::V4)); })* }
        mod v6 { $(#[test] fn $name() { super::$name(super::Node::new(super::Mode::Ipvs, super::Family::V6)); })* }
    };
}

in_both_families! {
    what_others_change_is_seen_and_repaired
    what_traffic_leaves_is_no_difference
    others_can_list_and_load_the_table
}

/// A Service with affinity, source ranges and external policy Local, and no address that another one has.
fn restricted(node: &Node) -> Service {
    let mut restricted = node.service("restricted");
    restricted.cluster_ips = vec![node.at.external];
    restricted.external_ips.clear();
    restricted
        .ports
        .iter_mut()
        .for_each(|port| port.node_port = Some(31_000));
    restricted.source_ranges = Some(vec![node.at.client.into()]);
    restricted.external_policy = TrafficPolicy::Local;
    restricted.affinity = Some(10_800);
    restricted
}

/// Two Services, with something in every map.
fn serve(node: &mut Node) {
    let restricted = restricted(node);
    node.set(&restricted, &[node.at.servers[0], node.at.pod]);
    let mut web = node.service("web");
    web.external_ips.clear();
    web.load_balancer_ips.clear();
    let servers = node.at.servers;
    node.set(&web, &servers[..2]);
    node.apply();
}

/// Where they are reached.
fn everywhere(node: &Node) -> [SocketAddr; 4] {
    [
        (node.at.vip, PORT),
        (node.at.node, NODE_PORT),
        (node.at.external, PORT),
        (node.at.balanced, PORT),
    ]
    .map(SocketAddr::from)
}

fn everything_answers(node: &Node, after: &str) {
    for to in everywhere(node) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            assert_eq!(
                outcome(&node.client, protocol, to),
                "answered",
                "{protocol} {to} after: {after}"
            );
        }
    }
}

fn table(node: &Node) -> String {
    let family = match node.family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    format!("{family} pointsman-ipvs")
}

fn nft(node: &Node, words: &str) -> String {
    let words: Vec<&str> = ["nft"].into_iter().chain(words.split(' ')).collect();
    node.host.program(&words, "")
}

/// The numbers of marks that have virtual services.
fn marks(node: &Node) -> Vec<String> {
    let text = node.host.program(&["ipvsadm", "-Ln"], "");
    let marks = text.lines().filter_map(|line| line.strip_prefix("FWM  "));
    marks
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect()
}

fn what_others_change_is_seen_and_repaired(mut node: Node) {
    serve(&mut node);
    everything_answers(&node, "nothing");
    assert_eq!(node.observe().to_string(), "");
    let [v6, ip] = match node.family {
        Family::V4 => ["", "-4"],
        Family::V6 => ["-6", "-6"],
    };
    let end = |address: IpAddr| SocketAddr::new(address, TARGET).to_string();
    let mark = marks(&node).remove(0);
    let words = [
        ("VIP", node.vip().to_string()),
        ("STICKY", SocketAddr::new(node.at.external, PORT).to_string()),
        ("MARK", format!("{mark} {v6}")),
        ("END", end(node.at.servers[0])),
        ("POD", end(node.at.pod)),
        ("OTHER", end(node.at.servers[2])),
        (
            "ROUTE",
            format!("local {} dev pointsman-ipvs table local", node.at.vip),
        ),
        ("SINGLE", node.at.vip.to_string()),
        ("TABLE", table(&node)),
        ("IP", format!("ip {ip}")),
    ];
    let deeds = [
        "ipvsadm -d -t VIP -r END",
        "ipvsadm -d -u VIP -r END",
        "ipvsadm -d -f MARK -r END",
        "ipvsadm -e -t VIP -r END -m -w 7",
        "ipvsadm -e -t VIP -r END -m -w 0",
        "ipvsadm -a -t VIP -r OTHER -g -w 1",
        "ipvsadm -a -t VIP -r OTHER -m -w 1",
        "ipvsadm -a -u VIP -r OTHER -m -w 1",
        "ipvsadm -D -t VIP",
        "ipvsadm -D -f MARK",
        "ipvsadm -E -t VIP -s sh -b flag-3",
        "ipvsadm -E -t VIP -s wrr -p 300 -b flag-3",
        "ipvsadm -E -t STICKY -s wrr -b flag-3",
        "ipvsadm -C",
        "ip link delete pointsman-ipvs",
        "ip link set pointsman-ipvs down",
        "IP route delete ROUTE",
        "IP route replace ROUTE proto 112 metric 0 src POD-GATEWAY",
        "nft delete table TABLE",
        "nft flush table TABLE",
        "nft flush map TABLE marks",
        "nft flush set TABLE vips",
        "nft flush map TABLE frontends",
        "nft flush chain TABLE by-mark",
        "nft flush ruleset",
    ];
    for deed in deeds {
        let gateway = ("POD-GATEWAY", node.at.pod_gateway.to_string());
        let line = [&[gateway][..], &words[..]]
            .concat()
            .iter()
            .fold(deed.to_owned(), |line, (word, meaning)| {
                line.replace(word, meaning)
            });
        let line: Vec<&str> = line.split_whitespace().collect();
        node.host.program(&line, "");
        let observed = node.observe();
        assert!(!observed.is_clean(), "{deed}");
        node.sync();
        assert_eq!(node.observe().to_string(), "", "{deed}");
        everything_answers(&node, deed);
    }
    // And the restarted agent finds it in order.
    node.restart();
    assert_eq!(node.sync(), Report::default());
}

fn what_traffic_leaves_is_no_difference(mut node: Node) {
    serve(&mut node);
    for _ in 0..3 {
        everything_answers(&node, "nothing");
        assert_eq!(node.observe().to_string(), "");
        assert_eq!(node.sync(), Report::default());
        node.restart();
        assert_eq!(node.sync(), Report::default());
    }
    // What others change elsewhere is no difference either.
    nft(&node, "add table inet theirs");
    node.host.ip("link add theirs type dummy\nlink set theirs up\n");
    assert_eq!(node.observe().to_string(), "");
}

fn others_can_list_and_load_the_table(mut node: Node) {
    serve(&mut node);
    everything_answers(&node, "nothing");
    let text = nft(&node, "list ruleset");
    assert!(text.contains(&format!("table {}", table(&node))), "{text}");
    nft(&node, "-j list ruleset");
    // As a host does that saves its ruleset and loads it at the next boot.
    let (ok, _, said) = node
        .host
        .try_program(&["nft", "-f", "-"], &format!("flush ruleset\n{text}"));
    assert!(ok, "{said}\n{text}");
    assert_eq!(
        nft(&node, "list ruleset"),
        text,
        "what is loaded is what was listed"
    );
    everything_answers(&node, "loading the saved table");
    // What stays after the backend has gone can be listed as well.
    node.teardown();
    nft(&node, "list ruleset");
    nft(&node, "-j list ruleset");
    assert!(ask(&node.client, Protocol::Tcp, node.vip()).is_err());
}

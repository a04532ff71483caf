//! Packets through the table that the nftables backend writes, in namespaces of the test's own, in both families: what
//! the flow tables do not show. Needs root, nftables (to look at the table with somebody else's eyes) and iproute2;
//! without them it fails and says what to do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by failing"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use pointsman_dataplane::backend::Report;
use pointsman_dataplane::model::{Family, Protocol, Service};
use pointsman_dataplane::nftables::Nftables;

use support::node::{Mode, Node, PORT, TARGET};
use support::talk::{Connection, ask, nobody_answers, outcome};

/// Makes a test of each function, for each family.
macro_rules! in_both_families {
    ($($name:ident)*) => {
        mod v4 { $(#[test] fn $name() { super::$name(super::Node::new(super::Mode::Nftables, super::Family::V4)); })* }
        mod v6 { $(#[test] fn $name() { super::$name(super::Node::new(super::Mode::Nftables, super::Family::V6)); })* }
    };
}

in_both_families! {
    a_restart_writes_nothing
    a_restart_keeps_what_clients_are_led_to
    what_others_change_is_seen_and_repaired
    what_others_have_stays
    a_table_of_an_older_layout_is_replaced_without_a_gap
    a_replacement_that_was_cut_short_is_finished
    no_connection_misses_a_pool_that_grows_and_shrinks
    a_client_keeps_its_endpoint
    teardown_keeps_the_connection
    others_can_list_and_load_the_table
    another_proxys_service_is_left_to_it
}

fn nft(node: &Node, words: &[&str]) -> String {
    node.host.program(&[&["nft"], words].concat(), "")
}

/// The table's name, as nft's commands take it.
fn table(node: &Node) -> [&'static str; 2] {
    match node.family {
        Family::V4 => ["ip", "pointsman"],
        Family::V6 => ["ip6", "pointsman"],
    }
}

/// How many packets a named counter of the table has.
fn counted(node: &Node, counter: &str) -> u64 {
    let text = nft(
        node,
        &[&["list", "counter"], &table(node)[..], &[counter]].concat(),
    );
    let (_, packets) = text.split_once("packets ").unwrap();
    packets.split(' ').next().unwrap().parse().unwrap()
}

/// A Service with affinity and no address that another one has.
fn sticky(node: &Node) -> Service {
    let mut service = node.service("sticky");
    service.cluster_ips = vec![node.at.external];
    service.external_ips.clear();
    service.load_balancer_ips.clear();
    service.ports.iter_mut().for_each(|port| port.node_port = None);
    service.affinity = Some(60);
    service
}

fn a_restart_writes_nothing(mut node: Node) {
    node.set(&sticky(&node), &node.at.servers.clone());
    node.serve(&[node.at.servers[0], node.at.servers[1], node.at.pod]);
    assert_eq!(node.observe().to_string(), "");
    assert_eq!(node.sync(), Report::default());
    node.restart();
    assert_eq!(node.sync(), Report::default());
    assert_eq!(node.observe().to_string(), "");
    // A change while nobody was there is written as the change that it is, and one after it goes on from there.
    node.restart();
    let web = node.service("web");
    node.set(&web, &[node.at.servers[0], node.at.servers[2], node.at.pod]);
    let report = node.sync();
    assert!(
        report.objects <= 4,
        "one endpoint for another, of TCP and UDP: {report:?}"
    );
    node.serve(&node.at.servers.clone());
    assert_eq!(node.observe().to_string(), "");
    assert_eq!(outcome(&node.client, Protocol::Tcp, node.vip()), "answered");
}

fn a_restart_keeps_what_clients_are_led_to(mut node: Node) {
    let at = SocketAddr::new(node.at.external, PORT);
    node.set(&sticky(&node), &node.at.servers.clone());
    node.apply();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let first = ask(&node.client, protocol, at).unwrap().who;
        for round in 0..6 {
            match round {
                2 => node.restart(),
                4 => {
                    node.sync();
                }
                _ => (),
            }
            node.sync();
            // Twenty draws of three would be another one but once in a billion.
            (0..20).for_each(|_| assert_eq!(ask(&node.client, protocol, at).unwrap().who, first));
        }
    }
}

fn a_client_keeps_its_endpoint(mut node: Node) {
    let at = SocketAddr::new(node.at.external, PORT);
    let service = sticky(&node);
    let servers = node.at.servers;
    let mut there: BTreeSet<IpAddr> = servers.into();
    node.set(&service, &servers);
    node.apply();
    let mut last = None;
    for round in 0..12_usize {
        let who = ask(&node.client, Protocol::Tcp, at).unwrap().who;
        assert!(there.contains(&who), "{who} is gone");
        if let Some(last) = last.filter(|last| there.contains(last)) {
            assert_eq!(who, last, "it is still there");
        }
        last = Some(who);
        // Now its own goes, now another one, now one comes back.
        let other = servers[round % 3];
        if round % 2 == 0 && there.len() > 1 {
            there.remove(if round % 4 == 0 { &who } else { &other });
        } else {
            there.insert(other);
        }
        let now: Vec<IpAddr> = there.iter().copied().collect();
        node.set(&service, &now);
        node.apply();
        (0..10).for_each(|_| assert!(there.contains(&ask(&node.client, Protocol::Tcp, at).unwrap().who)));
        last = last.filter(|last| there.contains(last));
    }
    assert_eq!(
        (counted(&node, "misses"), counted(&node, "affinity-full")),
        (0, 0)
    );
}

/// Something that somebody else does: its name, and the commands of nft.
type Deed = (&'static str, &'static [&'static str]);

fn what_others_change_is_seen_and_repaired(mut node: Node) {
    node.set(&sticky(&node), &node.at.servers.clone());
    node.serve(&[node.at.servers[0], node.at.servers[1]]);
    let mut connection = Connection::open(&node.client, node.vip()).unwrap();
    let before = connection.ask().unwrap();
    let deeds: [Deed; 15] = [
        ("flush the ruleset", &["flush ruleset"]),
        ("delete the table", &["delete table TABLE"]),
        ("flush the table", &["flush table TABLE"]),
        ("flush a chain", &["flush chain TABLE services"]),
        ("put a rule in front", &["insert rule TABLE services drop"]),
        ("flush a map", &["flush map TABLE endpoints"]),
        ("add an element", &["add element TABLE pools { 0:77 : 0:77 }"]),
        (
            "remove an element that is always there",
            &["delete element TABLE pools { 0:1 }"],
        ),
        ("flush what leads to chains", &["flush map TABLE classes"]),
        (
            "flush the memory of members",
            &["flush map TABLE members", "flush map TABLE stable"],
        ),
        ("put the table to sleep", &["add table TABLE { flags dormant; }"]),
        (
            "hang a chain elsewhere",
            &[
                "flush chain TABLE nat-prerouting",
                "delete chain TABLE nat-prerouting",
                "add chain TABLE nat-prerouting { type nat hook prerouting priority 10; }",
                "add rule TABLE nat-prerouting jump services",
            ],
        ),
        (
            "hang a chain of their own in our table",
            &["add chain TABLE theirs { type filter hook input priority 0; policy accept; }"],
        ),
        (
            "flush the table and remove a map",
            &["flush table TABLE", "delete map TABLE affinity-60"],
        ),
        (
            "make things of their own in our table",
            &[
                "add chain TABLE theirs",
                "add set TABLE their-set { type inet_service; }",
            ],
        ),
    ];
    for (name, commands) in deeds {
        for command in commands {
            let command = command.replace("TABLE", &table(&node).join(" "));
            nft(&node, &[&command]);
        }
        let observed = node.observe();
        assert!(!observed.is_clean(), "{name}");
        node.sync();
        assert_eq!(node.observe().to_string(), "", "{name}");
        for to in [node.vip(), SocketAddr::new(node.at.external, PORT)] {
            assert_eq!(outcome(&node.client, Protocol::Tcp, to), "answered", "{name}");
        }
        // It was idle meanwhile: what it sends while nothing is translated may end it.
        assert_eq!(connection.ask().unwrap(), before, "{name}");
    }
    // And the restarted agent finds it in order.
    node.restart();
    assert_eq!(node.sync(), Report::default());
}

fn what_others_have_stays(mut node: Node) {
    let theirs = "table inet theirs {\n\tset ports {\n\t\ttype inet_service\n\t\telements = { 22, 443 }\n\t}\n\n\
                  \tchain input {\n\t\ttype filter hook input priority filter; policy accept;\n\t\ttcp dport @ports accept\n\t}\n}\n";
    node.host.program(&["nft", "-f", "-"], theirs);
    node.serve(&node.at.servers.clone());
    let shown = || nft(&node, &["list", "table", "inet", "theirs"]);
    assert_eq!(shown(), theirs);
    let before = shown();
    node.serve(&[]);
    node.sync();
    // A change of theirs is none of ours.
    nft(&node, &["add element inet theirs ports { 8443 }"]);
    assert_eq!(node.observe().to_string(), "");
    node.teardown();
    let mut last = Nftables::new(node.family);
    node.host.run(|| last.remove_all()).unwrap();
    assert_eq!(
        nft(&node, &["list", "ruleset"]),
        before.replace("443 }", "443, 8443 }"),
        "nothing of ours is left, and nothing of theirs is missing"
    );
}

fn a_table_of_an_older_layout_is_replaced_without_a_gap(mut node: Node) {
    let servers = node.at.servers;
    node.serve(&servers);
    // As if an older agent had known a map more, of another kind.
    let command = format!(
        "add map {} numbers {{ type inet_service : mark; }}",
        table(&node).join(" ")
    );
    nft(&node, &[&command]);
    let mut connection = Connection::open(&node.client, node.vip()).unwrap();
    let before = connection.ask().unwrap();
    let stop = AtomicBool::new(false);
    let (client, vip) = (node.client.clone(), node.vip());
    let outcomes = thread::scope(|scope| {
        let (client, stop) = (&client, &stop);
        let asking = scope.spawn(move || {
            client.enter();
            let mut outcomes: BTreeMap<String, u32> = BTreeMap::new();
            while !stop.load(Ordering::Relaxed) {
                *outcomes.entry(outcome(client, Protocol::Tcp, vip)).or_default() += 1;
            }
            outcomes
        });
        for _ in 0..10 {
            node.restart();
            assert!(node.sync().objects > 10, "it is made anew");
            nft(&node, &[&command]);
        }
        node.restart();
        node.sync();
        stop.store(true, Ordering::Relaxed);
        asking.join().unwrap()
    });
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), ["answered"], "{outcomes:?}");
    assert_eq!(connection.ask().unwrap(), before, "it lives on");
    assert_eq!(node.observe().to_string(), "");
}

/// An agent that was killed while a table stood in for the one that it replaced.
fn a_replacement_that_was_cut_short_is_finished(mut node: Node) {
    node.serve(&node.at.servers.clone());
    let ours = table(&node).join(" ");
    let listed = nft(&node, &[&format!("list table {ours}")]);
    let deputy = listed.replacen("pointsman", "pointsman-deputy", 1);
    let shown = |node: &Node| nft(node, &["list tables"]);
    let before = shown(&node);
    for kept in [true, false] {
        node.host.program(&["nft", "-f", "-"], &deputy);
        if !kept {
            nft(&node, &[&format!("delete table {ours}")]);
        }
        assert_eq!(outcome(&node.client, Protocol::Tcp, node.vip()), "answered");
        node.restart();
        node.sync();
        assert_eq!(shown(&node), before);
        assert_eq!(outcome(&node.client, Protocol::Tcp, node.vip()), "answered");
        assert_eq!(node.observe().to_string(), "");
    }
    node.host.program(&["nft", "-f", "-"], &deputy);
    node.teardown();
    assert_eq!(shown(&node), before, "no more than what keeps connections alive");
}

fn no_connection_misses_a_pool_that_grows_and_shrinks(mut node: Node) {
    let servers = node.at.servers;
    let (web, steady) = (node.service("web"), sticky(&node));
    node.set(&steady, &servers);
    node.set(&web, &servers);
    node.apply();
    let stop = AtomicBool::new(false);
    let (client, vip) = (node.client.clone(), node.vip());
    let outcomes = thread::scope(|scope| {
        let (client, stop) = (&client, &stop);
        let asking: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(move || {
                    client.enter();
                    let mut outcomes: BTreeMap<String, u32> = BTreeMap::new();
                    while !stop.load(Ordering::Relaxed) {
                        for protocol in [Protocol::Tcp, Protocol::Udp] {
                            *outcomes.entry(outcome(client, protocol, vip)).or_default() += 1;
                        }
                    }
                    outcomes
                })
            })
            .collect();
        for round in 0..2000 {
            node.set(&web, &servers[..1 + round % 3]);
            node.apply();
        }
        stop.store(true, Ordering::Relaxed);
        let all = asking.into_iter().flat_map(|thread| thread.join().unwrap());
        all.collect::<Vec<_>>()
    });
    assert!(
        outcomes.iter().all(|(outcome, _)| outcome == "answered"),
        "{outcomes:?}"
    );
    assert_eq!(counted(&node, "misses"), 0, "no packet found its slot empty");
    assert_eq!(node.observe().to_string(), "");
}

/// A Service with the label `service-proxy-name` has a ClusterIP that to us is nobody's.
fn another_proxys_service_is_left_to_it(mut node: Node) {
    let mut context = node.table.context().clone();
    let theirs = node.at.external;
    context.service_cidrs = vec![theirs.into(), node.at.balanced.into()];
    node.table.set_context(context, &mut node.diff);
    let mut web = node.service("web");
    web.external_ips.clear();
    web.load_balancer_ips.clear();
    node.set(&web, &node.at.servers.clone());
    node.apply();
    let at = SocketAddr::new(theirs, PORT);
    let dropped = |node: &Node, address: IpAddr| {
        assert_eq!(
            outcome(&node.client, Protocol::Tcp, SocketAddr::new(address, PORT)),
            "TimedOut"
        );
    };
    dropped(&node, theirs);
    let [family, _] = table(&node);
    let target = SocketAddr::new(node.at.servers[1], TARGET);
    let rules = format!(
        "table {family} theirs {{ chain c {{ type nat hook prerouting priority dstnat; \
         {family} daddr {theirs} tcp dport {PORT} dnat to {target}\n }}\n }}\n"
    );
    node.host.program(&["nft", "-f", "-"], &rules);
    assert_eq!(
        ask(&node.client, Protocol::Tcp, at).unwrap().who,
        node.at.servers[1]
    );
    dropped(&node, node.at.balanced);
}

fn teardown_keeps_the_connection(mut node: Node) {
    node.serve(&[node.at.servers[0]]);
    let mut connection = Connection::open(&node.client, node.vip()).unwrap();
    let before = connection.ask().unwrap();
    // As a process does that knows nothing of what was written.
    node.restart();
    node.teardown();
    for _ in 0..3 {
        assert_eq!(connection.ask().unwrap(), before);
    }
    nobody_answers(&node.client, node.vip());
    let left = nft(&node, &["list", "ruleset"]);
    node.teardown();
    assert_eq!(
        left,
        nft(&node, &["list", "ruleset"]),
        "a second teardown changes nothing"
    );
    assert_eq!(left.matches("chain ").count(), 1, "{left}");
    // A sync takes over from it; the connection does not notice.
    node.sync();
    assert_eq!(node.observe().to_string(), "");
    assert_eq!(connection.ask().unwrap(), before);
    assert_eq!(outcome(&node.client, Protocol::Tcp, node.vip()), "answered");
}

fn others_can_list_and_load_the_table(mut node: Node) {
    let mut restricted = node.service("restricted");
    restricted.cluster_ips = vec![node.at.external];
    restricted.external_ips.clear();
    restricted
        .ports
        .iter_mut()
        .for_each(|port| port.node_port = Some(31_000));
    restricted.source_ranges = Some(vec![node.at.client.into()]);
    restricted.external_policy = pointsman_dataplane::model::TrafficPolicy::Local;
    restricted.affinity = Some(10_800);
    node.set(&restricted, &[node.at.servers[0], node.at.pod]);
    let mut web = node.service("web");
    web.load_balancer_ips.clear();
    node.set(&web, &node.at.servers.clone());
    node.apply();
    let text = nft(&node, &["list", "ruleset"]);
    nft(&node, &["-j", "list", "ruleset"]);
    // As a host does that saves its ruleset and loads it at the next boot.
    let (ok, _, said) = node
        .host
        .try_program(&["nft", "-f", "-"], &format!("flush ruleset\n{text}"));
    assert!(ok, "{said}\n{text}");
    assert_eq!(
        nft(&node, &["list", "ruleset"]),
        text,
        "what is loaded is what was listed"
    );
    for to in [node.vip(), SocketAddr::new(node.at.balanced, PORT)] {
        assert_eq!(outcome(&node.client, Protocol::Tcp, to), "answered");
    }
}

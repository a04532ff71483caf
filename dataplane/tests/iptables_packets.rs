//! Packets through the rules that the iptables backend writes, in namespaces of the test's own, in both variants and
//! both families. Needs root, iptables and iproute2; without them it fails and says what to do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by failing"
)]

mod support;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use pointsman_dataplane::iptables::Variant;
use pointsman_dataplane::model::{DetectLocal, Family, NodePortAddresses, Protocol, Service};

use support::node::{Mode, NODE_PORT, Node, PORT, TARGET};
use support::talk::{Connection, ask, nobody_answers, outcome};

/// Makes a test of each function, for each variant and family.
macro_rules! on_every_kind {
    ($($name:ident)*) => {
        mod legacy_v4 { $(#[test] fn $name() { super::$name(super::Node::new(super::Mode::Iptables(super::Variant::Legacy), super::Family::V4)); })* }
        mod legacy_v6 { $(#[test] fn $name() { super::$name(super::Node::new(super::Mode::Iptables(super::Variant::Legacy), super::Family::V6)); })* }
        mod nft_v4 { $(#[test] fn $name() { super::$name(super::Node::new(super::Mode::Iptables(super::Variant::Nft), super::Family::V4)); })* }
        mod nft_v6 { $(#[test] fn $name() { super::$name(super::Node::new(super::Mode::Iptables(super::Variant::Nft), super::Family::V6)); })* }
    };
}

on_every_kind! {
    a_cluster_ip_reaches_all_endpoints_about_equally
    every_kind_of_address_answers
    without_endpoints_it_is_refused
    a_pod_reaches_itself_through_its_service
    the_source_seen_follows_how_pods_are_told
    syncing_again_writes_nothing
    endpoints_come_and_go
    what_others_flush_is_seen_and_repaired
    a_jump_behind_kube_proxy_is_put_in_front
    a_restore_killed_in_the_middle_is_repaired
    chains_of_an_older_layout_go
    a_change_after_a_failure_reads_the_kernel
    teardown_leaves_nothing_but_the_connection
    teardown_under_a_drop_policy_keeps_the_connection
    a_drop_policy_breaks_no_service
    what_others_wrote_stays
    node_ports_on_all_addresses
    no_connection_meets_half_a_service
}

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

fn a_cluster_ip_reaches_all_endpoints_about_equally(mut node: Node) {
    node.serve(&[
        node.at.servers[0],
        node.at.servers[1],
        node.at.servers[2],
        node.at.pod,
    ]);
    for protocol in BOTH {
        let mut shares: BTreeMap<IpAddr, u32> = BTreeMap::new();
        for _ in 0..200 {
            *shares
                .entry(ask(&node.client, protocol, node.vip()).unwrap().who)
                .or_default() += 1;
        }
        // 200 draws of 4: a share below 20 or above 90 has less than one chance in a million.
        assert_eq!(shares.len(), 4, "{protocol}: {shares:?}");
        assert!(
            shares.values().all(|share| (20..90).contains(share)),
            "{protocol}: {shares:?}"
        );
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
            let answer =
                ask(&node.client, protocol, to).unwrap_or_else(|error| panic!("{protocol} {to}: {error}"));
            assert!(node.at.servers.contains(&answer.who));
            // From the pod, too, and from the node itself.
            for from in [&node.pod, &node.host] {
                ask(from, protocol, to)
                    .unwrap_or_else(|error| panic!("{protocol} {to} from inside: {error}"));
            }
        }
    }
    // A port that no Service has is not translated: nobody answers for it.
    nobody_answers(&node.host, SocketAddr::new(node_ip, NODE_PORT + 1));
}

fn without_endpoints_it_is_refused(mut node: Node) {
    node.serve(&[]);
    let addresses = [
        SocketAddr::new(node.at.vip, PORT),
        SocketAddr::new(node.at.external, PORT),
        SocketAddr::new(node.at.balanced, PORT),
        SocketAddr::new(node.at.node, NODE_PORT),
    ];
    for to in addresses {
        for protocol in BOTH {
            for from in [&node.client, &node.pod] {
                assert_eq!(outcome(from, protocol, to), "refused", "{protocol} {to}");
            }
            // The kernel tells a sender of its own that the datagram was dropped before the ICMP message arrives.
            let own = outcome(&node.host, protocol, to);
            let denied = protocol == Protocol::Udp && own == "PermissionDenied";
            assert!(own == "refused" || denied, "{own}: {protocol} {to}");
        }
    }
    // It answers as soon as there is an endpoint, and is refused again without.
    node.serve(&node.at.servers.clone());
    assert_eq!(outcome(&node.client, Protocol::Tcp, node.vip()), "answered");
    node.serve(&[]);
    assert_eq!(outcome(&node.client, Protocol::Tcp, node.vip()), "refused");
}

fn a_pod_reaches_itself_through_its_service(mut node: Node) {
    node.serve(&[node.at.pod]);
    for protocol in BOTH {
        let answer = ask(&node.pod, protocol, node.vip()).unwrap();
        assert_eq!(answer.who, node.at.pod);
        assert_eq!(answer.saw, node.at.pod_gateway, "hairpin must be masqueraded");
    }
}

fn the_source_seen_follows_how_pods_are_told(mut node: Node) {
    node.serve(&[node.at.servers[0]]);
    let cases = [
        // How pods are told, and whether a pod and the client are masqueraded towards the ClusterIP.
        (DetectLocal::NodeCidr, false, true),
        (
            DetectLocal::ClusterCidr(vec![
                ipnet::IpNet::from(node.at.pod),
                ipnet::IpNet::from(node.at.client),
            ]),
            false,
            false,
        ),
        (
            DetectLocal::ClusterCidr(vec![ipnet::IpNet::from(node.at.servers[0])]),
            true,
            true,
        ),
        (DetectLocal::ClusterCidr(Vec::new()), false, false),
        (
            DetectLocal::ClusterCidr(vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()]),
            false,
            false,
        ),
        (DetectLocal::BridgeInterface("pod0".into()), false, true),
        (DetectLocal::BridgeInterface("client0".into()), true, false),
        (DetectLocal::InterfaceNamePrefix("po".into()), false, true),
        (DetectLocal::InterfaceNamePrefix("x".into()), true, true),
    ];
    for (detect, pod, client) in cases {
        node.detect(detect.clone());
        let report = node.apply();
        assert!(
            report.bytes < 1000,
            "a change of the context writes a small chain: {report:?}"
        );
        let masked = node.at.node_to_servers;
        for protocol in BOTH {
            let seen = ask(&node.pod, protocol, node.vip()).unwrap().saw;
            assert_eq!(seen, if pod { masked } else { node.at.pod }, "pod, {detect:?}");
            let seen = ask(&node.client, protocol, node.vip()).unwrap().saw;
            assert_eq!(
                seen,
                if client { masked } else { node.at.client },
                "client, {detect:?}"
            );
            // Addresses from outside are always masqueraded: the answer has to come back here.
            let external = SocketAddr::new(node.at.external, PORT);
            assert_eq!(ask(&node.pod, protocol, external).unwrap().saw, masked);
        }
        assert_eq!(node.observe().to_string(), "", "{detect:?}");
    }
}

fn syncing_again_writes_nothing(mut node: Node) {
    let mut other = node.service("empty");
    other.cluster_ips = vec![node.at.servers[2]];
    other
        .ports
        .iter_mut()
        .for_each(|port| port.node_port = Some(31_000));
    node.set(&other, &[]);
    node.serve(&[node.at.servers[0], node.at.servers[1], node.at.pod]);
    let rules = (node.save("nat"), node.save("filter"));
    assert_eq!(node.observe().to_string(), "");
    assert_eq!(node.sync().objects, 0);
    node.restart();
    assert_eq!(
        node.sync().objects,
        0,
        "a restart over rules that are right writes nothing"
    );
    assert_eq!(node.observe().to_string(), "");
    // And a change after it goes on from there.
    node.serve(&node.at.servers.clone());
    node.serve(&[node.at.servers[0], node.at.servers[1], node.at.pod]);
    assert_eq!(rules, (node.save("nat"), node.save("filter")));
}

fn endpoints_come_and_go(mut node: Node) {
    let [a, b, c] = node.at.servers;
    for endpoints in [
        vec![a],
        vec![a, b],
        vec![b, c],
        vec![node.at.pod],
        vec![],
        vec![c, node.at.pod],
        vec![c],
    ] {
        node.serve(&endpoints);
        assert_eq!(node.observe().to_string(), "");
        for _ in 0..20 {
            match ask(&node.client, Protocol::Tcp, node.vip()) {
                Ok(answer) => assert!(endpoints.contains(&answer.who), "{answer:?} of {endpoints:?}"),
                Err(error) => assert!(endpoints.is_empty(), "{error} with {endpoints:?}"),
            }
        }
    }
    let name = node.service("web").name;
    node.table.remove(&name, &mut node.diff);
    node.apply();
    assert_eq!(node.observe().to_string(), "");
    assert!(!node.save("nat").contains("PM-SVC"), "{}", node.save("nat"));
}

fn what_others_flush_is_seen_and_repaired(mut node: Node) {
    node.serve(&[node.at.servers[0], node.at.pod]);
    let rules = (node.save("nat"), node.save("filter"));
    let chain = rules
        .0
        .lines()
        .find_map(|line| line.strip_prefix(":PM-SVC-"))
        .unwrap();
    let chain = format!("PM-SVC-{}", chain.split(' ').next().unwrap());
    let jump = rules
        .0
        .lines()
        .find(|line| line.starts_with("-A PREROUTING"))
        .unwrap()
        .replace("-A", "-D");
    for (input, said) in [
        (
            format!("*nat\n-F {chain}\nCOMMIT\n"),
            format!("nat chain {chain}: 0 rules instead of 2"),
        ),
        (
            format!("*nat\n{jump}\nCOMMIT\n"),
            "nat chain PREROUTING: the jump to our chains is gone".to_owned(),
        ),
        (
            "*nat\n-F POSTROUTING\n-F PM-POSTROUTING\n-X PM-POSTROUTING\nCOMMIT\n".to_owned(),
            "nat chain PM-POSTROUTING: gone".to_owned(),
        ),
        (
            "*filter\n-A PM-FORWARD -j DROP\nCOMMIT\n".to_owned(),
            "filter chain PM-FORWARD: 4 rules instead of 3".to_owned(),
        ),
        (
            "*filter\n-R PM-FORWARD 1 -j DROP\nCOMMIT\n".to_owned(),
            "filter chain PM-FORWARD: other rules than were written".to_owned(),
        ),
        (
            "*nat\n:PM-STRAY - [0:0]\nCOMMIT\n".to_owned(),
            "nat chain PM-STRAY: not one of those that were written".to_owned(),
        ),
        (
            format!("*nat\n{}\nCOMMIT\n", jump.replace("-D", "-A")),
            "nat chain PREROUTING: our jumps are not as they should be".to_owned(),
        ),
    ] {
        node.restore(&input);
        let observed = node.observe();
        assert!(observed.differences.contains(&said), "{observed} after {input}");
        assert!(node.sync().objects > 0);
        assert_eq!(node.observe().to_string(), "", "after {input}");
        assert_eq!(rules, (node.save("nat"), node.save("filter")), "after {input}");
    }
    // All of it, as `iptables -F; iptables -X` does.
    for table in ["nat", "filter"] {
        node.restore(&format!("*{table}\n-F\n-X\nCOMMIT\n"));
    }
    let observed = node.observe();
    assert!(observed.differences.len() + observed.more > 10, "{observed}");
    nobody_answers(&node.client, node.vip());
    node.sync();
    assert_eq!(rules, (node.save("nat"), node.save("filter")));
    assert_eq!(outcome(&node.client, Protocol::Tcp, node.vip()), "answered");
}

fn a_jump_behind_kube_proxy_is_put_in_front(mut node: Node) {
    node.restore("*nat\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n");
    node.serve(&node.at.servers.clone());
    let before = node.save("nat");
    node.restore("*nat\n-I PREROUTING -j KUBE-SERVICES\nCOMMIT\n");
    assert!(!node.observe().is_clean());
    node.sync();
    assert_eq!(node.observe().to_string(), "");
    assert_eq!(
        node.save("nat"),
        before.replace(
            "-A PREROUTING -j KUBE-SERVICES\n",
            "-A PREROUTING -j KUBE-SERVICES\n-A PREROUTING -j KUBE-SERVICES\n"
        )
    );
    // Another program's rule in front is left there.
    node.restore("*nat\n:OTHER - [0:0]\n-I PREROUTING -j OTHER\nCOMMIT\n");
    assert_eq!(node.observe().to_string(), "");
    assert_eq!(node.sync().objects, 0);
}

/// An agent that is killed closes the pipe: iptables-restore has committed nat, and not filter.
fn a_restore_killed_in_the_middle_is_repaired(mut node: Node) {
    node.serve(&node.at.servers.clone());
    let whole = (node.save("nat"), node.save("filter"));
    node.restore("*filter\n-F\n-X\nCOMMIT\n*nat\n-D PREROUTING 1\n-D OUTPUT 1\n:PM-VIP-A - [0:0]\n:PM-VIP-99 - [0:0]\n-A PM-VIP-99 -j ACCEPT\nCOMMIT\n");
    node.restore_half("*filter\n:PM-SERVICES - [0:0]\n:PM-VIP-A - [0:0]\n-A PM-SERVICES -j PM-VIP-A\n");
    node.restart();
    node.sync();
    assert_eq!(whole, (node.save("nat"), node.save("filter")));
    for protocol in BOTH {
        assert_eq!(outcome(&node.client, protocol, node.vip()), "answered");
    }
}

fn chains_of_an_older_layout_go(mut node: Node) {
    node.restore(
        "*nat\n:PM-OLD - [0:0]\n:PM-OLDER - [0:0]\n-A PM-OLD -j PM-OLDER\n-A PM-OLDER -p tcp -j ACCEPT\n\
         -A PREROUTING -m comment --comment \"pointsman: as it was\" -j PM-OLD\n-A PREROUTING -j PM-OLDER\nCOMMIT\n",
    );
    node.serve(&node.at.servers.clone());
    assert_eq!(node.observe().to_string(), "");
    assert!(!node.save("nat").contains("OLD"), "{}", node.save("nat"));
    assert_eq!(outcome(&node.client, Protocol::Tcp, node.vip()), "answered");
}

fn a_change_after_a_failure_reads_the_kernel(mut node: Node) {
    node.serve(&node.at.servers.clone());
    // The chain that the next change wants to remove is not there any more.
    node.restore("*nat\n-F\n-X\nCOMMIT\n");
    let service = node.service("web");
    node.set(&service, &[]);
    let diff = std::mem::take(&mut node.diff);
    let host = node.host.clone();
    let result =
        host.run(|| pointsman_dataplane::backend::Backend::apply(&mut *node.backend, &node.table, &diff));
    if result.is_err() {
        assert!(!node.observe().is_clean());
    }
    node.sync();
    assert_eq!(node.observe().to_string(), "");
    assert_eq!(outcome(&node.client, Protocol::Tcp, node.vip()), "refused");
}

fn teardown_leaves_nothing_but_the_connection(mut node: Node) {
    node.serve(&[node.at.servers[0]]);
    let mut connection = Connection::open(&node.client, node.vip()).unwrap();
    let before = connection.ask().unwrap();
    // As a process does that knows nothing of what was written.
    node.restart();
    node.teardown();
    let (nat, filter) = (node.save("nat"), node.save("filter"));
    assert!(!nat.contains("PM-") && !nat.contains("pointsman"), "{nat}");
    assert!(!filter.contains("PM-"), "{filter}");
    assert_eq!(
        filter.matches("pointsman").count(),
        1,
        "the rule for connections that live on: {filter}"
    );
    for _ in 0..3 {
        assert_eq!(connection.ask().unwrap(), before);
    }
    nobody_answers(&node.client, node.vip());
    node.teardown();
    assert_eq!(filter, node.save("filter"), "a second teardown changes nothing");
}

fn teardown_under_a_drop_policy_keeps_the_connection(mut node: Node) {
    node.restore("*filter\n:FORWARD DROP [0:0]\nCOMMIT\n");
    node.serve(&[node.at.servers[0]]);
    let mut connection = Connection::open(&node.client, node.vip()).unwrap();
    let before = connection.ask().unwrap();
    node.teardown();
    node.teardown();
    assert!(!node.save("filter").contains("PM-"));
    assert_eq!(
        node.save("filter")
            .matches("pointsman: connections from before the teardown")
            .count(),
        1
    );
    assert_eq!(connection.ask().unwrap(), before);
    // A sync takes over from the rule; the connection does not notice.
    node.sync();
    assert_eq!(node.observe().to_string(), "");
    assert!(!node.save("filter").contains("before the teardown"));
    assert_eq!(connection.ask().unwrap(), before);
    node.teardown();
    let host = node.host.clone();
    let mut iptables = node.iptables();
    host.run(|| iptables.remove_grace_rule()).unwrap();
    assert_eq!(
        node.save("filter"),
        "*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\nCOMMIT\n"
    );
}

fn a_drop_policy_breaks_no_service(mut node: Node) {
    node.restore("*filter\n:FORWARD DROP [0:0]\nCOMMIT\n");
    node.serve(&node.at.servers.clone());
    for protocol in BOTH {
        assert_eq!(outcome(&node.client, protocol, node.vip()), "answered");
        assert_eq!(
            outcome(&node.client, protocol, SocketAddr::new(node.at.node, NODE_PORT)),
            "answered"
        );
    }
}

fn what_others_wrote_stays(mut node: Node) {
    let foreign = "*nat\n:KUBE-SERVICES - [0:0]\n:CNI-a - [0:0]\n-A KUBE-SERVICES -p tcp -j ACCEPT\n\
        -A POSTROUTING -m comment --comment \"name: \\\"x\\\" PM-SERVICES\" -j CNI-a\n-A OUTPUT -p udp -j CNI-a\nCOMMIT\n\
        *filter\n:APM-X - [0:0]\n-A INPUT -j APM-X\n-A APM-X -p tcp -j ACCEPT\n-A FORWARD -s 10.9.0.0/16 -j ACCEPT\nCOMMIT\n";
    let foreign = match node.family {
        Family::V4 => foreign.to_owned(),
        Family::V6 => foreign.replace("10.9.0.0/16", "fd09::/16"),
    };
    node.restore(&foreign);
    let before = (node.save("nat"), node.save("filter"));
    node.serve(&node.at.servers.clone());
    node.serve(&[]);
    node.serve(&[node.at.pod]);
    node.sync();
    let theirs = |text: String| -> String {
        text.lines()
            .filter(|line| {
                !line.contains("pointsman: ") && !line.contains(" PM-") && !line.starts_with(":PM-")
                    || line.contains("name:")
            })
            .fold(String::new(), |all, line| all + line + "\n")
    };
    assert_eq!(before, (theirs(node.save("nat")), theirs(node.save("filter"))));
    node.teardown();
    let host = node.host.clone();
    let mut iptables = node.iptables();
    host.run(|| iptables.remove_grace_rule()).unwrap();
    assert_eq!(before, (node.save("nat"), node.save("filter")));
}

fn node_ports_on_all_addresses(mut node: Node) {
    let mut context = node.context(DetectLocal::NodeCidr);
    context.settings.node_port_addresses = vec![NodePortAddresses::All];
    node.table.set_context(context, &mut node.diff);
    node.serve(&node.at.servers.clone());
    assert_eq!(node.observe().to_string(), "");
    for address in [node.at.node, node.at.pod_gateway, node.at.node_to_servers] {
        for protocol in BOTH {
            assert_eq!(
                outcome(&node.client, protocol, SocketAddr::new(address, NODE_PORT)),
                "answered",
                "{address}"
            );
        }
    }
    // Not on Service addresses (kubernetes/kubernetes#111863), nor on loopback.
    let loopback: IpAddr = if node.family == Family::V4 {
        "127.0.0.1"
    } else {
        "::1"
    }
    .parse()
    .unwrap();
    for address in [node.at.vip, loopback] {
        nobody_answers(&node.host, SocketAddr::new(address, NODE_PORT));
    }
}

/// While one Service gets and loses its endpoints, and another the other way round, every connection is answered or
/// refused; those of a Service that does not change are all answered.
fn no_connection_meets_half_a_service(mut node: Node) {
    let servers = node.at.servers;
    // The first packets wait for the neighbours' addresses, on a busy machine for longer than the test takes.
    for server in servers {
        ask(&node.client, Protocol::Tcp, SocketAddr::new(server, TARGET)).unwrap();
    }
    let steady = plain(&node, "steady", node.at.external);
    let (left, right) = (
        plain(&node, "left", node.at.vip),
        plain(&node, "right", node.at.balanced),
    );
    node.set(&steady, &servers);
    node.apply();
    let stop = AtomicBool::new(false);
    let (client, at) = (
        node.client.clone(),
        [node.at.external, node.at.vip, node.at.balanced],
    );
    let counts = thread::scope(|scope| {
        let (client, stop) = (&client, &stop);
        node.set(&left, &servers);
        node.set(&right, &[]);
        node.apply();
        let asking: Vec<_> = at
            .map(|address| {
                scope.spawn(move || {
                    client.enter();
                    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
                    while !stop.load(Ordering::Relaxed) {
                        let outcome = outcome(client, Protocol::Tcp, SocketAddr::new(address, PORT));
                        *counts.entry(outcome).or_default() += 1;
                    }
                    counts
                })
            })
            .into_iter()
            .collect();
        for round in 0..20 {
            let (on, off) = if round % 2 == 0 {
                (&right, &left)
            } else {
                (&left, &right)
            };
            node.set(on, &servers[..1 + round % 3]);
            node.set(off, &[]);
            node.apply();
        }
        stop.store(true, Ordering::Relaxed);
        asking
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect::<Vec<_>>()
    });
    let known = |counts: &BTreeMap<String, u32>, allowed: &[&str]| {
        counts.keys().all(|key| allowed.contains(&key.as_str()))
    };
    assert!(known(&counts[0], &["answered"]), "{counts:?}");
    assert!(
        known(&counts[1], &["answered", "refused"]) && known(&counts[2], &["answered", "refused"]),
        "{counts:?}"
    );
    assert!(counts[1].len() == 2, "both were met: {counts:?}");
}

/// A Service with one address and one port.
fn plain(node: &Node, name: &str, address: IpAddr) -> Service {
    let mut service = node.service(name);
    service.cluster_ips = vec![address];
    service.external_ips.clear();
    service.load_balancer_ips.clear();
    service.ports.truncate(1);
    service.ports[0].node_port = None;
    service
}

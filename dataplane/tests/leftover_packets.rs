//! What a kube-proxy left in a node's kernel does to packets, and that it is found: tables as kube-proxy 1.36 writes them,
//! in namespaces of the test's own. Needs root, nftables, iptables and iproute2; without them it fails and says what to
//! do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by failing"
)]

mod support;

use std::net::{IpAddr, SocketAddr};

use pointsman_dataplane::iptables::Variant;
use pointsman_dataplane::leftover::{Found, Leftover, Place, Search};
use pointsman_dataplane::model::{Family, Protocol};
use pointsman_dataplane::netlink::socket::Socket;

use support::namespace::Namespace;
use support::node::{Mode, Node, PORT, TARGET};
use support::talk::{ask, nobody_answers};

/// Makes a test of each function, for each family.
macro_rules! in_both_families {
    ($($name:ident)*) => {
        mod v4 { $(#[test] fn $name() { super::$name(super::Family::V4); })* }
        mod v6 { $(#[test] fn $name() { super::$name(super::Family::V6); })* }
    };
}

in_both_families! {
    a_drop_before_translation_ends_our_packets_and_is_named
    what_comes_after_translation_does_not_touch_our_packets
    translation_of_a_service_that_is_gone_goes_on
    in_mode_iptables_the_table_that_came_last_translates
    a_table_that_sleeps_does_nothing
    chains_of_iptables_are_found_in_both_variants
}

/// One look of a search that has not looked yet. It changes nothing.
fn look(host: &Namespace, family: Family) -> Found {
    let generation = || Socket::open().unwrap().generation().unwrap();
    host.run(|| {
        let before = generation();
        let found = Search::default().look(&[family]);
        assert_eq!(generation(), before, "a look changed something");
        found
    })
}

/// The only place where something was found.
fn only(found: Found) -> Leftover {
    assert_eq!((found.rules.len(), found.unread.len()), (1, 0), "{found:?}");
    found.rules.into_iter().next().unwrap()
}

fn nft(node: &Node, commands: &str) {
    node.host.program(&["nft", "-f", "-"], commands);
}

/// A node that forwards a Service with all kinds of addresses.
fn forwarding(family: Family) -> Node {
    let mut node = Node::new(Mode::Nftables, family);
    let service = node.service("web");
    let endpoints = node.at.servers;
    node.set(&service, &endpoints);
    node.sync();
    node
}

/// kube-proxy's table with this in it; `X` is the family's word for the header.
fn table(family: Family, body: &str) -> String {
    let (header, address) = match family {
        Family::V4 => ("ip", "ipv4_addr"),
        Family::V6 => ("ip6", "ipv6_addr"),
    };
    let body = body.replace("ADDRESS", address).replace('X', header);
    format!("table {header} kube-proxy {{\n{body}\n}}\n")
}

fn delete(family: Family) -> &'static str {
    match family {
        Family::V4 => "delete table ip kube-proxy",
        Family::V6 => "delete table ip6 kube-proxy",
    }
}

/// As kube-proxy holds back who is not in `loadBalancerSourceRanges`.
fn firewall(family: Family, destinations: &[(IpAddr, u16)], flags: &str) -> String {
    let elements: Vec<String> = destinations
        .iter()
        .map(|(address, port)| format!("{address} . tcp . {port} : goto firewall-ABC-default/web/tcp/stream"))
        .collect();
    let nobody = match family {
        Family::V4 => "192.0.2.200",
        Family::V6 => "2001:db8:1::200",
    };
    table(
        family,
        &format!(
            "{flags}
            chain firewall-ABC-default/web/tcp/stream {{ X saddr != {nobody} drop; }}
            map firewall-ips {{ type ADDRESS . inet_proto . inet_service : verdict; elements = {{ {} }}; }}
            chain firewall-check {{ X daddr . meta l4proto . th dport vmap @firewall-ips; }}
            chain filter-prerouting-pre-dnat {{
                type filter hook prerouting priority -110;
                ct state new jump firewall-check
            }}
            chain filter-output-pre-dnat {{
                type filter hook output priority -110;
                ct state new jump firewall-check
            }}",
            elements.join(", ")
        ),
    )
}

fn a_drop_before_translation_ends_our_packets_and_is_named(family: Family) {
    let mut node = forwarding(family);
    let (balanced, vip) = (node.at.balanced, node.at.vip);
    let to = SocketAddr::new(balanced, PORT);
    ask(&node.client, Protocol::Tcp, to).unwrap();
    assert_eq!(look(&node.host, family), Found::default());

    let more = (1..=6).map(|port| (balanced, PORT + port));
    let destinations: Vec<_> = std::iter::once((balanced, PORT)).chain(more).collect();
    nft(&node, &firewall(family, &destinations, ""));
    nobody_answers(&node.client, to);
    nobody_answers(&node.host, to);
    assert!(node.observe().is_clean(), "our own rules are as they should be");
    ask(&node.client, Protocol::Tcp, SocketAddr::new(vip, PORT)).unwrap();

    let found = only(look(&node.host, family));
    assert_eq!((found.place, found.outranks()), (Place::Table, true));
    assert_eq!(
        found.before,
        ["filter-output-pre-dnat", "filter-prerouting-pre-dnat"]
    );
    assert_eq!(found.destinations[0], format!("{balanced} port {PORT}/TCP"));
    assert_eq!(found.destinations.len() + found.more, 7);
    assert!(found.anywhere.is_empty(), "{found:?}");

    let removal = found.removal();
    node.host.program(&removal.split(' ').collect::<Vec<_>>(), "");
    assert_eq!(look(&node.host, family), Found::default());
    ask(&node.client, Protocol::Tcp, to).unwrap();
}

fn what_comes_after_translation_does_not_touch_our_packets(family: Family) {
    let node = forwarding(family);
    let (vip, balanced) = (node.at.vip, node.at.balanced);
    let rules = table(
        family,
        &format!(
            "set cluster-ips {{ type ADDRESS; elements = {{ {vip} }}; }}
            chain reject-chain {{ reject; }}
            map no-endpoint-services {{
                type ADDRESS . inet_proto . inet_service : verdict
                elements = {{ {vip} . tcp . {PORT} : goto reject-chain, {balanced} . tcp . {PORT} : drop }}
            }}
            chain service-endpoints-check {{ X daddr . meta l4proto . th dport vmap @no-endpoint-services; }}
            chain cluster-ips-check {{ X daddr @cluster-ips reject; }}
            chain filter-input {{
                type filter hook input priority filter;
                ct state new jump service-endpoints-check
            }}
            chain filter-forward {{
                type filter hook forward priority filter;
                ct state new jump service-endpoints-check
                ct state new jump cluster-ips-check
            }}
            chain filter-output {{
                type filter hook output priority filter;
                ct state new jump service-endpoints-check
                ct state new jump cluster-ips-check
            }}"
        ),
    );
    nft(&node, &rules);
    for to in [vip, balanced].map(|address| SocketAddr::new(address, PORT)) {
        for from in [&node.client, &node.host] {
            ask(from, Protocol::Tcp, to).unwrap();
        }
    }
    let found = only(look(&node.host, family));
    assert!(!found.outranks(), "{found}");
    // The same table with one drop that asks for nothing.
    nft(
        &node,
        &table(family, "chain filter-forward { ct state invalid drop; }"),
    );
    let found = only(look(&node.host, family));
    assert_eq!(
        (found.before.len(), found.anywhere),
        (0, vec!["filter-forward".to_owned()])
    );
}

/// As kube-proxy translates an address to a server.
fn translation(family: Family, from: SocketAddr, server: IpAddr) -> String {
    let to = SocketAddr::new(server, TARGET);
    table(
        family,
        &format!(
            "chain endpoint-ABC {{ meta l4proto tcp dnat to {to}; }}
            map service-ips {{
                type ADDRESS . inet_proto . inet_service : verdict
                elements = {{ {} . tcp . {} : goto endpoint-ABC }}
            }}
            chain nat-prerouting {{
                type nat hook prerouting priority dstnat;
                X daddr . meta l4proto . th dport vmap @service-ips
            }}",
            from.ip(),
            from.port()
        ),
    )
}

fn translation_of_a_service_that_is_gone_goes_on(family: Family) {
    let node = forwarding(family);
    let server = node.at.servers[0];
    let gone = SocketAddr::new(node.at.external, PORT + 1);
    nobody_answers(&node.client, gone);
    nft(&node, &translation(family, gone, server));
    let answer = ask(&node.client, Protocol::Tcp, gone).unwrap();
    assert_eq!(answer.who, server);
    let found = only(look(&node.host, family));
    assert!(!found.outranks(), "{found}");
    nft(&node, delete(family));
    assert_eq!(look(&node.host, family), Found::default());
}

fn in_mode_iptables_the_table_that_came_last_translates(family: Family) {
    for variant in [Variant::Nft, Variant::Legacy] {
        let mut node = Node::new(Mode::Iptables(variant), family);
        let [stale, current, _] = node.at.servers;
        let vip = SocketAddr::new(node.at.vip, PORT);
        nft(&node, &translation(family, vip, stale));
        node.serve(&[current]);
        assert_eq!(ask(&node.client, Protocol::Tcp, vip).unwrap().who, current);
        // Both have the priority -100, and the kernel puts a new chain in front.
        nft(&node, delete(family));
        nft(&node, &translation(family, vip, stale));
        assert_eq!(ask(&node.client, Protocol::Tcp, vip).unwrap().who, stale);
    }
    // In mode NFTables ours come first in any case.
    let mut node = Node::new(Mode::Nftables, family);
    let [stale, current, _] = node.at.servers;
    let vip = SocketAddr::new(node.at.vip, PORT);
    node.serve(&[current]);
    nft(&node, &translation(family, vip, stale));
    assert_eq!(ask(&node.client, Protocol::Tcp, vip).unwrap().who, current);
}

fn a_table_that_sleeps_does_nothing(family: Family) {
    let node = forwarding(family);
    let balanced = node.at.balanced;
    nft(&node, &firewall(family, &[(balanced, PORT)], "flags dormant;"));
    ask(&node.client, Protocol::Tcp, SocketAddr::new(balanced, PORT)).unwrap();
    assert!(!only(look(&node.host, family)).outranks());
}

fn chains_of_iptables_are_found_in_both_variants(family: Family) {
    let stem = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    for (variant, infix) in [(Variant::Nft, "nft"), (Variant::Legacy, "legacy")] {
        let node = forwarding(family);
        let restore = |rules: &[&str]| {
            let program = format!("{stem}-{infix}-restore");
            let rules = rules.join("\n") + "\nCOMMIT\n";
            node.host.program(&[&program, "--noflush"], &rules);
        };
        let rule = "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP";
        restore(&["*nat", ":KUBE-SERVICES - [0:0]", "-A PREROUTING -j KUBE-SERVICES"]);
        let found = only(look(&node.host, family));
        assert_eq!((found.place, found.outranks()), (Place::Iptables(variant), false));
        restore(&[
            "*filter",
            ":KUBE-FORWARD - [0:0]",
            "-A FORWARD -j KUBE-FORWARD",
            rule,
        ]);
        assert_eq!(only(look(&node.host, family)).anywhere, [rule]);
        restore(&["*nat", "-D PREROUTING -j KUBE-SERVICES", "-X KUBE-SERVICES"]);
        restore(&[
            "*filter",
            "-D FORWARD -j KUBE-FORWARD",
            "-F KUBE-FORWARD",
            "-X KUBE-FORWARD",
        ]);
        // What kubelet has is no leftover.
        restore(&[
            "*filter",
            ":KUBE-FIREWALL - [0:0]",
            "-A INPUT -j KUBE-FIREWALL",
            "-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP",
        ]);
        assert_eq!(look(&node.host, family), Found::default(), "{variant}");
    }
}

#[test]
fn a_search_that_goes_on_sees_what_comes_and_goes_and_makes_nothing() {
    let host = Namespace::new();
    host.run(|| {
        let mut search = Search::default();
        let mut look = || search.look(&Family::ALL);
        assert_eq!(look(), Found::default());
        let program = |commands: &str| host.program(&["nft", "-f", "-"], commands);
        for family in Family::ALL {
            program(&table(family, ""));
        }
        for _ in 0..2 {
            assert_eq!(look().rules.len(), 2);
        }
        program(delete(Family::V4));
        assert_eq!(only(look()).family, Family::V6);
        program(delete(Family::V6));
        assert_eq!(look(), Found::default());
    });
    assert_eq!(host.program(&["nft", "list", "ruleset"], ""), "");
    for names in ["ip_tables_names", "ip6_tables_names"] {
        let made = host.run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{names}")));
        assert_eq!(made.unwrap(), "", "a look made a table of iptables");
    }
}

//! Packets of and to the node itself in mode IPVS, where Services' addresses are the node's own, and what a kernel without a
//! scheduler does. Runs in the test kernel by itself; see CONTRIBUTING.md. Needs the packages of e2e/packages.sh; without
//! them it fails and says what to do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by failing"
)]

mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use pointsman_dataplane::ipvs::probe;
use pointsman_dataplane::model::{DetectLocal, Family, Protocol, SchedulerKind};

use support::node::{Mode, NODE_PORT, Node, PORT};
use support::talk::{ask, outcome, serve};

pointsman_test_kernel::run_inside!();

/// Makes a test of each function, for each family.
macro_rules! in_both_families {
    ($($name:ident)*) => {
        mod v4 { $(#[test] fn $name() { super::$name(super::Node::new(super::Mode::Ipvs, super::Family::V4)); })* }
        mod v6 { $(#[test] fn $name() { super::$name(super::Node::new(super::Mode::Ipvs, super::Family::V6)); })* }
    };
}

in_both_families! {
    a_listener_of_the_node_does_not_answer_for_services
    a_client_on_the_node_is_seen_by_an_address_of_the_node
    a_pod_reaches_itself_through_its_service
    a_scheduler_that_the_kernel_has_not_got_is_named
}

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
/// A port that no Service has.
const OTHER_PORT: u16 = 81;

fn a_listener_of_the_node_does_not_answer_for_services(mut node: Node) {
    let any: IpAddr = match node.family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    // One at a port of Services, and one at a port of none.
    for port in [PORT, OTHER_PORT] {
        serve(&node.host, SocketAddr::new(any, port));
    }
    let servers = node.at.servers;
    node.serve(&servers);
    // The kernel tells a sender of its own that its datagram was dropped, also when it is refused.
    let clients = |node: &Node, protocol| {
        let own = match protocol {
            Protocol::Udp => "PermissionDenied",
            _ => "refused",
        };
        [
            (node.client.clone(), "refused"),
            (node.pod.clone(), "refused"),
            (node.host.clone(), own),
        ]
    };
    let addresses = [node.at.vip, node.at.external, node.at.balanced];
    for protocol in BOTH {
        for (from, refused) in clients(&node, protocol) {
            for address in addresses {
                let answer = ask(&from, protocol, SocketAddr::new(address, PORT)).unwrap();
                assert!(servers.contains(&answer.who), "{address}: {answer:?}");
                let other = SocketAddr::new(address, OTHER_PORT);
                assert_eq!(outcome(&from, protocol, other), refused, "{protocol} {other}");
            }
            // At an address that is the node's by itself it does.
            let own = SocketAddr::new(node.at.node, OTHER_PORT);
            assert_eq!(outcome(&from, Protocol::Tcp, own), "answered", "{own}");
        }
    }
    // Nor when nobody else would.
    node.serve(&[]);
    for protocol in BOTH {
        for (from, refused) in clients(&node, protocol) {
            for address in addresses {
                let to = SocketAddr::new(address, PORT);
                assert_eq!(outcome(&from, protocol, to), refused, "{protocol} {to}");
            }
        }
    }
}

fn a_client_on_the_node_is_seen_by_an_address_of_the_node(mut node: Node) {
    let everywhere = |node: &Node| {
        [
            (node.at.vip, PORT),
            (node.at.external, PORT),
            (node.at.balanced, PORT),
            (node.at.node, NODE_PORT),
        ]
        .map(SocketAddr::from)
    };
    let seen = |node: &Node, to: SocketAddr| {
        BOTH.map(|protocol| {
            let answer = ask(&node.host, protocol, to).unwrap();
            (answer.who, answer.saw)
        })
    };
    for endpoint in [node.at.servers[0], node.at.pod] {
        node.serve(&[endpoint]);
        let own = [node.at.node, node.at.node_to_servers, node.at.pod_gateway];
        for to in everywhere(&node) {
            for (who, saw) in seen(&node, to) {
                assert_eq!(who, endpoint);
                assert!(own.contains(&saw), "{to}: {saw}");
            }
        }
    }
    // Where nobody is masqueraded towards ClusterIPs, it is the address that the route to the Service says.
    let mut context = node.context(DetectLocal::ClusterCidr(Vec::new()));
    node.table.set_context(context.clone(), &mut node.diff);
    let server = node.at.servers[0];
    node.serve(&[server]);
    assert_eq!(seen(&node, node.vip()), [(server, node.at.node); 2]);
    // The node gets another address in the place of the one that it had.
    let (address, length, nodad) = match node.family {
        Family::V4 => ("192.0.2.77", 24, ""),
        Family::V6 => ("2001:db8:1::77", 64, " nodad"),
    };
    let address: IpAddr = address.parse().unwrap();
    let single = ipnet::IpNet::from(address);
    let old = node.at.node;
    node.host.ip(&format!(
        "addr add {single}{nodad} dev client0\naddr del {old}/{length} dev client0\n"
    ));
    context.node.internal_ips = vec![address];
    context.node.interface_addresses = vec![address, node.at.pod_gateway, node.at.node_to_servers];
    node.table.set_context(context, &mut node.diff);
    node.apply();
    assert_eq!(seen(&node, node.vip()), [(server, address); 2]);
    assert_eq!(node.observe().to_string(), "");
    node.restart();
    node.sync();
    assert_eq!(seen(&node, node.vip()), [(server, address); 2]);
}

fn a_pod_reaches_itself_through_its_service(mut node: Node) {
    node.serve(&[node.at.pod]);
    let own = [node.at.node, node.at.node_to_servers, node.at.pod_gateway];
    for (address, port) in [
        (node.at.vip, PORT),
        (node.at.external, PORT),
        (node.at.node, NODE_PORT),
    ] {
        for protocol in BOTH {
            let answer = ask(&node.pod, protocol, SocketAddr::new(address, port)).unwrap();
            assert_eq!(answer.who, node.at.pod);
            assert!(own.contains(&answer.saw), "{answer:?}");
        }
    }
    // Another pod's clients and endpoints keep their addresses.
    node.serve(&[node.at.servers[0]]);
    for protocol in BOTH {
        let answer = ask(&node.pod, protocol, node.vip()).unwrap();
        assert_eq!(answer.saw, node.at.pod, "{answer:?}");
    }
}

/// It is told also for a kernel that has all of them: then there is nothing to tell.
fn a_scheduler_that_the_kernel_has_not_got_is_named(mut node: Node) {
    let kind = SchedulerKind::PowerOfTwos;
    let family = node.family;
    let has = node.host.run(|| probe::scheduler(family, kind)).unwrap();
    let servers = node.at.servers;
    let mut own = node.service("own");
    own.cluster_ips = vec![node.at.external];
    own.external_ips.clear();
    own.load_balancer_ips.clear();
    own.ports.iter_mut().for_each(|port| port.node_port = None);
    own.scheduler = Some(kind.into());
    node.set(&own, &servers);
    node.serve(&servers);
    for at in [node.at.vip, node.at.external] {
        for protocol in BOTH {
            let to = SocketAddr::new(at, PORT);
            assert_eq!(outcome(&node.client, protocol, to), "answered", "{protocol} {to}");
        }
    }
    let listed = node.host.program(&["ipvsadm", "-Sn"], "");
    let of = |at: IpAddr| {
        let key = format!("-A -t {} -s ", SocketAddr::new(at, PORT));
        let line = listed.lines().find_map(|line| line.strip_prefix(&key)).unwrap();
        line.split(' ').next().unwrap().to_owned()
    };
    assert_eq!(of(node.at.vip), "wrr");
    assert_eq!(of(node.at.external), if has { "twos" } else { "wrr" });
    let said = node.backend.lacking();
    match has {
        true => assert_eq!(said, [""; 0]),
        false => {
            let [said] = &said[..] else { panic!("{said:?}") };
            for word in [
                "twos",
                "2 virtual services",
                "wrr instead",
                "ip_vs_twos",
                &family.to_string(),
            ] {
                assert!(said.contains(word), "{said}");
            }
        }
    }
    assert_eq!(node.observe().to_string(), "");
    // Nobody asks for it any more.
    own.scheduler = None;
    node.set(&own, &servers);
    node.apply();
    assert_eq!(node.backend.lacking(), [""; 0]);
    // The policy does.
    let mut context = node.table.context().clone();
    context.settings.ipvs.scheduler = kind.into();
    node.table.set_context(context, &mut node.diff);
    node.apply();
    assert_eq!(node.backend.lacking().len(), usize::from(!has));
    assert_eq!(outcome(&node.client, Protocol::Tcp, node.vip()), "answered");
    assert_eq!(node.observe().to_string(), "");
}

//! Whom the schedulers of mode IPVS give connections to, counted in packets. Runs in the test kernel by itself; see
//! CONTRIBUTING.md. Needs the packages of e2e/packages.sh; without them it fails and says what to do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by failing"
)]
#![allow(clippy::print_stdout, reason = "counts are for whoever runs the tests")]

mod support;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pointsman_dataplane::backend::Report;
use pointsman_dataplane::model::{Family, Protocol, Scheduler, SchedulerKind, Weight};

use support::crowd::{Crowd, Shares, more_servers, shares};
use support::node::{Mode, Node, PORT};
use support::talk::{Connection, Ending, ask, knock};

pointsman_test_kernel::run_inside!();

/// Makes a test of each function, for each family.
macro_rules! in_both_families {
    ($($name:ident)*) => {
        mod v4 { $(#[test] fn $name() { super::$name(super::Node::new(super::Mode::Ipvs, super::Family::V4)); })* }
        mod v6 { $(#[test] fn $name() { super::$name(super::Node::new(super::Mode::Ipvs, super::Family::V6)); })* }
    };
}

in_both_families! {
    round_robin_is_exact
    weighted_round_robin_is_exact
    weighted_least_connections_follow_the_weights
    hashing_keeps_clients
    nobody_moves_while_an_endpoint_leaves
    hashing_by_port_spreads_a_client
    a_service_has_its_own_scheduler_and_the_rest_the_policys
}

/// Has the policy ask for a scheduler.
fn policy(node: &mut Node, scheduler: Scheduler) {
    let mut context = node.table.context().clone();
    context.settings.ipvs.scheduler = scheduler;
    node.table.set_context(context, &mut node.diff);
}

/// Serves with endpoints of these weights.
fn weigh(node: &mut Node, weights: &[(IpAddr, u8)]) {
    let service = node.service("web");
    let weighed =
        |(address, weight): &(IpAddr, u8)| node.endpoint(*address).weighing(Weight::Given(Some(*weight)));
    let endpoints = weights.iter().map(weighed).collect();
    node.set_endpoints(&service, endpoints);
    node.apply();
}

fn asked(node: &Node, protocol: Protocol, times: usize) -> Shares {
    let answers: Vec<IpAddr> = (0..times)
        .map(|_| ask(&node.client, protocol, node.vip()).unwrap().who)
        .collect();
    shares(&answers)
}

fn round_robin_is_exact(mut node: Node) {
    policy(&mut node, SchedulerKind::RoundRobin.into());
    let servers = node.at.servers;
    // Weights are nothing to it.
    weigh(&mut node, &[(servers[0], 1), (servers[1], 5), (servers[2], 2)]);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let shares = asked(&node, protocol, 30);
        println!("rr, {protocol}: {shares:?}");
        assert_eq!(shares, servers.map(|server| (server, 10)).into());
    }
}

fn weighted_round_robin_is_exact(mut node: Node) {
    let servers = node.at.servers;
    weigh(&mut node, &[(servers[0], 10), (servers[1], 20), (servers[2], 30)]);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let shares = asked(&node, protocol, 60);
        println!("wrr 1:2:3, {protocol}: {shares:?}");
        let wanted = [(servers[0], 10), (servers[1], 20), (servers[2], 30)];
        assert_eq!(shares, wanted.into());
    }
}

fn weighted_least_connections_follow_the_weights(mut node: Node) {
    policy(&mut node, SchedulerKind::WeightedLeastConnections.into());
    let servers = node.at.servers;
    weigh(&mut node, &[(servers[0], 1), (servers[1], 3)]);
    let hold = |node: &Node, count: usize| -> (Vec<Connection>, Shares) {
        let mut connections = Vec::new();
        let mut answers = Vec::new();
        for _ in 0..count {
            let mut connection = Connection::open(&node.client, node.vip()).unwrap();
            answers.push(connection.ask().unwrap().who);
            connections.push(connection);
        }
        (connections, shares(&answers))
    };
    let (held, first) = hold(&node, 80);
    println!("wlc 1:3, 80 held: {first:?}");
    assert_eq!(first, [(servers[0], 20), (servers[1], 60)].into());
    // One that comes has no connection yet, and gets all until it has as many as its weight says.
    weigh(&mut node, &[(servers[0], 1), (servers[1], 3), (servers[2], 1)]);
    let (more, second) = hold(&node, 20);
    println!("wlc 1:3:1, 20 more: {second:?}");
    assert_eq!(second, [(servers[2], 20)].into());
    drop((held, more));
}

/// Which part of the clients that `before` has at endpoints that are still there is elsewhere now.
fn moved(
    before: &BTreeMap<IpAddr, IpAddr>,
    now: &BTreeMap<IpAddr, IpAddr>,
    gone: &[IpAddr],
) -> (usize, usize) {
    let stayed = before.iter().filter(|(_, who)| !gone.contains(who));
    let all = stayed.clone().count();
    (stayed.filter(|(client, who)| now[*client] != **who).count(), all)
}

const ENDPOINTS: u8 = 8;
const CLIENTS: u16 = 240;

/// With as many places in its table for each endpoint as there are here (4,093 for 8), Maglev moves some hundredths of the
/// clients that need not move; it may be a twentieth.
const FEW: usize = 20;

fn hashing_keeps_clients(mut node: Node) {
    let endpoints = more_servers(&node, ENDPOINTS);
    let mut crowd = Crowd::new(&node, CLIENTS);
    let (gone, rest) = endpoints.split_first().unwrap();
    for kind in [SchedulerKind::SourceHashing, SchedulerKind::MaglevHashing] {
        policy(&mut node, kind.into());
        node.serve(&endpoints);
        let to = node.vip();
        let first = crowd.ask(&node, Protocol::Udp, to);
        let shares = shares(first.values());
        println!(
            "{kind}: {CLIENTS} clients, {ENDPOINTS} endpoints: {:?}",
            shares.values()
        );
        assert_eq!(shares.len(), endpoints.len(), "everybody has some");
        assert_eq!(crowd.ask(&node, Protocol::Udp, to), first, "nothing has changed");
        node.serve(rest);
        let (others, all) = moved(&first, &crowd.ask(&node, Protocol::Udp, to), &[*gone]);
        println!("{kind}: one endpoint goes: {others} of {all} clients of the others move");
        node.serve(&endpoints);
        let (elsewhere, everybody) = moved(&first, &crowd.ask(&node, Protocol::Udp, to), &[]);
        println!(
            "{kind}: it comes back: {elsewhere} of {everybody} clients are not where they were at first"
        );
        if kind == SchedulerKind::MaglevHashing {
            assert!(others * FEW <= all && elsewhere * FEW <= everybody);
        } else {
            // Its table gives one place after the other to one endpoint after the other, the last that came first.
            assert!(
                others * 2 > all && elsewhere * 2 > everybody,
                "it is better than docs/services.md says"
            );
        }
    }
}

/// While it has connections it is still in the kernel's tables, where its clients pass it over.
fn nobody_moves_while_an_endpoint_leaves(mut node: Node) {
    let endpoints = more_servers(&node, ENDPOINTS);
    let mut crowd = Crowd::new(&node, CLIENTS / 4);
    for kind in [SchedulerKind::SourceHashing, SchedulerKind::MaglevHashing] {
        policy(&mut node, kind.into());
        node.serve(&endpoints);
        let to = node.vip();
        let mut connection = Connection::open(&node.client, to).unwrap();
        let leaves = connection.ask().unwrap().who;
        let rest: Vec<IpAddr> = endpoints.iter().copied().filter(|who| *who != leaves).collect();
        let first = crowd.ask(&node, Protocol::Tcp, to);
        assert!(first.values().any(|who| *who == leaves), "it has clients");
        node.serve(&rest);
        let now = crowd.ask(&node, Protocol::Tcp, to);
        let (others, all) = moved(&first, &now, &[leaves]);
        println!("{kind}: an endpoint leaves: {others} of {all} clients of the others move");
        assert!(now.values().all(|who| *who != leaves), "nobody new gets there");
        assert_eq!(others, 0);
        assert_eq!(connection.ask().unwrap().who, leaves);
        node.serve(&endpoints);
        assert_eq!(
            crowd.ask(&node, Protocol::Tcp, to),
            first,
            "as if nothing had been"
        );
        assert_eq!(node.observe().to_string(), "");
    }
}

fn hashing_by_port_spreads_a_client(mut node: Node) {
    node.serve(&node.at.servers.clone());
    let mut ports = 21_000..;
    for kind in [SchedulerKind::SourceHashing, SchedulerKind::MaglevHashing] {
        for port in [false, true] {
            let scheduler = Scheduler { port, ..kind.into() };
            policy(&mut node, scheduler);
            node.apply();
            let (client, to) = (node.at.client, node.vip());
            let from: Vec<SocketAddr> = ports
                .by_ref()
                .take(40)
                .map(|port| SocketAddr::new(client, port))
                .collect();
            let answers: Vec<IpAddr> = node.client.run(|| {
                let ask = |from| match knock(Protocol::Tcp, from, to, Duration::from_secs(3)) {
                    Ending::Answered(answer) => answer.who,
                    other => panic!("{other:?}"),
                };
                from.into_iter().map(ask).collect()
            });
            let shares = shares(&answers);
            println!("{scheduler}: 40 connections of one client: {:?}", shares.values());
            assert_eq!(shares.len(), if port { 3 } else { 1 });
        }
    }
}

fn a_service_has_its_own_scheduler_and_the_rest_the_policys(mut node: Node) {
    let servers = node.at.servers;
    let mut own = node.service("own");
    own.cluster_ips = vec![node.at.external];
    own.external_ips.clear();
    own.load_balancer_ips.clear();
    own.ports.iter_mut().for_each(|port| port.node_port = None);
    own.scheduler = Some(SchedulerKind::MaglevHashing.into());
    node.set(&own, &servers);
    node.serve(&servers);
    let at = SocketAddr::new(node.at.external, PORT);
    let reached = |node: &Node, to: SocketAddr| {
        let who = |_| ask(&node.client, Protocol::Tcp, to).unwrap().who;
        shares(&(0..12).map(who).collect::<Vec<_>>())
            .into_values()
            .collect::<Vec<_>>()
    };
    assert_eq!(reached(&node, at), [12]);
    assert_eq!(reached(&node, node.vip()), [4, 4, 4]);
    // Another one of the policy's is for those that have none of their own, as if it had been so from the start.
    policy(&mut node, SchedulerKind::SourceHashing.into());
    own.scheduler = Some(SchedulerKind::RoundRobin.into());
    node.set(&own, &servers);
    node.apply();
    assert_eq!(reached(&node, at), [4, 4, 4]);
    assert_eq!(reached(&node, node.vip()), [12]);
    assert_eq!(node.observe().to_string(), "");
    // And again without one of its own.
    own.scheduler = None;
    node.set(&own, &servers);
    node.apply();
    assert_eq!(reached(&node, at), [12]);
    assert_eq!(node.observe().to_string(), "");
    assert_eq!(node.sync(), Report::default());
}

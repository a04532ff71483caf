//! What becomes of the connections to endpoints and Services that go, in mode IPVS. Runs in the test kernel by itself; see
//! CONTRIBUTING.md. Needs the packages of e2e/packages.sh; without them it fails and says what to do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by failing"
)]
#![allow(clippy::print_stdout, reason = "counts are for whoever runs the tests")]

mod support;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use pointsman_dataplane::backend::{Remaining, Report};
use pointsman_dataplane::model::{Family, Protocol, Service, TrafficPolicy};

use support::ipvs::{tend, tend_to_the_end, weights};
use support::node::{Mode, NODE_PORT, Node, PORT};
use support::talk::{Connection, ask, outcome, receive};

pointsman_test_kernel::run_inside!();

/// Makes a test of each function, for each family.
macro_rules! in_both_families {
    ($($name:ident)*) => {
        mod v4 { $(#[test] fn $name() { super::$name(super::Node::new(super::Mode::Ipvs, super::Family::V4)); })* }
        mod v6 { $(#[test] fn $name() { super::$name(super::Node::new(super::Mode::Ipvs, super::Family::V6)); })* }
    };
}

in_both_families! {
    connections_to_what_leaves_go_on_until_they_end
    connections_by_a_mark_go_on_as_well
    an_endpoint_that_comes_back_is_as_before
    a_teardown_waits_for_connections
    a_limit_ends_them
    connections_to_what_exists_no_more_end_if_asked_for
    a_udp_flow_leaves_at_once
    a_udp_flow_stays_while_its_endpoint_serves
}

/// A Service with this address and nothing else.
fn at(node: &Node, name: &str, address: IpAddr) -> Service {
    let mut service = node.service(name);
    service.cluster_ips = vec![address];
    service.external_ips.clear();
    service.load_balancer_ips.clear();
    service.ports.iter_mut().for_each(|port| port.node_port = None);
    service
}

fn open(node: &Node, to: SocketAddr) -> (Connection, IpAddr) {
    let mut connection = Connection::open(&node.client, to).unwrap();
    let who = connection.ask().unwrap().who;
    (connection, who)
}

fn all_but(node: &Node, gone: IpAddr) -> Vec<IpAddr> {
    node.at.servers.into_iter().filter(|who| *who != gone).collect()
}

fn weight(node: &Node, to: SocketAddr, who: IpAddr) -> Option<u32> {
    weights(node, Protocol::Tcp, to)?.get(&who).copied()
}

/// An endpoint leaves that others remain beside, the last one of a Service leaves, and a Service is deleted.
fn connections_to_what_leaves_go_on_until_they_end(mut node: Node) {
    let servers = node.at.servers;
    let [web, last, deleted] = [
        at(&node, "web", node.at.vip),
        at(&node, "last", node.at.external),
        at(&node, "deleted", node.at.balanced),
    ];
    let [to_web, to_last, to_deleted] =
        [&web, &last, &deleted].map(|service| SocketAddr::new(service.cluster_ips[0], PORT));
    node.set(&web, &servers);
    node.set(&last, &servers[..1]);
    node.set(&deleted, &servers);
    node.apply();
    let (mut held, gone) = open(&node, to_web);
    let (mut held_last, _) = open(&node, to_last);
    let (mut held_deleted, deleted_from) = open(&node, to_deleted);
    node.set(&web, &all_but(&node, gone));
    node.set(&last, &[]);
    node.table.remove(&deleted.name, &mut node.diff);
    node.apply();

    let mut look = |node: &Node| {
        assert_eq!(held.ask().unwrap().who, gone);
        assert_eq!(held_last.ask().unwrap().who, servers[0]);
        held_deleted.ask().unwrap();
        for _ in 0..6 {
            assert_ne!(ask(&node.client, Protocol::Tcp, to_web).unwrap().who, gone);
        }
        for to in [to_last, to_deleted] {
            assert_eq!(outcome(&node.client, Protocol::Tcp, to), "refused", "{to}");
        }
        for (to, who) in [(to_web, gone), (to_last, servers[0]), (to_deleted, deleted_from)] {
            let left = weights(node, Protocol::Tcp, to).unwrap();
            assert_eq!(left.get(&who), Some(&0), "{to}: {left:?}");
            let others = left.iter().filter(|(other, _)| **other != who);
            // Of a Service that is gone, idle ones are there until the first look.
            let weight = u32::from(to == to_web);
            assert!(
                others.clone().all(|(_, other)| *other == weight),
                "{to}: {left:?}"
            );
            // What UDP had is gone by now.
            let udp = weights(node, Protocol::Udp, to).map(|weights| weights.len());
            assert_eq!(udp, (to == to_web).then_some(2), "{to}");
        }
    };
    look(&node);
    assert_eq!(node.observe().to_string(), "");
    // It is looked at, and left as long as there is a connection.
    for _ in 0..2 {
        assert!(tend(&mut node));
        look(&node);
    }
    assert_eq!(node.observe().to_string(), "");
    assert_eq!(
        weights(&node, Protocol::Tcp, to_deleted),
        Some([(deleted_from, 0)].into())
    );
    // An agent that starts finds it so, and has nothing to write.
    node.restart();
    assert_eq!(node.sync(), Report::default());
    look(&node);
    assert!(tend(&mut node));
    look(&node);
    assert_eq!(node.observe().to_string(), "");

    [held, held_last, held_deleted]
        .into_iter()
        .for_each(Connection::reset);
    tend_to_the_end(&mut node);
    assert_eq!(weight(&node, to_web, gone), None);
    for to in [to_last, to_deleted] {
        assert_eq!(weights(&node, Protocol::Tcp, to), None, "{to}");
        let routes = node
            .host
            .program(&["ip", route_word(&node), "route", "show", "table", "local"], "");
        assert!(!routes.contains(&to.ip().to_string()), "{routes}");
    }
    assert_eq!(outcome(&node.client, Protocol::Tcp, to_web), "answered");
    assert_eq!(node.observe().to_string(), "");
    node.restart();
    assert_eq!(node.sync(), Report::default());
}

fn route_word(node: &Node) -> &'static str {
    match node.family {
        Family::V4 => "-4",
        Family::V6 => "-6",
    }
}

fn an_endpoint_that_comes_back_is_as_before(mut node: Node) {
    let servers = node.at.servers;
    let to = node.vip();
    let service = at(&node, "web", node.at.vip);
    let serve = |node: &mut Node, endpoints: &[IpAddr]| {
        node.set(&service, endpoints);
        node.apply();
    };
    serve(&mut node, &servers);
    let (mut held, gone) = open(&node, to);
    let all_but_gone = all_but(&node, gone);
    for restarts in [false, true] {
        serve(&mut node, &all_but_gone);
        assert_eq!(weight(&node, to, gone), Some(0));
        if restarts {
            node.restart();
            node.sync();
            assert_eq!(weight(&node, to, gone), Some(0));
        }
        assert!(tend(&mut node));
        serve(&mut node, &servers);
        assert_eq!(weight(&node, to, gone), Some(1));
        assert_eq!(node.backend.tend_at(), None, "nothing leaves");
        let who: Vec<IpAddr> = (0..3)
            .map(|_| ask(&node.client, Protocol::Tcp, to).unwrap().who)
            .collect();
        assert!(who.contains(&gone), "{who:?}");
        assert_eq!(held.ask().unwrap().who, gone);
        assert_eq!(node.observe().to_string(), "");
    }
    // The last one of a Service, whose frontend refused meanwhile.
    serve(&mut node, &[]);
    assert_eq!(outcome(&node.client, Protocol::Tcp, to), "refused");
    serve(&mut node, &servers);
    assert_eq!(outcome(&node.client, Protocol::Tcp, to), "answered");
    assert_eq!(held.ask().unwrap().who, gone);
    // A Service that is deleted, and made again.
    node.table.remove(&service.name, &mut node.diff);
    node.apply();
    assert_eq!(held.ask().unwrap().who, gone);
    serve(&mut node, &servers);
    assert_eq!(held.ask().unwrap().who, gone);
    assert_eq!(outcome(&node.client, Protocol::Tcp, to), "answered");
    assert_eq!(node.backend.tend_at(), None, "nothing leaves");
    assert_eq!(node.observe().to_string(), "");
}

/// Node ports, and Services with external policy Local, are found by a mark.
fn connections_by_a_mark_go_on_as_well(mut node: Node) {
    let servers = node.at.servers;
    let mut local = node.service("local");
    local.external_policy = TrafficPolicy::Local;
    local
        .ports
        .iter_mut()
        .for_each(|port| port.node_port = Some(31_000));
    local.cluster_ips = vec![node.at.external];
    local.external_ips.clear();
    let web = at(&node, "web", node.at.vip);
    let with_port = |mut web: Service| {
        web.ports
            .iter_mut()
            .for_each(|port| port.node_port = Some(NODE_PORT));
        web
    };
    let web = with_port(web);
    node.set(&local, &[node.at.pod, servers[0]]);
    node.set(&web, &servers);
    node.apply();
    let to_port = SocketAddr::new(node.at.node, NODE_PORT);
    let to_local = SocketAddr::new(node.at.balanced, PORT);
    let (mut held, gone) = open(&node, to_port);
    // From the node itself: all endpoints, by the mark.
    let mut inside = Connection::open(&node.host, to_local).unwrap();
    let inside_at = inside.ask().unwrap().who;
    let (mut outside, pod) = open(&node, to_local);
    assert_eq!(pod, node.at.pod);
    node.set(&web, &all_but(&node, gone));
    node.set(&local, &[servers[1]]);
    node.apply();
    let mut look = |node: &Node, port_serves: bool| {
        assert_eq!(held.ask().unwrap().who, gone);
        assert_eq!(inside.ask().unwrap().who, inside_at);
        assert_eq!(outside.ask().unwrap().who, node.at.pod);
        for _ in 0..4 {
            match port_serves {
                true => assert_ne!(ask(&node.client, Protocol::Tcp, to_port).unwrap().who, gone),
                false => assert_eq!(outcome(&node.client, Protocol::Tcp, to_port), "refused"),
            }
        }
        assert!(node.backend.tend_at().is_some(), "something leaves");
    };
    look(&node, true);
    assert_eq!(ask(&node.host, Protocol::Tcp, to_local).unwrap().who, servers[1]);
    assert!(tend(&mut node));
    look(&node, true);
    node.restart();
    node.sync();
    look(&node, true);
    assert_eq!(node.observe().to_string(), "");
    // Now both Services go.
    node.table.remove(&web.name, &mut node.diff);
    node.table.remove(&local.name, &mut node.diff);
    node.apply();
    look(&node, false);
    assert!(tend(&mut node));
    node.restart();
    node.sync();
    look(&node, false);
    // They come again, and the old connections do not mind.
    node.set(&web, &servers);
    node.set(&local, &[node.at.pod, servers[0]]);
    node.apply();
    assert_eq!(outcome(&node.client, Protocol::Tcp, to_port), "answered");
    assert_eq!(held.ask().unwrap().who, gone);
    assert_eq!(inside.ask().unwrap().who, inside_at);
    assert_eq!(outside.ask().unwrap().who, node.at.pod);
    assert_eq!(node.observe().to_string(), "");
}

fn a_teardown_waits_for_connections(mut node: Node) {
    let servers = node.at.servers;
    let to = node.vip();
    let host = node.host.clone();
    let link = |node: &Node| node.host.program(&["ip", "link"], "").contains("pointsman-ipvs");
    node.serve(&servers);
    let (mut held, who) = open(&node, to);
    // As a process does that knows nothing of what was written.
    node.restart();
    for _ in 0..2 {
        let left = host.run(|| node.backend.teardown(None)).unwrap();
        assert_eq!(left, Remaining::Connections(1));
        assert_eq!(held.ask().unwrap().who, who);
        assert_ne!(outcome(&node.client, Protocol::Tcp, to), "answered");
    }
    // A sync takes over from it; the connection does not notice.
    node.sync();
    assert_eq!(held.ask().unwrap().who, who);
    assert_eq!(outcome(&node.client, Protocol::Tcp, to), "answered");
    assert_eq!(node.observe().to_string(), "");
    // The client's own end is waited for, and the end of the one that was just answered.
    let left = host.run(|| node.backend.teardown(None)).unwrap();
    assert_eq!(left, Remaining::Connections(2));
    assert!(link(&node));
    // Until the limit.
    let left = host.run(|| node.backend.teardown(Some(Duration::ZERO))).unwrap();
    assert_eq!(left, Remaining::Nothing);
    // Nobody need tell the client: what it sends is not the node's any more.
    assert!(held.ask().is_err());
    assert!(!link(&node));
    assert_eq!(weights(&node, Protocol::Tcp, to), None);
    // Nothing is left but what may keep translated connections.
    let left = node.host.program(&["nft", "list", "ruleset"], "");
    assert_eq!(left.matches("chain ").count(), 1, "{left}");
    node.sync();
    assert_eq!(outcome(&node.client, Protocol::Tcp, to), "answered");
    assert_eq!(node.observe().to_string(), "");
}

fn a_limit_ends_them(mut node: Node) {
    let mut context = node.table.context().clone();
    context.settings.ipvs.graceful = Some(2);
    node.table.set_context(context, &mut node.diff);
    let to = node.vip();
    node.serve(&node.at.servers.clone());
    let (mut held, gone) = open(&node, to);
    node.serve(&all_but(&node, gone));
    // The first look is before the limit.
    assert!(tend(&mut node));
    assert_eq!(weight(&node, to, gone), Some(0));
    assert_eq!(held.ask().unwrap().who, gone);
    tend_to_the_end(&mut node);
    assert_eq!(weight(&node, to, gone), None);
    assert_eq!(held.ask().unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(node.observe().to_string(), "");
    // Without any grace they end with the change.
    let mut context = node.table.context().clone();
    context.settings.ipvs.graceful = Some(0);
    node.table.set_context(context, &mut node.diff);
    node.serve(&node.at.servers.clone());
    let (mut held, gone) = open(&node, to);
    node.serve(&all_but(&node, gone));
    assert_eq!(weight(&node, to, gone), None);
    assert_eq!(held.ask().unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(outcome(&node.client, Protocol::Tcp, to), "answered");
    // Those to the last one as well.
    let (mut held, _) = open(&node, to);
    node.serve(&[]);
    assert_eq!(weights(&node, Protocol::Tcp, to), None);
    assert_eq!(held.ask().unwrap_err().kind(), ErrorKind::ConnectionReset);
}

fn connections_to_what_exists_no_more_end_if_asked_for(mut node: Node) {
    let mut context = node.table.context().clone();
    context.settings.reset_removed = true;
    node.table.set_context(context, &mut node.diff);
    let to = node.vip();
    let service = node.service("web");
    node.serve(&node.at.servers.clone());
    let (mut held, gone) = open(&node, to);
    // One that terminates is still in its slice: its connections go on.
    let terminating = |node: &Node| {
        let mut endpoints: Vec<_> = node.at.servers.map(|server| node.endpoint(server)).into();
        for endpoint in endpoints.iter_mut().filter(|endpoint| endpoint.address == gone) {
            (endpoint.ready, endpoint.terminating) = (false, true);
        }
        endpoints
    };
    node.set_endpoints(&service, terminating(&node));
    node.apply();
    assert_eq!(weight(&node, to, gone), Some(0));
    assert_eq!(held.ask().unwrap().who, gone);
    node.serve(&all_but(&node, gone));
    assert_eq!(weight(&node, to, gone), None, "at once");
    assert_eq!(held.ask().unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(node.backend.tend_at(), None);
    assert_eq!(outcome(&node.client, Protocol::Tcp, to), "answered");
    // And straight away, the last one of a Service.
    node.serve(&[gone]);
    let (mut held, _) = open(&node, to);
    node.serve(&[]);
    assert_eq!(weights(&node, Protocol::Tcp, to), None);
    assert_eq!(held.ask().unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(outcome(&node.client, Protocol::Tcp, to), "refused");
    assert_eq!(node.observe().to_string(), "");
}

/// A client that sends from one port all the time.
struct Flow(UdpSocket);

impl Flow {
    fn new(node: &Node, to: SocketAddr) -> Self {
        let from = SocketAddr::new(node.at.client, 0);
        let socket = node.client.run(|| UdpSocket::bind(from)).unwrap();
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        Self(socket)
    }

    fn try_ask(&self) -> Option<IpAddr> {
        self.0.send(b"?").unwrap();
        let mut buffer = [0; 128];
        let length = receive(&self.0, &mut buffer).ok()?;
        let answer = std::str::from_utf8(&buffer[..length]).unwrap();
        Some(answer.split(' ').next().unwrap().parse().unwrap())
    }

    /// Who answers, and how many packets were lost before.
    fn ask(&self) -> (IpAddr, usize) {
        (0..5)
            .find_map(|lost| Some((self.try_ask()?, lost)))
            .expect("somebody answers")
    }
}

fn a_udp_flow_leaves_at_once(mut node: Node) {
    let to = node.vip();
    node.serve(&node.at.servers.clone());
    let flow = Flow::new(&node, to);
    let (gone, lost) = flow.ask();
    assert_eq!((flow.ask(), lost), ((gone, 0), 0));
    node.serve(&all_but(&node, gone));
    let (now, lost) = flow.ask();
    println!("UDP: an endpoint goes: {lost} packets lost");
    assert_ne!(now, gone);
    assert!(lost <= 1, "{lost} packets were lost");
    assert_eq!(flow.ask(), (now, 0));
    let left = weights(&node, Protocol::Udp, to).unwrap();
    assert!(!left.contains_key(&gone), "{left:?}");
    assert_eq!(node.observe().to_string(), "");
}

fn a_udp_flow_stays_while_its_endpoint_serves(mut node: Node) {
    let to = node.vip();
    let service = node.service("web");
    node.serve(&node.at.servers.clone());
    let flow = Flow::new(&node, to);
    let (leaves, _) = flow.ask();
    let mut endpoints: Vec<_> = node.at.servers.map(|server| node.endpoint(server)).into();
    for endpoint in endpoints.iter_mut().filter(|endpoint| endpoint.address == leaves) {
        (endpoint.ready, endpoint.terminating) = (false, true);
    }
    node.set_endpoints(&service, endpoints.clone());
    node.apply();
    for restarts in [false, true] {
        if restarts {
            node.restart();
            assert_eq!(node.sync(), Report::default());
        }
        assert_eq!(flow.ask(), (leaves, 0));
        for _ in 0..6 {
            assert_ne!(ask(&node.client, Protocol::Udp, to).unwrap().who, leaves);
        }
        assert_eq!(node.observe().to_string(), "");
    }
    for endpoint in endpoints.iter_mut().filter(|endpoint| endpoint.address == leaves) {
        endpoint.serving = false;
    }
    node.set_endpoints(&service, endpoints);
    node.apply();
    let (now, lost) = flow.ask();
    println!("UDP: an endpoint serves no more: {lost} packets lost");
    assert_ne!(now, leaves);
    assert!(lost <= 1, "{lost} packets were lost");
    assert_eq!(node.observe().to_string(), "");
}

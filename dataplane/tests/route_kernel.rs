//! What rtnetlink's messages do to a kernel, by what ip(8) and packets see of it: a dummy, its addresses, and local routes in
//! their place. Runs in the test kernel by itself, because not every machine has dummies; see CONTRIBUTING.md. Needs the
//! packages of e2e/packages.sh; without them it fails and says what to do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by failing"
)]

mod support;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use pointsman_dataplane::model::{Family, Protocol};
use pointsman_dataplane::netlink::ipvs::{Command, Destination, Ipvs, Name, ServiceKey, VirtualService};
use pointsman_dataplane::netlink::route::{Change, Link, LocalRoute, RouteError, Rtnetlink};
use support::namespace::Namespace;
use support::talk::{ask, outcome, receive, serve};

pointsman_test_kernel::run_inside!();

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

fn route(link: &Link, destination: &str, source: Option<&str>) -> LocalRoute {
    LocalRoute {
        destination: destination.parse().unwrap(),
        link: link.index,
        source: source.map(ip),
    }
}

/// Does all of it; nothing may be refused.
fn run(node: &Namespace, changes: &[Change]) {
    let outcome = node.run(|| Rtnetlink::open().unwrap().run(changes.iter().copied()).unwrap());
    assert_eq!(outcome.refused, []);
}

fn dummy(node: &Namespace) -> Link {
    node.run(|| Rtnetlink::open().unwrap().add_dummy("vips").unwrap())
}

#[test]
fn a_dummy_comes_and_goes() {
    let node = Namespace::new();
    node.run(|| {
        let mut rtnetlink = Rtnetlink::open().unwrap();
        assert_eq!(rtnetlink.link("vips").unwrap(), None);
        let link = rtnetlink.add_dummy("vips").unwrap();
        assert_eq!(link.kind.as_deref(), Some("dummy"));
        assert!(link.is_up && !link.resolves, "{link:?}");
        let again = rtnetlink.add_dummy("vips").unwrap_err();
        assert!(
            matches!(&again, RouteError::Refused { source, .. } if source.raw_os_error() == Some(Errno::EEXIST as i32)),
            "{again}"
        );
        rtnetlink.set_up(link.index, false).unwrap();
        let down = rtnetlink.link("vips").unwrap().unwrap();
        assert_eq!(down, Link { is_up: false, ..link.clone() });
        rtnetlink.set_up(link.index, true).unwrap();
        assert_eq!(rtnetlink.link("vips").unwrap().unwrap(), link);
        let lo = rtnetlink.link("lo").unwrap().unwrap();
        assert_eq!((lo.index, lo.kind), (1, None));
        rtnetlink.delete_link(link.index).unwrap();
        assert_eq!(rtnetlink.link("vips").unwrap(), None);
        let gone = rtnetlink.delete_link(link.index).unwrap_err();
        assert!(gone.to_string().starts_with("the kernel refused removal of link "), "{gone}");
    });
}

#[test]
fn addresses_are_a_hosts_and_only_those_of_the_link_are_listed() {
    let node = Namespace::new();
    node.ip("addr add 192.0.2.1/24 dev lo");
    let link = dummy(&node);
    let (v4, v6) = (ip("10.96.0.10"), ip("fd00:96::a"));
    run(
        &node,
        &[
            Change::AddAddress(link.index, v4),
            Change::AddAddress(link.index, v6),
        ],
    );
    let shown = node.program(
        &["ip", "-o", "addr", "show", "dev", "vips", "scope", "global"],
        "",
    );
    assert!(
        shown.contains("inet 10.96.0.10/32 ") && shown.contains("inet6 fd00:96::a/128 "),
        "{shown}"
    );
    assert!(!shown.contains("tentative"), "{shown}");
    // Beside the address, IPv6 has no route in the main table.
    let main = node.program(&["ip", "-6", "route", "show", "table", "main"], "");
    assert!(!main.contains("fd00:96::a"), "{main}");
    node.run(|| {
        let mut rtnetlink = Rtnetlink::open().unwrap();
        assert_eq!(rtnetlink.addresses(Family::V4, link.index).unwrap(), [v4.into()]);
        // The kernel's own is there as well.
        let mut found = rtnetlink.addresses(Family::V6, link.index).unwrap();
        found.retain(|address| !address.addr().to_string().starts_with("fe80:"));
        assert_eq!(found, [v6.into()]);
        let refused = rtnetlink
            .run([
                Change::AddAddress(link.index, v4),
                Change::DeleteAddress(link.index, v4),
                Change::DeleteAddress(link.index, v4),
                Change::DeleteAddress(link.index, v6),
                Change::AddAddress(9999, v4),
            ])
            .unwrap()
            .refused;
        let refused: Vec<_> = refused
            .iter()
            .map(|refusal| (refusal.place, refusal.errno))
            .collect();
        assert_eq!(
            refused,
            [(0, Errno::EEXIST), (2, Errno::EADDRNOTAVAIL), (4, Errno::ENODEV)]
        );
        assert_eq!(rtnetlink.addresses(Family::V4, link.index).unwrap(), []);
    });
}

#[test]
fn routes_are_known_by_their_mark() {
    let node = Namespace::new();
    node.ip("addr add 192.0.2.1/24 dev lo\naddr add fd00:2::1/64 dev lo nodad");
    let link = dummy(&node);
    node.ip("route add local 10.97.0.0/16 dev vips\nroute add local fd00:97::/64 dev vips");
    let routes = [
        route(&link, "10.96.0.0/16", Some("192.0.2.1")),
        route(&link, "10.98.0.7/32", None),
        route(&link, "fd00:96::/108", Some("fd00:2::1")),
    ];
    run(&node, &routes.map(Change::AddRoute));
    let listed = |family| {
        let mut found = node.run(|| Rtnetlink::open().unwrap().local_routes(family).unwrap());
        found.sort();
        found
    };
    assert_eq!(listed(Family::V4), routes[..2]);
    assert_eq!(listed(Family::V6), routes[2..]);
    let shown = node.program(&["ip", "route", "show", "table", "local", "proto", "112"], "");
    let words: Vec<_> = shown.lines().map(str::trim_end).collect();
    assert_eq!(
        words,
        [
            "local 10.96.0.0/16 dev vips scope host src 192.0.2.1",
            "local 10.98.0.7 dev vips scope host"
        ]
    );
    let refused = node.run(|| {
        let mut changes = vec![Change::AddRoute(routes[0])];
        changes.extend(routes.map(Change::DeleteRoute));
        changes.extend(routes.map(Change::DeleteRoute));
        // Others' routes are not ours to remove.
        changes
            .extend(["10.97.0.0/16", "fd00:97::/64"].map(|of| Change::DeleteRoute(route(&link, of, None))));
        Rtnetlink::open().unwrap().run(changes).unwrap().refused
    });
    let refused: Vec<_> = refused
        .iter()
        .map(|refusal| (refusal.place, refusal.errno))
        .collect();
    let gone = (4..9).map(|place| (place, Errno::ESRCH));
    assert_eq!(
        refused,
        [(0, Errno::EEXIST)].into_iter().chain(gone).collect::<Vec<_>>()
    );
    assert_eq!((listed(Family::V4), listed(Family::V6)), (vec![], vec![]));
    let left = node.program(&["ip", "route", "show", "table", "local"], "");
    assert!(left.contains("local 10.97.0.0/16 dev vips"), "{left}");
}

#[test]
fn a_source_that_the_node_has_not_any_more_stays_for_ipv4() {
    let node = Namespace::new();
    node.ip("addr add 192.0.2.1/24 dev lo\naddr add fd00:2::1/64 dev lo nodad");
    let link = dummy(&node);
    let routes = [
        route(&link, "10.96.0.0/16", Some("192.0.2.1")),
        route(&link, "fd00:96::/108", Some("fd00:2::1")),
    ];
    run(&node, &routes.map(Change::AddRoute));
    node.ip("addr del 192.0.2.1/24 dev lo\naddr del fd00:2::1/64 dev lo");
    let left =
        Family::ALL.map(|family| node.run(|| Rtnetlink::open().unwrap().local_routes(family).unwrap()));
    assert_eq!(left, [vec![routes[0]], vec![route(&link, "fd00:96::/108", None)]]);
}

/// A client, a node and a server behind it.
struct Network {
    client: Namespace,
    node: Namespace,
    server: Namespace,
}

/// Where the node is on the client's network, and on the server's.
const NODE: [(&str, &str); 2] = [("10.1.0.1", "10.1.1.1"), ("fd00:1::1", "fd00:1:1::1")];
const CLIENT: [&str; 2] = ["10.1.0.2", "fd00:1::2"];
const SERVER: [&str; 2] = ["10.1.1.2", "fd00:1:1::2"];
const RANGE: [&str; 2] = ["10.96.0.0/16", "fd00:96::/108"];
const VIP: [&str; 2] = ["10.96.0.10", "fd00:96::a"];
const OTHER: [&str; 2] = ["10.96.7.7", "fd00:96::7:7"];

impl Network {
    fn new() -> Self {
        let [client, node, server] = [(); 3].map(|()| Namespace::new());
        node.become_router();
        node.sysctl("ipv6/bindv6only", "1");
        node.join("out", &client, "eth0");
        node.join("in", &server, "eth0");
        for (at, ((outside, inside), (client_at, server_at))) in
            NODE.into_iter().zip(CLIENT.into_iter().zip(SERVER)).enumerate()
        {
            let bits = [24, 64][at];
            let nodad = ["", " nodad"][at];
            node.ip(&format!(
                "addr add {outside}/{bits}{nodad} dev out\naddr add {inside}/{bits}{nodad} dev in"
            ));
            for (namespace, address, via) in [(&client, client_at, outside), (&server, server_at, inside)] {
                namespace.ip(&format!(
                    "addr add {address}/{bits}{nodad} dev eth0\nroute add default via {via}"
                ));
            }
            serve(&server, SocketAddr::new(ip(server_at), 8080));
            // A listener of the node's own, on whatever address it has.
            serve(&node, SocketAddr::new(ip(["0.0.0.0", "::"][at]), 9000));
        }
        Self { client, node, server }
    }

    fn balance(&self, at: usize) {
        let name = Name::new("rr").unwrap();
        let commands = [Protocol::Tcp, Protocol::Udp].map(|protocol| {
            let key = ServiceKey::Address(protocol, SocketAddr::new(ip(VIP[at]), 80));
            let to = Destination::new(SocketAddr::new(ip(SERVER[at]), 8080), 1);
            [
                Command::NewService(VirtualService::new(key, name)),
                Command::NewDestination(key, to),
            ]
        });
        let outcome = self
            .node
            .run(|| Ipvs::open().unwrap().run(commands.into_iter().flatten()).unwrap());
        assert_eq!(outcome.refused, []);
    }

    /// Whether an ICMP echo request is answered.
    fn pings(&self, from: &Namespace, address: &str) -> bool {
        from.sysctl("ipv4/ping_group_range", "0 0");
        let to = SocketAddr::new(ip(address), 0);
        let (protocol, request, reply) = match to {
            SocketAddr::V4(_) => (socket2::Protocol::ICMPV4, 8, 0),
            SocketAddr::V6(_) => (socket2::Protocol::ICMPV6, 128, 129),
        };
        let socket = from
            .run(|| {
                socket2::Socket::new(
                    socket2::Domain::for_address(to),
                    socket2::Type::DGRAM,
                    Some(protocol),
                )
            })
            .unwrap();
        let socket = std::net::UdpSocket::from(socket);
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        socket.connect(to).unwrap();
        // Type, code, checksum and identifier, which the kernel fills in, sequence.
        socket.send(&[request, 0, 0, 0, 0, 0, 0, 1]).unwrap();
        let mut buffer = [0; 64];
        let answered = receive(&socket, &mut buffer);
        answered.is_ok() && buffer[0] == reply
    }

    /// The address that the node itself sends from to another.
    fn source(&self, to: &str) -> String {
        let said = self.node.program(&["ip", "route", "get", to], "");
        let words: Vec<_> = said.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "src").unwrap();
        words[at + 1].to_owned()
    }
}

#[test]
fn an_address_and_a_local_route_take_packets_to_ipvs_alike() {
    for with_route in [false, true] {
        let network = Network::new();
        let link = dummy(&network.node);
        for at in [0, 1] {
            let change = if with_route {
                Change::AddRoute(route(&link, RANGE[at], None))
            } else {
                Change::AddAddress(link.index, ip(VIP[at]))
            };
            run(&network.node, &[change]);
            network.balance(at);
            let to = SocketAddr::new(ip(VIP[at]), 80);
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let answer = ask(&network.client, protocol, to).unwrap();
                assert_eq!(answer.saw, ip(CLIENT[at]), "{with_route} {protocol}");
            }
            // A listener of the node's answers there, and so does the node to ping.
            let listener = SocketAddr::new(ip(VIP[at]), 9000);
            assert_eq!(
                outcome(&network.client, Protocol::Tcp, listener),
                "answered",
                "{with_route}"
            );
            for from in [&network.client, &network.server] {
                assert!(network.pings(from, VIP[at]), "{with_route}");
            }
            // The node sends from where it sends to, if it has that address; with a route, only for IPv4.
            let source = network.source(VIP[at]);
            if with_route && at == 1 {
                assert!(source == NODE[at].0 || source == NODE[at].1, "{source}");
            } else {
                assert_eq!(source, VIP[at], "{with_route}");
            }
        }
    }
}

#[test]
fn a_local_route_is_for_all_its_range_and_has_a_source() {
    let network = Network::new();
    let link = dummy(&network.node);
    for at in [0, 1] {
        run(
            &network.node,
            &[Change::AddRoute(route(&link, RANGE[at], Some(NODE[at].1)))],
        );
        network.balance(at);
        assert_eq!(network.source(VIP[at]), NODE[at].1);
        // So a client on the node is answered, which has no other address that the server could answer to.
        let answer = ask(&network.node, Protocol::Tcp, SocketAddr::new(ip(VIP[at]), 80)).unwrap();
        assert_eq!(answer.saw, ip(NODE[at].1));
        // What no service has is the node's as well.
        assert!(network.pings(&network.client, OTHER[at]));
        let listener = SocketAddr::new(ip(OTHER[at]), 9000);
        assert_eq!(outcome(&network.client, Protocol::Tcp, listener), "answered");
        let nothing = SocketAddr::new(ip(OTHER[at]), 81);
        assert_eq!(outcome(&network.client, Protocol::Tcp, nothing), "refused");
    }
}

/// Prints what each costs. POINTSMAN_ROUTES=100000 is the guide's figure: minutes, because of the addresses.
#[test]
fn many_of_each() {
    let count = std::env::var("POINTSMAN_ROUTES")
        .ok()
        .and_then(|count| count.parse().ok());
    let count: u32 = count.unwrap_or(5_000);
    let vip = |number: u32, family| match family {
        Family::V4 => IpAddr::from((0x0a60_0000 + number).to_be_bytes()),
        Family::V6 => IpAddr::from((0xfd00_0096_u128 << 96 | u128::from(number)).to_be_bytes()),
    };
    for family in Family::ALL {
        for with_routes in [true, false] {
            let node = Namespace::new();
            let link = dummy(&node);
            let address = |number| {
                let vip = vip(number, family);
                let route = LocalRoute {
                    destination: vip.into(),
                    link: link.index,
                    source: None,
                };
                if with_routes {
                    (Change::AddRoute(route), Change::DeleteRoute(route))
                } else {
                    (
                        Change::AddAddress(link.index, vip),
                        Change::DeleteAddress(link.index, vip),
                    )
                }
            };
            let before = available();
            let (added, listed, deleted) = node.run(|| {
                let mut rtnetlink = Rtnetlink::open().unwrap();
                let began = Instant::now();
                let outcome = rtnetlink.run((0..count).map(|number| address(number).0)).unwrap();
                let added = began.elapsed();
                assert_eq!(outcome.refused, []);
                let began = Instant::now();
                let found = if with_routes {
                    rtnetlink.local_routes(family).unwrap().len()
                } else {
                    let found = rtnetlink.addresses(family, link.index).unwrap();
                    found
                        .iter()
                        .filter(|address| !address.addr().to_string().starts_with("fe80"))
                        .count()
                };
                assert_eq!(found, count as usize);
                let listed = began.elapsed();
                println!("  memory {} KiB", before.saturating_sub(available()));
                let began = Instant::now();
                node.program(&["ip", "addr"], "");
                println!("  ip addr {:?}", began.elapsed());
                let began = Instant::now();
                let outcome = rtnetlink.run((0..count).map(|number| address(number).1)).unwrap();
                assert_eq!(outcome.refused, []);
                (added, listed, began.elapsed())
            });
            let what = if with_routes { "local routes" } else { "addresses" };
            println!(
                "{count} {family} {what}: added in {added:?}, listed in {listed:?}, deleted in {deleted:?}"
            );
        }
    }
}

/// Memory that is free or could be, in KiB.
fn available() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("MemAvailable:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

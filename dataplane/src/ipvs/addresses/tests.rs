use super::*;
use crate::model::NodeFacts;

const LINK_NUMBER: u32 = 7;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn context(cidrs: &[&str], interfaces: &[&str]) -> Context {
    Context {
        node: NodeFacts {
            internal_ips: vec![ip("192.168.0.1")],
            interface_addresses: interfaces.iter().map(|text| ip(text)).collect(),
            ..NodeFacts::default()
        },
        service_cidrs: cidrs.iter().map(|text| text.parse().unwrap()).collect(),
        ..Context::default()
    }
}

/// What is done: `+` for a new route, `~` for another one, `-` for one that goes.
fn done(addresses: &mut Addresses) -> Vec<String> {
    let (add, remove) = addresses.changes(LINK_NUMBER);
    let told = |change: Change| match change {
        Change::AddRoute(route) => format!("+{} {:?}", route.destination, route.source),
        Change::ReplaceRoute(route) => format!("~{} {:?}", route.destination, route.source),
        Change::DeleteRoute(route) => format!("-{}", route.destination),
        other => panic!("{other}"),
    };
    add.into_iter().chain(remove).map(told).collect()
}

#[test]
fn a_range_is_one_route_and_what_is_outside_one_each() {
    let mut addresses = Addresses::new(Family::V4);
    addresses.set_context(&context(&["10.96.0.0/16", "fd00:96::/112"], &["192.168.0.1"]));
    addresses.want(ip("203.0.113.1"), true);
    // A Service that leaves keeps its address: that is in the range.
    addresses.keep(ip("10.96.0.1"), true);
    assert_eq!(
        done(&mut addresses),
        [
            "+10.96.0.0/16 Some(192.168.0.1)",
            "+203.0.113.1/32 Some(192.168.0.1)"
        ]
    );
    assert_eq!(done(&mut addresses), [""; 0]);
    // One is asked for no more while two of its services leave: the last of them lets go.
    addresses.keep(ip("203.0.113.1"), true);
    addresses.keep(ip("203.0.113.1"), true);
    addresses.want(ip("203.0.113.1"), false);
    addresses.keep(ip("203.0.113.1"), false);
    assert_eq!(done(&mut addresses), [""; 0]);
    addresses.keep(ip("203.0.113.1"), false);
    assert_eq!(done(&mut addresses), ["-203.0.113.1/32"]);
    // Without the range, whoever still wants an address in it has a route of its own.
    addresses.set_context(&context(&[], &["192.168.0.1"]));
    assert_eq!(
        done(&mut addresses),
        ["+10.96.0.1/32 Some(192.168.0.1)", "-10.96.0.0/16"]
    );
}

#[test]
fn the_source_is_an_address_that_the_node_has() {
    let source = |interfaces: &[&str]| source(&context(&[], interfaces), Family::V4);
    assert_eq!(source(&["10.0.0.1", "192.168.0.1"]), Some(ip("192.168.0.1")));
    assert_eq!(source(&["10.0.0.1", "fd00::1"]), Some(ip("10.0.0.1")));
    assert_eq!(source(&["fd00::1"]), None);
    let mut addresses = Addresses::new(Family::V4);
    addresses.set_context(&context(&["10.96.0.0/16"], &["192.168.0.1"]));
    done(&mut addresses);
    addresses.set_context(&context(&["10.96.0.0/16"], &["172.16.0.1"]));
    assert_eq!(done(&mut addresses), ["~10.96.0.0/16 Some(172.16.0.1)"]);
    addresses.set_context(&context(&["10.96.0.0/16"], &["172.16.0.1"]));
    assert_eq!(done(&mut addresses), [""; 0]);
}

#[test]
fn what_is_found_is_kept_mended_or_removed() {
    let mut addresses = Addresses::new(Family::V4);
    addresses.set_context(&context(&["10.96.0.0/16"], &["192.168.0.1"]));
    addresses.want(ip("203.0.113.1"), true);
    addresses.want(ip("203.0.113.2"), true);
    let route = |destination: &str, source: Option<&str>, link| LocalRoute {
        destination: destination.parse().unwrap(),
        link,
        source: source.map(ip),
    };
    let found = vec![
        route("10.96.0.0/16", Some("192.168.0.1"), LINK_NUMBER),
        route("203.0.113.1/32", None, LINK_NUMBER),
        route("203.0.113.9/32", Some("192.168.0.1"), LINK_NUMBER),
        // On a link that was there before.
        route("203.0.113.2/32", Some("192.168.0.1"), LINK_NUMBER - 1),
    ];
    addresses.adopt(LINK_NUMBER, found);
    assert_eq!(
        done(&mut addresses),
        [
            "~203.0.113.1/32 Some(192.168.0.1)",
            "+203.0.113.2/32 Some(192.168.0.1)",
            "-203.0.113.9/32"
        ]
    );
}

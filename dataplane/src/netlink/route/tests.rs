use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;

use super::super::attribute::{Attributes, HEADER, Message, Messages, NLM_F_ACK, Writer};
use super::request::{addresses, delete_link, link_by_name, new_dummy, routes, set_up};
use super::*;
use crate::model::Family;

fn only(bytes: &[u8]) -> Message<'_> {
    let mut messages = Messages(bytes);
    let first = messages.next().unwrap();
    assert!(messages.next().is_none());
    first
}

fn bytes(change: Change) -> Vec<u8> {
    let mut batch = Batch::new(7);
    batch.push(change);
    batch.into_bytes()
}

fn route_to(destination: &str, source: Option<&str>) -> LocalRoute {
    LocalRoute {
        destination: destination.parse().unwrap(),
        link: 5,
        source: source.map(|source| source.parse().unwrap()),
    }
}

#[test]
fn a_dummy_looks_as_the_kernel_takes_it() {
    let number = |number: u32| number.to_ne_bytes();
    let short = |number: u16| number.to_ne_bytes();
    let expected = [
        // RTM_NEWLINK with NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL and NLM_F_CREATE.
        &number(56)[..],
        &short(16),
        &short(0x605),
        &number(3),
        &number(0),
        // struct ifinfomsg: family, type, index, flags, which of them count.
        &[0, 0, 0, 0],
        &number(0),
        &number(1),
        &number(1),
        &short(8),
        &short(3),
        b"pm0\0",
        &short(16),
        &short(0x8012),
        &short(10),
        &short(1),
        b"dummy\0\0\0",
    ]
    .concat();
    assert_eq!(new_dummy("pm0", 3), expected);
}

#[test]
fn links_are_named_by_number_or_name() {
    let index = |bytes: &[u8]| bytes[20..24].to_vec();
    let asked = link_by_name("pm0", 3);
    let message = only(&asked);
    assert_eq!((message.kind, message.flags), (18, 5));
    assert_eq!(Attributes(&message.payload[16..]).text(3), Some("pm0"));
    for (asked, kind, flags) in [
        (set_up(5, true, 3), 16, 1_u32),
        (set_up(5, false, 3), 16, 0),
        (delete_link(5, 3), 17, 0),
    ] {
        let message = only(&asked);
        assert_eq!(
            (message.kind, index(&asked)),
            (kind, 5_u32.to_ne_bytes().to_vec())
        );
        assert_eq!(message.payload[8..12], flags.to_ne_bytes());
    }
}

#[test]
fn an_address_is_a_hosts() {
    let v4 = bytes(Change::AddAddress(5, "10.96.0.10".parse().unwrap()));
    let message = only(&v4);
    assert_eq!((message.kind, message.flags), (20, 0x605));
    assert_eq!(message.payload[..4], [2, 32, 0, 0]);
    let list: Vec<_> = Attributes(&message.payload[8..]).collect();
    assert_eq!(list, [(2, &[10, 96, 0, 10][..]), (1, &[10, 96, 0, 10])]);
    let v6 = bytes(Change::DeleteAddress(5, "fd00:96::a".parse().unwrap()));
    let message = only(&v6);
    assert_eq!((message.kind, message.flags), (21, 5));
    assert_eq!(message.payload[..4], [10, 128, 0, 0]);
    let list = Attributes(&message.payload[8..]);
    assert_eq!(list.host_u32(8), Some(0x202));
}

#[test]
fn a_route_is_local_and_marked() {
    let written = bytes(Change::AddRoute(route_to("10.96.0.0/12", Some("192.0.2.1"))));
    let message = only(&written);
    assert_eq!((message.kind, message.flags), (24, 0x605));
    assert_eq!(message.payload[..12], [2, 12, 0, 0, 255, 112, 254, 2, 0, 0, 0, 0]);
    let list: Vec<_> = Attributes(&message.payload[12..]).collect();
    let link = 5_u32.to_ne_bytes();
    assert_eq!(list, [(1, &[10, 96, 0, 0][..]), (4, &link), (7, &[192, 0, 2, 1])]);
    let written = bytes(Change::DeleteRoute(route_to("fd00:96::/108", None)));
    let message = only(&written);
    assert_eq!((message.kind, message.flags), (25, 5));
    assert_eq!(message.payload[..8], [10, 108, 0, 0, 255, 112, 254, 2]);
}

#[test]
fn dumps_say_what_they_are_about() {
    let asked = addresses(Family::V6, 5, 3);
    let message = only(&asked);
    assert_eq!((message.kind, message.flags), (22, 0x301));
    assert_eq!(
        message.payload,
        [&[10, 0, 0, 0][..], &5_u32.to_ne_bytes()].concat()
    );
    let asked = routes(Family::V4, 3);
    let message = only(&asked);
    assert_eq!((message.kind, message.flags), (26, 0x301));
    assert_eq!(message.payload, [2, 0, 0, 0, 255, 112, 0, 2, 0, 0, 0, 0]);
}

#[test]
fn only_our_local_routes_are_read() {
    let ours = bytes(Change::AddRoute(route_to("0.0.0.0/0", None)));
    assert_eq!(
        answer::local_route(&only(&ours), Family::V4),
        Some(route_to("0.0.0.0/0", None))
    );
    assert_eq!(answer::local_route(&only(&ours), Family::V6), None);
    // The table, the protocol, the type.
    for place in [4, 5, 7] {
        let mut others = ours.clone();
        others[HEADER + place] ^= 1;
        assert_eq!(answer::local_route(&only(&others), Family::V4), None, "{place}");
    }
    // A table whose number is longer than a byte.
    let mut writer = Writer::default();
    let header = &ours[HEADER..HEADER + 12];
    let begun = writer.begin(NEW_ROUTE, 0, 1, header);
    writer.put_host_u32(super::local::LINK, 5);
    writer.put_host_u32(super::local::TABLE, 1000);
    writer.end_message(begun);
    assert_eq!(answer::local_route(&only(writer.bytes()), Family::V4), None);
}

#[test]
fn a_link_is_read() {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&9_u32.to_ne_bytes());
    header[8..12].copy_from_slice(&0x82_u32.to_ne_bytes());
    let mut writer = Writer::default();
    let begun = writer.begin(NEW_LINK, 0, 1, &header);
    writer.nested(super::link::INFO, |info| info.put_text(1, "dummy"));
    writer.end_message(begun);
    assert_eq!(
        answer::link(&only(writer.bytes())),
        Some(Link {
            index: 9,
            kind: Some("dummy".to_owned()),
            is_up: false,
            resolves: false,
        })
    );
}

#[test]
fn refusals_say_what_they_are_about() {
    let address = "fd00:96::a".parse().unwrap();
    for (change, words) in [
        (Change::AddAddress(5, address), "new address fd00:96::a of link 5"),
        (
            Change::DeleteAddress(5, address),
            "removal of address fd00:96::a of link 5",
        ),
        (
            Change::AddRoute(route_to("10.96.0.0/12", None)),
            "new local route to 10.96.0.0/12",
        ),
        (
            Change::DeleteRoute(route_to("10.96.0.0/12", None)),
            "removal of the local route to 10.96.0.0/12",
        ),
    ] {
        assert_eq!(change.to_string(), words);
    }
}

fn ips() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(IpAddr::from)
    ]
}

fn local_routes() -> impl Strategy<Value = LocalRoute> {
    (ips(), 0..=128_u8, any::<u32>(), any::<[u8; 16]>(), any::<bool>()).prop_map(
        |(ip, bits, link, source, with_source)| {
            let most = if ip.is_ipv4() { 32 } else { 128 };
            let source = match ip {
                IpAddr::V4(_) => IpAddr::from([source[0], source[1], source[2], source[3]]),
                IpAddr::V6(_) => IpAddr::from(source),
            };
            LocalRoute {
                destination: IpNet::new(ip, bits.min(most)).unwrap().trunc(),
                link,
                source: with_source.then_some(source),
            }
        },
    )
}

proptest! {
    #[test]
    fn what_is_sent_is_read(routes in prop::collection::vec(local_routes(), 1..20), ip in ips(), link in any::<u32>()) {
        let mut batch = Batch::new(1);
        routes.iter().for_each(|route| batch.push(Change::AddRoute(*route)));
        batch.push(Change::AddAddress(link, ip));
        let written = batch.into_bytes();
        let messages: Vec<_> = Messages(&written).collect();
        let (last, others) = messages.split_last().unwrap();
        for (message, route) in others.iter().zip(&routes) {
            let family = Family::of(route.destination.addr());
            prop_assert_eq!(answer::local_route(message, family), Some(*route));
            prop_assert_eq!(message.flags & NLM_F_ACK, 0);
        }
        prop_assert_eq!(answer::address(last, Family::of(ip)), Some((link, IpNet::from(ip))));
        prop_assert_eq!(last.flags & NLM_F_ACK, NLM_F_ACK);
    }

    #[test]
    fn any_answer_is_survived(
        kind in prop::sample::select(vec![16_u16, 20, 24]), bytes in prop::collection::vec(any::<u8>(), 0..200),
        route in local_routes(), at in any::<prop::sample::Index>(), value in any::<u8>(),
    ) {
        let mut framed = u32::try_from(HEADER + bytes.len()).unwrap().to_ne_bytes().to_vec();
        framed.extend(kind.to_ne_bytes());
        framed.extend([0; HEADER - 6]);
        framed.extend(&bytes);
        let mut batch = Batch::new(1);
        batch.push(Change::AddRoute(route));
        batch.push(Change::AddAddress(route.link, route.destination.addr()));
        let mut damaged = batch.into_bytes();
        let at = at.index(damaged.len());
        damaged[at] = value;
        for message in Messages(&framed).chain(Messages(&damaged)) {
            let _ = answer::link(&message);
            for family in Family::ALL {
                let _ = (answer::address(&message, family), answer::local_route(&message, family));
            }
        }
    }
}

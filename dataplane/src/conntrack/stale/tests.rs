use proptest::prelude::*;

use super::super::entry::testing::entry;
use super::*;
use crate::model::{IpPort, PoolEndpoint};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pools(endpoints: &[&str]) -> Allowed {
    let endpoints = endpoints.iter().map(|text| PoolEndpoint {
        address: text.parse().unwrap(),
        local: false,
        share: 1,
    });
    let pool = Pool {
        endpoints: endpoints.collect(),
        affinity: None,
        scheduler: None,
        unit: 1,
        draining: Box::default(),
    };
    Allowed::Pools([Some(Arc::new(pool)), None])
}

fn existing(addresses: &[&str]) -> Allowed {
    Allowed::Existing(addresses.iter().map(|text| text.parse().unwrap()).collect())
}

fn key(protocol: Protocol, destination: Destination, port: u16) -> FrontendKey {
    FrontendKey {
        family: Family::V4,
        destination,
        protocol,
        port,
    }
}

/// A review of one frontend on 10.96.0.10:53.
fn review(protocol: Protocol, allowed: Allowed) -> Review {
    let mut review = Review::default();
    let suspect = true;
    review.put(
        key(protocol, Destination::Address(ip("10.96.0.10")), 53),
        Subject { allowed, suspect },
    );
    review
}

#[test]
fn what_the_frontend_would_not_do_any_more_is_stale() {
    use Protocol::{Tcp, Udp};
    const VIP: &str = "10.96.0.10:53";
    for (protocol, allowed, goes_to, stale) in [
        (Udp, pools(&["10.0.0.1:53", "10.0.0.2:53"]), "10.0.0.2:53", false),
        (Udp, pools(&["10.0.0.1:53", "10.0.0.2:53"]), "10.0.0.3:53", true),
        (Udp, pools(&["10.0.0.1:53"]), "10.0.0.1:5353", true),
        // It went astray before there were endpoints; unless the endpoint has the frontend's own address.
        (Udp, pools(&["10.0.0.1:53"]), VIP, true),
        (Udp, pools(&[VIP]), VIP, false),
        (Udp, Allowed::Nobody, "10.0.0.1:53", true),
        (Udp, Allowed::Nobody, VIP, false),
        (Udp, Allowed::Anybody, "10.0.0.1:53", false),
        (Tcp, existing(&["10.0.0.1:53"]), "10.0.0.1:53", false),
        (Tcp, existing(&["10.0.0.1:53"]), "10.0.0.2:53", true),
        (Tcp, existing(&[]), "10.0.0.2:53", true),
        (Tcp, existing(&[]), VIP, false),
    ] {
        let review = review(protocol, allowed.clone());
        assert_eq!(
            review.is_stale(&entry(protocol, VIP, goes_to)),
            stale,
            "{protocol} {goes_to} {allowed:?}"
        );
        // Neither another protocol, nor another port, nor another zone is its business.
        let other = if protocol == Udp { Tcp } else { Udp };
        assert!(!review.is_stale(&entry(other, VIP, goes_to)));
        assert!(!review.is_stale(&entry(Protocol::Sctp, VIP, goes_to)));
        assert!(!review.is_stale(&entry(protocol, "10.96.0.10:54", goes_to)));
        let elsewhere = Entry {
            zone: 1,
            ..entry(protocol, VIP, goes_to)
        };
        assert!(!review.is_stale(&elsewhere));
    }
}

#[test]
fn a_node_port_is_on_the_addresses_that_it_answers_on() {
    let mut review = Review::default();
    let suspect = true;
    let allowed = pools(&["10.0.0.1:53"]);
    review.put(
        key(Protocol::Udp, Destination::NodePort, 30_053),
        Subject { allowed, suspect },
    );
    review.node_addresses = [(ip("192.168.0.1"), true), (ip("192.168.0.2"), false)].into();
    let stale = |to: &str, goes_to: &str| review.is_stale(&entry(Protocol::Udp, to, goes_to));
    assert!(stale("192.168.0.1:30053", "10.0.0.2:53") && !stale("192.168.0.1:30053", "10.0.0.1:53"));
    assert!(stale("192.168.0.1:30053", "192.168.0.1:30053"));
    // It answered there before.
    assert!(stale("192.168.0.2:30053", "10.0.0.1:53") && !stale("192.168.0.2:30053", "192.168.0.2:30053"));
    assert!(!stale("192.168.0.3:30053", "10.0.0.2:53") && !stale("192.168.0.1:30054", "10.0.0.2:53"));

    // A frontend with that very address and port comes first.
    let allowed = pools(&["10.0.0.9:53"]);
    let mut both = review.clone();
    both.put(
        key(Protocol::Udp, Destination::Address(ip("192.168.0.1")), 30_053),
        Subject { allowed, suspect },
    );
    assert!(both.is_stale(&entry(Protocol::Udp, "192.168.0.1:30053", "10.0.0.1:53")));
    assert!(!both.is_stale(&entry(Protocol::Udp, "192.168.0.1:30053", "10.0.0.9:53")));
}

#[test]
fn what_a_forgotten_service_left_is_told_by_its_range() {
    let mut review = review(Protocol::Udp, pools(&["10.0.0.1:53"]));
    let rest = Rest {
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        exclude_cidrs: vec!["10.96.9.0/24".parse().unwrap()],
        foreign: [ip("10.0.0.7")].into(),
    };
    review.rest.insert(Family::V4, rest);
    let stale = |protocol, to: &str, goes_to: &str| review.is_stale(&entry(protocol, to, goes_to));
    assert!(stale(Protocol::Udp, "10.96.0.20:53", "10.0.0.1:53"));
    assert!(
        !stale(Protocol::Udp, "10.96.0.20:53", "10.96.0.20:53"),
        "nobody translated it"
    );
    assert!(
        !stale(Protocol::Udp, "10.96.9.20:53", "10.0.0.1:53"),
        "the policy leaves it alone"
    );
    assert!(
        !stale(Protocol::Udp, "10.96.0.20:53", "10.0.0.7:53"),
        "another proxy's"
    );
    assert!(
        !stale(Protocol::Udp, "10.97.0.20:53", "10.0.0.1:53"),
        "no ClusterIP"
    );
    assert!(!stale(Protocol::Tcp, "10.96.0.20:53", "10.0.0.1:53"));
    assert!(
        !stale(Protocol::Udp, "[fd00:96::20]:53", "[fd00::1]:53"),
        "nothing is known of IPv6"
    );
}

#[test]
fn growing_makes_nothing_stale() {
    let (one, two) = (pools(&["10.0.0.1:53"]), pools(&["10.0.0.1:53", "10.0.0.2:53"]));
    assert!(two.covers(&one) && two.covers(&two) && !one.covers(&two));
    assert!(!one.covers(&Allowed::Nobody) && !Allowed::Nobody.covers(&one));
    let split = Allowed::Pools([Some(one_pool(&one)), Some(one_pool(&pools(&["10.0.0.2:53"])))]);
    assert!(split.covers(&two) && two.covers(&split) && split.covers(&split));
    let (few, many) = (
        existing(&["10.0.0.1:53"]),
        existing(&["10.0.0.1:53", "10.0.0.2:53"]),
    );
    assert!(many.covers(&few) && !few.covers(&many));
    assert!(Allowed::Anybody.covers(&few) && !few.covers(&Allowed::Anybody));
}

fn one_pool(allowed: &Allowed) -> Arc<Pool> {
    match allowed {
        Allowed::Pools([Some(pool), _]) => Arc::clone(pool),
        _ => unreachable!(),
    }
}

#[test]
fn families_are_taken_apart_and_put_together() {
    let mut review = review(Protocol::Udp, Allowed::Nobody);
    let v6 = FrontendKey {
        family: Family::V6,
        ..key(Protocol::Udp, Destination::NodePort, 1)
    };
    let subject = Subject {
        allowed: Allowed::Nobody,
        suspect: false,
    };
    review.put(v6, subject);
    review.node_addresses = [(ip("192.168.0.1"), true), (ip("fd00::1"), true)].into();
    review.rest.insert(Family::V6, Rest::default());
    let whole = review.clone();
    let taken = review.take_family(Family::V6);
    assert_eq!(
        (taken.subjects.len(), taken.node_addresses.len(), taken.rest.len()),
        (1, 1, 1)
    );
    assert_eq!(
        (
            review.subjects.len(),
            review.node_addresses.len(),
            review.rest.len()
        ),
        (1, 1, 0)
    );
    review.merge(taken);
    assert_eq!(review, whole);
    assert_eq!(
        whole.scope(),
        [
            (Family::V4, vec![Protocol::Udp]),
            (Family::V6, vec![Protocol::Udp])
        ]
        .into()
    );
}

proptest! {
    #[test]
    fn what_has_nothing_to_do_with_us_stays(
        to in any::<[u8; 4]>(), port in any::<u16>(), goes_to in any::<[u8; 4]>(), udp in any::<bool>(),
    ) {
        prop_assume!(to != [10, 96, 0, 10]);
        let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
        let mut entry = entry(protocol, "10.96.0.10:53", "10.0.0.1:53");
        entry.original.destination = IpPort::new(to.into(), port);
        entry.reply.source = IpPort::new(goes_to.into(), port);
        for allowed in [Allowed::Nobody, pools(&["10.0.0.1:53"]), existing(&[])] {
            prop_assert!(!review(protocol, allowed).is_stale(&entry));
        }
    }
}

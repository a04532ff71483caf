#![allow(clippy::unwrap_used, reason = "a test ends by failing")]

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::iptables::observe::normalise;
use crate::model::{Destination, FrontendKind, Protocol, ServiceName, ServicePortName, TrafficPolicy};
use words::Address;

fn owner(namespace: &str, name: &str, port: &str) -> Arc<ServicePortName> {
    Arc::new(ServicePortName {
        service: ServiceName::new(namespace, name),
        port: port.into(),
        protocol: Protocol::Tcp,
    })
}

fn key_of(owner: &Arc<ServicePortName>) -> PoolKey {
    PoolKey {
        owner: Arc::clone(owner),
        family: Family::V4,
        policy: TrafficPolicy::Cluster,
    }
}

fn pool_of(endpoints: &[(&str, bool)]) -> Pool {
    let endpoint = |&(address, local): &(&str, bool)| PoolEndpoint {
        address: address.parse().unwrap(),
        local,
        share: 1,
    };
    Pool {
        endpoints: endpoints.iter().map(endpoint).collect(),
        affinity: None,
        scheduler: None,
        unit: 1,
        draining: Box::default(),
    }
}

fn frontend_rules(destination: Destination, frontend: &Frontend) -> Vec<String> {
    let family = match destination {
        Destination::Address(address) => Family::of(address),
        Destination::NodePort => Family::V4,
    };
    let key = FrontendKey {
        family,
        destination,
        protocol: Protocol::Tcp,
        port: 80,
    };
    let mut rules = Rules::default();
    forwarded(&key, frontend, &LocalTraffic::Unknown, &mut rules);
    if has_rules(frontend, Table::Filter) {
        blocked(&key, frontend, &mut rules);
    }
    rules.lines().map(str::to_owned).collect()
}

#[test]
fn a_pool_gives_equal_shares_and_local_endpoints_a_chain() {
    let mut rules = Rules::default();
    let key = key_of(&owner("default", "web", "http"));
    let endpoints = [
        ("10.0.0.1:80", false),
        ("10.0.0.2:80", true),
        ("10.0.0.3:80", false),
    ];
    pool(&key, &pool_of(&endpoints), Family::V4, &mut rules);
    let local = Chain::endpoint(&key, "10.0.0.2:80".parse().unwrap());
    assert_eq!(
        rules.lines().collect::<Vec<_>>(),
        [
            "-p tcp -m statistic --mode random --probability 0.33333333349 -j DNAT --to-destination 10.0.0.1:80",
            &format!("-p tcp -m statistic --mode random --probability 0.50000000000 -j {local}"),
            "-p tcp -j DNAT --to-destination 10.0.0.3:80",
        ]
    );
}

#[test]
fn every_endpoint_of_any_pool_has_its_share() {
    for (count, shares) in [1_usize, 2, 3, 7, 10, 99, 1000]
        .into_iter()
        .flat_map(|count| [(count, [1, 1, 1]), (count, [1, 9, 1]), (count, [100, 7, 2])])
    {
        let share = |at: usize| shares[at % 3];
        let sum: u32 = (0..count).map(|at| u32::from(share(at))).sum();
        let endpoints: Box<[_]> = (0..count)
            .map(|at| PoolEndpoint {
                address: format!("10.{}.{}.1:80", at / 256, at % 256).parse().unwrap(),
                local: at % 5 == 0,
                share: share(at),
            })
            .collect();
        let mut rules = Rules::default();
        pool(
            &key_of(&owner("a", "b", "c")),
            &Pool {
                endpoints,
                affinity: None,
                scheduler: None,
                unit: 1,
                draining: Box::default(),
            },
            Family::V4,
            &mut rules,
        );
        assert_eq!(rules.count(), count);
        let mut left = 1.0;
        for (at, rule) in rules.lines().enumerate() {
            let probability = rule.split_once("--probability ").map_or(1.0, |(_, rest)| {
                rest.split(' ').next().unwrap().parse::<f64>().unwrap()
            });
            let found = left * probability;
            left -= found;
            let wanted = f64::from(share(at)) / f64::from(sum);
            // 31 bits a rule: the shares of a thousand differ by less than a millionth of a connection.
            assert!((found - wanted).abs() < 1e-6, "{found} of {count}");
        }
        assert!(left.abs() < 1e-9, "a packet falls through: {left}");
    }
}

#[test]
fn frontends_mark_before_they_go() {
    let service = owner("default", "web", "http");
    let svc = Chain::pool(&key_of(&service));
    let vip = Destination::Address("10.96.0.10".parse().unwrap());
    let balance = |masquerade| Frontend {
        owner: Arc::clone(&service),
        kind: FrontendKind::ClusterIP,
        action: Action::Balance {
            pool: key_of(&service),
            masquerade,
        },
        sources: None,
    };
    let go = format!(
        "-d 10.96.0.10/32 -p tcp -m tcp --dport 80 -m comment --comment \"default/web:http cluster IP\" -g {svc}"
    );
    assert_eq!(
        frontend_rules(vip, &balance(Masquerade::NonLocal)),
        ["-d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j PM-NON-LOCAL", &go]
    );
    assert_eq!(
        frontend_rules(vip, &balance(Masquerade::Always)),
        [
            "-d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j MARK --set-xmark 0x4000/0x4000",
            &go
        ]
    );
    let reject = Frontend {
        owner: service,
        kind: FrontendKind::LoadBalancerIP,
        action: Action::Reject,
        sources: None,
    };
    assert_eq!(
        frontend_rules(Destination::Address("fd00::1".parse().unwrap()), &reject),
        ["-d fd00::1/128 -p tcp -m tcp --dport 80 \
          -m comment --comment \"default/web:http load balancer IP has no endpoints\" \
          -g PM-REFUSE"]
    );
}

#[test]
fn how_pods_are_told_is_one_small_chain() {
    let rules = |traffic: LocalTraffic| {
        let mut rules = Rules::default();
        non_local(&traffic, &mut rules);
        rules.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let ranges =
        |ranges: &[&str]| LocalTraffic::From(ranges.iter().map(|range| range.parse().unwrap()).collect());
    assert_eq!(rules(LocalTraffic::Unknown), [""; 0]);
    assert_eq!(
        rules(ranges(&["10.244.1.7/24", "10.1.0.0/16"])),
        [
            "-s 10.244.1.0/24 -j RETURN",
            "-s 10.1.0.0/16 -j RETURN",
            "-j MARK --set-xmark 0x4000/0x4000"
        ]
    );
    assert_eq!(
        rules(ranges(&["10.244.1.0/24", "0.0.0.0/0"])),
        [""; 0],
        "everybody is local"
    );
    assert_eq!(
        rules(LocalTraffic::Interface("cni0".into())),
        ["! -i cni0 -j MARK --set-xmark 0x4000/0x4000"]
    );
    assert_eq!(
        rules(LocalTraffic::InterfacePrefix("veth".into())),
        ["! -i veth+ -j MARK --set-xmark 0x4000/0x4000"]
    );
}

#[test]
fn addresses_look_as_iptables_prints_them() {
    let shown = |text: &str| Address(text.parse().unwrap()).to_string();
    for same in [
        "10.0.0.1",
        "fd00::1",
        "::5",
        "::",
        "::ffff:10.0.0.1",
        "fd00::1:0:0:5",
        "2001:db8::1:1:1:1",
    ] {
        assert_eq!(shown(same), same);
    }
    assert_eq!(shown("::a00:1"), "::10.0.0.1");
    assert_eq!(LastBits(Family::V4, 0x50, 0xf0).to_string(), "0.0.0.80/0.0.0.240");
    assert_eq!(LastBits(Family::V6, 0x50, 0xf0).to_string(), "::50/::f0");
    assert_eq!(LastBits(Family::V6, 0, 0xf).to_string(), "::/::f");
}

proptest! {
    /// Whatever an object is called, its rules are rules of one line with one comment, and nothing but.
    #[test]
    fn no_name_gets_out_of_its_comment(namespace in any::<String>(), name in any::<String>(), port in any::<String>()) {
        let service = owner(&namespace, &name, &port);
        let frontend = Frontend { owner: service, kind: FrontendKind::NodePort, action: Action::Reject, sources: None };
        let rules = frontend_rules(Destination::NodePort, &frontend);
        prop_assert_eq!(rules.len(), 1);
        let (before, rest) = rules[0].split_once("--comment \"").unwrap();
        let (comment, after) = rest.split_once('"').unwrap();
        prop_assert_eq!(before, "-p tcp -m tcp --dport 80 -m comment ");
        prop_assert_eq!(after, " -g PM-REFUSE");
        prop_assert!(comment.len() < 256);
        prop_assert!(comment.chars().all(|letter| letter.is_ascii_alphanumeric() || "-._/: ".contains(letter)), "{}", comment);
    }

    /// What is rendered is in normal form, so that it can be compared with what is read.
    #[test]
    fn rules_are_in_normal_form(count in 1_usize..300) {
        let endpoints: Box<[_]> = (0..count)
            .map(|at| PoolEndpoint { address: format!("10.0.{}.1:80", at % 256).parse().unwrap(), local: at % 3 == 0, share: (1 + at % 7) as u8 })
            .collect();
        let mut rules = Rules::default();
        pool(&key_of(&owner("a", "b", "c")), &Pool { endpoints, affinity: None, scheduler: None, unit: 1, draining: Box::default() }, Family::V4, &mut rules);
        for rule in rules.lines() {
            prop_assert_eq!(normalise(rule), rule);
        }
    }
}

#[test]
fn nasty_names() {
    for name in [
        "a\"; -j ACCEPT",
        "a\nCOMMIT",
        "-A INPUT -j DROP",
        "\\\"",
        "$(reboot)",
        "\u{1f4a9}",
        "\0",
        "'",
    ] {
        let frontend = Frontend {
            owner: owner(name, name, name),
            kind: FrontendKind::ClusterIP,
            action: Action::Reject,
            sources: None,
        };
        let rules = frontend_rules(Destination::NodePort, &frontend);
        assert_eq!(rules.len(), 1, "{rules:?}");
        assert_eq!(rules[0].matches('"').count(), 2, "{rules:?}");
        assert!(
            rules[0].is_ascii() && !rules[0].contains(['\\', '$', '\'', '\0', ';']),
            "{rules:?}"
        );
    }
}

//! Whether the test kernel is one that IPVS can be tested on. Runs in it by itself; see CONTRIBUTING.md. Needs the packages of
//! e2e/packages.sh; without them it fails and says what to do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by failing"
)]

mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use pointsman_dataplane::model::{Family, Protocol};

use support::talk::{Answer, ask};
use support::virtual_server::{Network, client, ends};

pointsman_test_kernel::run_inside!();

const SCHEDULERS: [&str; 14] = [
    "rr", "wrr", "lc", "wlc", "fo", "ovf", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "twos",
];

#[test]
fn every_scheduler_is_there() {
    let network = Network::new();
    for (number, scheduler) in SCHEDULERS.into_iter().enumerate() {
        for vip in ["10.96.0.1", "[fd00:10:96::1]"] {
            let service = format!("{vip}:{}", 1000 + number);
            network.ipvsadm(&format!("-A -t {service} -s {scheduler}"));
            let listed = network.ipvsadm("-Sn");
            let line = format!("-A -t {service} -s {scheduler}");
            assert!(
                listed.lines().any(|has| has.starts_with(&line)),
                "{line} is not in\n{listed}"
            );
        }
    }
    let (found, _, said) = network
        .node
        .try_program(&["ipvsadm", "-A", "-t", "10.96.0.1:1", "-s", "nosuch"], "");
    assert!(!found, "a scheduler that nobody has: {said}");
}

#[test]
fn a_virtual_service_is_balanced_with_masquerade() {
    let network = Network::new();
    for family in Family::ALL {
        let (client, ends) = (client(family), ends(family));
        let to = network.balance(family, "-s rr");
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let mut seen: BTreeMap<SocketAddr, usize> = BTreeMap::new();
            for _ in 0..20 {
                let Answer { who, port, saw } = ask(&network.client, protocol, to).unwrap();
                assert_eq!(saw, client, "IPVS leaves the client its address");
                *seen.entry(SocketAddr::new(who, port)).or_default() += 1;
            }
            assert_eq!(seen, ends.map(|end| (end, 10)).into(), "{protocol:?} {to}");
        }
    }
    // Its first network namespace has nothing of it: tests at the same time do not meet.
    let outside = std::process::Command::new("ipvsadm").arg("-Sn").output().unwrap();
    assert!(
        outside.status.success() && outside.stdout.is_empty(),
        "{outside:?}"
    );
}

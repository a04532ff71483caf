//! What IPVS's messages do to a kernel, by what ipvsadm sees of it. Runs in the test kernel by itself; see CONTRIBUTING.md.
//! Needs the packages of e2e/packages.sh; without them it fails and says what to do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by failing"
)]
#![allow(dead_code, reason = "other tests use the rest of the support")]

#[path = "support/namespace.rs"]
mod namespace;

use std::collections::BTreeSet;
use std::time::Instant;

use namespace::Namespace;
use nix::errno::Errno;
use pointsman_dataplane::model::{Family, Protocol};
use pointsman_dataplane::netlink::ipvs::{
    Command, Destination, Flags, Forwarding, Ipvs, Name, Request, ServiceKey, Timeouts, Verb, VirtualService,
};

pointsman_test_kernel::run_inside!();

const SCHEDULERS: [&str; 13] = [
    "rr", "wrr", "lc", "wlc", "fo", "ovf", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq",
];

fn name(name: &str) -> Name {
    Name::new(name).unwrap()
}

fn tcp(address: &str) -> ServiceKey {
    ServiceKey::Address(Protocol::Tcp, address.parse().unwrap())
}

fn to(address: &str, weight: u32) -> Destination {
    Destination::new(address.parse().unwrap(), weight)
}

/// A namespace that has a way to wherever destinations are.
fn node() -> Namespace {
    let node = Namespace::new();
    node.ip("link set lo up\naddr add 10.9.9.9/8 dev lo\naddr add fd00::9/16 dev lo nodad");
    node
}

/// Does all of it; nothing may be refused.
fn run(node: &Namespace, commands: &[Command]) {
    let outcome = node.run(|| Ipvs::open().unwrap().run(commands.iter().copied()).unwrap());
    assert_eq!(
        outcome.refused,
        [],
        "{:?}",
        outcome.refused.first().map(ToString::to_string)
    );
    assert_eq!(outcome.commands, commands.len());
}

/// What was refused, in words.
fn refused(node: &Namespace, commands: &[Command]) -> Vec<(usize, Errno, String)> {
    let outcome = node.run(|| Ipvs::open().unwrap().run(commands.iter().copied()).unwrap());
    let refused = outcome.refused.into_iter();
    refused
        .map(|refusal| {
            let request = refusal.request.unwrap().to_string();
            (refusal.place, refusal.errno, request)
        })
        .collect()
}

/// What ipvsadm would save: its lines in the order of the alphabet.
fn saved(node: &Namespace) -> Vec<String> {
    let text = node.program(&["ipvsadm", "-Sn"], "");
    let mut lines: Vec<String> = text.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.sort();
    lines
}

/// Makes these services, each with a destination, and compares what ipvsadm saves, what is dumped and what is asked for
/// one by one.
fn agrees(cases: Vec<(VirtualService, Vec<Destination>, Vec<&str>)>) {
    let node = node();
    let mut commands = Vec::new();
    let mut expected = Vec::new();
    for (service, destinations, lines) in &cases {
        commands.push(Command::NewService(*service));
        let destinations = destinations.iter();
        commands.extend(destinations.map(|to| Command::NewDestination(service.key, *to)));
        expected.extend(lines.iter().map(|line| (*line).to_owned()));
    }
    expected.sort();
    run(&node, &commands);
    assert_eq!(saved(&node), expected);
    node.run(|| {
        let mut ipvs = Ipvs::open().unwrap();
        let mut listed: Vec<_> = ipvs
            .services()
            .unwrap()
            .iter()
            .map(|state| state.service)
            .collect();
        let mut sent: Vec<_> = cases.iter().map(|(service, ..)| *service).collect();
        listed.sort_by_key(|service| service.key);
        sent.sort_by_key(|service| service.key);
        assert_eq!(listed, sent);
        for (service, destinations, _) in &cases {
            let state = ipvs.service(&service.key).unwrap().unwrap();
            assert_eq!(state.service, *service);
            let mut read: Vec<_> = ipvs.destinations(&service.key).unwrap();
            read.sort_by_key(|state| state.destination.address);
            let mut sent = destinations.clone();
            sent.sort_by_key(|to| to.address);
            assert_eq!(
                read.iter().map(|state| state.destination).collect::<Vec<_>>(),
                sent
            );
        }
    });
    // ipvsadm takes the same back, and then it is the same again.
    node.program(&["ipvsadm", "-C"], "");
    assert_eq!(saved(&node), Vec::<String>::new());
    node.program(&["ipvsadm", "-R"], &(expected.join("\n") + "\n"));
    assert_eq!(saved(&node), expected);
}

#[test]
fn every_scheduler_is_told_and_read() {
    let node = node();
    let key = |number: usize| tcp(&format!("10.96.0.{number}:80"));
    let commands: Vec<_> = SCHEDULERS
        .iter()
        .enumerate()
        .map(|(number, scheduler)| Command::NewService(VirtualService::new(key(number), name(scheduler))))
        .collect();
    run(&node, &commands);
    let mut expected: Vec<_> = SCHEDULERS
        .iter()
        .enumerate()
        .map(|(number, scheduler)| format!("-A -t 10.96.0.{number}:80 -s {scheduler}"))
        .collect();
    expected.sort();
    assert_eq!(saved(&node), expected);
    // Each can become another.
    let commands: Vec<_> = (0..SCHEDULERS.len())
        .map(|number| Command::SetService(VirtualService::new(key(number), name("rr"))))
        .collect();
    run(&node, &commands);
    assert!(saved(&node).iter().all(|line| line.ends_with(" -s rr")));
}

#[test]
fn whatever_a_service_can_be_agrees_with_ipvsadm() {
    let service = |key, scheduler: &str| VirtualService::new(key, name(scheduler));
    let with = |flags, service: VirtualService| VirtualService {
        flags: service.flags | flags,
        ..service
    };
    let udp = |address: &str| ServiceKey::Address(Protocol::Udp, address.parse().unwrap());
    let sctp = |address: &str| ServiceKey::Address(Protocol::Sctp, address.parse().unwrap());
    agrees(vec![
        (
            service(tcp("10.96.0.1:80"), "wrr"),
            vec![
                to("10.244.1.5:8080", 1),
                to("10.244.1.6:8080", 0),
                to("10.244.1.7:81", 65_535),
            ],
            vec![
                "-A -t 10.96.0.1:80 -s wrr",
                "-a -t 10.96.0.1:80 -r 10.244.1.5:8080 -m -w 1",
                "-a -t 10.96.0.1:80 -r 10.244.1.6:8080 -m -w 0",
                "-a -t 10.96.0.1:80 -r 10.244.1.7:81 -m -w 65535",
            ],
        ),
        (
            service(tcp("10.96.0.2:80"), "rr").persistent(10_800),
            vec![],
            vec!["-A -t 10.96.0.2:80 -s rr -p 10800"],
        ),
        (
            VirtualService {
                netmask: 0xffff_ff00,
                ..service(tcp("10.96.0.3:80"), "rr").persistent(60)
            },
            vec![],
            vec!["-A -t 10.96.0.3:80 -s rr -p 60 -M 255.255.255.0"],
        ),
        (
            with(Flags::FALLBACK, service(tcp("10.96.0.4:80"), "sh")),
            vec![],
            vec!["-A -t 10.96.0.4:80 -s sh -b sh-fallback"],
        ),
        (
            with(Flags::FALLBACK | Flags::PORT, service(tcp("10.96.0.5:80"), "mh")),
            vec![],
            vec!["-A -t 10.96.0.5:80 -s mh -b mh-fallback,mh-port"],
        ),
        (
            with(Flags::ONE_PACKET, service(udp("10.96.0.6:53"), "rr")),
            vec![to("10.244.1.5:5353", 2)],
            vec![
                "-A -u 10.96.0.6:53 -s rr -o",
                "-a -u 10.96.0.6:53 -r 10.244.1.5:5353 -m -w 2",
            ],
        ),
        (
            service(sctp("10.96.0.7:132"), "wlc"),
            vec![Destination {
                upper: 100,
                lower: 50,
                ..to("10.244.1.5:132", 3)
            }],
            vec![
                "-A --sctp-service 10.96.0.7:132 -s wlc",
                "-a --sctp-service 10.96.0.7:132 -r 10.244.1.5:132 -m -w 3",
            ],
        ),
        (
            service(ServiceKey::Mark(Family::V4, 0x4001), "lc").persistent(120),
            vec![to("10.244.1.5:80", 1)],
            vec!["-A -f 16385 -s lc -p 120", "-a -f 16385 -r 10.244.1.5:80 -m -w 1"],
        ),
        (
            service(ServiceKey::Mark(Family::V6, 7), "rr"),
            vec![to("[fd00:1::5]:80", 1)],
            vec!["-A -f 7 -6 -s rr", "-a -f 7 -6 -r [fd00:1::5]:80 -m -w 1"],
        ),
        (
            VirtualService {
                netmask: 64,
                ..service(tcp("[fd00:96::a]:443"), "mh").persistent(90)
            },
            vec![
                to("[fd00:1::5]:8443", 4),
                Destination {
                    forwarding: Forwarding::Direct,
                    ..to("[fd00:1::6]:443", 1)
                },
            ],
            vec![
                "-A -t [fd00:96::a]:443 -s mh -p 90 -M 64",
                "-a -t [fd00:96::a]:443 -r [fd00:1::5]:8443 -m -w 4",
                "-a -t [fd00:96::a]:443 -r [fd00:1::6]:443 -g -w 1",
            ],
        ),
        (
            service(udp("[fd00:96::b]:53"), "rr"),
            vec![],
            vec!["-A -u [fd00:96::b]:53 -s rr"],
        ),
    ]);
}

#[test]
fn a_change_takes_everything_anew() {
    let node = node();
    let key = tcp("10.96.0.1:80");
    let first = VirtualService {
        flags: Flags::FALLBACK,
        ..VirtualService::new(key, name("sh"))
    };
    let address = "10.244.1.5:80";
    run(
        &node,
        &[
            Command::NewService(first.persistent(60)),
            Command::NewDestination(key, to(address, 5)),
        ],
    );
    run(
        &node,
        &[
            Command::SetService(VirtualService::new(key, name("wlc"))),
            Command::SetDestination(
                key,
                Destination {
                    upper: 9,
                    ..to(address, 0)
                },
            ),
        ],
    );
    assert_eq!(
        saved(&node),
        [
            "-A -t 10.96.0.1:80 -s wlc",
            "-a -t 10.96.0.1:80 -r 10.244.1.5:80 -m -w 0"
        ]
    );
}

#[test]
fn thresholds_are_told() {
    let node = node();
    let key = tcp("10.96.0.1:80");
    let bounded = Destination {
        upper: 100,
        lower: 50,
        ..to("10.244.1.5:80", 1)
    };
    let service = VirtualService::new(key, name("wlc"));
    run(
        &node,
        &[
            Command::NewService(service),
            Command::NewDestination(key, bounded),
        ],
    );
    // It does not save them, but lists them.
    let listed = node.program(&["ipvsadm", "-Ln", "--thresholds"], "");
    let line = listed
        .lines()
        .find(|line| line.contains("10.244.1.5:80"))
        .unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(words, ["->", "10.244.1.5:80", "100", "50", "0", "0"], "{listed}");
}

#[test]
fn what_is_refused_is_named_and_the_rest_is_done() {
    let node = node();
    let (here, gone) = (tcp("10.96.0.1:80"), tcp("10.96.0.2:80"));
    let service = |key, scheduler: &str| Command::NewService(VirtualService::new(key, name(scheduler)));
    let address = "10.244.1.5:80".parse().unwrap();
    let said = refused(
        &node,
        &[
            service(here, "rr"),
            service(here, "rr"),
            service(gone, "nonesuch"),
            Command::NewDestination(gone, to("10.244.1.5:80", 1)),
            Command::NewDestination(here, to("10.244.1.5:80", 1)),
            Command::NewDestination(here, to("10.244.1.5:80", 1)),
            Command::NewDestination(here, to("[fd00:1::5]:80", 1)),
            Command::DeleteService(gone),
            Command::SetDestination(here, to("10.244.1.6:80", 1)),
            Command::DeleteDestination(here, address),
            Command::DeleteDestination(here, address),
            Command::NewDestination(here, to("10.244.1.7:80", 1)),
        ],
    );
    let expected = [
        (1, Errno::EEXIST, "new virtual service tcp 10.96.0.1:80"),
        (2, Errno::ENOENT, "new virtual service tcp 10.96.0.2:80"),
        (
            3,
            Errno::ESRCH,
            "new destination 10.244.1.5:80 of virtual service tcp 10.96.0.2:80",
        ),
        (
            5,
            Errno::EEXIST,
            "new destination 10.244.1.5:80 of virtual service tcp 10.96.0.1:80",
        ),
        (
            6,
            Errno::EINVAL,
            "new destination [fd00:1::5]:80 of virtual service tcp 10.96.0.1:80",
        ),
        (7, Errno::ESRCH, "removal of virtual service tcp 10.96.0.2:80"),
        (
            8,
            Errno::ENOENT,
            "change of destination 10.244.1.6:80 of virtual service tcp 10.96.0.1:80",
        ),
        (
            10,
            Errno::ENOENT,
            "removal of destination 10.244.1.5:80 of virtual service tcp 10.96.0.1:80",
        ),
    ]
    .map(|(place, errno, request)| (place, errno, request.to_owned()));
    assert_eq!(said, expected);
    assert_eq!(
        saved(&node),
        [
            "-A -t 10.96.0.1:80 -s rr",
            "-a -t 10.96.0.1:80 -r 10.244.1.7:80 -m -w 1"
        ]
    );
}

#[test]
fn others_services_stay_when_ours_go() {
    let node = node();
    let foreign = [
        "-A -f 5 -s rr",
        "-A -t 10.96.0.1:81 -s rr",
        "-A -u 10.96.0.1:80 -s rr",
    ];
    node.program(&["ipvsadm", "-R"], &(foreign.join("\n") + "\n"));
    let key = tcp("10.96.0.1:80");
    let service = VirtualService::new(key, name("rr"));
    run(
        &node,
        &[
            Command::NewService(service),
            Command::NewDestination(key, to("10.244.1.5:80", 1)),
        ],
    );
    assert_eq!(saved(&node).len(), 5);
    run(&node, &[Command::DeleteService(key)]);
    assert_eq!(saved(&node), foreign);
    let left = node.run(|| {
        let mut ipvs = Ipvs::open().unwrap();
        assert_eq!(ipvs.service(&key).unwrap(), None);
        assert_eq!(ipvs.destinations(&key).unwrap(), []);
        ipvs.services().unwrap().len()
    });
    assert_eq!(left, 3);
}

#[test]
fn timeouts_are_set_and_read() {
    let node = node();
    node.run(|| {
        let mut ipvs = Ipvs::open().unwrap();
        let before = ipvs.timeouts().unwrap();
        let set = |tcp, tcp_fin, udp| Command::SetTimeouts(Timeouts { tcp, tcp_fin, udp });
        assert_eq!(ipvs.run([set(901, 0, 31)]).unwrap().refused, []);
        let after = Timeouts {
            tcp: 901,
            udp: 31,
            ..before
        };
        assert_eq!(ipvs.timeouts().unwrap(), after);
        let refused = ipvs.run([set(u32::MAX, 0, 0)]).unwrap().refused;
        let said: Vec<_> = refused
            .iter()
            .map(|refusal| (refusal.errno, refusal.request))
            .collect();
        assert_eq!(said, [(Errno::EINVAL, Some(Request::Timeouts))]);
        assert_eq!(ipvs.timeouts().unwrap(), after);
    });
    let said = node.program(&["ipvsadm", "-Ln", "--timeout"], "");
    assert!(
        said.contains("901 ") && said.trim_end().ends_with(" 31"),
        "{said}"
    );
}

#[test]
fn ipvs_says_its_version() {
    let node = node();
    let information = node.run(|| Ipvs::open().unwrap().information().unwrap());
    assert_eq!(information.version, (1, 2, 1));
    assert!(information.connection_buckets.is_power_of_two());
}

#[test]
fn more_refusals_than_one_datagram_holds_are_all_heard() {
    let node = node();
    let count = 10_000;
    let commands = (0..count).map(|number| {
        let [_, _, high, low] = u32::to_be_bytes(number);
        Command::DeleteService(tcp(&format!("10.96.{high}.{low}:80")))
    });
    let outcome = node.run(|| Ipvs::open().unwrap().run(commands).unwrap());
    assert_eq!((outcome.commands, outcome.datagrams), (10_000, 3));
    let heard: BTreeSet<_> = outcome.refused.iter().map(|refusal| refusal.place).collect();
    assert_eq!(heard.len(), 10_000);
    let last = outcome.refused.last().unwrap();
    let request = Request::Service(Verb::Delete, tcp("10.96.39.15:80"));
    assert_eq!(
        (last.place, last.request, last.errno),
        (9_999, Some(request), Errno::ESRCH)
    );
}

#[test]
fn a_full_load_is_a_few_datagrams() {
    let node = node();
    let (services, each) = (10_000_u32, 10_u32);
    let keys: Vec<_> = (0..services)
        .map(|number| {
            let [_, _, high, low] = number.to_be_bytes();
            tcp(&format!("10.96.{high}.{low}:80"))
        })
        .collect();
    let commands = (0..).zip(&keys).flat_map(|(number, key)| {
        let destinations = (0..each).map(move |place| {
            let [_, high, middle, low] = (number * each + place).to_be_bytes();
            Command::NewDestination(*key, to(&format!("10.{}.{middle}.{low}:8080", 128 + high), 1))
        });
        let service = Command::NewService(VirtualService::new(*key, name("wlc")));
        [service].into_iter().chain(destinations)
    });
    node.run(|| {
        let mut ipvs = Ipvs::open().unwrap();
        let began = Instant::now();
        let outcome = ipvs.run(commands).unwrap();
        let loaded = began.elapsed();
        assert_eq!(outcome.refused, []);
        assert_eq!((outcome.commands, outcome.datagrams), (110_000, 28));
        let began = Instant::now();
        assert_eq!(ipvs.services().unwrap().len(), 10_000);
        let listed = began.elapsed();
        let began = Instant::now();
        for key in &keys {
            assert_eq!(ipvs.destinations(key).unwrap().len(), 10);
        }
        let dumped = began.elapsed();
        let began = Instant::now();
        let gone = ipvs.run(keys.iter().map(|key| Command::DeleteService(*key))).unwrap();
        let deleted = began.elapsed();
        assert_eq!(gone.refused, []);
        assert_eq!(ipvs.services().unwrap(), []);
        println!(
            "{services} services with {each} destinations: {} commands in {} datagrams, {} bytes, {loaded:?}; \
             services listed in {listed:?}, destinations in {dumped:?}; deleted in {deleted:?} ({} datagrams)",
            outcome.commands, outcome.datagrams, outcome.bytes, gone.datagrams
        );
    });
}

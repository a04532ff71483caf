//! What a walk over the connections costs when there are many, in a namespace of the test's own. A thousand here;
//! `POINTSMAN_SCALE=1000000 cargo test --release -p pointsman-dataplane --test conntrack_scale -- --nocapture` prints the
//! figures for more. The limit of connections is the machine's, and can be written in its first namespace only: one that
//! is too low is raised and put back, and where that cannot be, the test says so.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by failing"
)]
#![allow(clippy::print_stdout, reason = "it prints what it measures")]

mod support;

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use netlink_sys::{Socket, SocketAddr as Netlink, protocols::NETLINK_NETFILTER};
use nix::time::{ClockId, clock_gettime};
use pointsman_dataplane::conntrack::{Ctnetlink, Entry, Filter, Progress, Review, clean};
use pointsman_dataplane::model::{
    Diff, Endpoint, EndpointPort, EndpointSlice, Family, ForwardingTable, Protocol, Service, ServiceName,
    ServicePort, compile,
};
use pointsman_dataplane::netlink::attribute::{
    Messages, NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NLMSG_ERROR, Writer,
};

use support::namespace::Namespace;

const NEW: u16 = 1 << 8;
/// `IPS_CONFIRMED`, and the bits that say that no translation is to be looked for.
const STATUS: u32 = (1 << 3) | (1 << 7) | (1 << 8);

fn number(protocol: Protocol) -> u8 {
    if protocol == Protocol::Udp { 17 } else { 6 }
}

/// The nth client of a kind.
fn client(base: u32, nth: u32) -> SocketAddr {
    let address = Ipv4Addr::from_bits(base + nth / 50_000);
    SocketAddr::new(address.into(), u16::try_from(10_000 + nth % 50_000).unwrap())
}

/// Puts connections of `count` clients into the table: to `to`, and really to `goes_to`.
fn fill(protocol: Protocol, base: u32, count: u32, to: SocketAddr, goes_to: SocketAddr) {
    let mut socket = Socket::new(NETLINK_NETFILTER).unwrap();
    socket.bind(&Netlink::new(0, 0)).unwrap();
    socket.set_cap_ack(true).unwrap();
    let tuple = |writer: &mut Writer, source: SocketAddr, destination: SocketAddr| {
        writer.nested(1, |ip| {
            for (kind, end) in [(1, source), (2, destination)] {
                let IpAddr::V4(address) = end.ip() else { panic!() };
                ip.put(kind, &address.octets());
            }
        });
        writer.nested(2, |proto| {
            proto.put(1, &[number(protocol)]);
            proto.put(2, &source.port().to_be_bytes());
            proto.put(3, &destination.port().to_be_bytes());
        });
    };
    for begin in (0..count).step_by(200) {
        let mut writer = Writer::default();
        let end = count.min(begin + 200);
        for nth in begin..end {
            let flags = NLM_F_REQUEST | NLM_F_CREATE | if nth + 1 == end { NLM_F_ACK } else { 0 };
            let client = client(base, nth);
            let message = writer.message(NEW, flags, nth, 2, 0);
            writer.nested(1, |writer| tuple(writer, client, to));
            writer.nested(2, |writer| tuple(writer, goes_to, client));
            writer.put_u32(3, STATUS);
            writer.put_u32(7, 3600);
            if protocol == Protocol::Tcp {
                // ESTABLISHED, as TCP needs a state.
                writer.nested(4, |info| info.nested(1, |tcp| tcp.put(1, &[3])));
            }
            writer.end_message(message);
        }
        socket.send(writer.bytes(), 0).unwrap();
        let (answer, _) = socket.recv_from_full().unwrap();
        for message in Messages(&answer) {
            assert_eq!(
                (message.kind, message.error()),
                (NLMSG_ERROR, 0),
                "entry {}",
                message.sequence
            );
        }
    }
}

/// CPU time of this thread: what others do with the processor meanwhile is not in it.
fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// Walks, and prints what that took; gives how many entries came.
fn walk(what: &str, filter: &Filter) -> u64 {
    let mut kernel = Ctnetlink::open().unwrap();
    let (begin, used) = (Instant::now(), cpu());
    let (mut longest, mut entries) = (Duration::ZERO, 0);
    kernel.walk(filter).unwrap();
    longest = longest.max(cpu() - used);
    loop {
        let receive = cpu();
        let progress = kernel.receive(|_: Entry| entries += 1).unwrap();
        longest = longest.max(cpu() - receive);
        if let Progress::Ended { interrupted } = progress {
            assert!(!interrupted);
            break;
        }
    }
    println!(
        "  {what}: {entries} entries in {:?} (CPU {:?}), longest call {longest:?} of CPU",
        begin.elapsed(),
        cpu() - used
    );
    entries
}

fn scale() -> Option<u32> {
    std::env::var("POINTSMAN_SCALE")
        .ok()
        .map(|text| text.parse().unwrap())
}

/// Room for a number of connections, until it is dropped. The tests of this file share the limit.
struct Room {
    before: Option<String>,
    _alone: MutexGuard<'static, ()>,
}

static ROOM: Mutex<()> = Mutex::new(());
const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

impl Room {
    fn make(count: u32) -> Self {
        let alone = ROOM.lock().unwrap_or_else(PoisonError::into_inner);
        let now = std::fs::read_to_string(MAX).unwrap_or_else(|error| {
            panic!("{MAX}: {error}: the test needs a kernel with connection tracking")
        });
        let enough = now.trim().parse::<u32>().unwrap() > count;
        if !enough {
            std::fs::write(MAX, (count + count / 10).to_string()).unwrap_or_else(|error| {
                panic!(
                    "{MAX} is {}, and cannot be raised ({error}): run the test in the machine's first network namespace, \
                     or with a smaller POINTSMAN_SCALE",
                    now.trim()
                )
            });
        }
        Self {
            before: (!enough).then_some(now),
            _alone: alone,
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // Nothing more can be done about a failure here.
            let _ = std::fs::write(MAX, before);
        }
    }
}

/// A Service with a UDP port and these endpoints.
fn dns(number: u32, endpoints: &[Ipv4Addr]) -> (Service, EndpointSlice) {
    let service = Service {
        name: ServiceName::new("default", &format!("dns-{number}")),
        cluster_ips: vec![Ipv4Addr::from_bits(0x0a60_000a + number).into()],
        ports: vec![ServicePort {
            name: "dns".into(),
            protocol: Protocol::Udp,
            port: 53,
            node_port: None,
        }],
        ..Service::default()
    };
    let slice = EndpointSlice {
        family: Family::V4,
        ports: vec![EndpointPort {
            name: "dns".into(),
            protocol: Protocol::Udp,
            port: 5353,
        }],
        endpoints: endpoints
            .iter()
            .map(|&address| Endpoint {
                address: address.into(),
                ready: true,
                serving: true,
                terminating: false,
                local: false,
                unplaced: false,
                for_nodes: None,
                common: None,
            })
            .collect(),
    };
    (service, slice)
}

/// Of a table full of connections to one Service, those go whose endpoint is gone.
fn cleaning(count: u32) {
    let gone_count = count / 100;
    let _room = Room::make(count);
    let [stays, goes] = [[10, 244, 1, 5], [10, 244, 1, 6]].map(Ipv4Addr::from);
    let vip: SocketAddr = "10.96.0.10:53".parse().unwrap();
    let (mut table, mut diff) = (ForwardingTable::default(), Diff::default());
    for number in 0..count / 100 {
        let (service, slice) = dns(number, &[stays, goes]);
        table.set(compile(&service, [&slice], table.context()), &mut diff);
    }
    let mut diff = Diff::default();
    let (service, slice) = dns(0, &[stays]);
    table.set(compile(&service, [&slice], table.context()), &mut diff);
    let begin = Instant::now();
    let changed = Review::of_changes(&table, &diff, &BTreeMap::new());
    println!(
        "{count} connections, {gone_count} of them stale, {} Services",
        count / 100
    );
    println!("  the engine's part of a change: {:?}", begin.elapsed());
    let begin = Instant::now();
    let all = Review::of_all(&table, Family::V4, HashSet::new());
    println!(
        "  the engine's part of a comparison with everything: {:?}",
        begin.elapsed()
    );

    Namespace::new().run(|| {
        fill(
            Protocol::Udp,
            0x0a00_0001,
            count - gone_count,
            vip,
            SocketAddr::new(stays.into(), 5353),
        );
        for (what, review) in [("a change", &changed), ("a comparison with everything", &all)] {
            fill(
                Protocol::Udp,
                0x0b00_0001,
                gone_count,
                vip,
                SocketAddr::new(goes.into(), 5353),
            );
            let used = cpu();
            let cleaned = clean(review, |_| {}).unwrap();
            println!(
                "  {what}: {:?} (CPU {:?}), {} seen, longest call {:?}",
                cleaned.took,
                cpu() - used,
                cleaned.seen,
                cleaned.longest
            );
            assert_eq!(cleaned.deleted, [(Family::V4, u64::from(gone_count))].into());
            assert_eq!(Ctnetlink::open().unwrap().entries().unwrap(), count - gone_count);
        }
        let again = clean(&all, |_| {}).unwrap();
        assert_eq!(again.deleted, [(Family::V4, 0)].into());
    });
}

#[test]
fn exactly_the_stale_ones_go() {
    // Filtered by the kernel, and not.
    cleaning(1000);
    cleaning(scale().unwrap_or(20_000));
}

#[test]
fn walks() {
    let count = scale().unwrap_or(1000);
    let _room = Room::make(count);
    let of = |family, protocol, translated| Filter {
        family,
        protocol,
        translated,
    };
    let (vip, endpoint): (SocketAddr, SocketAddr) = (
        "10.96.0.10:53".parse().unwrap(),
        "10.244.1.5:5353".parse().unwrap(),
    );
    for (most, few) in [(Protocol::Tcp, Protocol::Udp), (Protocol::Udp, Protocol::Tcp)] {
        let namespace = Namespace::new();
        namespace.run(|| {
            let few_count = 100;
            fill(most, 0x0a00_0001, count - few_count, vip, endpoint);
            fill(few, 0x0b00_0001, few_count, vip, endpoint);
            println!("{count} entries, {few_count} of them {few}");
            let total = u64::from(count);
            assert_eq!(Ctnetlink::open().unwrap().entries().unwrap(), count);
            assert_eq!(walk("everything", &of(None, None, false)), total);
            assert_eq!(walk("IPv4", &of(Some(Family::V4), None, false)), total);
            assert_eq!(walk("IPv6", &of(Some(Family::V6), None, false)), 0);
            assert_eq!(
                walk("few IPv6", &of(Some(Family::V6), Some(few), false)) + u64::from(few_count),
                few_count.into()
            );
            assert_eq!(
                walk("few IPv4", &of(Some(Family::V4), Some(few), false)),
                few_count.into()
            );
            assert_eq!(
                walk("most IPv4", &of(Some(Family::V4), Some(most), false)),
                total - u64::from(few_count)
            );
            walk("translated", &of(None, None, true));
        });
    }
}

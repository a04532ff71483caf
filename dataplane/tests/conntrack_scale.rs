//! What a walk over the connections costs when there are many, in a namespace of the test's own. A thousand here;
//! `POINTSMAN_SCALE=1000000 cargo test --release -p pointsman-dataplane --test conntrack_scale -- --nocapture` prints the
//! figures for more. The limit of connections is the machine's: one that is too low is raised and put back.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by failing"
)]
#![allow(clippy::print_stdout, reason = "it prints what it measures")]

mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use netlink_sys::{Socket, SocketAddr as Netlink, protocols::NETLINK_NETFILTER};
use nix::sys::resource::{UsageWho, getrusage};
use pointsman_dataplane::conntrack::{Ctnetlink, Entry, Filter, Progress};
use pointsman_dataplane::model::{Family, Protocol};
use pointsman_dataplane::netlink::message::{ACK, ERROR, REQUEST, Writer, messages};

use support::namespace::Namespace;

const NEW: u16 = 1 << 8;
const CREATE: u16 = 0x400;
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
                ip.attribute(kind, &address.octets());
            }
        });
        writer.nested(2, |proto| {
            proto.attribute(1, &[number(protocol)]);
            proto.attribute(2, &source.port().to_be_bytes());
            proto.attribute(3, &destination.port().to_be_bytes());
        });
    };
    for begin in (0..count).step_by(200) {
        let mut writer = Writer::default();
        let end = count.min(begin + 200);
        for nth in begin..end {
            let flags = REQUEST | CREATE | if nth + 1 == end { ACK } else { 0 };
            let client = client(base, nth);
            writer.message(NEW, flags, nth, 2, |message| {
                message.nested(1, |writer| tuple(writer, client, to));
                message.nested(2, |writer| tuple(writer, goes_to, client));
                message.attribute(3, &STATUS.to_be_bytes());
                message.attribute(7, &3600_u32.to_be_bytes());
                if protocol == Protocol::Tcp {
                    // ESTABLISHED, as TCP needs a state.
                    message.nested(4, |info| info.nested(1, |tcp| tcp.attribute(1, &[3])));
                }
            });
        }
        socket.send(writer.bytes(), 0).unwrap();
        let (answer, _) = socket.recv_from_full().unwrap();
        for message in messages(&answer) {
            assert_eq!(
                (message.kind, message.error()),
                (ERROR, 0),
                "entry {}",
                message.sequence
            );
        }
    }
}

/// CPU time of this thread.
fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    let times = [usage.user_time(), usage.system_time()];
    times
        .into_iter()
        .map(|time| Duration::from_micros((time.tv_sec() * 1_000_000 + time.tv_usec()).cast_unsigned()))
        .sum()
}

/// Walks, and prints what that took; gives how many entries came.
fn walk(what: &str, filter: &Filter) -> u64 {
    let mut kernel = Ctnetlink::open().unwrap();
    let (begin, used) = (Instant::now(), cpu());
    let (mut longest, mut entries) = (Duration::ZERO, 0);
    kernel.walk(filter).unwrap();
    longest = longest.max(begin.elapsed());
    loop {
        let receive = Instant::now();
        let progress = kernel.receive(|_: Entry| entries += 1).unwrap();
        longest = longest.max(receive.elapsed());
        if let Progress::Ended { interrupted } = progress {
            assert!(!interrupted);
            break;
        }
    }
    println!(
        "  {what}: {entries} entries in {:?} (CPU {:?}), longest call {longest:?}",
        begin.elapsed(),
        cpu() - used
    );
    entries
}

#[test]
fn walks() {
    let count: u32 = std::env::var("POINTSMAN_SCALE").map_or(1000, |text| text.parse().unwrap());
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

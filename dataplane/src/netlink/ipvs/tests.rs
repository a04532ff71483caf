use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;
use proptest::prelude::*;

use super::super::attribute::{Attributes, HEADER, Message, Messages, NLM_F_ACK, Writer};
use super::super::generic::header;
use super::request::{
    Question, put_destination_key, put_destination_options, put_key, put_options, question,
};
use super::*;

const FAMILY: u16 = 0x1f;

fn name(name: &str) -> Name {
    Name::new(name).unwrap()
}

fn key(protocol: Protocol, address: &str) -> ServiceKey {
    ServiceKey::Address(protocol, address.parse().unwrap())
}

fn bytes(command: Command) -> Vec<u8> {
    let mut batch = Batch::new(FAMILY, 7);
    batch.push(&command);
    batch.into_bytes()
}

/// The attributes of an attribute, with what they have.
fn list(attributes: &[u8]) -> Vec<(u16, &[u8])> {
    Attributes(attributes).collect()
}

/// What the kernel tells of a service (`ip_vs_genl_fill_service`).
fn told_service(state: &ServiceState) -> Vec<u8> {
    let mut writer = Writer::default();
    let begun = writer.begin(FAMILY, 2, 7, &header(NEW_SERVICE, VERSION));
    writer.nested(command::SERVICE, |list| {
        put_key(list, &state.service.key);
        let hashed = VirtualService {
            flags: state.service.flags | Flags::HASHED,
            ..state.service
        };
        put_options(list, &hashed);
        put_statistics(list, service::STATISTICS, state.statistics);
    });
    writer.end_message(begun);
    writer.into_bytes()
}

/// What the kernel tells of a destination (`ip_vs_genl_fill_dest`).
fn told_destination(state: &DestinationState) -> Vec<u8> {
    let mut writer = Writer::default();
    let begun = writer.begin(FAMILY, 2, 7, &header(NEW_DESTINATION, VERSION));
    writer.nested(command::DESTINATION, |list| {
        put_destination_key(list, state.destination.address);
        put_destination_options(list, &state.destination);
        list.put_host_u32(destination::ACTIVE, state.active);
        list.put_host_u32(destination::INACTIVE, state.inactive);
        list.put_host_u32(destination::PERSISTENT, state.persistent);
        put_statistics(list, destination::STATISTICS, state.statistics);
    });
    writer.end_message(begun);
    writer.into_bytes()
}

fn put_statistics(writer: &mut Writer, kind: u16, of: Statistics) {
    let numbers = [
        of.connections,
        of.incoming_packets,
        of.outgoing_packets,
        of.incoming_bytes,
        of.outgoing_bytes,
    ];
    writer.nested(kind, |list| {
        for (kind, number) in (1..).zip(numbers) {
            list.put(kind, &number.to_ne_bytes());
        }
    });
}

fn only(bytes: &[u8]) -> Message<'_> {
    let mut messages = Messages(bytes);
    let first = messages.next().unwrap();
    assert!(messages.next().is_none());
    first
}

/// What Linux 6.12 answered to a question for a service, and to one for its destinations, and what ipvsadm 1.31 sent to
/// make that destination: all behind the header. Little-endian.
const SERVICE_OF_A_KERNEL: &str = "010100005401010006000100020000000600020006000000140003000a60000a0000000000000000000000000600040000500000070006\
     00727200000c00070003000000ffffffff080008002c01000008000900ffffffff60000a00080001000000000008000200000000000800\
     0300000000000c000400000000000000000004000b000c0005000000000000000000080006000000000008000700000000000800080000\
     000000080009000000000008000a0000000000a0000c000c000100000000000000000004000b000c000200000000000000000004000b00\
     0c000300000000000000000004000b000c000400000000000000000004000b000c000500000000000000000004000b000c000600000000\
     000000000004000b000c000700000000000000000004000b000c000800000000000000000004000b000c00090000000000000000000400\
     0b000c000a000000000000000000";
const DESTINATION_OF_A_KERNEL: &str = "050100007c010200140001000af40105000000000000000000000000060002001f9000000800030000000000080004000300000005000d\
     000000000006000e000000000006000f000000000008000500000000000800060000000000080007000000000008000800000000000800\
     09000000000006000b000200000064000a0008000100000000000800020000000000080003000000000004000b000c0004000000000000\
     00000004000b000c0005000000000000000000080006000000000008000700000000000800080000000000080009000000000008000a00\
     00000000a0000c000c000100000000000000000004000b000c000200000000000000000004000b000c000300000000000000000004000b\
     000c000400000000000000000004000b000c000500000000000000000004000b000c000600000000000000000004000b000c0007000000\
     00000000000004000b000c000800000000000000000004000b000c000900000000000000000004000b000c000a000000000000000000";
const DESTINATION_OF_IPVSADM: &str = "050100005400018006000100020000000600020006000000140003000a60000a0000000000000000000000000600040000500000050006\
     00000000000c00070000000000ffffffff080008000000000008000900ffffffff6000028006000b0002000000140001000af401050000\
     00000000000000000000060002001f9000000800030000000000080004000300000005000d000000000006000e000000000006000f0000\
     00000008000500000000000800060000000000";

/// A message with this payload.
fn captured(hex: &str) -> Vec<u8> {
    let mut writer = Writer::default();
    let digits: Vec<u8> = hex
        .bytes()
        .map(|digit| char::from(digit).to_digit(16).unwrap() as u8)
        .collect();
    let payload: Vec<u8> = digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    let begun = writer.begin(FAMILY, 0, 7, &payload);
    writer.end_message(begun);
    writer.into_bytes()
}

#[test]
#[cfg(target_endian = "little")]
fn what_a_kernel_answered_is_read() {
    let key = key(Protocol::Tcp, "10.96.0.10:80");
    let service = VirtualService::new(key, name("rr")).persistent(300);
    let destination = Destination::new("10.244.1.5:8080".parse().unwrap(), 3);
    let statistics = Statistics::default();
    assert_eq!(
        answer::service_state(&only(&captured(SERVICE_OF_A_KERNEL))),
        Some(ServiceState { service, statistics })
    );
    let (active, inactive, persistent) = (0, 0, 0);
    assert_eq!(
        answer::destination_state(&only(&captured(DESTINATION_OF_A_KERNEL)), Family::V4),
        Some(DestinationState {
            destination,
            active,
            inactive,
            persistent,
            statistics
        })
    );
    let sent = captured(DESTINATION_OF_IPVSADM);
    assert_eq!(
        Request::read(&only(&sent)),
        Some(Request::Destination(Verb::New, key, destination.address))
    );
    // It names the whole service, with nothing in it, and a tunnel's type; apart from that it is what is sent here.
    let ours = bytes(Command::NewDestination(key, destination));
    let attributes = |of: &[u8], kind| only(of).attributes().get(kind).unwrap().to_vec();
    let (theirs, ours) = (attributes(&sent, 2), attributes(&ours, 2));
    let mut theirs = list(&theirs);
    theirs.retain(|(kind, _)| !(13..=15).contains(kind));
    assert_eq!(theirs, list(&ours));
}

/// These are the bytes that ipvsadm 1.31 sends for the same service.
#[test]
fn a_service_looks_as_the_kernel_takes_it() {
    let service = VirtualService::new(key(Protocol::Tcp, "10.96.0.10:80"), name("rr")).persistent(300);
    let short = |number: u16| number.to_ne_bytes();
    let number = |number: u32| number.to_ne_bytes();
    let expected = [
        // Length, type, NLM_F_REQUEST with NLM_F_ACK, sequence, port; command, version.
        &number(104)[..],
        &short(FAMILY),
        &short(5),
        &number(7),
        &number(0),
        &[1, 1, 0, 0],
        // IPVS_CMD_ATTR_SERVICE.
        &short(84),
        &short(0x8001),
        // Family, protocol: both with 16 bits.
        &short(6),
        &short(1),
        &short(2),
        &[0, 0],
        &short(6),
        &short(2),
        &short(6),
        &[0, 0],
        // The address, and the port in network byte order.
        &short(20),
        &short(3),
        &[10, 96, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &short(6),
        &short(4),
        &[0, 80, 0, 0],
        // The scheduler with its zero.
        &short(7),
        &short(6),
        b"rr\0\0",
        // Flags, and that all of them count.
        &short(12),
        &short(7),
        &number(1),
        &number(u32::MAX),
        &short(8),
        &short(8),
        &number(300),
        &short(8),
        &short(9),
        &[255, 255, 255, 255],
    ]
    .concat();
    assert_eq!(bytes(Command::NewService(service)), expected);
    // The same with another command.
    let mut set = expected;
    set[16] = 2;
    assert_eq!(bytes(Command::SetService(service)), set);
}

#[test]
fn a_destination_looks_as_the_kernel_takes_it() {
    let key = ServiceKey::Mark(Family::V6, 0x0102_0304);
    let of = Destination {
        upper: 9,
        lower: 8,
        ..Destination::new("[fd00::5]:8080".parse().unwrap(), 3)
    };
    let written = bytes(Command::NewDestination(key, of));
    let message = only(&written);
    assert_eq!(message.payload[..4], [5, 1, 0, 0]);
    let attributes: Vec<_> = message.attributes().collect();
    assert_eq!(
        attributes.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(),
        [1, 2]
    );
    let mark = 0x0102_0304_u32.to_ne_bytes();
    assert_eq!(
        list(attributes[0].1),
        [(1, &10_u16.to_ne_bytes()[..]), (5, &mark)]
    );
    let number = |number: u32| number.to_ne_bytes();
    assert_eq!(
        list(attributes[1].1),
        [
            (11, &10_u16.to_ne_bytes()[..]),
            (1, &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]),
            (2, &[0x1f, 0x90]),
            (3, &number(0)),
            (4, &number(3)),
            (5, &number(9)),
            (6, &number(8)),
        ]
    );
    // Of one that goes, only what it is known by.
    let written = bytes(Command::DeleteDestination(key, of.address));
    let message = only(&written);
    assert_eq!(message.payload[0], 7);
    assert_eq!(list(message.attributes().get(2).unwrap()).len(), 3);
}

#[test]
fn a_netmask_is_a_mask_for_ipv4_and_a_length_for_ipv6() {
    for (address, netmask, expected) in [
        ("10.96.0.10:80", 0xffff_ff00, [255, 255, 255, 0]),
        ("[fd00::a]:80", 64, 64_u32.to_ne_bytes()),
    ] {
        let service = VirtualService {
            netmask,
            ..VirtualService::new(key(Protocol::Udp, address), name("wlc"))
        };
        let written = bytes(Command::NewService(service));
        let message = only(&written);
        assert_eq!(message.attributes().nested(1).get(9), Some(&expected[..]));
    }
}

#[test]
fn questions_name_what_they_are_about() {
    let of = key(Protocol::Sctp, "10.96.0.10:132");
    for (asked, command, flags, named) in [
        (Question::Services, 4, 0x301, false),
        (Question::Service(&of), 4, 0x5, true),
        (Question::Destinations(&of), 8, 0x301, true),
        (Question::Timeouts, 13, 0x5, false),
        (Question::Information, 15, 0x5, false),
    ] {
        let written = question(FAMILY, asked, 3);
        let message = only(&written);
        assert_eq!(
            (message.kind, message.payload[0], message.flags, message.sequence),
            (FAMILY, command, flags, 3)
        );
        let read = answer::key(message.attributes().nested(1));
        assert_eq!(read, named.then_some(of));
    }
}

#[test]
fn only_the_last_command_is_acknowledged_and_a_full_batch_says_so() {
    let mut batch = Batch::new(FAMILY, u32::MAX);
    assert!(batch.is_empty());
    let key = key(Protocol::Tcp, "10.96.0.10:80");
    let mut count = 0_u32;
    while !batch.is_full() {
        batch.push(&Command::DeleteService(key));
        count += 1;
    }
    assert_eq!(count, 4000);
    let written = batch.into_bytes();
    for (place, message) in (0..).zip(Messages(&written)) {
        // Numbers go on from the first, also past the last that there is.
        assert_eq!(message.sequence, u32::MAX.wrapping_add(place));
        assert_eq!(message.flags & NLM_F_ACK != 0, place == count - 1);
    }
}

#[test]
fn what_was_asked_is_read_from_its_bytes_and_said_in_words() {
    let service = key(Protocol::Tcp, "10.96.0.10:80");
    let mark = ServiceKey::Mark(Family::V4, 0x4000);
    let destination = Destination::new("10.244.1.5:8080".parse().unwrap(), 1);
    let whole = VirtualService::new(mark, name("mh"));
    for (command, words) in [
        (
            Command::NewService(VirtualService::new(service, name("rr"))),
            "new virtual service tcp 10.96.0.10:80",
        ),
        (
            Command::SetService(whole),
            "change of virtual service firewall mark 0x4000 (IPv4)",
        ),
        (
            Command::DeleteService(mark),
            "removal of virtual service firewall mark 0x4000 (IPv4)",
        ),
        (
            Command::SetDestination(service, destination),
            "change of destination 10.244.1.5:8080 of virtual service tcp 10.96.0.10:80",
        ),
        (
            Command::DeleteDestination(service, destination.address),
            "removal of destination 10.244.1.5:8080 of virtual service tcp 10.96.0.10:80",
        ),
        (
            Command::SetTimeouts(Timeouts::default()),
            "change of the timeouts",
        ),
    ] {
        let written = bytes(command);
        assert_eq!(Request::read(&only(&written)).unwrap().to_string(), words);
    }
    let refusal = Refusal {
        place: 3,
        request: Some(Request::Service(Verb::New, service)),
        errno: Errno::ENOENT,
        text: String::new(),
    };
    assert_eq!(
        refusal.to_string(),
        "IPVS refused new virtual service tcp 10.96.0.10:80: No such file or directory"
    );
}

#[test]
fn timeouts_and_information_are_read() {
    let timeouts = Timeouts {
        tcp: 900,
        tcp_fin: 120,
        udp: 300,
    };
    let written = bytes(Command::SetTimeouts(timeouts));
    assert_eq!(answer::timeouts(&only(&written)), Some(timeouts));
    assert_eq!(answer::information(&only(&written)), None);
    let mut writer = Writer::default();
    let begun = writer.begin(FAMILY, 0, 7, &header(SET_INFO, VERSION));
    writer.put_host_u32(1, 0x01_02_01);
    writer.put_host_u32(2, 4096);
    writer.end_message(begun);
    let read = answer::information(&only(writer.bytes())).unwrap();
    assert_eq!((read.version, read.connection_buckets), ((1, 2, 1), 4096));
    assert_eq!(answer::timeouts(&only(writer.bytes())), None);
}

#[test]
fn a_destination_without_a_family_has_its_services() {
    let mut writer = Writer::default();
    let begun = writer.begin(FAMILY, 2, 7, &header(NEW_DESTINATION, VERSION));
    writer.nested(command::DESTINATION, |list| {
        list.put(
            destination::ADDRESS,
            &[10, 244, 1, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        );
        list.put(destination::PORT, &[0, 80]);
        list.put_host_u32(destination::FORWARDING, 0x100 | 3);
        list.put_host_u32(destination::WEIGHT, 0);
        list.put(200, b"of a later kernel");
    });
    writer.end_message(begun);
    let message = only(writer.bytes());
    let read = answer::destination_state(&message, Family::V4).unwrap();
    assert_eq!(
        read.destination,
        Destination {
            forwarding: Forwarding::Direct,
            ..Destination::new("10.244.1.5:80".parse().unwrap(), 0)
        }
    );
    assert_eq!(answer::service_state(&message), None);
}

#[test]
fn names_have_the_kernels_length() {
    assert_eq!(name("wlc").as_str(), "wlc");
    assert_eq!(name("123456789012345").to_string(), "123456789012345");
    for bad in ["", "1234567890123456", "a\0b"] {
        assert_eq!(Name::new(bad), None, "{bad:?}");
    }
}

fn addresses(family: Family) -> impl Strategy<Value = SocketAddr> {
    let address = match family {
        Family::V4 => any::<[u8; 4]>().prop_map(IpAddr::from).boxed(),
        Family::V6 => any::<[u8; 16]>().prop_map(IpAddr::from).boxed(),
    };
    (address, any::<u16>()).prop_map(|(address, port)| SocketAddr::new(address, port))
}

fn families() -> impl Strategy<Value = Family> {
    prop::sample::select(Family::ALL.to_vec())
}

fn keys() -> impl Strategy<Value = ServiceKey> {
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    prop_oneof![
        (protocol, families().prop_flat_map(addresses))
            .prop_map(|(protocol, address)| ServiceKey::Address(protocol, address)),
        (families(), any::<u32>()).prop_map(|(family, mark)| ServiceKey::Mark(family, mark)),
    ]
}

fn names() -> impl Strategy<Value = Name> {
    "[a-z][a-z0-9_]{0,14}".prop_map(|text| name(&text))
}

fn statistics() -> impl Strategy<Value = Statistics> {
    any::<[u64; 5]>().prop_map(|numbers| Statistics {
        connections: numbers[0],
        incoming_packets: numbers[1],
        outgoing_packets: numbers[2],
        incoming_bytes: numbers[3],
        outgoing_bytes: numbers[4],
    })
}

fn services() -> impl Strategy<Value = VirtualService> {
    (
        keys(),
        names(),
        any::<u32>(),
        any::<u32>(),
        any::<u32>(),
        prop::option::of(names()),
    )
        .prop_map(
            |(key, scheduler, flags, timeout, netmask, engine)| VirtualService {
                key,
                scheduler,
                flags: Flags(flags & !Flags::HASHED.0),
                timeout,
                netmask,
                engine,
            },
        )
}

fn destinations() -> impl Strategy<Value = Destination> {
    (families().prop_flat_map(addresses), 0..8_u32, any::<[u32; 3]>()).prop_map(
        |(address, forwarding, [weight, upper, lower])| Destination {
            address,
            forwarding: Forwarding::read(forwarding),
            weight,
            upper,
            lower,
        },
    )
}

fn commands() -> impl Strategy<Value = (Command, Request)> {
    (keys(), services(), destinations(), any::<[u32; 3]>(), 0..7).prop_map(
        |(key, service, to, numbers, which)| {
            use {Command as C, Request as R, Verb as V};
            let at = to.address;
            let [tcp, tcp_fin, udp] = numbers;
            match which {
                0 => (C::NewService(service), R::Service(V::New, service.key)),
                1 => (C::SetService(service), R::Service(V::Set, service.key)),
                2 => (C::DeleteService(key), R::Service(V::Delete, key)),
                3 => (C::NewDestination(key, to), R::Destination(V::New, key, at)),
                4 => (C::SetDestination(key, to), R::Destination(V::Set, key, at)),
                5 => (C::DeleteDestination(key, at), R::Destination(V::Delete, key, at)),
                _ => (C::SetTimeouts(Timeouts { tcp, tcp_fin, udp }), R::Timeouts),
            }
        },
    )
}

proptest! {
    #[test]
    fn what_a_command_is_about_is_read(all in prop::collection::vec(commands(), 1..20)) {
        let mut batch = Batch::new(FAMILY, 1);
        all.iter().for_each(|(command, _)| batch.push(command));
        let written = batch.into_bytes();
        let read: Vec<_> = Messages(&written).map(|message| Request::read(&message)).collect();
        let expected: Vec<_> = all.into_iter().map(|(_, request)| Some(request)).collect();
        prop_assert_eq!(read, expected);
    }

    #[test]
    fn services_are_read_as_they_are_told(service in services(), statistics in statistics()) {
        let state = ServiceState { service, statistics };
        let told = told_service(&state);
        prop_assert_eq!(answer::service_state(&only(&told)), Some(state));
        // What is sent is what is told.
        let sent = bytes(Command::NewService(service));
        prop_assert_eq!(answer::service_state(&only(&sent)).map(|state| state.service), Some(service));
    }

    #[test]
    fn destinations_are_read_as_they_are_told(
        destination in destinations(), [active, inactive, persistent] in any::<[u32; 3]>(),
        statistics in statistics(), of in families(),
    ) {
        let state = DestinationState { destination, active, inactive, persistent, statistics };
        let told = told_destination(&state);
        prop_assert_eq!(answer::destination_state(&only(&told), of), Some(state));
    }

    #[test]
    fn any_answer_is_survived(
        bytes in prop::collection::vec(any::<u8>(), 0..200), service in services(), to in destinations(),
        at in any::<prop::sample::Index>(), value in any::<u8>(),
    ) {
        let mut framed = u32::try_from(HEADER + bytes.len()).unwrap().to_ne_bytes().to_vec();
        framed.extend([0; HEADER - 4]);
        framed.extend(&bytes);
        let mut damaged = told_service(&ServiceState { service, statistics: Statistics::default() });
        damaged.extend(told_destination(&DestinationState {
            destination: to, active: 0, inactive: 0, persistent: 0, statistics: Statistics::default(),
        }));
        let at = at.index(damaged.len());
        damaged[at] = value;
        for message in Messages(&framed).chain(Messages(&damaged)) {
            let _ = (answer::service_state(&message), answer::destination_state(&message, Family::V6));
            let _ = (answer::timeouts(&message), answer::information(&message), Request::read(&message));
        }
    }
}

use proptest::prelude::*;

use super::*;

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
        any::<u128>().prop_map(|bits| IpAddr::V6(bits.into())),
    ]
}

fn entry() -> impl Strategy<Value = (Family, Entry)> {
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    (
        address(),
        protocol,
        any::<u16>(),
        any::<[u32; 3]>(),
        0_usize..13,
        0_u8..=32,
    )
        .prop_map(|(address, protocol, port, [a, b, c], which, length)| {
            let family = Family::of(address);
            let key = |destination| FrontendKey {
                family,
                destination,
                protocol,
                port,
            };
            let target = IpPort::new(address, port);
            let entry = match which {
                0 => Entry::Frontend(key(Destination::Address(address)), a),
                1 => Entry::Frontend(key(Destination::NodePort), a),
                2 => Entry::ClusterIp(address),
                3 => Entry::NodeAddress(address),
                4 => Entry::Pool(a, b),
                5 => Entry::Class(port & 0xfff, Class::Pick(a)),
                6 => Entry::Class(port & 0xfff, Class::Sticky(a, b)),
                7 => Entry::Endpoint(a, b, target),
                8 => Entry::Stable(a, b, c),
                9 => Entry::Member(a, target),
                10 => Entry::Outside(a, b),
                11 => Entry::Source(a, IpNet::new(address, length).unwrap().trunc()),
                _ => Entry::Hairpin(address),
            };
            (family, entry)
        })
}

proptest! {
    #[test]
    fn what_is_written_is_read((family, entry) in entry()) {
        prop_assert_eq!(Entry::read(entry.map(), family, &entry.element()), Some(entry));
    }

    #[test]
    fn any_bytes_are_survived(
        key in prop::collection::vec(any::<u8>(), 0..40),
        end in prop::option::of(prop::collection::vec(any::<u8>(), 0..40)),
        data in prop::collection::vec(any::<u8>(), 0..30),
    ) {
        let element = Element { key, key_end: end, value: Some(Value::Data(data)) };
        for map in Map::ALL {
            for family in Family::ALL {
                let _ = Entry::read(map, family, &element);
            }
        }
    }
}

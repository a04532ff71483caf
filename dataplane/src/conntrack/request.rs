//! What is asked of ctnetlink: a walk over the table, and that entries go.

use super::entry::{Entry, number};
use crate::model::{Family, Protocol};
use crate::netlink::attribute::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, Writer};

const CTNETLINK: u16 = 1 << 8;
/// Type of the messages that tell of an entry.
pub(super) const NEW: u16 = CTNETLINK;
const GET: u16 = CTNETLINK | 1;
const DELETE: u16 = CTNETLINK | 2;
/// Type of the request for the number of entries, and of its answer.
pub(super) const STATISTICS: u16 = CTNETLINK | 5;
/// Attribute of that answer: how many entries the namespace has.
pub(super) const ENTRIES: u16 = 1;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_STATUS: u16 = 3;
const CTA_FILTER: u16 = 25;
const CTA_STATUS_MASK: u16 = 26;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
/// `CTA_FILTER_FLAG(CTA_PROTO_NUM)` of `net/netfilter/nf_internals.h`, in the byte order of the machine.
const BY_PROTOCOL: u32 = 1 << 3;
/// `IPS_DST_NAT`: the destination is translated.
const TRANSLATED: u32 = 1 << 5;

/// Which entries a walk is about; the default is all of them.
///
/// A kernel leaves out what it can and no more: before 5.8 it knows only the family. So what comes must be looked at
/// as if nothing had been left out. The kernel can also filter by address, but not well: 6.18 turns the meaning round
/// for IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Those of this family.
    pub family: Option<Family>,
    /// Those of this protocol.
    pub protocol: Option<Protocol>,
    /// Those whose destination is translated.
    pub translated: bool,
}

/// Asks for the entries.
#[must_use]
pub fn walk(filter: &Filter, sequence: u32) -> Writer {
    let mut writer = Writer::default();
    let family = filter.family.map_or(0, family_number);
    let begun = writer.message(GET, NLM_F_REQUEST | NLM_F_DUMP, sequence, family, 0);
    if let Some(protocol) = filter.protocol {
        writer.nested(CTA_TUPLE_ORIG, |tuple| {
            tuple.nested(CTA_TUPLE_PROTO, |proto| {
                proto.put(CTA_PROTO_NUM, &[number(protocol)]);
            });
        });
        writer.nested(CTA_FILTER, |flags| {
            flags.put(CTA_FILTER_ORIG_FLAGS, &BY_PROTOCOL.to_ne_bytes());
        });
    }
    if filter.translated {
        writer.put_u32(CTA_STATUS, TRANSLATED);
        writer.put_u32(CTA_STATUS_MASK, TRANSLATED);
    }
    writer.end_message(begun);
    writer
}

/// Asks that these entries go: number `n` has sequence `n`. Only the last is acknowledged; of the others the kernel
/// tells what it could not delete. Each names its addresses: a request without them would empty the table
/// (`ctnetlink_del_conntrack`).
#[must_use]
pub fn delete(entries: &[Entry]) -> Writer {
    let mut writer = Writer::default();
    for (at, entry) in entries.iter().enumerate() {
        let last = at + 1 == entries.len();
        let flags = if last {
            NLM_F_REQUEST | NLM_F_ACK
        } else {
            NLM_F_REQUEST
        };
        let sequence = u32::try_from(at).unwrap_or(u32::MAX);
        let begun = writer.message(DELETE, flags, sequence, family_number(entry.family()), 0);
        entry.write_name(&mut writer);
        writer.end_message(begun);
    }
    writer
}

/// Asks how many entries the namespace has.
#[must_use]
pub fn statistics(sequence: u32) -> Writer {
    let mut writer = Writer::default();
    let begun = writer.message(STATISTICS, NLM_F_REQUEST, sequence, 0, 0);
    writer.end_message(begun);
    writer
}

/// The kernel's number of an address family (`AF_INET`, `AF_INET6`).
fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

#[cfg(test)]
mod tests {
    use crate::model::IpPort;
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::super::entry::{Tuple, testing};
    use super::*;
    use crate::netlink::attribute::{Attributes, Messages};

    /// What the kernel tells of an entry, with these attributes.
    fn told(attributes: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::default();
        let begun = writer.message(NEW, 0, 1, 2, 0);
        attributes(&mut writer);
        writer.end_message(begun);
        writer.into_bytes()
    }

    #[test]
    fn a_walk_says_what_it_is_about() {
        let filter = Filter {
            family: Some(Family::V6),
            protocol: Some(Protocol::Udp),
            translated: true,
        };
        let request = walk(&filter, 9);
        let expected: Vec<u8> = [
            &64_u32.to_ne_bytes()[..],
            &0x0101_u16.to_ne_bytes(),
            &0x0301_u16.to_ne_bytes(),
            &9_u32.to_ne_bytes(),
            &[0, 0, 0, 0, 10, 0, 0, 0],
            // The protocol of the original direction.
            &16_u16.to_ne_bytes(),
            &0x8001_u16.to_ne_bytes(),
            &12_u16.to_ne_bytes(),
            &0x8002_u16.to_ne_bytes(),
            &5_u16.to_ne_bytes(),
            &1_u16.to_ne_bytes(),
            &[17, 0, 0, 0],
            // Of it only the protocol counts.
            &12_u16.to_ne_bytes(),
            &0x8019_u16.to_ne_bytes(),
            &8_u16.to_ne_bytes(),
            &1_u16.to_ne_bytes(),
            &8_u32.to_ne_bytes(),
            // The status and its mask.
            &8_u16.to_ne_bytes(),
            &3_u16.to_ne_bytes(),
            &[0, 0, 0, 0x20],
            &8_u16.to_ne_bytes(),
            &26_u16.to_ne_bytes(),
            &[0, 0, 0, 0x20],
        ]
        .concat();
        assert_eq!(request.bytes(), expected);

        let everything = walk(&Filter::default(), 1);
        assert_eq!(everything.bytes().len(), 20);
        assert_eq!(everything.bytes()[16], 0);
    }

    #[test]
    fn what_goes_is_named_to_the_last_detail() {
        let mut first = testing::entry(Protocol::Udp, "10.96.0.10:53", "10.244.1.5:5353");
        first.zone = 3;
        let second = testing::entry(Protocol::Tcp, "[fd00:96::a]:80", "[fd00:1::5]:8080");
        let request = delete(&[first, second]);
        let all: Vec<_> = Messages(request.bytes()).collect();
        assert_eq!(
            all.iter()
                .map(|m| (m.kind, m.flags, m.sequence))
                .collect::<Vec<_>>(),
            [(0x0102, 1, 0), (0x0102, 5, 1)]
        );
        assert_eq!(all.iter().map(|m| m.payload[0]).collect::<Vec<_>>(), [2, 10]);
        let named: Vec<_> = all[0].attributes().collect();
        assert_eq!(
            named.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(),
            [1, 18, 12]
        );
        assert_eq!(named[1].1, [0, 3]);
        assert_eq!(named[2].1, [0, 0, 0, 7]);
        let tuple: Vec<_> = Attributes(named[0].1).collect();
        let ip: Vec<_> = Attributes(tuple[0].1).collect();
        assert_eq!(ip, [(1, &[10, 244, 9, 9][..]), (2, &[10, 96, 0, 10])]);
        let proto: Vec<_> = Attributes(tuple[1].1).collect();
        assert_eq!(proto, [(1, &[17][..]), (2, &[15, 160]), (3, &[0, 53])]);
        assert_eq!(
            all[1].attributes().map(|(kind, _)| kind).collect::<Vec<_>>(),
            [1, 12]
        );
    }

    #[test]
    fn what_has_no_ports_or_no_number_is_no_entry() {
        let whole = testing::entry(Protocol::Udp, "10.96.0.10:53", "10.244.1.5:5353");
        let told_of = told(|message| testing::write(&whole, message));
        let message = Messages(&told_of).next().unwrap();
        let without =
            |left_out: u16| Entry::parse(message.attributes().filter(move |(kind, _)| *kind != left_out));
        assert_eq!(without(99), Some(whole));
        for needed in [1, 2, 12] {
            assert_eq!(without(needed), None, "{needed}");
        }
        assert_eq!(without(3), Some(Entry { status: 0, ..whole }));
        // ICMP: a protocol, and no ports.
        let icmp = told(|message| {
            for kind in [1, 2] {
                message.nested(kind, |tuple| {
                    tuple.nested(1, |ip| {
                        ip.put(1, &[10, 0, 0, 1]);
                        ip.put(2, &[10, 0, 0, 2]);
                    });
                    tuple.nested(2, |proto| proto.put(1, &[1]));
                });
            }
            message.put(12, &[0, 0, 0, 1]);
        });
        assert_eq!(Entry::parse(Messages(&icmp).next().unwrap().attributes()), None);
    }

    #[test]
    fn a_zone_of_one_direction_is_read() {
        let told_of = told(|message| {
            for kind in [1, 2] {
                message.nested(kind, |tuple| {
                    tuple.nested(1, |ip| {
                        ip.put(1, &[10, 0, 0, 1]);
                        ip.put(2, &[10, 0, 0, 2]);
                    });
                    tuple.nested(2, |proto| {
                        proto.put(1, &[17]);
                        proto.put(2, &[0, 1]);
                        proto.put(3, &[0, 2]);
                    });
                    if kind == 1 {
                        tuple.put(3, &[1, 2]);
                    }
                });
            }
            message.put(12, &[0, 0, 0, 1]);
        });
        let entry = Entry::parse(Messages(&told_of).next().unwrap().attributes()).unwrap();
        assert_eq!(entry.zone, 258);
    }

    fn ends(v6: bool) -> impl Strategy<Value = IpPort> {
        let address = if v6 {
            any::<[u8; 16]>().prop_map(IpAddr::from).boxed()
        } else {
            any::<[u8; 4]>().prop_map(IpAddr::from).boxed()
        };
        (address, any::<u16>()).prop_map(|(address, port)| IpPort::new(address, port))
    }

    fn entries() -> impl Strategy<Value = Entry> {
        let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
        (any::<bool>(), protocol).prop_flat_map(|(v6, protocol)| {
            let tuple =
                || (ends(v6), ends(v6)).prop_map(|(source, destination)| Tuple { source, destination });
            (tuple(), tuple(), any::<u32>(), any::<u16>(), any::<u32>()).prop_map(
                move |(original, reply, status, zone, id)| Entry {
                    protocol,
                    original,
                    reply,
                    status,
                    zone,
                    id,
                },
            )
        })
    }

    proptest! {
        #[test]
        fn what_the_kernel_tells_is_read(entry in entries()) {
            let told_of = told(|message| testing::write(&entry, message));
            let message = Messages(&told_of).next().unwrap();
            prop_assert_eq!(Entry::parse(message.attributes()), Some(entry));
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), entry in entries(), at in any::<prop::sample::Index>(), value in any::<u8>()) {
            let _ = Entry::parse(Attributes(&bytes));
            let mut damaged = told(|message| testing::write(&entry, message));
            let at = at.index(damaged.len());
            damaged[at] = value;
            for message in Messages(&damaged) {
                let _ = Entry::parse(message.attributes());
            }
        }
    }
}

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

fn written(rule: &[Expression]) -> Vec<u8> {
    let mut writer = Writer::default();
    rule.iter().for_each(|expression| expression.write(&mut writer));
    writer.into_bytes()
}

/// One of each kind.
fn all() -> Vec<Expression> {
    use Expression as E;
    let at = Register;
    vec![
        E::MetaLoad(Meta::Priority, at(0)),
        E::MetaSet(Meta::Mark, at(1)),
        E::CtLoad(Ct::Status, at(0)),
        E::Payload {
            base: Base::Network,
            offset: 16,
            length: 4,
            to: at(2),
        },
        E::Bitwise {
            at: at(0),
            mask: vec![255, 0, 255, 0],
            xor: vec![0; 4],
        },
        E::ToNetworkOrder(at(0)),
        E::Compare {
            at: at(0),
            equal: false,
            value: vec![1, 2, 3, 4],
        },
        E::AtLeast(at(0), vec![0, 0, 0, 9]),
        E::Lookup {
            set: "sources".to_owned(),
            id: 0,
            key: at(0),
            to: None,
        },
        E::Lookup {
            set: "pools".to_owned(),
            id: 0,
            key: at(0),
            to: Some(at(4)),
        },
        E::LookupVerdict {
            set: "classes".to_owned(),
            key: at(0),
        },
        E::Random { to: at(4), below: 7 },
        E::Dynamic {
            op: DynamicOp::Update,
            set: "affinity-60".to_owned(),
            key: at(0),
            value: at(4),
            timeout: 60_000,
        },
        E::FibType(FibAddress::Destination, at(0)),
        E::Counter("misses".to_owned()),
        E::Dnat {
            family: 2,
            address: at(0),
            port: at(1),
        },
        E::Masquerade,
        E::Reject(Refusal::TcpReset),
        E::Reject(Refusal::Icmp(3)),
        E::Immediate(at(0), vec![0, 0, 0, 1]),
        E::Verdict(Verdict::Goto("dispatch".to_owned())),
        E::Verdict(Verdict::Accept),
    ]
}

#[test]
fn a_lookup_looks_as_the_kernel_takes_it() {
    let rule = [Expression::Lookup {
        set: "pools".to_owned(),
        id: 0,
        key: Register(1),
        to: Some(Register(4)),
    }];
    let short = |number: u16| number.to_ne_bytes();
    let nested = 0x8000;
    let expected = [
        // NFTA_LIST_ELEM
        &short(48)[..],
        &short(nested | 1),
        // NFTA_EXPR_NAME
        &short(11),
        &short(1),
        b"lookup\0\0",
        // NFTA_EXPR_DATA
        &short(32),
        &short(nested | 2),
        // NFTA_LOOKUP_SET
        &short(10),
        &short(1),
        b"pools\0\0\0",
        // NFTA_LOOKUP_SREG: NFT_REG32_01
        &short(8),
        &short(2),
        &[0, 0, 0, 9],
        // NFTA_LOOKUP_DREG: NFT_REG_2, which is NFT_REG32_04 by its older number
        &short(8),
        &short(3),
        &[0, 0, 0, 2],
    ]
    .concat();
    assert_eq!(written(&rule), expected);
}

#[test]
fn every_expression_is_told_from_every_other() {
    let all = all();
    for (at, ours) in all.iter().enumerate() {
        for (other, theirs) in all.iter().enumerate() {
            // A lookup without a result asks for less than one with it, of another set.
            let same = is_rule(std::slice::from_ref(ours), &written(std::slice::from_ref(theirs)));
            assert_eq!(same, at == other, "{ours:?} and {theirs:?}");
        }
    }
}

#[test]
fn what_another_kernel_adds_makes_no_difference() {
    let mut writer = Writer::default();
    writer.nested(LIST_ELEM, |element| {
        element.put_text(EXPR_NAME, "nat");
        element.nested(EXPR_DATA, |data| {
            // NFTA_NAT_REG_ADDR_MAX and _PROTO_MAX, which equal the other two when nobody writes them.
            for (kind, value) in [(1, 1), (2, 2), (3, 1), (4, 1), (5, 9), (6, 9), (7, 3)] {
                data.put_u32(kind, value);
            }
        });
    });
    let dnat = Expression::Dnat {
        family: 2,
        address: Register(0),
        port: Register(1),
    };
    assert!(is_rule(&[dnat], writer.bytes()));
}

#[test]
fn anonymous_sets_are_the_same_whatever_the_kernel_called_them() {
    let lookup = |set: &str, id| Expression::Lookup {
        set: set.to_owned(),
        id,
        key: Register(0),
        to: None,
    };
    let ours = [lookup("__set%d", 3)];
    assert!(is_rule(&ours, &written(&[lookup("__set17", 0)])));
    assert!(!is_rule(&ours, &written(&[lookup("sources", 0)])));
    assert!(!is_rule(
        &[lookup("sources", 0)],
        &written(&[lookup("__set17", 0)])
    ));
}

proptest! {
    #[test]
    fn a_rule_is_itself_and_no_other(
        rule in prop::collection::vec(select(all()), 0..6),
        other in prop::collection::vec(select(all()), 0..6),
    ) {
        prop_assert!(is_rule(&rule, &written(&rule)));
        prop_assert_eq!(is_rule(&rule, &written(&other)), rule == other);
    }

    #[test]
    fn a_rule_that_is_cut_off_is_another(rule in prop::collection::vec(select(all()), 1..6), cut in 1..8_usize) {
        let bytes = written(&rule);
        prop_assert!(!is_rule(&rule, &bytes[..bytes.len() - cut]));
    }
}

use proptest::prelude::*;

use super::super::attribute::{HEADER, Message, Messages, NLM_F_ACK};
use super::super::expression::{Expression, Meta, Register, is_rule};
use super::*;

const TABLE: TableName = TableName {
    family: 2,
    name: "pm",
};

/// The messages of a transaction without those that open and close it.
fn changes(transaction: &Transaction) -> Vec<Message<'_>> {
    let messages: Vec<_> = Messages(&transaction.bytes).collect();
    let (first, last) = (messages[0], messages[messages.len() - 1]);
    assert_eq!((first.kind, last.kind), (16, 17));
    for end in [first, last] {
        // The subsystem is in the place of a resource, in network byte order (`nfnetlink_rcv_skb_batch`).
        assert_eq!(end.payload, [0, 0, 0, 10]);
    }
    messages[1..messages.len() - 1].to_vec()
}

fn transaction(write: impl FnOnce(&mut Batch)) -> Transaction {
    let mut batch = Batch::new(TABLE, 100);
    write(&mut batch);
    batch.finish()
}

#[test]
fn a_transaction_looks_as_the_kernel_takes_it() {
    let written = transaction(|batch| batch.add_table());
    let number = |number: u32| number.to_ne_bytes();
    let short = |number: u16| number.to_ne_bytes();
    let expected = [
        // NFNL_MSG_BATCH_BEGIN: length, type, NLM_F_REQUEST, sequence, port, family and version, subsystem.
        &number(20)[..],
        &short(16),
        &short(1),
        &number(100),
        &number(0),
        &[0, 0, 0, 10],
        // NFT_MSG_NEWTABLE with NLM_F_REQUEST, NLM_F_ACK and NLM_F_CREATE.
        &number(36),
        &short(0x0a00),
        &short(0x405),
        &number(101),
        &number(0),
        &[2, 0, 0, 0],
        &short(7),
        &short(1),
        b"pm\0\0",
        &short(8),
        &short(2),
        &[0, 0, 0, 0],
        // NFNL_MSG_BATCH_END.
        &number(20),
        &short(17),
        &short(1),
        &number(102),
        &number(0),
        &[0, 0, 0, 10],
    ]
    .concat();
    assert_eq!(written.bytes, expected);
    assert_eq!((written.sequences, written.objects), ((100, 101), 1));
}

#[test]
fn only_the_last_change_is_acknowledged_and_each_is_known_by_its_number() {
    let written = transaction(|batch| {
        batch.add_table();
        batch.add_chain("services", None);
        batch.add_counter("misses");
        batch.delete_set("affinity-60");
    });
    let flags: Vec<bool> = changes(&written)
        .iter()
        .map(|message| message.flags & NLM_F_ACK != 0)
        .collect();
    assert_eq!(flags, [false, false, false, true]);
    let names: Vec<_> = (100..106).map(|number| written.name_of(number)).collect();
    assert_eq!(
        names,
        [
            "the transaction",
            "the table",
            "chain services",
            "counter misses",
            "removal of set affinity-60",
            "the transaction"
        ]
    );
}

#[test]
fn a_chain_is_read_with_its_hook() {
    let hook = Hook {
        kind: "nat",
        number: 4,
        priority: -101,
    };
    let written = transaction(|batch| {
        batch.add_chain("inner", None);
        batch.add_chain("base", Some(hook));
    });
    let messages = changes(&written);
    let read: Vec<_> = messages
        .iter()
        .map(|message| answer::chain(message).unwrap())
        .collect();
    assert_eq!((read[0].table, read[0].name), ("pm", "inner"));
    assert!(read[0].base.is_none());
    let base = read[1].base.as_ref().unwrap();
    assert!(base.is(&hook));
    let others = [
        Hook {
            kind: "filter",
            ..hook
        },
        Hook { number: 3, ..hook },
        Hook {
            priority: 101,
            ..hook
        },
    ];
    assert!(others.iter().all(|other| !base.is(other)));
    let drops = answer::BaseRead {
        accepts: false,
        ..base.clone()
    };
    assert!(!drops.is(&hook));
}

#[test]
fn a_table_is_read_with_its_flags() {
    let written = transaction(Batch::add_table);
    assert_eq!(answer::table(&changes(&written)[0]), Some(("pm", 0)));
}

#[test]
fn many_elements_are_split_before_a_length_overflows() {
    let key = |number: u32| Element {
        key: number.to_be_bytes().to_vec(),
        ..Element::default()
    };
    let count = 100_000;
    let written = transaction(|batch| batch.add_elements("many", 0, (0..count).map(key)));
    assert_eq!(written.objects, 100_000);
    let mut next = 0;
    for message in changes(&written) {
        assert_eq!(message.attributes().text(2), Some("many"));
        answer::elements(&message, |element| {
            assert_eq!(element, key(next));
            next += 1;
        });
    }
    assert_eq!(next, count);
}

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    // Keys and data are whole registers.
    prop::collection::vec(any::<[u8; 4]>(), 1..=most / 4).prop_map(|words| words.concat())
}

fn chain_name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9-]{0,30}"
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Accept),
        Just(Verdict::Drop),
        Just(Verdict::Return),
        chain_name().prop_map(Verdict::Jump),
        chain_name().prop_map(Verdict::Goto),
    ]
}

fn element() -> impl Strategy<Value = Element> {
    let value = prop_oneof![
        bytes(64).prop_map(Value::Data),
        verdict().prop_map(Value::Verdict)
    ];
    (bytes(64), prop::option::of(bytes(64)), prop::option::of(value))
        .prop_map(|(key, key_end, value)| Element { key, key_end, value })
}

fn set_spec() -> impl Strategy<Value = SetSpec> {
    (
        chain_name(),
        any::<[u32; 3]>(),
        prop::option::of(any::<(u32, u32)>()),
        prop::option::of(any::<u32>()),
        prop::collection::vec(any::<u32>(), 0..5),
        prop::collection::vec(any::<u8>(), 0..40),
    )
        .prop_map(
            |(name, [flags, key_type, key_length], data, size, fields, userdata)| SetSpec {
                name,
                flags,
                key_type,
                key_length,
                data,
                size,
                fields,
                userdata,
                id: 0,
            },
        )
}

proptest! {
    #[test]
    fn elements_are_read_as_they_were_written(elements in prop::collection::vec(element(), 1..40)) {
        let written = transaction(|batch| batch.add_elements("some", 0, elements.clone()));
        let mut read = Vec::new();
        for message in changes(&written) {
            answer::elements(&message, |element| read.push(element));
        }
        prop_assert_eq!(read, elements);
    }

    #[test]
    fn sets_are_read_as_they_were_written(spec in set_spec()) {
        let written = transaction(|batch| batch.add_set(&spec));
        prop_assert_eq!(answer::set(&changes(&written)[0]), Some(spec));
    }

    #[test]
    fn rules_are_read_as_they_were_written(below in 1..u32::MAX, mark in any::<[u8; 4]>(), to in verdict()) {
        let rule = [
            Expression::Random { to: Register(4), below },
            Expression::Immediate(Register(0), mark.to_vec()),
            Expression::MetaSet(Meta::Mark, Register(0)),
            Expression::Verdict(to),
        ];
        let written = transaction(|batch| batch.add_rule("some", &rule, &[1, 2]));
        let messages = changes(&written);
        let read = answer::rule(&messages[0]).unwrap();
        prop_assert_eq!((read.table, read.chain, read.userdata), ("pm", "some", &[1, 2][..]));
        prop_assert!(is_rule(&rule, read.expressions));
        prop_assert!(!is_rule(&rule[1..], read.expressions));
        let other = [rule[0].clone(), Expression::Immediate(Register(1), mark.to_vec()), rule[2].clone(), rule[3].clone()];
        prop_assert!(!is_rule(&other, read.expressions));
    }

    #[test]
    fn any_answer_is_survived(kind in any::<u16>(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let length = u32::try_from(HEADER + bytes.len()).unwrap();
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(&bytes);
        for message in Messages(&message) {
            let _ = (answer::table(&message), answer::chain(&message), answer::set(&message));
            let _ = (answer::counter(&message), answer::generation(&message));
            if let Some(rule) = answer::rule(&message) {
                let _ = is_rule(&[Expression::Masquerade], rule.expressions);
            }
            answer::elements(&message, |_| ());
        }
        let _ = is_rule(&[Expression::Masquerade], &bytes);
    }
}

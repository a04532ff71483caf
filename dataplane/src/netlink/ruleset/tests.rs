use proptest::prelude::*;

use super::super::attribute::{HEADER, aligned};
use super::*;

/// A message with this type, family and attributes, as the kernel lays it out.
fn message(kind: u16, family: u8, port: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut payload = vec![family, 0, 0, 0];
    for (kind, value) in attributes {
        payload.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
        payload.extend(kind.to_ne_bytes());
        payload.extend_from_slice(value);
        payload.resize(aligned(payload.len()), 0);
    }
    let mut message = u32::try_from(HEADER + payload.len())
        .unwrap()
        .to_ne_bytes()
        .to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend([0; 6]);
    message.extend(port.to_ne_bytes());
    message.extend(payload);
    message
}

/// Something of a table changes.
fn change(kind: u16, family: u8, table: &str) -> Vec<u8> {
    let name = [table.as_bytes(), &[0]].concat();
    message((SUBSYSTEM << 8) | kind, family, 1, &[(1, &name), (2, b"chain\0")])
}

/// The end of a transaction.
fn end(port: u32) -> Vec<u8> {
    message(
        (SUBSYSTEM << 8) | NEWGEN,
        0,
        port,
        &[(1, &[0, 0, 0, 9]), (2, &[0, 0, 1, 0]), (3, b"nft\0")],
    )
}

fn tables(tables: &[(u8, &str)]) -> Touched {
    Touched::Tables(
        tables
            .iter()
            .map(|(family, name)| (*family, (*name).to_owned()))
            .collect(),
    )
}

#[test]
fn the_end_of_a_transaction_names_who_sent_it_and_what_it_touched() {
    let datagram = [change(6, 2, "nat"), change(0, 10, "pointsman"), end(42)].concat();
    let expected = Transaction {
        port: 42,
        process: Some(256),
        name: "nft".to_owned(),
        touched: tables(&[(2, "nat"), (10, "pointsman")]),
    };
    assert_eq!(Reader::default().read(&datagram), [expected]);
}

#[test]
fn a_transaction_may_take_several_datagrams_and_begins_where_the_last_one_ended() {
    let mut reader = Reader::default();
    assert_eq!(reader.read(&change(6, 2, "nat")), []);
    assert_eq!(reader.read(&change(12, 2, "filter")), []);
    let datagram = [end(1), change(0, 1, "firewalld"), end(2), end(3)].concat();
    let touched: Vec<_> = reader
        .read(&datagram)
        .into_iter()
        .map(|ended| ended.touched)
        .collect();
    assert_eq!(
        touched,
        [
            tables(&[(2, "nat"), (2, "filter")]),
            tables(&[(1, "firewalld")]),
            tables(&[])
        ]
    );
}

#[test]
fn after_a_loss_the_next_transaction_may_have_touched_anything() {
    let mut reader = Reader::default();
    reader.lost();
    let datagram = [change(6, 2, "nat"), end(1), change(6, 2, "nat"), end(1)].concat();
    let touched: Vec<_> = reader
        .read(&datagram)
        .into_iter()
        .map(|ended| ended.touched)
        .collect();
    assert_eq!(touched, [Touched::Any, tables(&[(2, "nat")])]);
}

#[test]
fn a_table_is_told_by_family_and_name() {
    let touched = tables(&[(2, "pointsman"), (1, "kube-proxy")]);
    assert!(touched.has(Family::V4, "pointsman"));
    assert!(!touched.has(Family::V6, "pointsman"));
    // `inet kube-proxy` is somebody else's.
    assert!(!touched.has(Family::V4, "kube-proxy"));
    assert!(Touched::Any.has(Family::V6, "pointsman"));
}

#[test]
fn our_own_programs_are_told_apart() {
    let transaction = |port, process| Transaction {
        port,
        process: Some(process),
        name: String::new(),
        touched: Touched::Any,
    };
    note_ours(4_000_001);
    assert!(transaction(4_000_001, 7).is_ours() && transaction(7, 4_000_001).is_ours());
    assert!(!transaction(7, 8).is_ours());
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut reader = Reader::default();
        let _ = reader.read(&bytes);
        let mut framed = message((SUBSYSTEM << 8) | NEWGEN, 0, 1, &[]);
        framed.extend(&bytes);
        let length = u32::try_from(framed.len()).unwrap();
        framed[..4].copy_from_slice(&length.to_ne_bytes());
        prop_assert_eq!(reader.read(&framed).len(), 1);
    }

    /// However the kernel cuts what it tells into datagrams, each transaction has exactly its own tables.
    #[test]
    fn the_cut_into_datagrams_makes_no_difference(
        transactions in prop::collection::vec(prop::collection::vec((1_u8..11, "[a-z-]{1,8}"), 0..6), 0..6),
        cuts in prop::collection::vec(any::<bool>(), 42),
    ) {
        let messages = transactions.iter().flat_map(|transaction| {
            let changes = transaction.iter().map(|(family, name)| change(6, *family, name));
            changes.chain([end(1)])
        });
        let mut datagrams = vec![Vec::new()];
        for (message, cut) in messages.zip(&cuts) {
            if *cut {
                datagrams.push(Vec::new());
            }
            datagrams.last_mut().unwrap().extend(message);
        }
        let mut reader = Reader::default();
        let found: Vec<_> = datagrams.iter().flat_map(|datagram| reader.read(datagram)).map(|ended| ended.touched).collect();
        let meant: Vec<_> = transactions
            .into_iter()
            .map(|transaction| Touched::Tables(transaction.into_iter().collect()))
            .collect();
        prop_assert_eq!(found, meant);
    }

    /// What is merged has what any of the parts has, and never becomes larger than a bound.
    #[test]
    fn merging_loses_nothing(parts in prop::collection::vec(prop::collection::btree_set((2_u8..3, "[a-z]{1,2}"), 0..40), 0..8)) {
        let mut all = Touched::default();
        for part in &parts {
            all.merge(Touched::Tables(part.clone()));
        }
        for (_, name) in parts.iter().flatten() {
            prop_assert!(all.has(Family::V4, name));
        }
        if let Touched::Tables(tables) = &all {
            prop_assert!(tables.len() <= TABLES);
        }
    }
}

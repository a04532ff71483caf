//! The chains of classes: how an endpoint is picked. Pure.

use super::entry::{Class, Map};
use super::layout::Chain;
use super::number::ID;
use super::sets::affinity_name;
use super::words::{Header, R0, Rule, counted_drop, dnat, goto, is_forwarded_protocol, load_number, look_up};
use crate::backend::FORGOTTEN;
use crate::model::Family;
use crate::netlink::expression::{DynamicOp, Expression as E, Meta};

/// The chains of a class, those first that others go to.
pub(super) fn class_chains(class: Class, family: Family) -> Vec<Chain> {
    let header = Header::of(family);
    match class {
        Class::Refuse | Class::Drop => Vec::new(),
        Class::Pick(slots) => vec![Chain {
            name: class.chain(),
            hook: None,
            rules: pick(slots, header),
        }],
        Class::Sticky(slots, seconds) => sticky(slots, seconds, header),
    }
}

/// A random slot of the packet's pool, as the key of a lookup.
fn slot(slots: u32) -> Vec<E> {
    let mut rule = load_number(ID, R0);
    rule.push(E::Random {
        to: R0.after(4),
        below: slots,
    });
    rule
}

/// A random endpoint. While a pool shrinks, a packet may have met its old size and find a slot empty: it tries once
/// more, and is then dropped and counted. It never goes on untranslated.
fn pick(slots: u32, header: Header) -> Vec<Rule> {
    let mut choose = is_forwarded_protocol();
    choose.extend(slot(slots));
    choose.extend([look_up(Map::Endpoints, R0, Some(R0)), dnat(header)]);
    vec![choose.clone(), choose, counted_drop()]
}

/// The endpoint that the client had, if it is still there; otherwise a random one, which is remembered.
///
/// What is remembered is a member of the pool, not its address: when an endpoint goes, its member goes, whoever
/// remembers it, and is not given to another one for as long as possible.
fn sticky(slots: u32, seconds: u32, header: Header) -> Vec<Chain> {
    let (hit, fresh) = (
        format!("hit-{slots}-{seconds}"),
        format!("fresh-{slots}-{seconds}"),
    );
    let set = affinity_name(seconds);
    let client = || {
        let mut key = load_number(ID, R0);
        key.push(header.load_source(R0.after(4)));
        key
    };
    let value = R0.after(4).after(header.length);
    let remember = |op, timeout| {
        let mut rule = client();
        rule.push(E::MetaLoad(Meta::Priority, value));
        rule.push(E::Dynamic {
            op,
            set: set.clone(),
            key: R0,
            value,
            timeout,
        });
        rule
    };
    let to_member = || {
        let mut rule = load_number(u32::MAX, R0);
        rule.extend([look_up(Map::Members, R0, Some(R0)), dnat(header)]);
        rule
    };
    let milliseconds = u64::from(seconds) * 1000;
    let mut known = client();
    known.extend([
        E::Lookup {
            set: set.clone(),
            id: 0,
            key: R0,
            to: Some(R0),
        },
        E::MetaSet(Meta::Priority, R0),
        goto(&hit),
    ]);
    let mut choose = slot(slots);
    choose.extend([look_up(Map::Stable, R0, Some(R0)), E::MetaSet(Meta::Priority, R0)]);
    let inner = |name: &str, rules| Chain {
        name: name.to_owned(),
        hook: None,
        rules,
    };
    vec![
        inner(
            &fresh,
            vec![
                choose,
                [
                    is_forwarded_protocol(),
                    remember(DynamicOp::Add, milliseconds),
                    to_member(),
                ]
                .concat(),
                // Nobody more can be remembered, or the member has just gone.
                [
                    vec![E::Counter(FORGOTTEN.to_owned())],
                    is_forwarded_protocol(),
                    to_member(),
                ]
                .concat(),
                counted_drop(),
            ],
        ),
        inner(
            &hit,
            vec![
                // The timeout begins anew with every connection.
                [
                    is_forwarded_protocol(),
                    remember(DynamicOp::Update, milliseconds),
                    to_member(),
                ]
                .concat(),
                // It is gone.
                remember(DynamicOp::Delete, 0),
                vec![goto(&fresh)],
            ],
        ),
        inner(
            &Class::Sticky(slots, seconds).chain(),
            vec![known, vec![goto(&fresh)]],
        ),
    ]
}

//! The rules that differ where IPVS balances what passes: nothing is translated here. Pure.
//!
//! A packet that passes carries [`ADMITTED`] in its number, until it leaves the node: the number is in its priority, which
//! IPVS does not touch. The virtual service that balances it is the one of its address, or one that is found by the packet's
//! mark, for what has several addresses or several pools: node ports, external policy Local, session affinity. The mark is
//! on the first packet of a connection only, and only until it leaves.

use super::entry::Map;
use super::layout::is_from_host;
use super::number::{ADMITTED, BY_ADDRESS, DROP, ID, OWN_SOURCE, REFUSE, mark_of};
use super::words::{
    Header, R0, Rule, back, counted_drop, ending, goto, has_flag, load_number, look_up, number, pods,
    replace_number, set_flag, without_flag,
};
use crate::model::{Family, LocalTraffic};
use crate::netlink::expression::{Expression as E, Meta, Verdict};

/// Those of the packet's address go on; all others by their mark.
pub(super) fn assign() -> Vec<Rule> {
    vec![ending(has_flag(BY_ADDRESS), goto("admit")), vec![goto("by-mark")]]
}

/// On to IPVS.
pub(super) fn admit() -> Vec<Rule> {
    vec![ending(set_flag(ADMITTED), E::Verdict(Verdict::Accept))]
}

/// The pool that the packet's address has in IPVS; there is none for what is dropped.
pub(super) fn by_address() -> Vec<Rule> {
    vec![is_pool(DROP, E::Verdict(Verdict::Drop)), vec![goto("admit")]]
}

/// Marks the packet for its pool. A pool without a mark is none: its frontend refuses or drops.
pub(super) fn by_mark() -> Vec<Rule> {
    let mut marked = load_number(ID, R0);
    marked.extend([
        look_up(Map::Marks, R0, Some(R0)),
        E::MetaSet(Meta::Mark, R0),
        goto("admit"),
    ]);
    vec![
        marked,
        is_pool(REFUSE, goto("refuse")),
        is_pool(DROP, E::Verdict(Verdict::Drop)),
        counted_drop(),
    ]
}

/// External policy Local: what comes from this node keeps its number, with all endpoints, and goes by its mark; the rest
/// gets the local ones.
pub(super) fn external(traffic: &LocalTraffic, header: Header) -> Vec<Rule> {
    let mut rules: Vec<Rule> = pods(traffic, header)
        .into_iter()
        .map(|rule| ending([rule, without_flag(BY_ADDRESS)].concat(), back()))
        .collect();
    let host = [is_from_host(), set_flag(OWN_SOURCE), without_flag(BY_ADDRESS)].concat();
    rules.push(ending(host, back()));
    let by_address = [has_flag(BY_ADDRESS), replace_number(ID, Map::Outside)].concat();
    rules.push(ending(by_address, goto("by-address")));
    rules.push(ending(replace_number(ID, Map::Outside), back()));
    rules.push(counted_drop());
    rules
}

/// Masquerades what is to be, and hairpins, and takes away what a packet carried.
pub(super) fn postrouting(family: Family) -> Vec<Rule> {
    let header = Header::of(family);
    let forget = || vec![E::Immediate(R0, number(0)), E::MetaSet(Meta::Priority, R0)];
    let mut other = load_number(ADMITTED, R0);
    other.extend([
        E::Compare {
            at: R0,
            equal: true,
            value: number(0),
        },
        back(),
    ]);
    vec![
        // Nothing else is any business of ours.
        other,
        vec![
            E::MetaLoad(Meta::Mark, R0),
            E::Bitwise {
                at: R0,
                mask: number(!ID),
                xor: number(0),
            },
            E::Compare {
                at: R0,
                equal: true,
                value: number(mark_of(family, 0)),
            },
            E::Immediate(R0, number(0)),
            E::MetaSet(Meta::Mark, R0),
        ],
        // A pod that reaches itself through its Service must see the node as the source, or it would answer itself
        // directly and not recognise the answer.
        [
            vec![
                header.load_source(R0),
                header.load_destination(R0.after(header.length)),
                look_up(Map::Hairpins, R0, None),
            ],
            forget(),
            vec![E::Masquerade],
        ]
        .concat(),
        [has_flag(OWN_SOURCE), forget(), vec![E::Masquerade]].concat(),
        forget(),
    ]
}

/// Ends so for the packets of one pool.
fn is_pool(pool: u32, end: E) -> Rule {
    let mut rule = load_number(ID, R0);
    rule.push(E::Compare {
        at: R0,
        equal: true,
        value: number(pool),
    });
    ending(rule, end)
}

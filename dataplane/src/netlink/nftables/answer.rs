//! Reading what a dump answers.

use super::super::attribute::{Attributes, Message};
use super::super::expression::{DATA_VALUE, Verdict};
use super::{Element, Hook, SetSpec, Value};

/// `NFT_SET_ELEM_INTERVAL_END`.
const ELEMENT_INTERVAL_END: u32 = 1;

/// The generation in an answer (`NFTA_GEN_ID`).
#[must_use]
pub fn generation(message: &Message<'_>) -> Option<u32> {
    message.attributes().u32(1)
}

/// A table in an answer: its name, and its flags ([`super::TABLE_DORMANT`]).
#[must_use]
pub fn table<'a>(message: &Message<'a>) -> Option<(&'a str, u32)> {
    let attributes = message.attributes();
    Some((attributes.text(1)?, attributes.u32(2).unwrap_or(0)))
}

/// A chain in an answer.
#[derive(Clone, Debug)]
pub struct ChainRead<'a> {
    /// Its table.
    pub table: &'a str,
    /// Its name.
    pub name: &'a str,
    /// For a base chain, where it hangs.
    pub base: Option<BaseRead>,
}

/// Where a base chain in an answer hangs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseRead {
    /// `nat`, `filter` or `route`.
    pub kind: String,
    /// `NF_INET_PRE_ROUTING` (0) to `NF_INET_POST_ROUTING` (4).
    pub number: u32,
    /// Smaller comes first.
    pub priority: i32,
    /// Whether packets that no rule decides about go on.
    pub accepts: bool,
}

impl BaseRead {
    /// Whether a chain that was made for `hook` hangs there.
    #[must_use]
    pub fn is(&self, hook: &Hook) -> bool {
        self.kind == hook.kind
            && (self.number, self.priority, self.accepts) == (hook.number, hook.priority, true)
    }
}

/// A chain in an answer.
#[must_use]
pub fn chain<'a>(message: &Message<'a>) -> Option<ChainRead<'a>> {
    let attributes = message.attributes();
    let hook = attributes.nested(4);
    let base = attributes.get(4).map(|_| BaseRead {
        kind: attributes.text(7).unwrap_or_default().to_owned(),
        number: hook.u32(1).unwrap_or(u32::MAX),
        priority: hook.u32(2).unwrap_or(0).cast_signed(),
        accepts: attributes.u32(5) == Some(1),
    });
    Some(ChainRead {
        table: attributes.text(1)?,
        name: attributes.text(3)?,
        base,
    })
}

/// A rule in an answer.
#[derive(Clone, Copy, Debug)]
pub struct RuleRead<'a> {
    /// Its table.
    pub table: &'a str,
    /// Its chain.
    pub chain: &'a str,
    /// Its expressions, as they came.
    pub expressions: &'a [u8],
    /// What its maker wrote beside it.
    pub userdata: &'a [u8],
}

/// A rule in an answer.
#[must_use]
pub fn rule<'a>(message: &Message<'a>) -> Option<RuleRead<'a>> {
    let attributes = message.attributes();
    Some(RuleRead {
        table: attributes.text(1)?,
        chain: attributes.text(2)?,
        expressions: attributes.get(4).unwrap_or_default(),
        userdata: attributes.get(7).unwrap_or_default(),
    })
}

/// A set in an answer.
#[must_use]
pub fn set(message: &Message<'_>) -> Option<SetSpec> {
    let attributes = message.attributes();
    let description = attributes.nested(9);
    let fields = description
        .nested(2)
        .map(|(_, field)| Attributes(field).u32(1).unwrap_or(0));
    Some(SetSpec {
        name: attributes.text(2)?.to_owned(),
        flags: attributes.u32(3).unwrap_or(0),
        key_type: attributes.u32(4).unwrap_or(0),
        key_length: attributes.u32(5).unwrap_or(0),
        data: attributes.u32(6).zip(attributes.u32(7)),
        size: description.u32(1),
        fields: fields.collect(),
        userdata: attributes.get(13).unwrap_or_default().to_vec(),
        id: 0,
    })
}

/// Calls back for every element in an answer, those apart that only end an interval.
pub fn elements(message: &Message<'_>, mut each: impl FnMut(Element)) {
    let value = |data: &[u8]| Attributes(data).get(DATA_VALUE).map(<[u8]>::to_vec);
    for (_, bytes) in message.attributes().nested(3) {
        let element = Attributes(bytes);
        if element.u32(3).unwrap_or(0) & ELEMENT_INTERVAL_END != 0 {
            continue;
        }
        let Some(key) = element.get(1).and_then(value) else {
            continue;
        };
        let data = element.get(2);
        each(Element {
            key,
            key_end: element.get(10).and_then(value),
            value: data.and_then(|data| {
                value(data)
                    .map(Value::Data)
                    .or_else(|| Verdict::read(data).map(Value::Verdict))
            }),
        });
    }
}

/// A counter in an answer: its table, its name, and its packets.
#[must_use]
pub fn counter<'a>(message: &Message<'a>) -> Option<(&'a str, &'a str, u64)> {
    let attributes = message.attributes();
    let packets = attributes.nested(4).u64(2).unwrap_or(0);
    Some((attributes.text(1)?, attributes.text(2)?, packets))
}

//! Messages of nf_tables (`NFNL_SUBSYS_NFTABLES`): transactions, and what dumps answer.
//!
//! A transaction is one datagram: `NFNL_MSG_BATCH_BEGIN`, the changes, `NFNL_MSG_BATCH_END`. The kernel takes all of it
//! or nothing (`nfnetlink_rcv_batch`).

use super::attribute::{
    Attributes, Begun, Message, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, Writer,
};
use super::expression::{DATA_VALUE, Expression, LIST_ELEM, OBJECT_COUNTER, Verdict, put_data};

/// `NFNL_SUBSYS_NFTABLES`.
pub(super) const SUBSYSTEM: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;

const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const GETRULE: u16 = 7;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const GETSET: u16 = 10;
const DELSET: u16 = 11;
const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;
/// `NFT_MSG_NEWGEN`: tells that a transaction was committed.
pub(super) const NEWGEN: u16 = 15;
const GETGEN: u16 = 16;
const NEWOBJ: u16 = 18;
const GETOBJ: u16 = 19;

/// A set's `NFT_SET_ANONYMOUS`.
pub const SET_ANONYMOUS: u32 = 0x1;
/// `NFT_SET_CONSTANT`.
pub const SET_CONSTANT: u32 = 0x2;
/// `NFT_SET_INTERVAL`.
pub const SET_INTERVAL: u32 = 0x4;
/// `NFT_SET_MAP`.
pub const SET_MAP: u32 = 0x8;
/// `NFT_SET_TIMEOUT`.
pub const SET_TIMEOUT: u32 = 0x10;
/// `NFT_SET_EVAL`: the packet path changes it.
pub const SET_EVAL: u32 = 0x20;
/// `NFT_SET_CONCAT`.
pub const SET_CONCAT: u32 = 0x80;
/// `NFT_SET_ELEM_INTERVAL_END`.
const ELEMENT_INTERVAL_END: u32 = 1;

/// The type that nft has for a verdict as a map's data (`NFT_DATA_VERDICT`).
pub const DATA_TYPE_VERDICT: u32 = 0xffff_ff00;

/// A table of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableName {
    /// `NFPROTO_IPV4` (2) or `NFPROTO_IPV6` (10).
    pub family: u8,
    /// Its name.
    pub name: &'static str,
}

/// Where a base chain hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `nat` or `filter`.
    pub kind: &'static str,
    /// `NF_INET_PRE_ROUTING` (0) to `NF_INET_POST_ROUTING` (4).
    pub number: u32,
    /// Smaller comes first.
    pub priority: i32,
}

/// What a set or map is made as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetSpec {
    /// Its name.
    pub name: String,
    /// `SET_*`.
    pub flags: u32,
    /// nft's number for the key's type: only for its listings.
    pub key_type: u32,
    /// In bytes.
    pub key_length: u32,
    /// The type and length of a map's data.
    pub data: Option<(u32, u32)>,
    /// The most that it may have; none for as many as there are. The kernel makes buckets for so many at once.
    pub size: Option<u32>,
    /// Lengths of the parts of a key, for intervals of several parts.
    pub fields: Vec<u32>,
    /// What nft keeps to list it by (libnftnl's udata).
    pub userdata: Vec<u8>,
    /// For an anonymous set, its number in the transaction.
    pub id: u32,
}

/// An element: a key and what it leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Element {
    /// The key, its parts padded to four bytes.
    pub key: Vec<u8>,
    /// The last key of an interval.
    pub key_end: Option<Vec<u8>>,
    /// A map's value.
    pub value: Option<Value>,
}

/// The value of a map's element.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// Data.
    Data(Vec<u8>),
    /// Where a packet goes.
    Verdict(Verdict),
}

/// A transaction that is being written.
#[derive(Debug)]
pub struct Batch {
    writer: Writer,
    table: TableName,
    sequence: u32,
    begin: u32,
    last: Option<Begun>,
    /// What each message is about, by its number.
    names: Vec<(u32, String)>,
    /// How many objects it changes.
    pub objects: usize,
}

/// A transaction, ready to be sent.
#[derive(Debug)]
pub struct Transaction {
    /// The datagram.
    pub bytes: Vec<u8>,
    /// The number of the message that opens it, and of the last change, which is acknowledged.
    pub sequences: (u32, u32),
    /// How many objects it changes.
    pub objects: usize,
    names: Vec<(u32, String)>,
}

impl Transaction {
    /// What a message is about.
    #[must_use]
    pub fn name_of(&self, sequence: u32) -> &str {
        let at = self.names.partition_point(|(number, _)| *number <= sequence);
        at.checked_sub(1)
            .and_then(|at| self.names.get(at))
            .filter(|(number, _)| *number == sequence)
            .map_or("the transaction", |(_, name)| name)
    }
}

impl Batch {
    /// A transaction that changes a table. Its messages are numbered from `sequence`.
    #[must_use]
    pub fn new(table: TableName, sequence: u32) -> Self {
        let mut writer = Writer::default();
        let begin = writer.message(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, sequence, 0, SUBSYSTEM);
        writer.end_message(begin);
        Self {
            writer,
            table,
            sequence,
            begin: sequence,
            last: None,
            names: Vec::new(),
            objects: 0,
        }
    }

    /// Whether nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.last.is_none()
    }

    /// Its size so far, in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.writer.len()
    }

    fn begin(&mut self, kind: u16, flags: u16, name: impl FnOnce() -> String) -> Begun {
        self.sequence = self.sequence.wrapping_add(1);
        self.names.push((self.sequence, name()));
        let begun = self.writer.message(
            (SUBSYSTEM << 8) | kind,
            NLM_F_REQUEST | flags,
            self.sequence,
            self.table.family,
            0,
        );
        self.last = Some(begun);
        self.objects += 1;
        // The table is attribute 1 of every message.
        self.writer.put_text(1, self.table.name);
        begun
    }

    /// Makes the table, if it is not there.
    pub fn add_table(&mut self) {
        let begun = self.begin(NEWTABLE, NLM_F_CREATE, || "the table".to_owned());
        self.writer.put_u32(2, 0);
        self.writer.end_message(begun);
    }

    /// Removes the table with all that is in it.
    pub fn delete_table(&mut self) {
        let begun = self.begin(DELTABLE, 0, || "removal of the table".to_owned());
        self.writer.end_message(begun);
    }

    /// Makes a chain, if it is not there.
    pub fn add_chain(&mut self, name: &str, hook: Option<Hook>) {
        let begun = self.begin(NEWCHAIN, NLM_F_CREATE, || format!("chain {name}"));
        self.writer.put_text(3, name);
        if let Some(hook) = hook {
            self.writer.nested(4, |place| {
                place.put_u32(1, hook.number);
                place.put(2, &hook.priority.to_be_bytes());
            });
            self.writer.put_u32(5, 1);
            self.writer.put_text(7, hook.kind);
        }
        self.writer.end_message(begun);
    }

    /// Removes all rules of a chain.
    pub fn flush_chain(&mut self, name: &str) {
        let begun = self.begin(DELRULE, 0, || format!("rules of chain {name}"));
        self.writer.put_text(2, name);
        self.writer.end_message(begun);
    }

    /// Removes a chain that has no rules.
    pub fn delete_chain(&mut self, name: &str) {
        let begun = self.begin(DELCHAIN, 0, || format!("removal of chain {name}"));
        self.writer.put_text(3, name);
        self.writer.end_message(begun);
    }

    /// Puts a rule behind the others of a chain.
    pub fn add_rule(&mut self, chain: &str, rule: &[Expression], userdata: &[u8]) {
        let begun = self.begin(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, || {
            format!("a rule of chain {chain}")
        });
        self.writer.put_text(2, chain);
        self.writer.nested(4, |list| {
            rule.iter().for_each(|expression| expression.write(list));
        });
        if !userdata.is_empty() {
            self.writer.put(7, userdata);
        }
        self.writer.end_message(begun);
    }

    /// Makes a named counter, if it is not there.
    pub fn add_counter(&mut self, name: &str) {
        let begun = self.begin(NEWOBJ, NLM_F_CREATE, || format!("counter {name}"));
        self.writer.put_text(2, name);
        self.writer.put_u32(3, OBJECT_COUNTER);
        self.writer.nested(4, |_| ());
        self.writer.end_message(begun);
    }

    /// Makes a set or map, if it is not there.
    pub fn add_set(&mut self, set: &SetSpec) {
        let begun = self.begin(NEWSET, NLM_F_CREATE, || format!("set {}", set.name));
        let writer = &mut self.writer;
        writer.put_text(2, &set.name);
        writer.put_u32(3, set.flags);
        writer.put_u32(4, set.key_type);
        writer.put_u32(5, set.key_length);
        if let Some((kind, length)) = set.data {
            writer.put_u32(6, kind);
            writer.put_u32(7, length);
        }
        if set.size.is_some() || !set.fields.is_empty() {
            writer.nested(9, |description| {
                if let Some(size) = set.size {
                    description.put_u32(1, size);
                }
                if !set.fields.is_empty() {
                    description.nested(2, |concat| {
                        for &length in &set.fields {
                            concat.nested(LIST_ELEM, |field| field.put_u32(1, length));
                        }
                    });
                }
            });
        }
        writer.put_u32(10, set.id);
        if !set.userdata.is_empty() {
            writer.put(13, &set.userdata);
        }
        writer.end_message(begun);
    }

    /// Removes a set.
    pub fn delete_set(&mut self, name: &str) {
        let begun = self.begin(DELSET, 0, || format!("removal of set {name}"));
        self.writer.put_text(2, name);
        self.writer.end_message(begun);
    }

    /// Adds elements; `id` is that of an anonymous set, otherwise 0.
    pub fn add_elements(&mut self, set: &str, id: u32, elements: impl IntoIterator<Item = Element>) {
        self.elements(NEWSETELEM, NLM_F_CREATE, set, id, elements);
    }

    /// Removes elements.
    pub fn delete_elements(&mut self, set: &str, elements: impl IntoIterator<Item = Element>) {
        self.elements(DELSETELEM, 0, set, 0, elements);
    }

    fn elements(
        &mut self,
        kind: u16,
        flags: u16,
        set: &str,
        id: u32,
        elements: impl IntoIterator<Item = Element>,
    ) {
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            let begun = self.begin(kind, flags, || format!("elements of {set}"));
            self.objects -= 1;
            self.writer.put_text(2, set);
            if id != 0 {
                self.writer.put_u32(4, id);
            }
            let list = self.writer.nest(3);
            while self.writer.has_room(list) {
                let Some(element) = elements.next() else { break };
                element.write(&mut self.writer);
                self.objects += 1;
            }
            self.writer.end(list);
            self.writer.end_message(begun);
        }
    }

    /// Closes the transaction.
    #[must_use]
    pub fn finish(mut self) -> Transaction {
        if let Some(last) = self.last {
            self.writer.add_flags(last, NLM_F_ACK);
        }
        let end = self.writer.message(
            NFNL_MSG_BATCH_END,
            NLM_F_REQUEST,
            self.sequence.wrapping_add(1),
            0,
            SUBSYSTEM,
        );
        self.writer.end_message(end);
        Transaction {
            bytes: self.writer.into_bytes(),
            sequences: (self.begin, self.sequence),
            objects: self.objects,
            names: self.names,
        }
    }
}

impl Element {
    fn write(&self, writer: &mut Writer) {
        writer.nested(LIST_ELEM, |element| {
            put_data(element, 1, &self.key);
            if let Some(end) = &self.key_end {
                put_data(element, 10, end);
            }
            match &self.value {
                Some(Value::Data(bytes)) => put_data(element, 2, bytes),
                Some(Value::Verdict(verdict)) => element.nested(2, |data| verdict.write(data)),
                None => (),
            }
        });
    }
}

/// What a dump can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing<'a> {
    /// All tables of the family.
    Tables,
    /// All chains of the table.
    Chains,
    /// All rules of the table.
    Rules,
    /// All sets of the table.
    Sets,
    /// The elements of a set.
    Elements(&'a str),
    /// The counters of the table.
    Counters,
}

/// The request for a dump.
#[must_use]
pub fn request(table: TableName, listing: Listing<'_>, sequence: u32) -> Vec<u8> {
    let mut writer = Writer::default();
    let kind = match listing {
        Listing::Tables => GETTABLE,
        Listing::Chains => GETCHAIN,
        Listing::Rules => GETRULE,
        Listing::Sets => GETSET,
        Listing::Elements(_) => GETSETELEM,
        Listing::Counters => GETOBJ,
    };
    let flags = NLM_F_REQUEST | NLM_F_DUMP;
    let begun = writer.message((SUBSYSTEM << 8) | kind, flags, sequence, table.family, 0);
    match listing {
        Listing::Tables => (),
        // nf_tables dumps chains of all tables, whatever is asked for.
        Listing::Chains | Listing::Rules | Listing::Sets | Listing::Counters => {
            writer.put_text(1, table.name)
        }
        Listing::Elements(set) => {
            writer.put_text(1, table.name);
            writer.put_text(2, set);
        }
    }
    writer.end_message(begun);
    writer.into_bytes()
}

/// The request for the ruleset's generation.
#[must_use]
pub fn generation_request(sequence: u32) -> Vec<u8> {
    let mut writer = Writer::default();
    let begun = writer.message((SUBSYSTEM << 8) | GETGEN, NLM_F_REQUEST, sequence, 0, 0);
    writer.end_message(begun);
    writer.into_bytes()
}

/// The generation in an answer (`NFTA_GEN_ID`).
#[must_use]
pub fn generation(message: &Message<'_>) -> Option<u32> {
    message.attributes().u32(1)
}

/// The name of a table in an answer.
#[must_use]
pub fn table<'a>(message: &Message<'a>) -> Option<&'a str> {
    message.attributes().text(1)
}

/// A chain in an answer: its table, its name, and whether it hangs at a hook.
#[must_use]
pub fn chain<'a>(message: &Message<'a>) -> Option<(&'a str, &'a str, bool)> {
    let attributes = message.attributes();
    Some((
        attributes.text(1)?,
        attributes.text(3)?,
        attributes.get(4).is_some(),
    ))
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
        let verdict = |data: &[u8]| {
            let verdict = Attributes(data).nested(2);
            let chain = || verdict.text(2).map(str::to_owned);
            // NFTA_VERDICT_CODE is a signed number.
            Some(match verdict.u32(1)?.cast_signed() {
                0 => Verdict::Drop,
                1 => Verdict::Accept,
                -3 => Verdict::Jump(chain()?),
                -4 => Verdict::Goto(chain()?),
                -5 => Verdict::Return,
                _ => return None,
            })
        };
        let data = element.get(2);
        each(Element {
            key,
            key_end: element.get(10).and_then(value),
            value: data.and_then(|data| {
                value(data)
                    .map(Value::Data)
                    .or_else(|| verdict(data).map(Value::Verdict))
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

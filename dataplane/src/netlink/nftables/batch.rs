//! Writing a transaction.

use super::super::attribute::{Begun, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, Writer};
use super::super::expression::{Expression, LIST_ELEM, OBJECT_COUNTER, put_data};
use super::{
    DELCHAIN, DELRULE, DELSET, DELSETELEM, DELTABLE, Element, Hook, NEWCHAIN, NEWOBJ, NEWRULE, NEWSET,
    NEWSETELEM, NEWTABLE, SUBSYSTEM, SetSpec, TableName, Value,
};

const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;

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
        let end = self.writer.message(
            NFNL_MSG_BATCH_END,
            NLM_F_REQUEST,
            self.sequence.wrapping_add(1),
            0,
            SUBSYSTEM,
        );
        self.writer.end_message(end);
        self.finish_for_check()
    }

    /// Leaves the transaction without an end: the kernel checks all of it and takes none, as for `nft --check`
    /// (`NFNL_ABORT_VALIDATE`). Nobody is told, and the ruleset's generation stays.
    #[must_use]
    pub fn finish_for_check(mut self) -> Transaction {
        if let Some(last) = self.last {
            self.writer.add_flags(last, NLM_F_ACK);
        }
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

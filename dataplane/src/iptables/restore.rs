//! What is sent to iptables-restore.
//!
//! Each table of the input is one transaction of the kernel; tables become effective one after the other. So their
//! order decides what a packet can see in between: while a Service has its last endpoint taken away, it is refused
//! before it stops being translated, and the other way round when it gets its first. A rule that refuses is harmless
//! beside one that translates: a translated packet no longer has the address that is refused.

use std::{fmt::Write as _, io};

use super::names::{Chain, Table};
use super::render::Rules;
use crate::backend::{Error, Report};
use crate::model::LocalTraffic;

/// When the filter table is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FilterOrder {
    /// Only refusals are added.
    First,
    /// Only refusals are taken away.
    Last,
    /// Both: what is new is added first and what is old is removed last.
    FirstAndLast,
}

/// What one table's transaction does.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Declarations of chains that are not there yet.
    new: String,
    /// Declarations of chains that are there, which empties them.
    known: String,
    /// Rules of both.
    rules: String,
    /// Removal of rules of built-in chains.
    unhook: String,
    /// Insertion of rules into built-in chains.
    hook: String,
    /// Removal of chains.
    remove: String,
    /// How many chains and rules are written or removed.
    objects: usize,
}

impl Changes {
    /// Writes a chain with these rules in place of what it had.
    pub(super) fn write(&mut self, chain: Chain, is_there: bool, rules: &Rules) {
        let name = chain.to_string();
        let declarations = if is_there { &mut self.known } else { &mut self.new };
        line(declarations, format_args!(":{name} - [0:0]"));
        for rule in rules.lines() {
            line(&mut self.rules, format_args!("-A {name} {rule}"));
        }
        self.objects += rules.count() + 1;
    }

    /// Removes a chain that nothing refers to after this transaction.
    pub(super) fn remove(&mut self, name: &str) {
        // Emptied first: it may refer to another chain that is removed.
        line(&mut self.known, format_args!(":{name} - [0:0]"));
        line(&mut self.remove, format_args!("-X {name}"));
        self.objects += 1;
    }

    /// Takes a rule, as iptables-save prints it, out of a built-in chain.
    pub(super) fn unhook(&mut self, from: &str, rule: &str) {
        line(&mut self.unhook, format_args!("-D {from} {rule}"));
        self.objects += 1;
    }

    /// Puts a rule in front of a built-in chain.
    pub(super) fn hook(&mut self, from: &str, rule: &str) {
        line(&mut self.hook, format_args!("-I {from} {rule}"));
        self.objects += 1;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.objects == 0
    }

    /// The transaction that does everything.
    fn settle(&self, table: Table, input: &mut String) {
        self.section(
            table,
            &[
                &self.new,
                &self.known,
                &self.unhook,
                &self.rules,
                &self.hook,
                &self.remove,
            ],
            input,
        );
    }

    /// The transaction that only adds: chains have their old rules and the new ones behind them, until
    /// [`Changes::settle`].
    fn grow(&self, table: Table, input: &mut String) {
        self.section(table, &[&self.new, &self.rules], input);
    }

    fn section(&self, table: Table, parts: &[&str], input: &mut String) {
        if parts.iter().any(|part| !part.is_empty()) {
            line(input, format_args!("*{}", table.as_str()));
            parts.iter().for_each(|part| input.push_str(part));
            input.push_str("COMMIT\n");
        }
    }
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = text.write_fmt(content);
    text.push('\n');
}

/// What a change does to both tables.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) nat: Changes,
    pub(super) filter: Changes,
}

impl Plan {
    pub(super) fn of(&mut self, table: Table) -> &mut Changes {
        match table {
            Table::Nat => &mut self.nat,
            Table::Filter => &mut self.filter,
        }
    }

    /// How the filter table must be written when nothing is known of what is changed in it.
    pub(super) fn careful_order(&self) -> FilterOrder {
        if self.filter.known.is_empty() {
            FilterOrder::First
        } else {
            FilterOrder::FirstAndLast
        }
    }

    /// What it costs, and the input for iptables-restore; nothing when there is nothing to do.
    ///
    /// # Errors
    /// When the input has a character that no rule of ours has. Names are made harmless where rules are
    /// rendered; this is the second line of defence against a name that ends a rule and begins another.
    pub(super) fn input(&self, order: FilterOrder) -> Result<Option<(Report, String)>, Error> {
        let mut input = String::new();
        if self.nat.is_empty() {
            self.filter.settle(Table::Filter, &mut input);
        } else {
            match order {
                FilterOrder::First => self.filter.settle(Table::Filter, &mut input),
                FilterOrder::FirstAndLast => self.filter.grow(Table::Filter, &mut input),
                FilterOrder::Last => (),
            }
            self.nat.settle(Table::Nat, &mut input);
            if order != FilterOrder::First {
                self.filter.settle(Table::Filter, &mut input);
            }
        }
        if input.is_empty() {
            return Ok(None);
        }
        let strange = |byte: &u8| !matches!(byte, b' '..=b'~' | b'\n');
        if let Some(byte) = input.bytes().find(|byte| strange(byte)) {
            return Err(invalid(format!(
                "the rules would have the character 0x{byte:02x}"
            )));
        }
        let report = Report {
            objects: self.nat.objects + self.filter.objects,
            bytes: input.len(),
        };
        Ok(Some((report, input)))
    }
}

/// Checks an interface name before it goes into a rule: `dev_valid_name` of the kernel lets quotes and `!` through.
///
/// # Errors
/// When it has a character that a rule cannot have, or is none.
pub(super) fn check_interface(traffic: &LocalTraffic) -> Result<(), Error> {
    let (LocalTraffic::Interface(name) | LocalTraffic::InterfacePrefix(name)) = traffic else {
        return Ok(());
    };
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.@".contains(letter);
    // IFNAMSIZ is 16 with the zero at the end.
    if name.is_empty() || name.len() > 15 || name.starts_with('-') || !name.chars().all(plain) {
        return Err(invalid(format!(
            "detectLocal names the interface {name:?}, which cannot be one: \
             a name has 1 to 15 letters, digits, '-', '_', '.' or '@'"
        )));
    }
    Ok(())
}

fn invalid(what: String) -> Error {
    Error::Io {
        what: "rules for iptables-restore were refused before they were sent".to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidInput, what),
    }
}

#[cfg(test)]
mod tests;

//! Transactions: in which order what is sent.

use std::collections::BTreeSet;

use super::entry::{Class, Entry, Map};
use super::failed;
use super::layout::{Chain, Layout, deputy_chains};
use super::picks::class_chains;
use super::pool::Stages;
use super::sets::{affinity_seconds, affinity_set, set};
use super::snapshot::Snapshot;
use super::state::{Change, State};
use super::words::PROTOCOLS;
use crate::backend::{Error, Report};
use crate::netlink::expression::Expression;
use crate::netlink::nftables::{Batch, Element, Hook, SET_ANONYMOUS, SET_CONSTANT, SetSpec, TableName};
use crate::netlink::socket::Socket;

/// Elements of one transaction: many, because each costs a round trip, and not all, because the kernel keeps a
/// transaction in memory.
const CHUNK: usize = 8_192;

/// What is to be written of chains and sets, beside a change.
#[derive(Debug, Default)]
pub(super) struct Unsent {
    /// Chains whose rules differ.
    pub(super) chains: Vec<Chain>,
    /// Those of them that are not there.
    missing: Vec<(String, Option<Hook>)>,
    missing_counters: Vec<&'static str>,
    /// Affinity maps, by timeout, that are not there although a class uses them.
    missing_sets: Vec<u32>,
    /// Chains that are none of ours.
    strays: Vec<String>,
    /// Affinity maps that no class uses.
    stray_sets: Vec<String>,
    /// All chains that are there.
    there: BTreeSet<String>,
}

impl Unsent {
    /// What of a table that was read will not be as it should after a change. `wanted` are the chains that are there
    /// whatever Services there are.
    pub(super) fn repair(snapshot: &Snapshot, wanted: Vec<Chain>, state: &State, change: &Change) -> Self {
        let family = state.layout.family;
        let is_new = |class: &&Class| change.new_classes.iter().any(|(new, _)| new == *class);
        let mut chains = wanted;
        let classes = state.classes.keys().filter(|class| !is_new(class));
        chains.extend(classes.flat_map(|class| class_chains(*class, family)));
        // Those of new classes are written, and those of old ones removed, with the change.
        let others = change.new_classes.iter().chain(&change.old_classes);
        let others: Vec<Chain> = others
            .flat_map(|(class, _)| class_chains(*class, family))
            .collect();
        let known: BTreeSet<&str> = chains
            .iter()
            .chain(&others)
            .map(|chain| chain.name.as_str())
            .collect();
        let strays = snapshot
            .chains
            .keys()
            .filter(|name| !known.contains(name.as_str()));
        let strays = strays.cloned().collect();

        let used: BTreeSet<u32> = state.classes.keys().filter_map(|class| class.seconds()).collect();
        let found = snapshot.sets.keys().filter_map(|name| affinity_seconds(name));
        let found: BTreeSet<u32> = found.collect();
        // Those of classes that go, go with them.
        let unused = found
            .difference(&used)
            .filter(|seconds| !change.old_timeouts.contains(seconds));
        let stray_sets = unused
            .map(|seconds| affinity_set(*seconds, family).name)
            .collect();

        chains.retain(|chain| !snapshot.has(chain));
        let missing = chains
            .iter()
            .filter(|chain| !snapshot.chains.contains_key(&chain.name));
        let is_missing = |name: &&'static str| !snapshot.counters.iter().any(|known| known == name);
        Self {
            missing: missing.map(|chain| (chain.name.clone(), chain.hook)).collect(),
            chains,
            missing_counters: state
                .layout
                .counters()
                .iter()
                .copied()
                .filter(is_missing)
                .collect(),
            missing_sets: used.difference(&found).copied().collect(),
            strays,
            stray_sets,
            there: snapshot.chains.keys().cloned().collect(),
        }
    }
}

/// Sends transactions and counts them.
pub(super) struct Writing<'a> {
    socket: &'a mut Socket,
    pub(super) layout: Layout,
    table: TableName,
    /// What the ruleset's generation is if nobody else has changed it.
    generation: Option<u32>,
    report: Report,
}

impl<'a> Writing<'a> {
    pub(super) fn new(socket: &'a mut Socket, layout: Layout, generation: Option<u32>) -> Self {
        Self {
            socket,
            layout,
            table: layout.table(),
            generation,
            report: Report::default(),
        }
    }

    /// What it cost, and the ruleset's generation; none if somebody else changed it, or it cannot be told: the kernel
    /// counts no transaction that changes nothing.
    pub(super) fn done(self) -> Result<(Report, Option<u32>), Error> {
        let generation = self.socket.generation().map_err(failed)?;
        Ok((
            self.report,
            self.generation.filter(|expected| *expected == generation),
        ))
    }

    fn batch(&mut self) -> Batch {
        self.socket.batch(self.table)
    }

    fn commit(&mut self, batch: Batch) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let transaction = batch.finish();
        self.socket.commit(&transaction).map_err(failed)?;
        self.report.objects += transaction.objects;
        self.report.bytes += transaction.bytes.len();
        // The kernel leaves 0 out (`nf_tables_commit`).
        self.generation = self
            .generation
            .map(|generation| generation.checked_add(1).unwrap_or(1));
        Ok(())
    }

    /// Makes the table with all that is in it: large parts one after the other, what leads to others last.
    pub(super) fn make(&mut self, wanted: &[Chain], state: &State, change: &Change) -> Result<(), Error> {
        let mut batch = self.batch();
        batch.add_table();
        put_layout(&mut batch, wanted, self.layout, &mut 0);
        self.commit(batch)?;
        self.send(change, Unsent::default())?;
        // Nothing gets anywhere before the second round.
        for is_first in [false, true] {
            let mut entries = state
                .of_services()
                .filter(|entry| entry.map().is_first() == is_first);
            loop {
                let chunk: Vec<_> = entries.by_ref().take(CHUNK).collect();
                if chunk.is_empty() {
                    break;
                }
                let mut batch = self.batch();
                put_elements(&mut batch, &chunk, true);
                self.commit(batch)?;
            }
        }
        Ok(())
    }

    /// Makes a table in place of one that is there, without a packet that meets neither. Were one removed in the
    /// transaction that makes the other, a packet between their two chains at a hook would find both empty. So a third
    /// one stands in: it is asked after the old and after the new one, and is whole while they are not.
    pub(super) fn replace(
        &mut self,
        wanted: &[Chain],
        state: &State,
        change: &Change,
        snapshot: &Snapshot,
    ) -> Result<(), Error> {
        let old = snapshot.base_chains();
        if old.is_empty() {
            // Nothing gets to it: an agent was stopped at the end of this, and the deputy that it left is whole.
            self.remove_table(&old)?;
            self.make(wanted, state, change)?;
            return match snapshot.has_deputy {
                true => self.remove_deputy(&[]),
                false => Ok(()),
            };
        }
        if snapshot.has_deputy {
            self.remove_deputy(&[])?;
        }
        let deputies = deputy_chains(self.layout, wanted.to_vec());
        self.table = self.layout.deputy();
        self.make(&deputies, state, change)?;
        self.table = self.layout.table();
        self.remove_table(&old)?;
        self.make(wanted, state, change)?;
        let hung = deputies.into_iter().filter(|chain| chain.hook.is_some());
        self.remove_deputy(&hung.map(|chain| chain.name).collect::<Vec<_>>())
    }

    /// Removes the table that stands in.
    pub(super) fn remove_deputy(&mut self, hung: &[String]) -> Result<(), Error> {
        self.table = self.layout.deputy();
        let removed = self.remove_table(hung);
        self.table = self.layout.table();
        removed
    }

    /// Removes a table, before that its chains at hooks: a packet that is on its way through goes on as if nothing were.
    fn remove_table(&mut self, hung: &[String]) -> Result<(), Error> {
        let mut batch = self.batch();
        hung.iter().for_each(|name| batch.flush_chain(name));
        hung.iter().for_each(|name| batch.delete_chain(name));
        self.commit(batch)?;
        let mut batch = self.batch();
        batch.delete_table();
        self.commit(batch)
    }

    /// Sends a change: what nothing leads to yet, then the switch, then what nothing leads to any more.
    pub(super) fn send(&mut self, change: &Change, unsent: Unsent) -> Result<(), Error> {
        let Stages {
            all: _,
            grow,
            switch_out,
            switch_in,
            shrink,
        } = &change.stages;
        let mut anonymous = 0;
        let mut batch = self.batch();
        unsent
            .missing_counters
            .iter()
            .for_each(|name| batch.add_counter(name));
        for seconds in &unsent.missing_sets {
            batch.add_set(&affinity_set(*seconds, self.layout.family));
        }
        for (name, hook) in &unsent.missing {
            batch.add_chain(name, *hook);
        }
        self.add_classes(&mut batch, change, &unsent.there, &mut anonymous);
        let mut chunks = grow.chunks(CHUNK);
        put_elements(&mut batch, chunks.next().unwrap_or_default(), true);
        self.commit(batch)?;
        for chunk in chunks {
            let mut batch = self.batch();
            put_elements(&mut batch, chunk, true);
            self.commit(batch)?;
        }

        let mut batch = self.batch();
        for chain in &unsent.chains {
            batch.flush_chain(&chain.name);
            put_rules(&mut batch, chain, &mut anonymous);
        }
        put_elements(&mut batch, switch_out, false);
        put_elements(&mut batch, switch_in, true);
        self.commit(batch)?;

        for chunk in shrink.chunks(CHUNK) {
            let mut batch = self.batch();
            put_elements(&mut batch, chunk, false);
            self.commit(batch)?;
        }
        let mut batch = self.batch();
        self.remove_classes(&mut batch, change);
        unsent.strays.iter().for_each(|chain| batch.flush_chain(chain));
        unsent.strays.iter().for_each(|chain| batch.delete_chain(chain));
        unsent.stray_sets.iter().for_each(|name| batch.delete_set(name));
        self.commit(batch)
    }

    /// Makes classes with their chains; those of a name that is there already are emptied first.
    fn add_classes(&self, batch: &mut Batch, change: &Change, there: &BTreeSet<String>, anonymous: &mut u32) {
        for (class, number) in &change.new_classes {
            if let Some(seconds) = class.seconds() {
                // Adding one that is there changes nothing.
                batch.add_set(&affinity_set(seconds, self.layout.family));
            }
            for chain in class_chains(*class, self.layout.family) {
                if there.contains(&chain.name) {
                    batch.flush_chain(&chain.name);
                }
                put_chain(batch, &chain, anonymous);
            }
            put_elements(batch, &[Entry::Class(*number, *class)], true);
        }
    }

    fn remove_classes(&self, batch: &mut Batch, change: &Change) {
        for (class, number) in &change.old_classes {
            put_elements(batch, &[Entry::Class(*number, *class)], false);
            let chains = class_chains(*class, self.layout.family);
            chains.iter().for_each(|chain| batch.flush_chain(&chain.name));
            chains.iter().for_each(|chain| batch.delete_chain(&chain.name));
        }
        for seconds in &change.old_timeouts {
            batch.delete_set(&affinity_set(*seconds, self.layout.family).name);
        }
    }
}

/// What a table has whatever Services there are.
pub(super) fn put_layout(batch: &mut Batch, wanted: &[Chain], layout: Layout, anonymous: &mut u32) {
    layout.counters().iter().for_each(|name| batch.add_counter(name));
    layout
        .maps()
        .for_each(|map| batch.add_set(&set(map, layout.family)));
    wanted.iter().for_each(|chain| put_chain(batch, chain, anonymous));
    put_elements(batch, State::fixed(layout.purpose), true);
}

/// A chain with its rules.
pub(super) fn put_chain(batch: &mut Batch, chain: &Chain, anonymous: &mut u32) {
    batch.add_chain(&chain.name, chain.hook);
    put_rules(batch, chain, anonymous);
}

fn put_rules(batch: &mut Batch, chain: &Chain, anonymous: &mut u32) {
    for rule in &chain.rules {
        let mut rule = rule.clone();
        for expression in &mut rule {
            if let Expression::Lookup { set, id, .. } = expression
                && set == PROTOCOLS
            {
                *anonymous += 1;
                *id = *anonymous;
                put_protocols(batch, *anonymous);
            }
        }
        batch.add_rule(&chain.name, &rule, &[]);
    }
}

/// The set of a rule's protocols.
fn put_protocols(batch: &mut Batch, id: u32) {
    let protocols = [6_u8, 17, 132];
    batch.add_set(&SetSpec {
        name: PROTOCOLS.to_owned(),
        flags: SET_ANONYMOUS | SET_CONSTANT,
        // nft's type for a protocol.
        key_type: 12,
        key_length: 1,
        data: None,
        size: u32::try_from(protocols.len()).ok(),
        fields: Vec::new(),
        userdata: Vec::new(),
        id,
    });
    let elements = protocols.map(|protocol| Element {
        key: vec![protocol],
        ..Element::default()
    });
    batch.add_elements(PROTOCOLS, id, elements);
}

/// Adds or removes elements, those first that others lead to.
pub(super) fn put_elements(batch: &mut Batch, entries: &[Entry], add: bool) {
    for map in Map::ALL {
        let of_map = entries.iter().filter(|entry| entry.map() == map);
        if add {
            batch.add_elements(map.name(), 0, of_map.map(Entry::element));
        } else {
            batch.delete_elements(map.name(), of_map.map(Entry::key));
        }
    }
}

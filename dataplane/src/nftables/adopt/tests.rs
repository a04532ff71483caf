//! A kernel that has nothing but maps: transactions on it, whom it serves after each of them, and what an agent makes of
//! what it finds there.

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::entry::Map;
use super::super::layout::Layout;
use super::super::number::{BY_ADDRESS, MASQUERADE, MASQUERADE_NON_LOCAL, REFUSE};
use super::*;
use crate::model::testing::history::{Objects, Step, step};
use crate::model::{Diff, Family, IpPort};

#[derive(Clone, Debug, Default)]
struct Kernel(HashMap<(Map, Vec<u8>), Entry>);

impl Kernel {
    fn place(entry: &Entry) -> (Map, Vec<u8>) {
        (entry.map(), entry.key().key)
    }

    fn add(&mut self, entry: Entry) {
        let before = self.0.insert(Self::place(&entry), entry);
        assert!(
            before.is_none_or(|before| before == entry),
            "{entry:?} would meet {before:?}"
        );
    }

    fn remove(&mut self, entry: &Entry) {
        let gone = self.0.remove(&Self::place(entry));
        assert!(gone.is_some(), "{entry:?} is not there");
    }

    fn get(&self, like: Entry) -> Option<Entry> {
        self.0.get(&Self::place(&like)).copied()
    }

    fn has_just(&self, state: &State) -> bool {
        let wanted: HashSet<Entry> = state.entries().collect();
        wanted == self.0.values().copied().collect()
    }

    /// The transactions of a change in their order, no more than so many; what is looked at after each.
    fn commit(&mut self, change: &Change, limit: usize, mut look: impl FnMut(&Self)) {
        let (first, rest) = change.stages.grow.split_at(change.stages.grow.len() / 2);
        let class = |(class, number): &(Class, u16)| Entry::Class(*number, *class);
        let first: Vec<Entry> = change
            .new_classes
            .iter()
            .map(class)
            .chain(first.iter().copied())
            .collect();
        let old: Vec<Entry> = change.old_classes.iter().map(class).collect();
        let transactions: [(&[Entry], &[Entry]); 5] = [
            (&[], &first),
            (&[], rest),
            (&change.stages.switch_out, &change.stages.switch_in),
            (&change.stages.shrink, &[]),
            (&old, &[]),
        ];
        for (gone, new) in transactions.into_iter().take(limit) {
            gone.iter().for_each(|entry| self.remove(entry));
            new.iter().for_each(|entry| self.add(*entry));
            look(self);
        }
    }

    /// Every frontend leads to endpoints, whatever a packet draws.
    fn serves(&self, purpose: Purpose) {
        for entry in self.0.values() {
            if let Entry::Frontend(_, number) = *entry {
                self.leads_somewhere(number, purpose);
            }
        }
    }

    fn leads_somewhere(&self, number: u32, purpose: Purpose) {
        if number & RESTRICTED != 0 {
            let Some(Entry::Restricted(_, behind)) = self.get(Entry::Restricted(number, 0)) else {
                panic!("restriction {number:#x} is not there");
            };
            assert_eq!(behind & RESTRICTED, 0);
            return self.leads_somewhere(behind, purpose);
        }
        let flags = EXTERNAL | MASQUERADE | MASQUERADE_NON_LOCAL | BY_ADDRESS;
        assert_eq!(number & !(flags | ID), 0);
        let by_address = number & BY_ADDRESS != 0;
        assert!(!by_address || purpose == Purpose::Admit);
        let is_found = |pool, by_address| match purpose {
            Purpose::Translate => self.picks(pool),
            // IPVS has the rest.
            Purpose::Admit => assert!(
                by_address || pool == REFUSE || pool == DROP || self.get(Entry::Mark(pool, 0)).is_some(),
                "pool {pool} has no mark"
            ),
        };
        let is_external = number & EXTERNAL != 0;
        is_found(number & ID, by_address && !is_external);
        if is_external {
            let Some(Entry::Outside(_, outside)) = self.get(Entry::Outside(number & ID, 0)) else {
                panic!("nobody knows where {number:#x} leads from outside");
            };
            is_found(outside, by_address);
        }
    }

    fn picks(&self, pool: u32) {
        let Some(Entry::Pool(_, number)) = self.get(Entry::Pool(pool, 0)) else {
            panic!("pool {pool} is not there");
        };
        let Some(Entry::Class(_, class)) = self.get(Entry::Class(upper(number), Class::Drop)) else {
            panic!("pool {pool} has no class");
        };
        let slots = match class {
            Class::Pick(slots) | Class::Sticky(slots, _) => slots,
            Class::Refuse | Class::Drop => 0,
        };
        let any = IpPort::from(([0; 4], 0));
        for slot in 0..slots {
            assert!(self.get(Entry::Endpoint(pool, slot, any)).is_some());
            if class.seconds().is_some() {
                let Some(Entry::Stable(_, _, member)) = self.get(Entry::Stable(pool, slot, 0)) else {
                    panic!("slot {slot} of pool {pool} has no member");
                };
                assert!(self.get(Entry::Member(member, any)).is_some());
            }
        }
    }

    /// What an agent finds that starts.
    fn found(&self) -> Found {
        let mut found = Found::default();
        self.0.values().for_each(|entry| found.add(*entry));
        found
    }
}

/// An agent, and what it works on.
struct Agent {
    objects: Objects,
    table: ForwardingTable,
    state: State,
    kernel: Kernel,
}

impl Agent {
    fn new(layout: Layout) -> Self {
        let (table, mut state) = (ForwardingTable::default(), State::new(layout));
        let change = state.become_table(&table).unwrap();
        let mut kernel = Kernel::default();
        State::fixed(layout.purpose)
            .iter()
            .for_each(|entry| kernel.add(*entry));
        kernel.commit(&change, usize::MAX, |_| ());
        Self {
            objects: Objects::default(),
            table,
            state,
            kernel,
        }
    }

    /// One thing after another happens; the agent is killed after so many transactions of each.
    fn happen(&mut self, steps: &[Step], limit: usize) {
        for step in steps {
            let mut diff = Diff::default();
            self.objects.take(&mut self.table, &mut diff, step);
            let change = self.state.change(&self.table, &diff).unwrap();
            let purpose = self.state.layout.purpose;
            self.kernel
                .commit(&change, limit, |kernel| kernel.serves(purpose));
            if limit == usize::MAX {
                assert!(self.kernel.has_just(&self.state));
            } else {
                return;
            }
        }
    }

    /// Another agent takes over.
    fn start_again(&mut self, limit: usize, look: impl FnMut(&Kernel)) -> Change {
        let (state, change) = self
            .kernel
            .found()
            .become_table(&self.table, State::new(self.state.layout))
            .unwrap();
        self.kernel.commit(&change, limit, look);
        self.state = state;
        change
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..8)
}

fn layout() -> impl Strategy<Value = Layout> {
    let purpose = prop::sample::select(vec![Purpose::Translate, Purpose::Admit]);
    let family = prop::sample::select(Family::ALL.to_vec());
    (purpose, family).prop_map(|(purpose, family)| Layout { purpose, family })
}

proptest! {
    #[test]
    fn every_transaction_leaves_what_serves(layout in layout(), steps in steps()) {
        Agent::new(layout).happen(&steps, usize::MAX);
    }

    #[test]
    fn a_restart_writes_nothing(layout in layout(), steps in steps()) {
        let mut agent = Agent::new(layout);
        agent.happen(&steps, usize::MAX);
        let before = agent.kernel.clone();
        let change = agent.start_again(usize::MAX, |_| ());
        prop_assert!(agent.kernel.has_just(&agent.state));
        // Nothing tells whose pool it is where another Service has the only frontend that would lead there.
        let leads: HashSet<&PoolKey> = agent
            .table
            .frontends()
            .flat_map(|(_, frontend)| frontend.action.pools())
            .collect();
        if agent.table.pools().all(|(key, _)| leads.contains(key)) {
            prop_assert_eq!(change.stages, Default::default());
            prop_assert_eq!(agent.kernel.0, before.0);
        }
    }

    #[test]
    fn an_agent_goes_on_where_another_was_killed(
        layout in layout(),
        (before, during, after) in (steps(), steps(), steps()),
        (limit, again) in (0..5_usize, 0..5_usize),
    ) {
        let mut agent = Agent::new(layout);
        agent.happen(&before, usize::MAX);
        agent.happen(&during, limit);
        agent.start_again(again, |kernel| kernel.serves(layout.purpose));
        agent.start_again(usize::MAX, |kernel| kernel.serves(layout.purpose));
        prop_assert!(agent.kernel.has_just(&agent.state));
        agent.happen(&after, usize::MAX);
    }

    #[test]
    fn whatever_others_did_is_repaired(
        layout in layout(),
        (before, others, after) in (steps(), steps(), steps()),
        (taken, put) in (prop::collection::vec(any::<Index>(), 0..8), prop::collection::vec(any::<Index>(), 0..8)),
    ) {
        let mut agent = Agent::new(layout);
        agent.happen(&before, usize::MAX);
        let mut other = Agent::new(layout);
        other.happen(&others, usize::MAX);
        let mut theirs: Vec<Entry> = other.kernel.0.into_values().collect();
        theirs.sort_unstable_by_key(|entry| format!("{entry:?}"));
        for index in taken {
            let mut places: Vec<_> = agent.kernel.0.keys().cloned().collect();
            places.sort_unstable_by_key(|place| format!("{place:?}"));
            if !places.is_empty() {
                agent.kernel.0.remove(index.get(&places));
            }
        }
        for index in put.into_iter().filter(|_| !theirs.is_empty()) {
            let entry = *index.get(&theirs);
            agent.kernel.0.insert(Kernel::place(&entry), entry);
        }
        agent.start_again(usize::MAX, |_| ());
        prop_assert!(agent.kernel.has_just(&agent.state));
        agent.kernel.serves(layout.purpose);
        agent.happen(&after, usize::MAX);
    }
}

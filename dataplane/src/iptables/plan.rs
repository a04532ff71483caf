//! What has to be written: from the table, and what the kernel holds, to the input of iptables-restore. Pure.

use std::collections::{BTreeSet, HashMap};

use super::layout::{ChainId, Layout, has_rules};
use super::names::{Chain, GRACE, JUMPS, Table};
use super::observe::{Fingerprint, Saved};
use super::render::{self, Rules, Style};
use super::restore::{FilterOrder, Plan};
use crate::backend::IptablesRules;
use crate::model::{Diff, Family, ForwardingTable, Frontend, Pool, PoolKey};

/// What is remembered of what was written. No rule text: with 10,000 Services that would be 15 MB.
#[derive(Debug, Default)]
pub(super) struct State {
    layout: Layout,
    pub(super) fingerprints: HashMap<ChainId, Fingerprint>,
    /// How many rules those have, in the order of [`Table::ALL`].
    rules: [usize; 2],
}

/// The tables' contents, in the order of [`Table::ALL`].
pub(super) type BothSaved = [Saved; 2];

impl State {
    /// Plans what a diff changes, when the kernel holds what this state says; the state is then that after it.
    pub(super) fn change(
        &mut self,
        table: &ForwardingTable,
        diff: &Diff,
        style: Style,
    ) -> (Plan, FilterOrder) {
        let family = style.family;
        let mut plan = Plan::default();
        let mut rules = Rules::default();
        for id in self.layout.update(table, diff, family) {
            if self.layout.has(id) {
                rules.clear();
                render::chain(id, table, &self.layout, style, &mut rules);
                self.write(id, &rules, &mut plan);
            } else {
                self.remove(id, &mut plan);
            }
        }
        for (key, change) in diff.frontends.iter().filter(|(key, _)| key.family == family) {
            let id = (Table::Nat, Chain::sources(key));
            if change
                .after
                .as_ref()
                .is_some_and(|frontend| render_sources(frontend, &mut rules))
            {
                self.write(id, &rules, &mut plan);
            } else if change
                .before
                .as_ref()
                .is_some_and(|frontend| frontend.sources.is_some())
            {
                self.remove(id, &mut plan);
            }
        }
        for (key, change) in diff.pools.iter().filter(|(key, _)| key.family == family) {
            if let Some(pool) = &change.after {
                each_pool_chain(key, pool, family, &mut rules, |chain, rules| {
                    self.write((Table::Nat, chain), rules, &mut plan);
                });
            }
            let chains = |pool: Option<&_>| pool.map(|pool| pool_chains(key, pool)).unwrap_or_default();
            let after = chains(change.after.as_deref());
            for gone in chains(change.before.as_deref()).difference(&after) {
                self.remove((Table::Nat, *gone), &mut plan);
            }
        }
        plan.sort();
        (plan, order_of(diff))
    }

    /// Plans a chain, unless it has these rules already.
    fn write(&mut self, id: ChainId, rules: &Rules, plan: &mut Plan) {
        let new = Fingerprint::of(rules);
        let old = self.fingerprints.insert(id, new);
        let count = &mut self.rules[id.0 as usize];
        *count = (*count + new.count()).saturating_sub(old.map_or(0, Fingerprint::count));
        if old != Some(new) {
            plan.of(id.0).write(id.1, old.is_some(), rules);
        }
    }

    /// Plans the removal of a chain, if it is there.
    fn remove(&mut self, id: ChainId, plan: &mut Plan) {
        if let Some(old) = self.fingerprints.remove(&id) {
            let count = &mut self.rules[id.0 as usize];
            *count = count.saturating_sub(old.count());
            plan.of(id.0).remove(&id.1.to_string());
        }
    }

    /// Plans what differs between the kernel and the table, and gives the state after it.
    pub(super) fn sync(
        table: &ForwardingTable,
        mut saved: BothSaved,
        style: Style,
    ) -> (Self, Plan, FilterOrder) {
        let family = style.family;
        let mut plan = Plan::default();
        let layout = Layout::of(table, family);

        // What is in `saved` is taken out as it turns out to be wanted; the rest is stale.
        let mut fingerprints = HashMap::new();
        let mut put = |(of, chain): ChainId, rules: &Rules| {
            let wanted = Fingerprint::of(rules);
            fingerprints.insert((of, chain), wanted);
            let found = saved[of as usize].chains.remove(&chain.to_string());
            if found != Some(wanted) {
                plan.of(of).write(chain, found.is_some(), rules);
            }
        };
        let mut rules = Rules::default();
        for id in layout.chains() {
            rules.clear();
            render::chain(id, table, &layout, style, &mut rules);
            put(id, &rules);
        }
        for (key, frontend) in table.frontends().filter(|(key, _)| key.family == family) {
            if render_sources(frontend, &mut rules) {
                put((Table::Nat, Chain::sources(key)), &rules);
            }
        }
        for (key, pool) in table.pools().filter(|(key, _)| key.family == family) {
            each_pool_chain(key, pool, family, &mut rules, |chain, rules| {
                put((Table::Nat, chain), rules);
            });
        }

        for (of, saved) in Table::ALL.into_iter().zip(&saved) {
            let changes = plan.of(of);
            saved
                .chain_names()
                .into_iter()
                .for_each(|name| changes.remove(name));
            // A chain that has not just our jumps, at their place, gets all of them anew.
            let is_right = |chain: &str| saved.is_hooked(of, chain);
            for (chain, rule) in saved.hooks().filter(|(chain, _)| !is_right(chain)) {
                changes.unhook(chain, rule);
            }
            for jump in JUMPS
                .iter()
                .filter(|jump| jump.table == of && !is_right(jump.from))
            {
                changes.hook(jump.from, jump.rule);
            }
        }
        plan.sort();
        let order = plan.careful_order();
        let mut rules = [0; 2];
        for (id, fingerprint) in &fingerprints {
            rules[id.0 as usize] += fingerprint.count();
        }
        let state = Self {
            layout,
            fingerprints,
            rules,
        };
        (state, plan, order)
    }

    /// What a plan writes and what there is after it, by table.
    pub(super) fn count(&self, plan: &Plan) -> [IptablesRules; 2] {
        let [nat, filter] = self.rules;
        [
            (plan.nat.rules_written(), nat),
            (plan.filter.rules_written(), filter),
        ]
        .map(|(written, total)| IptablesRules { written, total })
    }
}

/// Plans the removal of everything, [`GRACE`] apart.
pub(super) fn teardown(saved: &BothSaved) -> (Plan, FilterOrder) {
    let mut plan = Plan::default();
    for (of, saved) in Table::ALL.into_iter().zip(saved) {
        let changes = plan.of(of);
        saved
            .hooks()
            .for_each(|(chain, rule)| changes.unhook(chain, rule));
        saved
            .chain_names()
            .into_iter()
            .for_each(|name| changes.remove(name));
    }
    if !plan.nat.is_empty() || !plan.filter.is_empty() {
        plan.filter.hook("FORWARD", GRACE);
    }
    // nat first: while something is still translated, FORWARD must still accept it.
    (plan, FilterOrder::Last)
}

/// Renders the chain of a frontend's source ranges, if it has any.
fn render_sources(frontend: &Frontend, rules: &mut Rules) -> bool {
    rules.clear();
    match &frontend.sources {
        Some(ranges) => render::sources(ranges, rules),
        None => return false,
    }
    true
}

/// A pool's chain and those of its endpoints.
fn pool_chains(key: &PoolKey, pool: &Pool) -> BTreeSet<Chain> {
    let endpoints = pool
        .endpoints
        .iter()
        .filter(|endpoint| render::has_chain(pool, endpoint));
    endpoints
        .map(|endpoint| Chain::endpoint(key, endpoint.address))
        .chain([Chain::pool(key)])
        .collect()
}

/// Renders a pool's chains one by one.
fn each_pool_chain(
    key: &PoolKey,
    pool: &Pool,
    family: Family,
    rules: &mut Rules,
    mut chain: impl FnMut(Chain, &Rules),
) {
    for endpoint in pool
        .endpoints
        .iter()
        .filter(|endpoint| render::has_chain(pool, endpoint))
    {
        rules.clear();
        render::endpoint(key, pool, endpoint, family, rules);
        chain(Chain::endpoint(key, endpoint.address), rules);
    }
    rules.clear();
    render::pool(key, pool, family, rules);
    chain(Chain::pool(key), rules);
}

/// When the filter table has to be written, by which way frontends go between it and nat.
fn order_of(diff: &Diff) -> FilterOrder {
    let blocks =
        |frontend: &Option<Frontend>| frontend.as_ref().is_some_and(|it| has_rules(it, Table::Filter));
    let (mut adds, mut takes) = (false, false);
    for change in diff.frontends.values() {
        adds |= blocks(&change.after) && !blocks(&change.before);
        takes |= blocks(&change.before) && !blocks(&change.after);
    }
    match (adds, takes) {
        (true, true) => FilterOrder::FirstAndLast,
        (true, false) => FilterOrder::First,
        (false, _) => FilterOrder::Last,
    }
}

#[cfg(test)]
mod tests;

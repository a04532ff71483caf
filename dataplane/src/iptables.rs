//! The iptables backend: chains that a packet finds its Service through, written with iptables-restore.
//!
//! ```text
//! nat     PREROUTING, OUTPUT ─▶ PM-SERVICES ─▶ PM-VIP-5 ─▶ PM-VIP-35 ─▶ PM-SVC-… ─▶ DNAT
//!                               (by 4 bits)    (by 4 more) (frontends)           └▶ PM-SEP-… ─▶ DNAT   local endpoints
//!                                    └▶ PM-NODE-ADDRESSES ─▶ PM-NODE-PORTS ─▶ PM-TCP-30080 ─▶ PM-SVC-…
//!         POSTROUTING ─▶ PM-POSTROUTING                                   masquerades what is marked
//! filter  INPUT, FORWARD, OUTPUT ─▶ PM-SERVICES ─▶ the same way ─▶ REJECT  frontends without endpoints
//!         FORWARD ─▶ PM-FORWARD                                           accepts what was translated
//! ```
//!
//! Four ideas carry it:
//! - [`render`]: rules in the words in which iptables-save prints them, so that what the kernel holds can be compared
//!   with what is meant by a hash a chain, and a restart over rules that are right writes nothing;
//! - [`layout`]: a frontend's place follows from its key alone, so that a change touches its own chains only;
//! - [`restore`]: the order of tables in the input, so that no packet meets half a Service;
//! - [`observe`]: reading back.
//!
//! Chains whose name begins with `PM-`, and rules of built-in chains that jump to one or whose comment begins with
//! `pointsman: `, are ours. Nothing else is changed.

mod layout;
mod names;
mod observe;
mod render;
mod restore;
mod run;

use std::collections::{BTreeSet, HashMap};

use layout::{ChainId, Layout};
use names::{Chain, GRACE, JUMPS, Table};
use observe::{Fingerprint, Saved, hooked_chains};
use render::{Rules, Style};
use restore::{FilterOrder, Plan, check_interface};
pub use run::{Programs, Variant, Version};

use crate::backend::{Backend, Error, Observed, Report};
use crate::model::{Action, Diff, Family, ForwardingTable, Pool, PoolKey};

/// How many differences [`Iptables::observe`] spells out.
const SPELLED_OUT: usize = 8;

/// `MASQUERADE --random-fully` is in iptables since 1.6.2; the kernel has it since 3.14.
const RANDOM_FULLY: Version = Version(1, 6, 2);

/// Programs the Services of one family through iptables-restore or ip6tables-restore.
#[derive(Debug)]
pub struct Iptables {
    programs: Programs,
    variant: Variant,
    version: Version,
    style: Style,
    /// What the kernel holds as far as we know; none before the first sync and after a failure.
    state: Option<State>,
}

/// What is remembered of what was written. No rule text: with 10,000 Services that would be 15 MB.
#[derive(Debug, Default)]
struct State {
    layout: Layout,
    fingerprints: HashMap<ChainId, Fingerprint>,
}

impl Iptables {
    /// A backend for one family that uses these programs.
    ///
    /// # Errors
    /// When the programs cannot be run or are no iptables.
    pub fn new(family: Family, programs: Programs) -> Result<Self, Error> {
        let (variant, version) = programs.identify()?;
        let style = Style {
            family,
            random_fully: version >= RANDOM_FULLY,
            drop_invalid: true,
        };
        Ok(Self {
            programs,
            variant,
            version,
            style,
            state: None,
        })
    }

    /// Whether packets that conntrack calls invalid are dropped in FORWARD, as kube-proxy does unless
    /// `conntrack.tcpBeLiberal` is set. From the next sync on; by default they are.
    pub fn set_drop_invalid(&mut self, drop_invalid: bool) {
        self.style.drop_invalid = drop_invalid;
    }

    /// Which part of the kernel the programs talk to.
    #[must_use]
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// The programs' version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Removes the rule that [`Backend::teardown`] left in FORWARD for connections that live on. For when they have
    /// ended, or nobody minds: unless something else on the node uses conntrack, those that are left break.
    ///
    /// # Errors
    /// When the rule could not be removed.
    pub fn remove_grace_rule(&mut self) -> Result<(), Error> {
        let saved = self.read(Table::Filter)?;
        let mut plan = Plan::default();
        for (chain, hook) in hooks(&saved).filter(|(_, rule)| *rule == GRACE) {
            plan.filter.unhook(chain, hook);
        }
        self.send(&plan, FilterOrder::First)?;
        Ok(())
    }

    fn read(&self, table: Table) -> Result<Saved, Error> {
        let mut saved = Saved::default();
        self.programs.save(table, |line| saved.read(line))?;
        Ok(saved)
    }

    fn send(&self, plan: &Plan, order: FilterOrder) -> Result<Report, Error> {
        let Some((report, input)) = plan.input(order)? else {
            return Ok(Report::default());
        };
        self.programs.restore(&input)?;
        Ok(report)
    }

    /// Writes what a diff changes, when the state before it is known.
    fn change(
        &self,
        state: &mut State,
        table: &ForwardingTable,
        diff: &Diff,
    ) -> Result<Report, Error> {
        let family = self.style.family;
        let mut plan = Plan::default();
        let mut rules = Rules::default();
        for id in state.layout.update(table, diff, family) {
            if state.layout.has(id) {
                rules.clear();
                render::chain(id, table, &state.layout, self.style, &mut rules);
                state.write(id, &rules, &mut plan);
            } else {
                state.remove(id, &mut plan);
            }
        }
        for (key, change) in diff.pools.iter().filter(|(key, _)| key.family == family) {
            if let Some(pool) = &change.after {
                each_pool_chain(key, pool, &mut rules, |chain, rules| {
                    state.write((Table::Nat, chain), rules, &mut plan);
                });
            }
            let chains = |pool: Option<&_>| pool.map(|pool| pool_chains(key, pool)).unwrap_or_default();
            let after = chains(change.after.as_deref());
            for gone in chains(change.before.as_deref()).difference(&after) {
                state.remove((Table::Nat, *gone), &mut plan);
            }
        }
        self.send(&plan, order_of(diff))
    }
}

impl State {
    /// Plans a chain, unless it has these rules already.
    fn write(&mut self, id: ChainId, rules: &Rules, plan: &mut Plan) {
        let new = Fingerprint::of(rules);
        let old = self.fingerprints.insert(id, new);
        if old != Some(new) {
            plan.of(id.0).write(id.1, old.is_some(), rules);
        }
    }

    /// Plans the removal of a chain, if it is there.
    fn remove(&mut self, id: ChainId, plan: &mut Plan) {
        if self.fingerprints.remove(&id).is_some() {
            plan.of(id.0).remove(&id.1.to_string());
        }
    }
}

impl Backend for Iptables {
    fn family(&self) -> Family {
        self.style.family
    }

    fn apply(&mut self, table: &ForwardingTable, diff: &Diff) -> Result<Report, Error> {
        check_interface(&table.context().local_traffic(self.style.family))?;
        // Taken out: after a failure nothing is known, and the next call reads the kernel.
        let Some(mut state) = self.state.take() else {
            return self.sync(table);
        };
        let report = self.change(&mut state, table, diff)?;
        self.state = Some(state);
        Ok(report)
    }

    fn sync(&mut self, table: &ForwardingTable) -> Result<Report, Error> {
        let family = self.style.family;
        check_interface(&table.context().local_traffic(family))?;
        self.state = None;
        let mut saved = [self.read(Table::Nat)?, self.read(Table::Filter)?];
        let mut plan = Plan::default();
        let mut state = State {
            layout: Layout::of(table, family),
            fingerprints: HashMap::new(),
        };

        // What is in `saved` is taken out as it turns out to be wanted; the rest is stale.
        let mut rules = Rules::default();
        let fingerprints = &mut state.fingerprints;
        let mut put = |(of, chain): ChainId, rules: &Rules| {
            let wanted = Fingerprint::of(rules);
            fingerprints.insert((of, chain), wanted);
            let found = saved[of as usize].chains.remove(&chain.to_string());
            if found != Some(wanted) {
                plan.of(of).write(chain, found.is_some(), rules);
            }
        };
        for id in state.layout.chains() {
            rules.clear();
            render::chain(id, table, &state.layout, self.style, &mut rules);
            put(id, &rules);
        }
        for (key, pool) in table.pools().filter(|(key, _)| key.family == family) {
            each_pool_chain(key, pool, &mut rules, |chain, rules| put((Table::Nat, chain), rules));
        }

        for (of, saved) in Table::ALL.into_iter().zip(&saved) {
            let changes = plan.of(of);
            let mut stale: Vec<_> = saved.chains.keys().collect();
            stale.sort_unstable();
            stale.into_iter().for_each(|name| changes.remove(name));
            // A chain that has not just our jumps, at their place, gets all of them anew.
            let is_right = |chain: &str| saved.is_hooked(of, chain);
            for (chain, rule) in hooks(saved).filter(|(chain, _)| !is_right(chain)) {
                changes.unhook(chain, rule);
            }
            for jump in JUMPS.iter().filter(|jump| jump.table == of && !is_right(jump.from)) {
                plan.hook(jump);
            }
        }
        let report = self.send(&plan, plan.careful_order())?;
        self.state = Some(state);
        Ok(report)
    }

    fn observe(&mut self) -> Result<Observed, Error> {
        let mut differences = Vec::new();
        let Some(state) = &self.state else {
            differences.push("nothing is known to have been written: the last attempt failed".to_owned());
            return Ok(Observed { differences, more: 0 });
        };
        let mut saved = [self.read(Table::Nat)?, self.read(Table::Filter)?];
        for (&(of, chain), wanted) in &state.fingerprints {
            let table = of.as_str();
            match saved[of as usize].chains.remove(&chain.to_string()) {
                Some(found) if found == *wanted => (),
                Some(found) if found.rules == wanted.rules => {
                    differences.push(format!("{table} chain {chain}: other rules than were written"));
                }
                Some(found) => differences.push(format!(
                    "{table} chain {chain}: {} rules instead of {}",
                    found.rules, wanted.rules
                )),
                None => differences.push(format!("{table} chain {chain} is gone")),
            }
        }
        for (of, saved) in Table::ALL.into_iter().zip(&saved) {
            let table = of.as_str();
            let stale = saved.chains.keys();
            differences.extend(stale.map(|name| format!("{table} chain {name} is not ours of today")));
            let others = saved.hooks.keys().map(String::as_str);
            let chains: BTreeSet<&str> = hooked_chains(of).iter().copied().chain(others).collect();
            for chain in chains.into_iter().filter(|chain| !saved.is_hooked(of, chain)) {
                differences.push(if saved.hooks.contains_key(chain) {
                    format!("{table} chain {chain}: our jumps are not as they should be")
                } else {
                    format!("the jump from {table} chain {chain} is gone")
                });
            }
        }
        differences.sort_unstable();
        let more = differences.len().saturating_sub(SPELLED_OUT);
        differences.truncate(SPELLED_OUT);
        Ok(Observed { differences, more })
    }

    /// Removes our jumps and chains, and leaves one rule in FORWARD that accepts the packets of connections which were
    /// translated. They live on in conntrack, and need it for two reasons: FORWARD may drop them otherwise, and the
    /// kernel stops tracking, and with it translating, when the last rule of a namespace that needs conntrack is gone
    /// (`nf_ct_netns_put`). The built-in chains of nat stay for the same reason: in the nf_tables variant they are
    /// what registers NAT. [`Iptables::remove_grace_rule`] removes the rule; a later sync takes over from it.
    fn teardown(&mut self) -> Result<(), Error> {
        self.state = None;
        let mut plan = Plan::default();
        let mut found = false;
        for of in Table::ALL {
            let saved = match self.read(of) {
                Ok(saved) => saved,
                // Where there is no table there is nothing of ours.
                Err(Error::MissingKernelFeature { .. }) => continue,
                Err(error) => return Err(error),
            };
            found |= !saved.chains.is_empty() || !saved.hooks.is_empty();
            let changes = plan.of(of);
            hooks(&saved).for_each(|(chain, rule)| changes.unhook(chain, rule));
            let mut names: Vec<_> = saved.chains.keys().collect();
            names.sort_unstable();
            names.into_iter().for_each(|name| changes.remove(name));
        }
        if found {
            plan.filter.hook("FORWARD", GRACE);
        }
        // nat first: while something is still translated, FORWARD must still accept it.
        self.send(&plan, FilterOrder::Last)?;
        Ok(())
    }
}

/// All our rules in built-in chains.
fn hooks(saved: &Saved) -> impl Iterator<Item = (&str, &str)> {
    saved
        .hooks
        .iter()
        .flat_map(|(chain, hooks)| hooks.iter().map(|hook| (chain.as_str(), hook.rule.as_str())))
}

/// A pool's chain and those of its local endpoints.
fn pool_chains(key: &PoolKey, pool: &Pool) -> BTreeSet<Chain> {
    let local = pool.endpoints.iter().filter(|endpoint| endpoint.local);
    local
        .map(|endpoint| Chain::endpoint(key, endpoint.address))
        .chain([Chain::pool(key)])
        .collect()
}

/// Renders a pool's chains one by one.
fn each_pool_chain(key: &PoolKey, pool: &Pool, rules: &mut Rules, mut chain: impl FnMut(Chain, &Rules)) {
    for endpoint in pool.endpoints.iter().filter(|endpoint| endpoint.local) {
        rules.clear();
        render::endpoint(key.owner.protocol, endpoint, rules);
        chain(Chain::endpoint(key, endpoint.address), rules);
    }
    rules.clear();
    render::pool(key, pool, rules);
    chain(Chain::pool(key), rules);
}

/// When the filter table has to be written, by which way frontends go between it and nat.
fn order_of(diff: &Diff) -> FilterOrder {
    let refuses = |action: Option<&Action>| action == Some(&Action::Reject);
    let (mut adds, mut takes) = (false, false);
    for change in diff.frontends.values() {
        let before = refuses(change.before.as_ref().map(|frontend| &frontend.action));
        let after = refuses(change.after.as_ref().map(|frontend| &frontend.action));
        adds |= after && !before;
        takes |= before && !after;
    }
    match (adds, takes) {
        (true, true) => FilterOrder::FirstAndLast,
        (true, false) => FilterOrder::First,
        (false, _) => FilterOrder::Last,
    }
}

#[cfg(test)]
mod tests;

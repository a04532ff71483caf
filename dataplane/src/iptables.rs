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
//! - [`layout`]: a frontend's place follows from its key alone, so that a change touches its own chains only; [`plan`]
//!   finds them;
//! - [`restore`]: the order of tables in the input, so that no packet meets half a Service;
//! - [`observe`]: reading back.
//!
//! Chains whose name begins with `PM-`, and rules of built-in chains that jump to one or whose comment begins with
//! `pointsman: `, are ours. Nothing else is changed.

pub(crate) mod kube_proxy;
mod layout;
mod names;
mod observe;
mod plan;
mod programs;
mod render;
mod restore;
mod run;

use names::{GRACE, Table};
use observe::{Saved, compare};
use plan::State;
pub use programs::{Programs, Variant, Version};
use render::Style;
use restore::{FilterOrder, Plan, check_interface};
use std::time::Duration;

use crate::backend::{Backend, Error, Observed, Remaining, Report};
use crate::model::{Diff, Family, ForwardingTable};

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
        };
        Ok(Self {
            programs,
            variant,
            version,
            style,
            state: None,
        })
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
        for (chain, rule) in saved.hooks().filter(|(_, rule)| *rule == GRACE) {
            plan.filter.unhook(chain, rule);
        }
        self.send(&plan, FilterOrder::First)?;
        Ok(())
    }

    fn read(&self, table: Table) -> Result<Saved, Error> {
        let mut saved = Saved::default();
        self.programs.save(table, false, |line| saved.read(line))?;
        Ok(saved)
    }

    fn send(&self, plan: &Plan, order: FilterOrder) -> Result<Report, Error> {
        let Some((report, input)) = plan.input(order)? else {
            return Ok(Report::default());
        };
        self.programs.restore(input.pieces())?;
        Ok(report)
    }
}

impl Backend for Iptables {
    fn family(&self) -> Family {
        self.style.family
    }

    fn tables(&self) -> &'static [&'static str] {
        &["nat", "filter"]
    }

    fn apply(&mut self, table: &ForwardingTable, diff: &Diff) -> Result<Report, Error> {
        if diff.all {
            return self.sync(table);
        }
        check_interface(&table.context().local_traffic(self.style.family))?;
        // Taken out: after a failure nothing is known, and the next call reads the kernel.
        let Some(mut state) = self.state.take() else {
            return self.sync(table);
        };
        let (plan, order) = state.change(table, diff, self.style);
        let mut report = self.send(&plan, order)?;
        report.iptables = Some(state.count(&plan));
        self.state = Some(state);
        Ok(report)
    }

    fn sync(&mut self, table: &ForwardingTable) -> Result<Report, Error> {
        check_interface(&table.context().local_traffic(self.style.family))?;
        self.state = None;
        let saved = [self.read(Table::Nat)?, self.read(Table::Filter)?];
        let (state, plan, order) = State::sync(table, saved, self.style);
        let mut report = self.send(&plan, order)?;
        report.iptables = Some(state.count(&plan));
        self.state = Some(state);
        Ok(report)
    }

    fn observe(&mut self) -> Result<Observed, Error> {
        match &self.state {
            Some(state) => {
                let mut filter = Saved::default();
                self.programs
                    .save(Table::Filter, true, |line| filter.read(line))?;
                let saved = [self.read(Table::Nat)?, filter];
                Ok(compare(&state.fingerprints, saved))
            }
            None => Ok(Observed {
                differences: vec!["nothing was written yet, or the last attempt failed".to_owned()],
                ..Observed::default()
            }),
        }
    }

    /// Removes our jumps and chains, and leaves one rule in FORWARD that accepts the packets of connections which were
    /// translated. They live on in conntrack, and need it for two reasons: FORWARD may drop them otherwise, and the
    /// kernel stops tracking, and with it translating, when the last rule of a namespace that needs conntrack is gone
    /// (`nf_ct_netns_put`). The built-in chains of nat stay for the same reason: in the nf_tables variant they are
    /// what registers NAT. [`Iptables::remove_grace_rule`] removes the rule; a later sync takes over from it.
    fn teardown(&mut self, _limit: Option<Duration>) -> Result<Remaining, Error> {
        self.state = None;
        let read = |table| match self.read(table) {
            // Where there is no table there is nothing of ours.
            Err(Error::MissingKernelFeature { .. }) => Ok(Saved::default()),
            other => other,
        };
        let (plan, order) = plan::teardown(&[read(Table::Nat)?, read(Table::Filter)?]);
        self.send(&plan, order)?;
        Ok(Remaining::Nothing)
    }
}

//! The loop that makes the kernel follow the sources. It owns the index, the table and the backends, runs on a
//! thread of its own, and is the only one that writes to the kernel.

mod family;
mod parameters;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use pointsman_crds::Mode;
use pointsman_dataplane::backend::{Backend, Error};
use pointsman_dataplane::model::{Context, Diff, Family, ForwardingTable, NodeFacts, Problem, ServiceName};
use std::collections::{BTreeMap, HashSet};
use tokio::sync::{mpsc::Receiver, watch};

use crate::index::Index;
use crate::logging::LogLevel;
use crate::metrics::Metrics;
use crate::settings;
use crate::source::{Assignment, Event, Kind, NodeState};
use crate::state::State;
use family::FamilyProxy;
pub use parameters::Parameters;

/// Makes the backend of a mode and family.
pub type MakeBackend = Arc<dyn Fn(Mode, Family) -> Result<Box<dyn Backend>, Error> + Send + Sync>;

/// At most this many events are taken in before the kernel is written, so that a steady stream cannot starve it.
const BATCH: usize = 10_000;
/// Problems that are spelled out in the status; the others are counted.
const PROBLEMS_SHOWN: usize = 3;
/// A full check may take up at most one part in this many of the time.
const CHECK_SHARE: u32 = 50;
/// The same for checks because somebody touched rules, which are more likely to find something.
const TOUCHED_CHECK_SHARE: u32 = 10;
/// After a notification that rules were touched, more of them are waited for before everything is read back.
const TOUCH_SETTLE: Duration = Duration::from_millis(200);
const TEARDOWN_RETRY: Duration = Duration::from_secs(5);

/// What the engine is made of.
pub struct Engine {
    index: Index,
    table: ForwardingTable,
    diff: Diff,
    node: Option<NodeState>,
    addresses: Option<Vec<std::net::IpAddr>>,
    listed: HashSet<Kind>,
    wanted: Wanted,
    /// Whether the current listing of assignments has named one.
    assignment_named: bool,
    /// What is in force.
    active: Option<Arc<Assignment>>,
    families: Vec<FamilyProxy>,
    parameters: Parameters,
    problems: BTreeMap<ServiceName, Vec<Problem>>,
    make_backend: MakeBackend,
    log_level: LogLevel,
    metrics: Arc<Metrics>,
    state: watch::Sender<State>,
    timers: Timers,
    /// Everything has to be compiled anew: settings or node facts changed.
    recompile: bool,
    drift: Option<String>,
    /// Who changed rules since the last check, where the kernel told.
    touched_by: Option<String>,
    rejected: Option<String>,
    mode: Option<(Mode, Option<String>)>,
}

/// What the sources want of this node.
enum Wanted {
    /// Nothing new was said: what is in force stays.
    Unchanged,
    /// A new assignment, or none any more.
    New(Option<Arc<Assignment>>),
}

#[derive(Default)]
struct Timers {
    pending_since: Option<Instant>,
    last_sync: Option<Instant>,
    next_check: Option<Instant>,
    /// However often rules are touched, the next check does not come before.
    rest_until: Option<Instant>,
    teardown_at: Option<Instant>,
}

impl Engine {
    /// An engine that has nothing yet.
    #[must_use]
    pub fn new(
        make_backend: MakeBackend,
        parameters: Parameters,
        log_level: LogLevel,
        metrics: Arc<Metrics>,
        state: watch::Sender<State>,
    ) -> Self {
        Self {
            index: Index::default(),
            table: ForwardingTable::default(),
            diff: Diff::default(),
            node: None,
            addresses: None,
            listed: HashSet::new(),
            wanted: Wanted::Unchanged,
            assignment_named: false,
            active: None,
            families: Vec::new(),
            parameters,
            problems: BTreeMap::new(),
            make_backend,
            log_level,
            metrics,
            state,
            timers: Timers::default(),
            recompile: false,
            drift: None,
            touched_by: None,
            rejected: None,
            mode: None,
        }
    }

    /// Follows the events until their senders are gone. The kernel keeps what it has.
    pub async fn run(mut self, mut events: Receiver<Event>) {
        loop {
            let event = match self.next_deadline() {
                Some(deadline) => match tokio::time::timeout_at(deadline.into(), events.recv()).await {
                    Ok(Some(event)) => Some(event),
                    Ok(None) => return,
                    Err(_) => None,
                },
                None => match events.recv().await {
                    Some(event) => Some(event),
                    None => return,
                },
            };
            if let Some(event) = event {
                self.take_in(event);
                for _ in 1..BATCH {
                    match events.try_recv() {
                        Ok(event) => self.take_in(event),
                        Err(_) => break,
                    }
                }
            }
            self.step(Instant::now());
            self.publish();
        }
    }

    fn take_in(&mut self, event: Event) {
        match event {
            Event::Service(service, parsed) => {
                tracing::debug!(%service, used = parsed.object.is_some(), "a Service changed");
                self.index.set_service(service, parsed);
            }
            Event::Slice(slice, parsed) => {
                tracing::debug!(%slice, used = parsed.object.is_some(), "an EndpointSlice changed");
                self.index.set_slice(slice, parsed);
            }
            Event::Node(node) => {
                tracing::debug!(there = node.is_some(), "the Node changed");
                // Without its Node the agent goes on with what it knew: a kubelet may register it anew.
                if let Some(node) = node {
                    self.recompile |= self.node.as_ref() != Some(&node);
                    self.node = Some(node);
                }
            }
            Event::Addresses(addresses) => {
                self.recompile |= self.addresses.as_ref() != Some(&addresses);
                self.addresses = Some(addresses);
            }
            Event::Assignment(assignment) => {
                self.rejected = None;
                self.assignment_named = true;
                self.wanted = Wanted::New(assignment);
            }
            Event::AssignmentUnusable(why) => {
                tracing::error!("{why}: what was in force stays");
                self.rejected = Some(why);
                self.assignment_named = true;
                self.wanted = Wanted::Unchanged;
            }
            Event::ListBegins(kind) => {
                self.index.list_begins(kind);
                self.assignment_named &= kind != Kind::Assignment;
            }
            Event::ListEnds(kind) => {
                self.index.list_ends(kind);
                self.listed.insert(kind);
                if kind == Kind::Assignment && !self.assignment_named {
                    self.wanted = Wanted::New(None);
                }
            }
            Event::RulesTouched(by) => {
                self.touched_by = by.or(self.touched_by.take());
                let soon = self
                    .timers
                    .rest_until
                    .unwrap_or_else(Instant::now)
                    .max(Instant::now())
                    + TOUCH_SETTLE;
                self.timers.next_check = self.timers.next_check.map(|check| check.min(soon));
            }
        }
        if self.index.has_changes() || self.recompile {
            self.metrics.queued();
            self.timers.pending_since.get_or_insert_with(Instant::now);
        }
    }

    /// Whether everything that a first table needs has been listed: no part of it is ever shown to packets.
    fn is_listed(&self) -> bool {
        self.addresses.is_some()
            && [Kind::Services, Kind::Slices, Kind::Node, Kind::Assignment]
                .iter()
                .all(|kind| self.listed.contains(kind))
    }

    fn next_deadline(&self) -> Option<Instant> {
        let retries = self.families.iter().filter_map(FamilyProxy::retry_at);
        let gathered = self.timers.pending_since.and_then(|_| self.gathering_until());
        retries
            .chain(self.timers.next_check)
            .chain(self.timers.teardown_at)
            .chain(gathered)
            .min()
    }

    /// Until when changes are gathered (`minSyncPeriodMilliseconds`).
    fn gathering_until(&self) -> Option<Instant> {
        let period = self.active.as_ref()?.settings.min_sync_period_milliseconds;
        Some(self.timers.last_sync? + Duration::from_millis(u64::try_from(period).unwrap_or(0)))
    }

    fn step(&mut self, now: Instant) {
        if !self.is_listed() {
            return;
        }
        match std::mem::replace(&mut self.wanted, Wanted::Unchanged) {
            Wanted::New(Some(assignment)) => self.follow(assignment),
            Wanted::New(None) => self.stand_down(now),
            Wanted::Unchanged => {}
        }
        if self.timers.teardown_at.is_some_and(|at| at <= now) {
            self.tear_down(now);
        }
        if self.active.is_none() {
            self.timers.pending_since = None;
            return;
        }
        let waits = self.gathering_until().is_some_and(|until| until > now);
        if self.timers.pending_since.is_some() && !waits {
            self.update_table();
        }
        self.write(now);
        if self.timers.next_check.is_some_and(|at| at <= now) {
            self.check();
        }
    }

    /// Puts a new assignment in force.
    fn follow(&mut self, assignment: Arc<Assignment>) {
        let settings = &assignment.settings;
        let forwarding = match settings::check(settings).and_then(|()| settings::forwarding(settings)) {
            Ok(forwarding) => forwarding,
            Err(error) => {
                tracing::error!(policy = assignment.policy, "{error}: what was in force stays");
                self.rejected = Some(error.to_string());
                return;
            }
        };
        self.rejected = None;
        self.timers.teardown_at = None;
        let mode = choose(settings.mode);
        if self.mode.as_ref().map(|(mode, _)| *mode) != Some(mode.0) || self.families.is_empty() {
            tracing::info!(policy = assignment.policy, mode = %mode.0, "forwarding in this mode");
            self.families = self.make_families(mode.0);
        }
        self.mode = Some(mode);
        self.log_level.set(settings.log_verbosity);
        self.parameters.apply(settings);
        let changed = self
            .active
            .as_ref()
            .is_none_or(|active| active.revision != assignment.revision);
        if changed {
            tracing::info!(
                policy = assignment.policy,
                revision = assignment.revision,
                "following these settings"
            );
            let context = Context {
                settings: forwarding,
                ..self.table.context().clone()
            };
            self.table.set_context(context, &mut self.diff);
            self.recompile = true;
            self.timers.pending_since.get_or_insert_with(Instant::now);
            // New settings do not wait for the gathering of changes.
            self.timers.last_sync = None;
        }
        self.active = Some(assignment);
        self.schedule_check(Duration::ZERO);
    }

    fn make_families(&self, mode: Mode) -> Vec<FamilyProxy> {
        let make = |family| FamilyProxy::new(mode, family, Arc::clone(&self.make_backend));
        families().into_iter().map(make).collect()
    }

    /// No policy selects this node any more, or never did.
    fn stand_down(&mut self, now: Instant) {
        if self.active.take().is_some() {
            tracing::info!("no policy selects this node any more: taking the rules down");
        }
        self.mode = None;
        self.drift = None;
        self.timers.next_check = None;
        self.tear_down(now);
    }

    /// Takes down whatever any mode of any earlier run of the agent may have left.
    fn tear_down(&mut self, now: Instant) {
        self.timers.teardown_at = None;
        if self.families.is_empty() {
            self.families = self.make_families(Mode::IPTables);
        }
        self.families.retain_mut(|family| !family.tear_down());
        if !self.families.is_empty() {
            self.timers.teardown_at = Some(now + TEARDOWN_RETRY);
        }
        self.parameters.restore();
        self.table = ForwardingTable::default();
        self.diff = Diff::default();
        self.problems.clear();
        self.recompile = true;
    }

    /// Compiles what changed into the table.
    fn update_table(&mut self) {
        if self.recompile {
            let node = self.node.clone().unwrap_or_default();
            let facts = NodeFacts {
                internal_ips: node.internal_ips,
                pod_cidrs: node.pod_cidrs,
                interface_addresses: self.addresses.clone().unwrap_or_default(),
            };
            let context = Context {
                node: facts,
                ..self.table.context().clone()
            };
            self.table.set_context(context.clone(), &mut self.diff);
            for compiled in self.index.compile_all(&context) {
                note_problems(&mut self.problems, &compiled.service, &compiled.problems);
                self.table.set(compiled, &mut self.diff);
            }
            self.recompile = false;
        } else {
            let context = self.table.context().clone();
            for compiled in self.index.compile_changes(&context) {
                note_problems(&mut self.problems, &compiled.service, &compiled.problems);
                self.table.set(compiled, &mut self.diff);
            }
        }
        self.metrics.objects_changed(self.index.changes);
    }

    /// Writes the table's changes to the kernel, each family by itself.
    fn write(&mut self, now: Instant) {
        let due = self.families.iter().any(|family| family.is_due(now));
        if self.diff.is_empty() && !due {
            if self.timers.pending_since.is_some() && !self.index.has_changes() && !self.recompile {
                self.timers.pending_since = None;
            }
            return;
        }
        let diff = std::mem::take(&mut self.diff);
        for family in &mut self.families {
            family.write(&self.table, &diff, now, &self.metrics);
        }
        let finished = Instant::now();
        self.timers.last_sync = Some(finished);
        if self.families.iter().all(FamilyProxy::is_settled) {
            self.timers.pending_since = None;
            self.metrics.synced();
        }
    }

    /// Reads the kernel back, repairs what somebody else changed, and does the same for kernel parameters.
    fn check(&mut self) {
        let began = Instant::now();
        let mut found = Vec::new();
        for family in &mut self.families {
            found.extend(family.check(&self.table, &self.metrics));
        }
        let by = self
            .touched_by
            .take()
            .map(|name| format!(" (the last change of rules came from {name:?})"));
        self.drift = (!found.is_empty()).then(|| found.join("; ") + by.as_deref().unwrap_or_default());
        if let Some(active) = &self.active {
            self.parameters.apply(&active.settings);
        }
        self.schedule_check(began.elapsed());
    }

    fn schedule_check(&mut self, took: Duration) {
        let period = self
            .active
            .as_ref()
            .map_or(30, |active| active.settings.sync_period_seconds);
        let period = Duration::from_secs(u64::try_from(period).unwrap_or(30).max(1));
        let now = Instant::now();
        self.timers.rest_until = Some(now + took * TOUCHED_CHECK_SHARE);
        self.timers.next_check = Some(now + period.max(took * CHECK_SHARE));
    }

    fn publish(&mut self) {
        let pending_limit = self.active.as_ref().map_or(Duration::from_secs(60), |active| {
            Duration::from_secs(2 * u64::try_from(active.settings.sync_period_seconds).unwrap_or(30))
        });
        let described = self.index.problems().map(str::to_owned);
        let described = described.chain(self.problems.values().flatten().map(ToString::to_string));
        let settled = !self.families.is_empty() && self.families.iter().all(FamilyProxy::is_settled);
        let before = self.state.borrow().applied_revision.clone();
        let waiting = self.timers.pending_since.is_some();
        let applied_revision = match &self.active {
            Some(active) if settled && !waiting => Some(active.revision.clone()),
            // What the kernel holds while changes are on their way is still the revision before them.
            Some(_) => before,
            None => None,
        };
        let state = State {
            assignment: self.active.clone(),
            rejected: self.rejected.clone(),
            listed: self.is_listed(),
            mode: self.mode.clone(),
            applied_revision,
            families: self.families.iter().map(FamilyProxy::state).collect(),
            services: self.table.service_count(),
            endpoints: self.table.endpoint_count(),
            digest: self.table.digest(),
            drift: self.drift.clone(),
            sysctl_failures: self.parameters.failures().to_vec(),
            problems: (
                self.index.problems().count() + self.problems.values().map(Vec::len).sum::<usize>(),
                described.take(PROBLEMS_SHOWN).collect(),
            ),
            pending_since: self.timers.pending_since,
            pending_limit,
            node_eligible: self.node.as_ref().is_none_or(|node| node.eligible),
        };
        self.state.send_if_modified(|published| {
            let differs = *published != state;
            *published = state;
            differs
        });
    }
}

/// The mode that runs for the one that was asked for, and why when the agent chose it.
fn choose(asked: Mode) -> (Mode, Option<String>) {
    match asked {
        Mode::Auto => (
            Mode::IPTables,
            Some("Auto chose IPTables: it is the only mode of this version".to_owned()),
        ),
        Mode::IPTables => (Mode::IPTables, None),
    }
}

/// Remembers what is wrong with a Service, and logs what is new of it.
fn note_problems(
    known: &mut BTreeMap<ServiceName, Vec<Problem>>,
    service: &ServiceName,
    problems: &[Problem],
) {
    if problems.is_empty() {
        known.remove(service);
    } else if known.get(service).is_none_or(|before| before != problems) {
        for problem in problems {
            tracing::warn!("{problem}");
        }
        known.insert(service.clone(), problems.to_vec());
    }
}

/// The families that a backend is made for: IPv6 only where the kernel has it.
#[must_use]
pub fn families() -> Vec<Family> {
    let has_ipv6 = std::path::Path::new("/proc/net/if_inet6").exists();
    Family::ALL
        .into_iter()
        .filter(|family| *family == Family::V4 || has_ipv6)
        .collect()
}

#[cfg(test)]
mod tests;

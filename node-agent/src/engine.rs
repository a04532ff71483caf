//! The loop that makes the kernel follow the sources. It owns the table and the backends, runs on a
//! thread of its own, and is the only one that writes to the kernel.

mod choice;
mod family;
mod forwarding;
mod leftovers;
mod parameters;
mod service_cidrs;
mod triggers;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use pointsman_crds::{Mode, Settings};
use pointsman_dataplane::backend::{Backend, Error};
use pointsman_dataplane::conntrack::Cleaner;
use pointsman_dataplane::leftover::Found;
use pointsman_dataplane::model::{Family, SchedulerKind};
use pointsman_dataplane::nftables::probe::Capability;
use tokio::sync::{mpsc::Receiver, watch};

use crate::logging::LogLevel;
use crate::metrics::{Metrics, SyncKind};
use crate::service_health::HealthChecks;
use crate::settings;
use crate::source::{Assignment, Event, Kind};
use crate::state::State;
use choice::Choice;
use family::{FamilyProxy, TornDown};
use forwarding::Forwarding;
use leftovers::Leftovers;
pub use parameters::Parameters;

/// Makes the backend of a mode and family.
pub type MakeBackend = Arc<dyn Fn(Mode, Family) -> Result<Box<dyn Backend>, Error> + Send + Sync>;
/// Asks the kernel whether it can do what mode NFTables needs, in a family.
pub type Probe = Arc<dyn Fn(Family) -> Capability + Send + Sync>;
/// Asks the kernel whether it can do what mode IPVS needs, with a scheduler, in a family.
pub type ProbeIpvs = Arc<dyn Fn(Family, SchedulerKind) -> Capability + Send + Sync>;

/// Looks for rules that a kube-proxy has in the kernel, in these families.
pub type LookForLeftovers = Box<dyn FnMut(&[Family]) -> Found + Send>;

/// What the engine knows of the node's kernel.
pub struct Kernel {
    /// Makes backends.
    pub make_backend: MakeBackend,
    /// Asked while `Auto` has no final answer.
    pub probe: Probe,
    /// Asked where the policy leaves the mode open and names a scheduler.
    pub probe_ipvs: ProbeIpvs,
    /// Whether there may be something of mode IPVS in the kernel.
    pub has_ipvs: Box<dyn Fn() -> bool + Send>,
    /// Its release, as `uname -r` prints it.
    pub release: String,
    /// Asked from time to time, and when somebody changed tables that kube-proxy has rules in.
    pub look_for_leftovers: LookForLeftovers,
}

/// At most this many events are taken in before the kernel is written, so that a steady stream cannot starve it.
const BATCH: usize = 10_000;
/// Problems that are spelled out in the status; the others are counted.
const PROBLEMS_SHOWN: usize = 3;
/// A full check may take up at most one part in this many of the time.
const CHECK_SHARE: u32 = 50;
/// The same for checks because somebody touched rules, which are more likely to find something.
const TOUCHED_CHECK_SHARE: u32 = 10;
/// After a notification that rules were touched, more of them are waited for before everything is read back: a flush is
/// one transaction, and until it is repaired nothing is translated.
const TOUCH_SETTLE: Duration = Duration::from_millis(20);
/// A drift is told for at least this long, so that others hear of one whose next check is clean at once.
const DRIFT_SHOWN: Duration = Duration::from_secs(10);
const TEARDOWN_RETRY: Duration = Duration::from_secs(5);
/// When the kernel is asked again what `Auto` can be, while it could not tell.
const CHOICE_RETRY: Duration = Duration::from_secs(5);
/// For how long the first table waits for ServiceCIDRs when everything else is there.
const SERVICE_CIDRS_LIMIT: Duration = Duration::from_secs(2);

/// What the engine is made of.
pub struct Engine {
    forwarding: Forwarding,
    wanted: Wanted,
    /// Whether the current listing of assignments has named one.
    assignment_named: bool,
    /// What is in force.
    active: Option<Arc<Assignment>>,
    families: Vec<FamilyProxy>,
    /// Those of the other modes, until what they, or an earlier agent, left in the kernel is gone: each goes when the
    /// mode that runs has its family's table in the kernel.
    retiring: Vec<FamilyProxy>,
    parameters: Parameters,
    cleaner: Cleaner,
    leftovers: Leftovers,
    kernel: Kernel,
    /// What `Auto` is, once it was asked for, with a scheduler or without.
    auto: Option<(Option<SchedulerKind>, Choice)>,
    log_level: LogLevel,
    metrics: Arc<Metrics>,
    state: watch::Sender<State>,
    health_checks: watch::Sender<HealthChecks>,
    timers: Timers,
    drift: Option<String>,
    /// Who changed rules since the last check, where the kernel told.
    touched_by: Option<String>,
    rejected: Option<String>,
    mode: Option<(Mode, Option<String>)>,
    stopping: bool,
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
    retire_at: Option<Instant>,
    choose_at: Option<Instant>,
    drift_shown_until: Option<Instant>,
    /// When the first table no longer waits for ServiceCIDRs. An agent that is restarted over right rules would take
    /// the drop of unallocated ClusterIPs away for a moment if it did not wait.
    service_cidrs_until: Option<Instant>,
}

impl Engine {
    /// An engine that has nothing yet.
    #[must_use]
    pub fn new(
        kernel: Kernel,
        parameters: Parameters,
        cleaner: Cleaner,
        log_level: LogLevel,
        metrics: Arc<Metrics>,
        state: watch::Sender<State>,
        health_checks: watch::Sender<HealthChecks>,
    ) -> Self {
        Self {
            forwarding: Forwarding::default(),
            wanted: Wanted::Unchanged,
            assignment_named: false,
            active: None,
            families: Vec::new(),
            retiring: Vec::new(),
            parameters,
            cleaner,
            leftovers: Leftovers::default(),
            kernel,
            auto: None,
            log_level,
            metrics,
            state,
            health_checks,
            timers: Timers::default(),
            drift: None,
            touched_by: None,
            rejected: None,
            mode: None,
            stopping: false,
        }
    }

    /// Follows the events until [`Event::Stop`], or until their senders are gone. The kernel keeps what it has.
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
            if self.stopping {
                return;
            }
            self.step(Instant::now());
            self.publish();
        }
    }

    fn take_in(&mut self, event: Event) {
        if let Event::RulesTouched { touched, .. } = &event {
            self.leftovers.touched(touched, Instant::now());
        }
        match &event {
            Event::Assignment(assignment) => {
                self.rejected = None;
                self.assignment_named = true;
                self.wanted = Wanted::New(assignment.clone());
            }
            Event::Stop => self.stopping = true,
            Event::AssignmentUnusable(why) => {
                tracing::error!("{why}: what was in force stays");
                self.rejected = Some(why.clone());
                self.assignment_named = true;
                self.wanted = Wanted::Unchanged;
            }
            Event::ListBegins(Kind::Assignment) => self.assignment_named = false,
            Event::ListEnds(Kind::Assignment) if !self.assignment_named => self.wanted = Wanted::New(None),
            // Others' tables are no business of ours, and reading ours back is not for nothing.
            Event::RulesTouched { touched, .. } if !self.families.iter().any(|of| of.has(touched)) => {}
            Event::RulesTouched { by, .. } => {
                self.touched_by = by.clone().or(self.touched_by.take());
                let now = Instant::now();
                let soon = self.timers.rest_until.map_or(now, |rest| rest.max(now)) + TOUCH_SETTLE;
                self.timers.next_check = self.timers.next_check.map(|check| check.min(soon));
            }
            _ => {}
        }
        self.forwarding.take_in(event);
        if self.forwarding.has_changes() {
            self.metrics.queued();
            self.timers.pending_since.get_or_insert_with(Instant::now);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let retries = self.families.iter().filter_map(FamilyProxy::retry_at);
        let tended = self.families.iter().filter_map(FamilyProxy::tend_at);
        let unwritten = self.forwarding.has_changes() || self.forwarding.has_diff();
        let gathered = if unwritten { self.gathering_until() } else { None };
        retries
            .chain(tended)
            .chain(self.timers.next_check)
            .chain(self.timers.teardown_at)
            .chain(self.timers.retire_at)
            .chain(self.timers.choose_at)
            .chain(self.leftovers.look_at())
            .chain(
                self.timers
                    .service_cidrs_until
                    .filter(|_| !self.forwarding.knows_service_cidrs()),
            )
            .chain(gathered)
            .min()
    }

    /// Until when changes are gathered (`minSyncPeriodMilliseconds`).
    fn gathering_until(&self) -> Option<Instant> {
        let period = self.active.as_ref()?.settings.min_sync_period_milliseconds;
        Some(self.timers.last_sync? + Duration::from_millis(u64::try_from(period).unwrap_or(0)))
    }

    fn step(&mut self, now: Instant) {
        if !self.forwarding.is_listed() {
            return;
        }
        if !self.forwarding.knows_service_cidrs() {
            if *self
                .timers
                .service_cidrs_until
                .get_or_insert(now + SERVICE_CIDRS_LIMIT)
                > now
            {
                return;
            }
            tracing::warn!(waited = ?SERVICE_CIDRS_LIMIT, "beginning without ServiceCIDRs, which are not known yet");
            self.forwarding.take_in(Event::Unavailable(Kind::ServiceCidrs));
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
            self.forwarding.forget_triggers();
            return;
        }
        if self.timers.choose_at.is_some_and(|at| at <= now)
            && let Some(active) = self.active.clone()
        {
            self.run_in(&active.settings, &active.policy);
        }
        let waits = self.gathering_until().is_some_and(|until| until > now);
        if self.forwarding.has_changes() && !waits {
            self.forwarding.update();
            self.metrics.objects_changed(self.forwarding.changes());
            self.metrics.compiled(self.forwarding.table());
        }
        self.metrics.objects_pending(self.forwarding.pending());
        self.write(now);
        for family in &mut self.families {
            family.tend(now, &self.metrics);
        }
        if !self.retiring.is_empty() {
            self.retire(now);
        }
        if self.timers.next_check.is_some_and(|at| at <= now) {
            self.check();
        }
        if self.leftovers.look_at().is_some_and(|at| at <= now) {
            let period = self.sync_period();
            self.leftovers.look(&mut self.kernel.look_for_leftovers, period);
            self.metrics.leftovers(self.leftovers.found());
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
        self.run_in(settings, &assignment.policy);
        let verbosity = settings.log_verbosity;
        // What /debug/flags/v said stays until a policy says something else.
        let other = |active: &Arc<Assignment>| active.settings.log_verbosity != verbosity;
        if self.active.as_ref().is_none_or(other) {
            self.log_level.set(verbosity);
        }
        self.parameters.apply(settings, &self.modes());
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
            self.forwarding.set_settings(forwarding);
            self.timers.pending_since.get_or_insert_with(Instant::now);
            // New settings do not wait for the gathering of changes.
            self.timers.last_sync = None;
        }
        self.active = Some(assignment);
        self.leftovers.begin(Instant::now());
        self.schedule_check(Duration::ZERO);
    }

    /// Goes over to the mode that was asked for, if it is not the one that runs.
    fn run_in(&mut self, settings: &Settings, policy: &str) {
        let mode = self.choose(settings);
        if self.mode.as_ref().map(|(mode, _)| *mode) != Some(mode.0) || self.families.is_empty() {
            tracing::info!(policy, mode = %mode.0, "forwarding in this mode");
            let families = self.make_families(mode.0);
            let mut before = std::mem::replace(&mut self.families, families);
            before.append(&mut self.retiring);
            before.retain(|old| old.mode() != mode.0);
            // An earlier run of the agent may have left something in modes that this one did not run.
            let others = MODES.into_iter().filter(|other| *other != mode.0);
            for family in others.flat_map(|other| self.make_families(other)) {
                if !before.iter().any(|old| old.is_the_same_as(&family)) {
                    before.push(family);
                }
            }
            self.retiring = before;
        }
        self.mode = Some(mode);
    }

    /// The modes that need kernel parameters: the one that runs, and one that still has something in the kernel.
    fn modes(&self) -> Vec<Mode> {
        let mut modes: Vec<Mode> = self.mode.iter().map(|(mode, _)| *mode).collect();
        let left = self.retiring.iter().filter(|old| match old.has_something() {
            Some(has) => has,
            // An earlier agent may have begun to go over to another mode.
            None => old.mode() == Mode::IPVS && (self.kernel.has_ipvs)(),
        });
        modes.extend(left.map(FamilyProxy::mode));
        modes
    }

    /// Makes backends that are to write everything, which loads what the kernel has in modules, and sets the parameters that
    /// there are only then.
    fn prepare(&mut self, now: Instant) {
        let Some(active) = self.active.clone() else {
            return;
        };
        let due = self.families.iter_mut().filter(|family| family.is_due(now));
        if due.map(FamilyProxy::prepare).count() > 0 {
            let modes = self.modes();
            self.parameters.apply(&active.settings, &modes);
        }
    }

    /// How long what is left of a mode waits for its connections.
    fn patience(&self) -> Option<Duration> {
        let graceful = self.active.as_ref()?.settings.ipvs.graceful_seconds?;
        u64::try_from(graceful).ok().map(Duration::from_secs)
    }

    /// The mode that runs for the one that was asked for, and why when the agent chose it.
    fn choose(&mut self, settings: &Settings) -> (Mode, Option<String>) {
        self.timers.choose_at = None;
        if settings.mode != Mode::Auto {
            return (settings.mode, None);
        }
        // One that does not exist was refused by `settings::check`.
        let scheduler = settings.scheduler.as_deref();
        let scheduler: Option<SchedulerKind> = scheduler.and_then(|name| name.parse().ok());
        let choice = match self.auto.take() {
            Some((of, choice @ Choice::Final(..))) if of == scheduler => choice,
            _ => choice::choose(
                scheduler,
                |family, kind| (self.kernel.probe_ipvs)(family, kind),
                |family| (self.kernel.probe)(family),
                &families(),
                &self.kernel.release,
            ),
        };
        if matches!(choice, Choice::ForNow(..)) {
            self.timers.choose_at = Some(Instant::now() + CHOICE_RETRY);
        }
        let (_, choice) = self.auto.insert((scheduler, choice));
        choice.mode()
    }

    fn make_families(&self, mode: Mode) -> Vec<FamilyProxy> {
        let make = |family| FamilyProxy::new(mode, family, Arc::clone(&self.kernel.make_backend));
        families().into_iter().map(make).collect()
    }

    /// No policy selects this node any more, or never did.
    fn stand_down(&mut self, now: Instant) {
        if self.active.take().is_some() {
            tracing::info!("no policy selects this node any more: taking the rules down");
        }
        self.mode = None;
        self.timers.choose_at = None;
        self.drift = None;
        self.timers.next_check = None;
        self.leftovers = Leftovers::default();
        self.metrics.leftovers(None);
        self.tear_down(now);
    }

    /// Takes down whatever any mode of any earlier run of the agent may have left.
    fn tear_down(&mut self, now: Instant) {
        self.timers.teardown_at = None;
        self.families.append(&mut self.retiring);
        if self.families.is_empty() {
            self.families = MODES
                .into_iter()
                .flat_map(|mode| self.make_families(mode))
                .collect();
        }
        let mut drains = false;
        self.families.retain_mut(|family| {
            let torn_down = family.tear_down(None);
            drains |= torn_down == TornDown::Draining;
            torn_down != TornDown::Whole
        });
        if !self.families.is_empty() {
            self.timers.teardown_at = Some(now + TEARDOWN_RETRY);
        }
        if !drains {
            self.parameters.restore();
        }
        self.cleaner.forget();
        self.forwarding.clear();
    }

    /// Takes down what other modes have in the kernel, where the one that runs has taken over: until then both
    /// forward, and no packet meets neither.
    fn retire(&mut self, now: Instant) {
        if self.timers.retire_at.is_some_and(|at| at > now) {
            return;
        }
        let patience = self.patience();
        let families = &self.families;
        let has_taken_over = |of: Family| {
            families
                .iter()
                .any(|family| family.family() == of && family.is_settled())
        };
        let (mut stays_some, mut drained) = (false, false);
        self.retiring.retain_mut(|old| {
            if !has_taken_over(old.family()) {
                return true;
            }
            let drains = old.has_something() == Some(true);
            let stays = old.tear_down(patience) != TornDown::Whole;
            stays_some |= stays;
            drained |= drains && !stays;
            stays
        });
        self.timers.retire_at = stays_some.then(|| now + TEARDOWN_RETRY);
        if drained && let Some(active) = self.active.clone() {
            // What only the old mode needed.
            let modes = self.modes();
            self.parameters.apply(&active.settings, &modes);
        }
    }

    /// Writes the table's changes to the kernel, each family by itself.
    fn write(&mut self, now: Instant) {
        if self.forwarding.has_diff() || self.families.iter().any(|family| family.is_due(now)) {
            self.prepare(now);
            let diff = self.forwarding.take_diff();
            let table = self.forwarding.table();
            self.cleaner.changing(table, &diff);
            let mut failing = Vec::new();
            for family in &mut self.families {
                let written = family.write(table, &diff, now, &self.metrics);
                tell_cleaner(&self.cleaner, &self.forwarding, family.family(), written);
                if !family.is_settled() {
                    failing.push(family.family());
                }
            }
            // Where the mode that is wanted cannot be had, the one that ran goes on following changes.
            for old in &mut self.retiring {
                if failing.contains(&old.family()) && old.is_settled() && !diff.is_empty() {
                    let written = old.write(table, &diff, now, &self.metrics);
                    tell_cleaner(&self.cleaner, &self.forwarding, old.family(), written);
                }
            }
            self.timers.last_sync = Some(Instant::now());
        }
        for family in self.families.iter().filter(|family| family.is_settled()) {
            let family = family.family();
            for changed in self.forwarding.written(family) {
                self.metrics.programmed(family, changed);
            }
            if self.timers.pending_since.is_some() && !self.forwarding.has_changes() {
                self.metrics.synced(family);
            }
        }
        let settled = self.families.iter().all(FamilyProxy::is_settled);
        if settled && !self.forwarding.has_changes() {
            self.timers.pending_since = None;
        }
    }

    /// Reads the kernel back, repairs what somebody else changed, and does the same for kernel parameters.
    fn check(&mut self) {
        let began = Instant::now();
        let mut found = Vec::new();
        for family in &mut self.families {
            let different = family.check(self.forwarding.table(), &self.metrics);
            if different.is_some() && family.is_settled() {
                // Packets met other rules for a while.
                self.forwarding.compare_all(&self.cleaner, family.family());
            }
            found.extend(different);
        }
        let by = self
            .touched_by
            .take()
            .map(|name| format!(" (the last change of rules came from {name:?})"));
        if !found.is_empty() {
            self.drift = Some(found.join("; ") + by.as_deref().unwrap_or_default());
            self.timers.drift_shown_until = Some(began + DRIFT_SHOWN);
        } else if self.timers.drift_shown_until.is_none_or(|until| until <= began) {
            self.drift = None;
        }
        if !self.families.iter().all(FamilyProxy::is_settled) {
            // A repair that failed waits as a change does.
            self.timers.pending_since.get_or_insert(began);
        }
        if let Some(active) = &self.active {
            let modes = self.modes();
            self.parameters.apply(&active.settings, &modes);
        }
        self.schedule_check(began.elapsed());
    }

    fn schedule_check(&mut self, took: Duration) {
        let now = Instant::now();
        self.timers.rest_until = Some(now + took * TOUCHED_CHECK_SHARE);
        self.timers.next_check = Some(now + self.sync_period().max(took * CHECK_SHARE));
    }

    /// The slow beat (`syncPeriodSeconds`).
    fn sync_period(&self) -> Duration {
        let period = self
            .active
            .as_ref()
            .map_or(30, |active| active.settings.sync_period_seconds);
        Duration::from_secs(u64::try_from(period).unwrap_or(30).max(1))
    }

    fn publish(&mut self) {
        if let Some(checks) = self.forwarding.take_health_checks() {
            self.health_checks.send_if_modified(|published| {
                let differs = *published != checks;
                *published = checks;
                differs
            });
        }
        let pending_limit = self.active.as_ref().map_or(Duration::from_secs(60), |active| {
            Duration::from_secs(2 * u64::try_from(active.settings.sync_period_seconds).unwrap_or(30))
        });
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
            listed: self.forwarding.is_listed(),
            mode: self.mode.clone(),
            applied_revision,
            families: self.families.iter().map(FamilyProxy::state).collect(),
            lacking: self.families.iter().flat_map(FamilyProxy::lacking).collect(),
            services: self.forwarding.table().service_count(),
            endpoints: self.forwarding.table().endpoint_count(),
            direct_access: self.forwarding.table().direct_access_count(),
            digest: self.forwarding.table().digest(),
            drift: self.drift.clone(),
            leftovers: self.leftovers.found().cloned(),
            sysctl_failures: self.parameters.failures().to_vec(),
            problems: self.forwarding.problems(PROBLEMS_SHOWN),
            pending_since: self.timers.pending_since,
            pending_limit,
            node_eligible: self.forwarding.is_eligible(),
        };
        self.state.send_if_modified(|published| {
            let differs = *published != state;
            *published = state;
            differs
        });
    }
}

/// Lets stale connection entries go, as far as the rules that make them so are in the kernel.
fn tell_cleaner(cleaner: &Cleaner, forwarding: &Forwarding, family: Family, written: Option<SyncKind>) {
    match written {
        Some(SyncKind::Partial) => cleaner.written(family),
        Some(SyncKind::Full) => forwarding.compare_all(cleaner, family),
        // What is not in the kernel yet waits for the sync that makes up for it.
        None => {}
    }
}

/// The modes that there are backends for.
const MODES: [Mode; 3] = [Mode::NFTables, Mode::IPTables, Mode::IPVS];

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

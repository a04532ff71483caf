//! Decides when to look at the fleet, and keeps account of what was written.
//!
//! Events are taken in at any time, also while writes are under way; there is one pass at a time, and only on the
//! replica that leads, once every watch has listed its kind to the end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use k8s_openapi::jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{error, info, warn};

use crate::debounce::Debounce;
use crate::elector::Leading;
use crate::fleet::{Change, Fleet, Kind};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::pass::{Pass, Write, look};
use crate::retry::{Retries, Target};
use crate::write::{Outcome, Writer};

/// A pass is made this often even when nothing happens.
const AT_LEAST_EVERY: Duration = Duration::from_secs(300);
const BEAT: Duration = Duration::from_secs(5);
/// How many objects a log line names.
const NAMED: usize = 3;

/// The one task that decides.
pub struct Controller {
    changes: mpsc::Receiver<Change>,
    leading: watch::Receiver<Leading>,
    writer: Writer,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    fleet: Fleet,
    debounce: Debounce,
    retries: Retries,
    leads: bool,
    complete: bool,
    last_pass: Option<Instant>,
    foreign: BTreeSet<String>,
}

/// The writes of a pass, under way.
type Writing = BoxFuture<'static, Vec<(Write, Outcome)>>;

impl Controller {
    /// A controller that hears of the cluster through `changes` and acts through `writer` while `leading` says so.
    #[must_use]
    pub fn new(
        changes: mpsc::Receiver<Change>,
        leading: watch::Receiver<Leading>,
        writer: Writer,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            changes,
            leading,
            writer,
            health,
            metrics,
            fleet: Fleet::default(),
            debounce: Debounce::default(),
            retries: Retries::default(),
            leads: false,
            complete: false,
            last_pass: None,
            foreign: BTreeSet::new(),
        }
    }

    /// Runs until the watches end or nobody can become the leader any more. Dropping it is a clean stop: every
    /// write is whole by itself.
    pub async fn run(mut self) {
        let mut writing: Option<(Instant, Writing)> = None;
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.note_leadership();
            let due = self.due().filter(|_| writing.is_none());
            let done = async {
                match &mut writing {
                    Some((_, writing)) => writing.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                change = self.changes.recv() => match change {
                    Some(change) => self.observe(change),
                    None => return,
                },
                changed = self.leading.changed() => if changed.is_err() { return },
                results = done => {
                    if let Some((begun, _)) = writing.take() {
                        self.metrics.reconciled(begun.elapsed());
                    }
                    self.account(results);
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    let begun = Instant::now();
                    writing = self.pass().map(|writing| (begun, writing));
                    if writing.is_none() {
                        self.metrics.reconciled(begun.elapsed());
                    }
                }
                _ = beat.tick() => {}
            }
            self.health.beat();
        }
    }

    fn note_leadership(&mut self) {
        let leads = self.leading.borrow_and_update().is_some();
        if leads != self.leads {
            self.leads = leads;
            self.health.leads(leads);
            self.metrics.leads(leads);
        }
    }

    fn observe(&mut self, change: Change) {
        let observation = self.fleet.observe(change);
        if observation.changed {
            self.debounce.note(Instant::now());
        }
        if let Some((kind, name, error)) = observation.unreadable {
            self.metrics.undecodable(kind);
            let advice = match kind {
                Kind::ProxyPolicy => {
                    "its nodes stay as they are; correct it, or run the version of the operator that it is for"
                }
                _ => "it is written anew if a policy selects its node",
            };
            error!(resource = %kind, name, error, "this version of the operator cannot read the object: {advice}");
        }
        if !self.complete && self.fleet.is_complete() {
            self.complete = true;
            info!(
                policies = self.fleet.policies().len(),
                nodes = self.fleet.nodes().len(),
                node_proxies = self.fleet.node_proxies().len(),
                "everything is listed"
            );
        }
    }

    /// When the next pass is due, if one may be made.
    fn due(&self) -> Option<Instant> {
        if !self.leads || !self.complete {
            return None;
        }
        let Some(last) = self.last_pass else {
            return Some(Instant::now());
        };
        [
            self.debounce.due(),
            self.retries.next(),
            Some(last + AT_LEAST_EVERY),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn pass(&mut self) -> Option<Writing> {
        let now = Instant::now();
        self.debounce.clear();
        self.last_pass = Some(now);
        // Whole seconds, as the API stores them.
        let time = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
        let Pass {
            writes,
            basis,
            foreign,
            totals,
        } = look(&self.fleet, time);
        self.metrics.totals(&totals);
        self.warn_of_foreign(foreign);

        let planned = writes.iter().map(target).collect();
        self.retries.keep(&planned);
        let writes: Vec<Write> = writes
            .into_iter()
            .filter(|write| self.retries.allows(&target(write), now))
            .collect();
        (!writes.is_empty()).then(|| self.writer.clone().write(writes, basis).boxed())
    }

    fn warn_of_foreign(&mut self, foreign: Vec<String>) {
        let foreign: BTreeSet<String> = foreign.into_iter().collect();
        for name in foreign.difference(&self.foreign) {
            warn!(
                name,
                "no policy selects the node of this NodeProxy, and it lacks the label app.kubernetes.io/managed-by=pointsman: \
                 it is left alone; delete it if nobody needs it"
            );
        }
        self.foreign = foreign;
    }

    fn account(&mut self, results: Vec<(Write, Outcome)>) {
        let now = Instant::now();
        self.debounce.restart(now);
        let mut failures = Vec::new();
        let mut done = Vec::new();
        for (write, outcome) in results {
            let target = target(&write);
            match outcome {
                Outcome::Done => {
                    self.retries.succeeded(&target);
                    done.push(write);
                }
                Outcome::Gone => self.retries.succeeded(&target),
                Outcome::Postponed(_) => self.retries.failed(target, now),
                // A new leader does it.
                Outcome::NotLeading => {}
                Outcome::Failed(error) => {
                    failures.push((write.verb(), target.clone(), error));
                    self.retries.failed(target, now);
                }
            }
        }
        log_changes(&done);
        for (verb, (kind, name), error) in failures.iter().take(NAMED) {
            warn!(resource = %kind, name, verb, error, "a write failed; it is tried again");
        }
        if failures.len() > NAMED {
            warn!(
                "{} more writes failed; they are tried again",
                failures.len() - NAMED
            );
        }
    }
}

fn target(write: &Write) -> Target {
    let (kind, name) = write.target();
    (kind, name.to_owned())
}

/// One line for each kind of change, however many nodes it is about.
fn log_changes(done: &[Write]) {
    for (verb, what) in [
        ("apply", "NodeProxies written"),
        ("delete", "NodeProxies deleted"),
    ] {
        let names: Vec<&str> = done
            .iter()
            .filter(|write| write.verb() == verb)
            .map(|write| write.target().1)
            .collect();
        if !names.is_empty() {
            let some = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
            let rest = if names.len() > NAMED { ", ..." } else { "" };
            info!(count = names.len(), nodes = format!("{some}{rest}"), "{what}");
        }
    }
    for write in done {
        if let Write::Status { policy, status, .. } = write {
            let counts = status.nodes;
            let ready = status.conditions.first();
            info!(
                policy,
                ready = ready.map_or("", |condition| condition.reason.as_str()),
                nodes = counts.matched,
                updated = counts.updated,
                ready_nodes = counts.ready,
                failed = counts.failed,
                "status written"
            );
        }
    }
}

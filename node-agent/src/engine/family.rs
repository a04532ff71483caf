//! One family's backend with its failures: each family is written, fails and is repaired by itself.

use std::time::{Duration, Instant};

use pointsman_crds::Mode;
use pointsman_dataplane::backend::{Backend, Error, Remaining, Report};
use pointsman_dataplane::model::{Diff, Family, ForwardingTable};
use pointsman_dataplane::netlink::ruleset::Touched;

use super::MakeBackend;
use crate::metrics::{Metrics, SyncKind};
use crate::state::{FamilyState, Outcome};

const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(30);

pub(super) struct FamilyProxy {
    mode: Mode,
    family: Family,
    make: MakeBackend,
    /// None until it could be made: its programs may be installed later.
    backend: Option<Box<dyn Backend>>,
    outcome: Outcome,
    /// The kernel may hold anything: the next write is a full one.
    needs_sync: bool,
    retry: Option<Retry>,
    /// What the kernel has not got, while it could not be written for that.
    missing: Option<String>,
}

struct Retry {
    at: Instant,
    pause: Duration,
}

impl FamilyProxy {
    pub(super) fn new(mode: Mode, family: Family, make: MakeBackend) -> Self {
        Self {
            mode,
            family,
            make,
            backend: None,
            outcome: Outcome::Pending,
            needs_sync: true,
            retry: None,
            missing: None,
        }
    }

    fn backend(&mut self) -> Result<&mut Box<dyn Backend>, Error> {
        let made = match self.backend.take() {
            Some(backend) => backend,
            None => (self.make)(self.mode, self.family)?,
        };
        Ok(self.backend.insert(made))
    }

    pub(super) fn family(&self) -> Family {
        self.family
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether both are for the same part of the kernel.
    pub(super) fn is_the_same_as(&self, other: &Self) -> bool {
        (self.mode, self.family) == (other.mode, other.family)
    }

    pub(super) fn state(&self) -> FamilyState {
        FamilyState {
            family: self.family,
            outcome: self.outcome.clone(),
        }
    }

    /// Whether a change in these tables may be one of what this backend wrote.
    pub(super) fn has(&self, touched: &Touched) -> bool {
        let tables = self.backend.as_ref().map_or(&[][..], |backend| backend.tables());
        tables.iter().any(|table| touched.has(self.family, table))
    }

    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry.as_ref().map(|retry| retry.at)
    }

    /// Makes the backend, if it can be made; what is wrong is told when it is to write.
    pub(super) fn prepare(&mut self) {
        let _ = self.backend();
    }

    /// Whether it may have something in the kernel; none when nobody knows yet.
    pub(super) fn has_something(&self) -> Option<bool> {
        match self.outcome {
            Outcome::Pending => None,
            Outcome::Applied | Outcome::Failed(_) | Outcome::Draining => Some(true),
            Outcome::Unneeded(_) => Some(false),
        }
    }

    /// Whether there is something to write even when nothing changed.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.needs_sync && self.retry.as_ref().is_none_or(|retry| retry.at <= now)
    }

    /// Whether nothing is left to write.
    pub(super) fn is_settled(&self) -> bool {
        matches!(self.outcome, Outcome::Applied | Outcome::Unneeded(_))
    }

    /// Brings the kernel to the table, and says how much it wrote, if it did. A failed change is followed by a full
    /// sync at once; when that fails as well, it is tried again after a pause that grows.
    pub(super) fn write(
        &mut self,
        table: &ForwardingTable,
        diff: &Diff,
        now: Instant,
        metrics: &Metrics,
    ) -> Option<SyncKind> {
        if !self.needs_sync {
            let began = Instant::now();
            match self.backend().and_then(|backend| backend.apply(table, diff)) {
                Ok(report) => {
                    metrics.applied(SyncKind::Partial, self.family, began.elapsed(), report);
                    self.say_written("the changes are in the kernel", began.elapsed(), report);
                    self.outcome = Outcome::Applied;
                    return Some(SyncKind::Partial);
                }
                Err(error) => {
                    metrics.failed(self.mode, SyncKind::Partial, self.family);
                    tracing::warn!(family = %self.family, %error, "writing a change failed: writing everything");
                    self.needs_sync = true;
                }
            }
        }
        let synced = self.is_due(now) && self.sync(table, metrics);
        synced.then_some(SyncKind::Full)
    }

    /// Writes everything; false when the kernel did not take it.
    fn sync(&mut self, table: &ForwardingTable, metrics: &Metrics) -> bool {
        let began = Instant::now();
        match self.backend().and_then(|backend| backend.sync(table)) {
            Ok(report) => {
                metrics.applied(SyncKind::Full, self.family, began.elapsed(), report);
                self.say_written("the whole table is in the kernel", began.elapsed(), report);
                if matches!(self.outcome, Outcome::Failed(_)) {
                    tracing::info!(family = %self.family, "the kernel holds the table again");
                }
                self.outcome = Outcome::Applied;
                self.missing = None;
                self.needs_sync = false;
                self.retry = None;
                true
            }
            Err(error) => {
                metrics.failed(self.mode, SyncKind::Full, self.family);
                self.fail(&error, table);
                false
            }
        }
    }

    fn say_written(&self, what: &str, took: Duration, report: Report) {
        let Report { objects, bytes, .. } = report;
        tracing::debug!(family = %self.family, ?took, objects, bytes, "{what}");
    }

    fn fail(&mut self, error: &Error, table: &ForwardingTable) {
        let needed = table.frontends().any(|(key, _)| key.family == self.family);
        self.missing = match error {
            Error::MissingKernelFeature { .. } | Error::MissingScheduler(_) if needed => {
                Some(error.to_string())
            }
            _ => None,
        };
        let outcome = match error {
            Error::MissingKernelFeature { .. } | Error::MissingProgram { .. } if !needed => {
                Outcome::Unneeded(error.to_string())
            }
            _ => Outcome::Failed(error.to_string()),
        };
        if self.outcome != outcome {
            tracing::error!(family = %self.family, %error, "the table cannot be written to the kernel");
        }
        let pause = self
            .retry
            .as_ref()
            .map_or(FIRST_RETRY, |retry| (retry.pause * 2).min(LAST_RETRY));
        self.outcome = outcome;
        self.needs_sync = true;
        self.retry = Some(Retry {
            at: Instant::now() + pause,
            pause,
        });
    }

    /// Compares the kernel with the table and repairs it; what was different is returned.
    pub(super) fn check(&mut self, table: &ForwardingTable, metrics: &Metrics) -> Option<String> {
        if self.needs_sync {
            return None;
        }
        let observed = self.backend().and_then(|backend| backend.observe());
        for (counter, packets) in observed.iter().flat_map(|observed| &observed.counters) {
            metrics.counted_by_kernel(self.family, counter, *packets);
        }
        match observed {
            Ok(observed) if observed.is_clean() => {
                tracing::debug!(family = %self.family, "the kernel holds what was meant");
                None
            }
            Ok(observed) => {
                tracing::warn!(family = %self.family, "somebody else changed the rules; repairing: {observed}");
                metrics.drifted(self.family);
                self.needs_sync = true;
                self.sync(table, metrics);
                Some(format!("{}: {observed}", self.family))
            }
            Err(error) => {
                tracing::warn!(family = %self.family, %error, "reading the kernel back failed");
                None
            }
        }
    }

    /// When there is something to do that no change asks for.
    pub(super) fn tend_at(&self) -> Option<Instant> {
        let backend = self.backend.as_ref().filter(|_| !self.needs_sync);
        backend.and_then(|backend| backend.tend_at())
    }

    /// Does what has become due by itself.
    pub(super) fn tend(&mut self, now: Instant, metrics: &Metrics) {
        if self.tend_at().is_none_or(|at| at > now) {
            return;
        }
        if let Err(error) = self.backend().and_then(|backend| backend.tend()) {
            metrics.failed(self.mode, SyncKind::Partial, self.family);
            tracing::warn!(family = %self.family, %error, "looking after what leaves failed: writing everything");
            self.needs_sync = true;
        }
    }

    /// What the kernel has not got that the table asks for.
    pub(super) fn lacking(&self) -> Vec<String> {
        let backend = self.backend.as_ref();
        let mut lacking = backend.map(|backend| backend.lacking()).unwrap_or_default();
        lacking.extend(self.missing.clone());
        lacking
    }

    /// Takes everything down, but what established connections still need: at most for so long.
    pub(super) fn tear_down(&mut self, limit: Option<Duration>) -> TornDown {
        match self.backend().and_then(|backend| backend.teardown(limit)) {
            // What is not there needs no taking down.
            Ok(Remaining::Nothing)
            | Err(Error::MissingKernelFeature { .. } | Error::MissingProgram { .. }) => TornDown::Whole,
            Ok(Remaining::Connections(connections)) => {
                if self.outcome != Outcome::Draining {
                    tracing::info!(family = %self.family, mode = %self.mode, connections, "what is left of this mode waits until its connections have ended");
                    self.outcome = Outcome::Draining;
                }
                self.needs_sync = true;
                TornDown::Draining
            }
            Err(error) => {
                tracing::error!(family = %self.family, %error, "taking the rules down failed: trying again");
                self.outcome = Outcome::Failed(error.to_string());
                self.needs_sync = true;
                TornDown::Failed
            }
        }
    }
}

/// How far a teardown came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TornDown {
    /// Nothing is left that has to be looked after.
    Whole,
    /// What connections go on with is left.
    Draining,
    /// Something is left that should not be.
    Failed,
}

//! Attempts without a pause, to see whether a change loses any.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};

use super::{Outcome, Tally};
use crate::Netns;

/// Between two attempts. Faster ones use up the source ports before conntrack forgets them.
const PAUSE: Duration = Duration::from_millis(1);

/// How many losses are remembered with their time.
const REMEMBERED: usize = 20;

/// A thread that makes attempts until stopped or dropped.
#[derive(Debug)]
pub struct Flood {
    /// Who asks whom, for errors.
    what: String,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Seen {
    tally: Tally,
    losses: Vec<(Duration, Outcome)>,
}

impl Flood {
    pub(super) fn start(
        what: String,
        namespace: Netns,
        attempt: impl Fn() -> Outcome + Send + 'static,
    ) -> Self {
        let (stop, seen) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Seen>>::default());
        let (stopped, ours) = (Arc::clone(&stop), Arc::clone(&seen));
        let thread = thread::spawn(move || {
            namespace.enter()?;
            let started = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                let at = started.elapsed();
                let outcome = attempt();
                let mut seen = ours.lock().unwrap_or_else(PoisonError::into_inner);
                seen.tally.add(&outcome);
                if outcome.answer().is_none() && seen.losses.len() < REMEMBERED {
                    seen.losses.push((at, outcome));
                }
                drop(seen);
                thread::sleep(PAUSE);
            }
            Ok(())
        });
        Self {
            what,
            stop,
            seen,
            thread: Some(thread),
        }
    }

    /// The counts so far.
    #[must_use]
    pub fn so_far(&self) -> Tally {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .tally
            .clone()
    }

    /// Waits until the flood has had `count` more answers than when this was called.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub fn wait_for(&self, count: u64, limit: Duration) -> Result<()> {
        let (started, before) = (Instant::now(), self.so_far().ok());
        while self.so_far().ok() < before + count {
            ensure!(
                started.elapsed() < limit,
                "not {count} more answers within {limit:?}: {}",
                self.so_far()
            );
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Ends it after the attempt under way.
    ///
    /// # Errors
    /// When the thread could not work: an attempt that fails is an outcome, not an error.
    pub fn stop(mut self) -> Result<Tally> {
        self.end()?;
        Ok(self.so_far())
    }

    /// Ends it and demands that there were attempts and that each was answered.
    ///
    /// # Errors
    /// With the counts, and when the first losses were, counted from the flood's start.
    pub fn stop_without_loss(mut self) -> Result<Tally> {
        self.end()?;
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(
            seen.tally.ok() > 0,
            "{}: nothing was answered: {}",
            self.what,
            seen.tally
        );
        ensure!(
            seen.tally.lost() == 0,
            "{}: {}; the first losses: {:?}",
            self.what,
            seen.tally,
            seen.losses
        );
        Ok(seen.tally.clone())
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take() {
            Some(thread) => thread
                .join()
                .map_err(|_| anyhow!("the flood's thread panicked"))?,
            None => Ok(()),
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        // Whoever drops it without stopping it does not want to know.
        let _ = self.end();
    }
}

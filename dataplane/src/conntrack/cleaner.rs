//! The thread that deletes stale entries, beside the one that programs the kernel.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use super::queue::Queue;
use super::stale::Review;
use super::walk::{Cleaned, clean};
use crate::model::{Diff, Family, ForwardingTable};

/// Between the rules and the walk: a packet that the old rules have just translated gets its entry in the meantime, and
/// changes that come close together have one walk.
const GATHERING: Duration = Duration::from_millis(20);
/// Walks take up one part in this many of the time at most.
const SHARE: u32 = 4;
/// How often a walk is tried.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Tells [`Worker`] what changes. Its calls are quick: they take what changed, and wait for nobody.
#[derive(Debug)]
pub struct Cleaner {
    shared: Arc<Shared>,
    /// The addresses that NodePorts answered on when the table was last looked at.
    answering: BTreeMap<Family, Vec<IpAddr>>,
}

/// Compares the entries with what [`Cleaner`] was told, and deletes the stale ones.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: Queue,
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cleaner {
    /// A cleaner and its worker. Nothing is deleted before the worker runs.
    #[must_use]
    pub fn new() -> (Self, Worker) {
        let shared = Arc::<Shared>::default();
        let worker = Worker {
            shared: Arc::clone(&shared),
        };
        let cleaner = Self {
            shared,
            answering: BTreeMap::new(),
        };
        (cleaner, worker)
    }

    /// The kernel is about to be brought to `table`, which `diff` led to. To be told before any of it is written.
    pub fn changing(&mut self, table: &ForwardingTable, diff: &Diff) {
        let review = Review::of_changes(table, diff, &self.answering);
        if diff.context || self.answering.is_empty() {
            let addresses = |family| (family, table.context().node_port_addresses(family));
            self.answering = Family::ALL.map(addresses).into();
        }
        self.shared.lock().queue.changing(review);
    }

    /// The kernel holds what was about to change in a family.
    pub fn written(&self, family: Family) {
        self.shared.lock().queue.written(family);
        self.shared.changed.notify_one();
    }

    /// The kernel holds all of `table` in a family, and before may have held anything: the agent has just begun, or
    /// somebody else changed rules. `foreign` are the endpoints of Services that are none of ours.
    pub fn written_all(&self, table: &ForwardingTable, family: Family, foreign: HashSet<IpAddr>) {
        let all = Review::of_all(table, family, foreign);
        self.shared.lock().queue.written_all(family, all);
        self.shared.changed.notify_one();
    }

    /// Forgets what was told: the rules are taken down, and connections go on without them.
    pub fn forget(&mut self) {
        self.answering.clear();
        self.shared.lock().queue.forget();
    }
}

impl Drop for Cleaner {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
    }
}

impl Worker {
    /// Works in the network namespace of the calling thread until the cleaner is gone, and tells what each walk came
    /// to. What is left undone then, the next agent does: it compares everything when it begins.
    pub fn run(self, mut tell: impl FnMut(&Cleaned)) {
        let mut failures = 0;
        while self.wait() {
            thread::sleep(GATHERING);
            let Some(review) = self.shared.lock().queue.take() else {
                continue;
            };
            let cleaned = clean(&review, |stale| {
                let mut state = self.shared.lock();
                stale.retain(|entry| state.queue.confirms(entry));
            });
            match cleaned {
                Ok(cleaned) => {
                    failures = 0;
                    self.shared.lock().queue.walked();
                    say(&cleaned);
                    tell(&cleaned);
                    self.pause(cleaned.took * (SHARE - 1));
                }
                Err(error) => {
                    failures += 1;
                    if failures < ATTEMPTS {
                        tracing::warn!(%error, "looking for stale connection entries failed: trying again");
                        self.shared.lock().queue.put_back(review);
                    } else {
                        self.shared.lock().queue.walked();
                        tracing::error!(
                            %error,
                            "looking for stale connection entries failed {failures} times: UDP clients of the Services that \
                             changed may send to endpoints that are gone until they pause; the agent needs \
                             CAP_NET_ADMIN, and the kernel ctnetlink (CONFIG_NF_CT_NETLINK)"
                        );
                    }
                    self.pause(FIRST_PAUSE * 2_u32.pow(failures.min(ATTEMPTS) - 1));
                }
            }
        }
    }

    /// Waits for something to do; false when the cleaner is gone.
    fn wait(&self) -> bool {
        let idle = |state: &mut State| !state.closed && !state.queue.is_due();
        let state = self.shared.changed.wait_while(self.shared.lock(), idle);
        !state.unwrap_or_else(PoisonError::into_inner).closed
    }

    fn pause(&self, pause: Duration) {
        let open = |state: &mut State| !state.closed;
        drop(
            self.shared
                .changed
                .wait_timeout_while(self.shared.lock(), pause, open),
        );
    }
}

fn say(cleaned: &Cleaned) {
    let Cleaned {
        seen, took, longest, ..
    } = cleaned;
    for (family, deleted) in &cleaned.deleted {
        if *deleted > 0 {
            tracing::info!(%family, deleted, seen, ?took, "stale connection entries are gone");
        } else {
            tracing::debug!(%family, seen, ?took, ?longest, "no stale connection entries");
        }
    }
    if let (kept, Some(error)) = &cleaned.kept {
        tracing::warn!(kept, %error, "the kernel kept stale connection entries");
    }
}

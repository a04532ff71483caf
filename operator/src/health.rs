//! How the process is, for the kubelet's probes and for people: the state of each watch and of the controller.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::fleet::Kind;

/// How long the controller may be silent. It speaks every few seconds, whatever it does.
const STUCK: Duration = Duration::from_secs(60);
/// How long a watch may fail before this replica counts as not ready.
const UNHEARD: Duration = Duration::from_secs(30);

/// The state.
#[derive(Debug)]
pub struct Health(Mutex<State>);

#[derive(Debug)]
struct State {
    beat: Instant,
    leads: bool,
    watches: BTreeMap<Kind, Watch>,
}

#[derive(Debug, Default)]
struct Watch {
    complete: bool,
    failing: Option<(Instant, String)>,
}

/// What a probe is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether all is well.
    pub good: bool,
    /// How it is, line by line.
    pub text: String,
}

impl Default for Health {
    fn default() -> Self {
        let watches = Kind::ALL
            .into_iter()
            .map(|kind| (kind, Watch::default()))
            .collect();
        Self(Mutex::new(State {
            beat: Instant::now(),
            leads: false,
            watches,
        }))
    }
}

impl Health {
    /// The controller is alive.
    pub fn beat(&self) {
        self.state().beat = Instant::now();
    }

    /// This replica leads, or does not.
    pub fn leads(&self, leads: bool) {
        self.state().leads = leads;
    }

    /// A watch brought something. Returns for how long it had been failing, if it had.
    pub fn heard(&self, kind: Kind, listed: bool) -> Option<Duration> {
        let mut state = self.state();
        let watch = state.watches.entry(kind).or_default();
        watch.complete |= listed;
        watch.failing.take().map(|(since, _)| since.elapsed())
    }

    /// A watch had an error. Returns whether that is news: it worked before, or fails in another way now.
    pub fn failed(&self, kind: Kind, error: String) -> bool {
        let mut state = self.state();
        let watch = state.watches.entry(kind).or_default();
        let news = watch.failing.as_ref().is_none_or(|(_, before)| *before != error);
        let since = watch
            .failing
            .as_ref()
            .map_or_else(Instant::now, |(since, _)| *since);
        watch.failing = Some((since, error));
        news
    }

    /// Whether the process works. An API server that is away is no reason to restart it.
    #[must_use]
    pub fn alive(&self) -> Answer {
        let state = self.state();
        let silent = state.beat.elapsed();
        let good = silent < STUCK;
        let controller = if good {
            "controller: running".to_owned()
        } else {
            format!(
                "controller: stuck, nothing heard from it for {} s; it has to be restarted",
                silent.as_secs()
            )
        };
        Answer {
            good,
            text: format!("{controller}\n{}", state.lines()),
        }
    }

    /// Whether this replica leads, or could lead at once.
    #[must_use]
    pub fn ready(&self) -> Answer {
        let state = self.state();
        let good = state.watches.values().all(|watch| {
            watch.complete
                && watch
                    .failing
                    .as_ref()
                    .is_none_or(|(since, _)| since.elapsed() < UNHEARD)
        });
        Answer {
            good,
            text: state.lines(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is never left half-changed, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn lines(&self) -> String {
        let mut text = format!("role: {}\n", if self.leads { "leading" } else { "standing by" });
        for (kind, watch) in &self.watches {
            let line = match (&watch.failing, watch.complete) {
                (Some((since, error)), complete) => format!(
                    "watch of {kind}: {} for {} s: {error}",
                    if complete {
                        "failing"
                    } else {
                        "not listed yet, failing"
                    },
                    since.elapsed().as_secs()
                ),
                (None, true) => format!("watch of {kind}: running"),
                (None, false) => format!("watch of {kind}: not listed yet"),
            };
            text.push_str(&line);
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ready_means_that_every_watch_has_listed_and_none_fails_for_long() {
        let health = Health::default();
        assert!(!health.ready().good);
        assert!(health.failed(Kind::Node, "refused".to_owned()));
        assert!(!health.failed(Kind::Node, "refused".to_owned()), "said once");
        assert!(
            health
                .ready()
                .text
                .contains("watch of nodes: not listed yet, failing for 0 s: refused")
        );
        for kind in Kind::ALL {
            health.heard(kind, true);
        }
        assert!(health.ready().good);
        health.failed(Kind::Node, "refused".to_owned());
        assert!(health.ready().good, "for a moment is fine");
        tokio::time::advance(UNHEARD).await;
        assert!(!health.ready().good);
        assert_eq!(health.heard(Kind::Node, false), Some(UNHEARD));
        assert!(health.ready().good);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_stuck_controller_is_a_reason_to_restart() {
        let health = Health::default();
        health.failed(Kind::Node, "refused".to_owned());
        tokio::time::advance(STUCK - Duration::from_secs(1)).await;
        assert!(health.alive().good);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!health.alive().good && health.alive().text.starts_with("controller: stuck"));
        health.beat();
        assert!(health.alive().good);
    }
}

//! Follows one kind: lists it, watches it, takes the watch up again after errors, and says how it goes.

use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use kube::runtime::utils::{Backoff, ResetTimerBackoff};
use kube::runtime::watcher::{Config, Error, Event};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Resource};
use pointsman_api_client::ListStrategy;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use crate::chain::chain;
use crate::fleet::{Change, Kind};
use crate::health::Health;
use crate::metrics::Metrics;

/// Where a watch reports to.
#[derive(Clone, Debug)]
pub struct Follower {
    /// Takes the events. When nobody reads, the watch waits.
    pub changes: mpsc::Sender<Change>,
    /// How the first list is made.
    pub strategy: ListStrategy,
    /// Is told how it goes.
    pub health: Arc<Health>,
    /// Counts errors.
    pub metrics: Arc<Metrics>,
}

impl Follower {
    /// Follows all objects that `api` reaches. Ends only when nobody takes the events any more.
    pub async fn follow<K>(mut self, api: Api<K>, kind: Kind, wrap: fn(Event<K>) -> Change)
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        loop {
            // Lists are read from a quorum (`MostRecent`), never from a server's cache that may lag behind: what
            // a stale list lacks looks like something that was deleted.
            let config = Config {
                initial_list_strategy: self.strategy.clone(),
                ..Config::default()
            };
            let mut events = pin!(watcher(api.clone(), config).backoff(pause()));
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => {
                        if let Some(failing) = self.health.heard(kind, matches!(event, Event::InitDone)) {
                            info!(resource = %kind, "the watch works again, after {} s", failing.as_secs());
                        }
                        if self.changes.send(wrap(event)).await.is_err() {
                            return;
                        }
                    }
                    Err(error) if self.strategy == ListStrategy::StreamingList && refuses_streams(&error) => {
                        info!(resource = %kind, %error, "the API server refuses streaming lists: paging instead");
                        self.strategy = ListStrategy::ListWatch;
                        break;
                    }
                    Err(error) => self.report(kind, &error),
                }
            }
        }
    }

    fn report(&self, kind: Kind, error: &Error) {
        if let Error::WatchError(status) = error
            && status.code == 410
        {
            debug!(resource = %kind, "the API server has forgotten where the watch was; listing anew");
            return;
        }
        self.metrics.watch_error(kind);
        let text = format!("{}{}", chain(error), advice(kind, error));
        if self.health.failed(kind, text.clone()) {
            warn!(resource = %kind, "the watch fails, trying on: {text}");
        }
    }
}

fn answered(error: &Error) -> Option<u16> {
    match error {
        Error::InitialListFailed(kube::Error::Api(status))
        | Error::WatchStartFailed(kube::Error::Api(status))
        | Error::WatchFailed(kube::Error::Api(status)) => Some(status.code),
        Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

/// `sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled`, with 422.
fn refuses_streams(error: &Error) -> bool {
    matches!(error, Error::WatchStartFailed(_)) && matches!(answered(error), Some(400 | 422))
}

fn advice(kind: Kind, error: &Error) -> String {
    match answered(error) {
        Some(404) if kind != Kind::Node => {
            ": install the CustomResourceDefinitions (chart pointsman-crds, or kubectl apply -f crds/yaml)"
                .to_owned()
        }
        Some(401) => ": the API server does not know this operator: check its token or kubeconfig".to_owned(),
        Some(403) => format!(": allow the operator's service account to list and watch {kind}"),
        _ => String::new(),
    }
}

/// 0.5 s, 1 s, ... 10 s, beginning anew after two minutes that were quiet.
///
/// kube's default grows to a minute, which is long for the first look at an API server that is back.
fn pause() -> impl Backoff {
    ResetTimerBackoff::new(Doubling::default(), Duration::from_secs(120))
}

#[derive(Debug, Default)]
struct Doubling(u32);

impl Iterator for Doubling {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = Duration::from_millis(500).saturating_mul(2_u32.saturating_pow(self.0));
        self.0 = self.0.saturating_add(1);
        Some(pause.min(Duration::from_secs(10)))
    }
}

impl Backoff for Doubling {
    fn reset(&mut self) {
        self.0 = 0;
    }
}

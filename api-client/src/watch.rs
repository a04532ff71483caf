//! Watches that never end.

use std::{fmt::Debug, pin::pin, time::Duration};

use futures::StreamExt as _;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{Config, Error, Event, InitialListStrategy};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use crate::chain;

/// How a watch gets the objects that are there already.
pub type ListStrategy = InitialListStrategy;

/// The first minor version of Kubernetes whose API servers have the gate WatchList on by default for good.
const STREAMING_LISTS_SINCE: u32 = 34;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// kube's own pauses grow to a minute, which is long for the first look at an API server that is back.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// After this much quiet the pauses begin anew.
const QUIET: Duration = Duration::from_secs(120);

/// Streaming lists (KEP-3157) where the server has them, pages elsewhere: a stream needs a fraction of the memory
/// on both sides, but a server without the gate refuses it.
pub async fn list_strategy(client: &Client) -> ListStrategy {
    let minor = match client.apiserver_version().await {
        // Some distributions write "34+".
        Ok(version) => version.minor.trim_end_matches('+').parse().unwrap_or(0),
        // It is away, which says nothing about what it has: [`follow`] finds out.
        Err(error) => {
            tracing::warn!(error = chain(&error), "the API server does not tell its version");
            STREAMING_LISTS_SINCE
        }
    };
    if minor >= STREAMING_LISTS_SINCE {
        ListStrategy::StreamingList
    } else {
        ListStrategy::ListWatch
    }
}

/// What a watch brings.
#[derive(Clone, Debug)]
pub enum Heard<K> {
    /// Objects, or the marks around a list.
    Event(Event<K>),
    /// Why nothing comes at the moment, and what to do about it. The watch tries on by itself.
    Trouble(String),
}

/// Follows all objects that `api` reaches: sends what `wrap` makes of what it hears, and takes the watch up again
/// after errors. Ends only when nobody receives any more; waits while the receiver is busy.
///
/// Lists are read from a quorum, never from a server's cache that may lag behind: what a stale list lacks looks
/// like something that was deleted.
pub async fn follow<K, T>(
    api: Api<K>,
    config: Config,
    mut strategy: ListStrategy,
    sender: Sender<T>,
    wrap: impl Fn(Heard<K>) -> Option<T>,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    loop {
        let config = Config {
            initial_list_strategy: strategy.clone(),
            ..config.clone()
        };
        let mut events = pin!(watcher(api.clone(), config).backoff(Pauses::default()));
        while let Some(event) = events.next().await {
            let heard = match event {
                Ok(event) => Heard::Event(event),
                Err(error) if strategy == ListStrategy::StreamingList && refuses_streams(&error) => {
                    tracing::info!(
                        url = api.resource_url(),
                        "the API server refuses streaming lists: paging instead"
                    );
                    strategy = ListStrategy::ListWatch;
                    break;
                }
                // The server has forgotten the version that the watch stood at; it lists anew.
                Err(Error::WatchError(status)) if status.code == 410 => continue,
                Err(error) => {
                    Heard::Trouble(format!("{}{}", chain(&error), advice(api.resource_url(), &error)))
                }
            };
            if let Some(item) = wrap(heard)
                && sender.send(item).await.is_err()
            {
                return;
            }
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

fn advice(url: &str, error: &Error) -> String {
    let plural = url.rsplit('/').next().unwrap_or(url);
    match answered(error) {
        Some(404) if url.contains("pointsman.dev") => {
            ": install the CustomResourceDefinitions (chart pointsman-crds, or kubectl apply -f crds/yaml)"
                .to_owned()
        }
        Some(401) => ": the API server does not know who this is: check the token or kubeconfig".to_owned(),
        Some(403) => format!(": allow the service account to list and watch {plural}"),
        _ => String::new(),
    }
}

/// How long to wait after each error.
#[derive(Debug, Default)]
struct Pauses {
    /// Errors in a row.
    errors: u32,
    last: Option<Instant>,
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = Instant::now();
        if self.last.is_some_and(|last| now.duration_since(last) > QUIET) {
            self.errors = 0;
        }
        self.last = Some(now);
        let pause = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(self.errors));
        self.errors = self.errors.saturating_add(1);
        Some(pause.min(LONGEST_PAUSE))
    }
}

impl Backoff for Pauses {
    /// Called after everything that is no error, which a mark such as [`Event::Init`] is already: it comes before
    /// every try to list. So only time counts.
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_to_ten_seconds_also_when_lists_begin_in_between() {
        let mut pauses = Pauses::default();
        let mut after_error = || {
            let pause = pauses.next().map(|pause| pause.as_millis());
            pauses.reset();
            pause
        };
        let grown: Vec<_> = (0..7).filter_map(|_| after_error()).collect();
        assert_eq!(grown, [500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
        tokio::time::advance(QUIET + Duration::from_secs(1)).await;
        assert_eq!(after_error(), Some(500));
    }

    #[test]
    fn refusals_say_what_to_do() {
        let refused = |code: u16| {
            let status = kube::core::Status {
                code,
                ..Default::default()
            };
            Error::WatchStartFailed(kube::Error::Api(status.boxed()))
        };
        let url = "/apis/pointsman.dev/v1alpha1/nodeproxies";
        assert!(advice(url, &refused(404)).contains("pointsman-crds"));
        assert!(advice(url, &refused(403)).ends_with("list and watch nodeproxies"));
        assert_eq!(advice("/api/v1/services", &refused(500)), "");
        assert!(refuses_streams(&refused(422)) && !refuses_streams(&refused(500)));
    }
}

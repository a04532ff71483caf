//! Watches.

use std::fmt::Debug;

use futures::{Stream, StreamExt as _};
use kube::runtime::watcher::{self, Config, Event, InitialListStrategy};
use kube::runtime::{WatchStreamExt as _, watcher as kube_watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

/// How a watch gets the objects that are there already.
pub type ListStrategy = InitialListStrategy;

/// The first minor version of Kubernetes whose API servers have the gate WatchList on by default for good.
const STREAMING_LISTS_SINCE: u32 = 34;

/// Streaming lists (KEP-3157) where the server has them, pages elsewhere: a stream needs a fraction of the memory
/// on both sides, but a server without the gate refuses it.
pub async fn list_strategy(client: &Client) -> ListStrategy {
    let minor = match client.apiserver_version().await {
        // Some distributions write "34+".
        Ok(version) => version.minor.trim_end_matches('+').parse().unwrap_or(0),
        Err(error) => {
            tracing::warn!(%error, "the API server does not tell its version: using paged lists");
            0
        }
    };
    if minor >= STREAMING_LISTS_SINCE {
        ListStrategy::StreamingList
    } else {
        ListStrategy::ListWatch
    }
}

/// A watch that never ends: errors are logged, waited out with a growing pause, and the watch is taken up again.
///
/// Consistent reads are not asked for: a cached list is as good for a proxy and spares etcd.
pub fn watch<K>(api: Api<K>, config: Config, strategy: ListStrategy) -> impl Stream<Item = Event<K>> + Send
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = Config {
        initial_list_strategy: strategy,
        ..config.any_semantic()
    };
    kube_watcher(api, config)
        .default_backoff()
        .filter_map(async |event| match event {
            Ok(event) => Some(event),
            Err(error) => {
                report::<K>(&error);
                None
            }
        })
}

fn report<K: Resource<DynamicType = ()>>(error: &watcher::Error) {
    let kind = K::kind(&());
    if let watcher::Error::WatchError(status) = error
        && status.code == 410
    {
        // The server has forgotten the version that the watch stood at; it lists anew.
        tracing::debug!(%kind, "the watch is too old for the API server and begins anew");
        return;
    }
    tracing::warn!(%kind, error = %chain(error), "watching failed: trying again");
}

/// An error with all its causes, which kube's own text leaves out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

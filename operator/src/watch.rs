//! What the operator watches, and how those watches go.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::watcher::{Config, Event};
use kube::{Api, Client};
use pointsman_api_client::{Heard, follow, list_strategy};
use pointsman_crds::{NodeProxy, ProxyPolicy};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::drift::Sighting;
use crate::fleet::{Change, Kind};
use crate::health::Health;
use crate::metrics::Metrics;

/// Watches policies, nodes and NodeProxies for as long as somebody takes the changes.
pub async fn watch_all(
    client: Client,
    changes: mpsc::Sender<Change>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    sightings: mpsc::Sender<Sighting>,
) {
    let strategy = list_strategy(&client).await;
    let listener = Listener { health, metrics };
    let policies: Api<DeserializeGuard<ProxyPolicy>> = Api::all(client.clone());
    let nodes: Api<PartialObjectMeta<Node>> = Api::all(client.clone());
    let node_proxies: Api<DeserializeGuard<NodeProxy>> = Api::all(client);
    let all = Config::default;
    tokio::join!(
        follow(policies, all(), strategy.clone(), changes.clone(), |heard| {
            listener.hear(Kind::ProxyPolicy, heard).map(Change::Policy)
        }),
        follow(nodes, all(), strategy.clone(), changes.clone(), |heard| {
            listener.hear(Kind::Node, heard).map(Change::Node)
        }),
        follow(node_proxies, all(), strategy, changes, |heard| {
            let event = listener.hear(Kind::NodeProxy, heard)?;
            if let Event::InitApply(DeserializeGuard(Ok(proxy))) | Event::Apply(DeserializeGuard(Ok(proxy))) =
                &event
            {
                // An Event more or less: nothing waits for it.
                let _ = sightings.try_send(Sighting::of(proxy));
            }
            Some(Change::NodeProxy(event))
        }),
    );
}

/// Notes how the watches go.
struct Listener {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

impl Listener {
    fn hear<K>(&self, kind: Kind, heard: Heard<K>) -> Option<Event<K>> {
        match heard {
            Heard::Event(event) => {
                if let Some(failing) = self.health.heard(kind, matches!(event, Event::InitDone)) {
                    info!(resource = %kind, "the watch works again, after {} s", failing.as_secs());
                }
                Some(event)
            }
            Heard::Trouble(text) => {
                self.metrics.watch_error(kind);
                if self.health.failed(kind, text.clone()) {
                    warn!(resource = %kind, "the watch fails, trying on: {text}");
                }
                None
            }
        }
    }
}

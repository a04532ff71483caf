//! The API server as a source: five watches, each turned into events.

use kube::core::DeserializeGuard;
use kube::runtime::watcher::{Config, Event as WatchEvent};
use kube::{Api, Client};
use pointsman_api_client::{Heard, ListStrategy, follow, list_strategy};
use pointsman_crds::NodeProxy;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::Sender;

use crate::metrics::Metrics;

use super::objects::{HEADLESS_LABEL, PROXY_NAME_LABEL, SlimNode, SlimService, SlimServiceCidr, SlimSlice};
use super::{Assignment, Event, Kind, Parsed};

/// How often a server without ServiceCIDRs is asked whether it has them by now.
const LOOK_AGAIN: Duration = Duration::from_secs(300);

/// Watches everything that the node needs, for as long as `events` is open.
pub async fn watch_all(client: Client, node: String, events: Sender<Event>, metrics: Arc<Metrics>) {
    let troubles = Troubles {
        said: Mutex::default(),
        metrics,
    };
    let strategy = list_strategy(&client).await;
    let services = Config::default().labels(&format!("!{PROXY_NAME_LABEL}"));
    let slices = Config::default().labels(&format!("!{HEADLESS_LABEL}"));
    let own = Config::default().fields(&format!("metadata.name={node}"));

    let all = events.clone();
    let services = follow(
        Api::all(client.clone()),
        services,
        strategy.clone(),
        all,
        |heard| {
            troubles.event(
                Kind::Services,
                heard,
                |service: SlimService| Event::Service(service.name(), service.parse()),
                |service| Event::Service(service.name(), Parsed::gone()),
            )
        },
    );
    let all = events.clone();
    let slices = follow(Api::all(client.clone()), slices, strategy.clone(), all, |heard| {
        troubles.event(
            Kind::Slices,
            heard,
            |slice: SlimSlice| {
                let triggered = slice.triggered();
                Event::Slice(slice.name(), slice.parse(&node), triggered)
            },
            |slice| Event::Slice(slice.name(), Parsed::gone(), None),
        )
    });
    let all = events.clone();
    let nodes = follow(
        Api::all(client.clone()),
        own.clone(),
        strategy.clone(),
        all,
        |heard| {
            troubles.event(
                Kind::Node,
                heard,
                |node: SlimNode| Event::Node(Some(node.parse())),
                |_| Event::Node(None),
            )
        },
    );
    let ranges = service_cidrs(client.clone(), strategy.clone(), events.clone(), &troubles);
    let proxies = follow(Api::all(client), own, strategy, events, |heard| {
        troubles.event(Kind::Assignment, heard, assignment, |_| Event::Assignment(None))
    });
    // They end only when nobody listens any more.
    tokio::join!(services, slices, nodes, ranges, proxies);
}

/// Follows ServiceCIDRs where the server has them: Kubernetes does from 1.33 on.
async fn service_cidrs(client: Client, strategy: ListStrategy, events: Sender<Event>, troubles: &Troubles) {
    let mut said = false;
    while !has_service_cidrs(&client).await {
        if !std::mem::replace(&mut said, true) {
            tracing::info!(
                "the API server has no ServiceCIDRs, Kubernetes before 1.33: packets to ClusterIPs that no Service \
                 has are not dropped"
            );
        }
        if events.send(Event::Unavailable(Kind::ServiceCidrs)).await.is_err() {
            return;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    follow(Api::all(client), Config::default(), strategy, events, |heard| {
        let heard = troubles.event(
            Kind::ServiceCidrs,
            heard,
            |cidr: SlimServiceCidr| Event::ServiceCidr(cidr.name(), cidr.parse()),
            |cidr| Event::ServiceCidr(cidr.name(), Parsed::gone()),
        );
        // Nobody waits for what cannot be had: an older chart does not allow it, for example.
        heard.or(Some(Event::Unavailable(Kind::ServiceCidrs)))
    })
    .await;
}

/// Whether the server has them. When it does not say, [`follow`] finds out.
async fn has_service_cidrs(client: &Client) -> bool {
    match client.list_api_group_resources("networking.k8s.io/v1").await {
        Ok(list) => list
            .resources
            .iter()
            .any(|resource| resource.name == "servicecidrs"),
        Err(_) => true,
    }
}

/// How the watches go: what is wrong is logged when it is news.
struct Troubles {
    said: Mutex<HashMap<Kind, String>>,
    metrics: Arc<Metrics>,
}

impl Troubles {
    /// What is heard of a kind, as an event.
    fn event<K>(
        &self,
        kind: Kind,
        heard: Heard<K>,
        applied: impl Fn(K) -> Event,
        deleted: impl Fn(K) -> Event,
    ) -> Option<Event> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let event = match heard {
            Heard::Event(event) => event,
            Heard::Trouble(text) => {
                self.metrics.watch_failed(kind);
                if said.get(&kind) != Some(&text) {
                    tracing::warn!(?kind, "the watch fails, trying on: {text}");
                    said.insert(kind, text);
                }
                return None;
            }
        };
        // A new try begins with this mark, whether or not it succeeds.
        if !matches!(event, WatchEvent::Init) && said.remove(&kind).is_some() {
            tracing::info!(?kind, "the watch works again");
        }
        Some(match event {
            WatchEvent::Init => Event::ListBegins(kind),
            WatchEvent::InitApply(object) | WatchEvent::Apply(object) => applied(object),
            WatchEvent::Delete(object) => deleted(object),
            WatchEvent::InitDone => Event::ListEnds(kind),
        })
    }
}

/// What a NodeProxy asks for; nothing when it is being deleted. Guarded: a newer operator may write a mode that
/// this agent does not know.
fn assignment(proxy: DeserializeGuard<NodeProxy>) -> Event {
    let proxy = match proxy.0 {
        Ok(proxy) => proxy,
        Err(error) => {
            return Event::AssignmentUnusable(format!(
                "this agent cannot read its NodeProxy ({}): is the operator newer than the agent? Upgrade the agent",
                error.error
            ));
        }
    };
    if proxy.metadata.deletion_timestamp.is_some() {
        return Event::Assignment(None);
    }
    Event::Assignment(Some(Arc::new(Assignment {
        policy: proxy.spec.policy,
        revision: proxy.spec.revision,
        generation: proxy.metadata.generation,
        settings: proxy.spec.settings,
    })))
}

#[cfg(test)]
mod tests;

//! The API server as a source: four watches, each turned into events.

use futures::{Stream, StreamExt as _, pin_mut};
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{Config, Event as WatchEvent};
use kube::{Api, Client};
use pointsman_api_client::{list_strategy, watch};
use pointsman_crds::NodeProxy;
use std::sync::Arc;
use tokio::{sync::mpsc::Sender, task::JoinSet};

use super::objects::{HEADLESS_LABEL, PROXY_NAME_LABEL, SlimNode, SlimService, SlimSlice};
use super::{Assignment, Event, Kind, Parsed};

/// Watches everything that the node needs, for as long as `events` is open.
pub async fn follow(client: Client, node: String, events: Sender<Event>) {
    let strategy = list_strategy(&client).await;
    let services = Config::default().labels(&format!("!{PROXY_NAME_LABEL},!{HEADLESS_LABEL}"));
    let slices = Config::default().labels(&format!("!{HEADLESS_LABEL}"));
    let own = Config::default().fields(&format!("metadata.name={node}"));

    let mut watches = JoinSet::new();
    watches.spawn(forward(
        watch(
            Api::<SlimService>::all(client.clone()),
            services,
            strategy.clone(),
        ),
        Kind::Services,
        |service: SlimService| Event::Service(service.name(), service.parse()),
        |service: SlimService| Event::Service(service.name(), Parsed::gone()),
        events.clone(),
    ));
    let name = node.clone();
    watches.spawn(forward(
        watch(Api::<SlimSlice>::all(client.clone()), slices, strategy.clone()),
        Kind::Slices,
        move |slice: SlimSlice| Event::Slice(slice.name(), slice.parse(&name)),
        |slice: SlimSlice| Event::Slice(slice.name(), Parsed::gone()),
        events.clone(),
    ));
    watches.spawn(forward(
        watch(
            Api::<SlimNode>::all(client.clone()),
            own.clone(),
            strategy.clone(),
        ),
        Kind::Node,
        |node: SlimNode| Event::Node(Some(node.parse())),
        |_| Event::Node(None),
        events.clone(),
    ));
    watches.spawn(forward(
        // Guarded: a newer operator may write a mode that this agent does not know.
        watch(Api::<DeserializeGuard<NodeProxy>>::all(client), own, strategy),
        Kind::Assignment,
        |proxy: DeserializeGuard<NodeProxy>| assignment(proxy),
        |_| Event::Assignment(None),
        events,
    ));
    // They end only when nobody listens any more.
    while watches.join_next().await.is_some() {}
}

/// What a NodeProxy asks for; nothing when it is being deleted.
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

async fn forward<K>(
    watch: impl Stream<Item = WatchEvent<K>>,
    kind: Kind,
    applied: impl Fn(K) -> Event,
    deleted: impl Fn(K) -> Event,
    events: Sender<Event>,
) {
    pin_mut!(watch);
    while let Some(event) = watch.next().await {
        let event = match event {
            WatchEvent::Init => Event::ListBegins(kind),
            WatchEvent::InitApply(object) | WatchEvent::Apply(object) => applied(object),
            WatchEvent::Delete(object) => deleted(object),
            WatchEvent::InitDone => Event::ListEnds(kind),
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

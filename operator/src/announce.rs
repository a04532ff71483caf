//! Events on Services whose clients are to go to the pods directly.
//!
//! The annotation `networking.alpha.kubernetes.io/direct-access: "true"` takes a live address down on every node, so
//! that somebody should hear of it. The operator tells it and not the agents: it is one, and agents need no right to
//! write Events then. Only the replica that leads watches Services, and of those their metadata only.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Service};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::core::{ObjectMeta, PartialObjectMeta};
use kube::runtime::watcher::{Config, Event as WatchEvent};
use kube::{Api, Client, ResourceExt as _};
use pointsman_api_client::{Heard, chain, follow, list_strategy};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{debug, info, warn};

use crate::elector::Leading;

const ANNOTATION: &str = "networking.alpha.kubernetes.io/direct-access";
/// Without those of another proxy: agents do not serve them either.
const SELECTOR: &str = "!service.kubernetes.io/service-proxy-name";
const CONTROLLER: &str = "pointsman.dev/operator";
const QUEUE: usize = 256;
const RETRY: Duration = Duration::from_secs(10);
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// What was seen of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID and resource version, when it asks for direct access.
    pub asks: Option<(String, String)>,
}

/// Announces for as long as this process may lead.
pub async fn announce(client: Client, identity: String, mut leading: watch::Receiver<Leading>) {
    if leading.wait_for(Option::is_some).await.is_err() {
        return;
    }
    let strategy = list_strategy(&client).await;
    let (sender, mut seen) = mpsc::channel(QUEUE);
    let services: Api<PartialObjectMeta<Service>> = Api::all(client.clone());
    let trouble = Mutex::new(None);
    let watching = follow(
        services,
        Config::default().labels(SELECTOR),
        strategy,
        sender,
        |heard| hear(&trouble, heard),
    );
    let telling = async {
        let mut announcer = Announcer::new(client, identity, leading);
        let mut beat = interval(RETRY);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                service = seen.recv() => match service {
                    Some(service) => announcer.take_in(service).await,
                    None => return,
                },
                _ = beat.tick(), if announcer.has_postponed() => announcer.retry().await,
            }
        }
    };
    tokio::join!(watching, telling);
}

fn hear(trouble: &Mutex<Option<String>>, heard: Heard<PartialObjectMeta<Service>>) -> Option<Seen> {
    let mut trouble = trouble.lock().unwrap_or_else(PoisonError::into_inner);
    let event = match heard {
        Heard::Event(event) => event,
        Heard::Trouble(text) => {
            if trouble.as_ref() != Some(&text) {
                warn!("the watch of Services fails, trying on: {text}");
                *trouble = Some(text);
            }
            return None;
        }
    };
    match event {
        WatchEvent::Init => None,
        WatchEvent::InitDone => {
            *trouble = None;
            None
        }
        WatchEvent::InitApply(service) | WatchEvent::Apply(service) => Some(see(&service.metadata, true)),
        WatchEvent::Delete(service) => Some(see(&service.metadata, false)),
    }
}

fn see(metadata: &ObjectMeta, is_there: bool) -> Seen {
    let version = || {
        Some((
            metadata.uid.clone()?,
            metadata.resource_version.clone().unwrap_or_default(),
        ))
    };
    Seen {
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
        asks: version().filter(|_| is_there && asks(metadata)),
    }
}

fn asks(metadata: &ObjectMeta) -> bool {
    let annotations = metadata.annotations.iter().flatten();
    annotations
        .into_iter()
        .any(|(name, value)| name == ANNOTATION && value == "true")
}

/// Tells once of each Service that begins to ask for direct access.
pub struct Announcer {
    client: Client,
    identity: String,
    leading: watch::Receiver<Leading>,
    /// The Services that ask, by namespace and name, with their UID: one that is made anew is told of anew.
    told: HashMap<(String, String), String>,
    postponed: HashMap<(String, String), Seen>,
    /// Why the last Event could not be written.
    trouble: Option<String>,
}

impl Announcer {
    /// One that writes in the name of this replica, while it leads.
    #[must_use]
    pub fn new(client: Client, identity: String, leading: watch::Receiver<Leading>) -> Self {
        Self {
            client,
            identity,
            leading,
            told: HashMap::new(),
            postponed: HashMap::new(),
            trouble: None,
        }
    }

    /// Takes in what was seen of a Service, and writes an Event if that is news.
    pub async fn take_in(&mut self, seen: Seen) {
        let key = (seen.namespace.clone(), seen.name.clone());
        self.postponed.remove(&key);
        let Some((uid, _)) = &seen.asks else {
            self.told.remove(&key);
            return;
        };
        if self.told.get(&key) == Some(uid) {
            return;
        }
        let uid = uid.clone();
        let written = match timeout(REQUEST_LIMIT, self.tell(&seen)).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => self.note(chain(&error)),
            Err(_) => self.note(format!("no answer within {} s", REQUEST_LIMIT.as_secs())),
        };
        if written {
            self.trouble = None;
            self.told.insert(key, uid);
        } else {
            self.postponed.insert(key, seen);
        }
    }

    fn note(&mut self, error: String) -> bool {
        if self.trouble.as_ref() != Some(&error) {
            warn!(error, "an Event about direct access cannot be written; trying on");
            self.trouble = Some(error);
        }
        false
    }

    /// Whether some Event could not be written.
    #[must_use]
    pub fn has_postponed(&self) -> bool {
        !self.postponed.is_empty()
    }

    /// Tries again what could not be written.
    pub async fn retry(&mut self) {
        for (_, seen) in std::mem::take(&mut self.postponed) {
            self.take_in(seen).await;
        }
    }

    async fn tell(&self, seen: &Seen) -> Result<(), kube::Error> {
        let Some((uid, version)) = &seen.asks else {
            return Ok(());
        };
        if self.leading.borrow().is_none_or(|until| until <= Instant::now()) {
            // Another replica leads by now, and tells it.
            return Ok(());
        }
        let services: Api<Service> = Api::namespaced(self.client.clone(), &seen.namespace);
        // Metadata do not say whether it has an address to be refused.
        match services.get_opt(&seen.name).await? {
            Some(service) if asks(&service.metadata) && has_address(&service) => {}
            _ => return Ok(()),
        }
        let event = event(seen, uid, version, &self.identity);
        let events: Api<Event> = Api::namespaced(self.client.clone(), &seen.namespace);
        match events.create(&PostParams::default(), &event).await {
            Ok(_) => {
                info!(
                    service = format!("{}/{}", seen.namespace, seen.name),
                    "asks for direct access: its addresses are refused"
                );
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                debug!(event = event.name_any(), "was told before");
                Ok(())
            }
            // The namespace is going, and the Service with it.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn has_address(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    let address = spec
        .and_then(|spec| spec.cluster_ip.as_deref())
        .unwrap_or_default();
    let by_name = spec.is_some_and(|spec| spec.type_.as_deref() == Some("ExternalName"));
    !by_name && !address.is_empty() && address != "None"
}

/// The name follows from the version of the Service that was seen first with the annotation: an operator that starts
/// over the same Service does not tell it twice while the Event is kept.
fn event(seen: &Seen, uid: &str, version: &str, identity: &str) -> Event {
    let mut hasher = DefaultHasher::new();
    (uid, version).hash(&mut hasher);
    let text = |text: &str| Some(text.to_owned());
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{:016x}", seen.name, hasher.finish())),
            namespace: text(&seen.namespace),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(Timestamp::now())),
        action: text("Refuse"),
        reason: text("DirectAccess"),
        type_: text("Warning"),
        note: Some(format!(
            "Annotation {ANNOTATION}: \"true\" takes this Service out of the proxy: nodes that a ProxyPolicy selects \
             refuse its addresses and node ports at once. Clients have to go to its pods directly; remove the \
             annotation to have it balanced again."
        )),
        regarding: Some(ObjectReference {
            api_version: text("v1"),
            kind: text("Service"),
            namespace: text(&seen.namespace),
            name: text(&seen.name),
            uid: text(uid),
            resource_version: text(version),
            ..ObjectReference::default()
        }),
        reporting_controller: text(CONTROLLER),
        // At most 128 letters.
        reporting_instance: Some(identity.chars().take(128).collect()),
        ..Event::default()
    }
}

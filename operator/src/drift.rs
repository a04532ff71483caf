//! Events on Nodes whose rules somebody else changed.
//!
//! The agent repairs them and says so in the condition Drifted of its NodeProxy; an agent may write nothing else, so that
//! the operator tells it. It tells it on the Node, which is where somebody looks who does not know of NodeProxies; the
//! NodeProxy has the condition. A node that is rewritten all the time is told of at most every ten minutes.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::core::ObjectMeta;
use kube::{Api, Client};
use pointsman_api_client::chain;
use pointsman_crds::NodeProxy;
use pointsman_crds::conditions::DRIFTED;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use crate::elector::Leading;

/// A node is told of at most this often.
const PAUSE: Duration = Duration::from_secs(600);
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
const CONTROLLER: &str = "pointsman.dev/operator";
/// Events about what is in no namespace have to be here (`ValidateEventCreate` of the API server).
const NAMESPACE: &str = "default";
/// The API server's bound on a note is 1,024 bytes.
const NOTE: usize = 1000;

/// What was seen of a NodeProxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The node, whose name it has.
    pub node: String,
    /// The UID of the Node that owns it.
    pub node_uid: Option<String>,
    /// Since when the condition Drifted is true, and what it says; none while it is not.
    pub drift: Option<(Timestamp, String)>,
}

impl Sighting {
    /// What matters of a NodeProxy.
    #[must_use]
    pub fn of(proxy: &NodeProxy) -> Self {
        let owners = proxy.metadata.owner_references.iter().flatten();
        let conditions = proxy.status.iter().flat_map(|status| &status.conditions);
        let drifted = conditions
            .into_iter()
            .find(|condition| condition.type_ == DRIFTED && condition.status == "True");
        Self {
            node: proxy.metadata.name.clone().unwrap_or_default(),
            node_uid: owners
                .into_iter()
                .find(|owner| owner.kind == "Node")
                .map(|owner| owner.uid.clone()),
            drift: drifted.map(|condition| (condition.last_transition_time.0, condition.message.clone())),
        }
    }
}

/// What is known of a node that has drifted.
#[derive(Debug)]
struct Node {
    told: Instant,
    /// The drift that was seen last.
    since: Timestamp,
    /// Drifts since the last Event, which were not told by themselves.
    untold: u32,
}

/// Decides what is told.
#[derive(Debug, Default)]
pub struct Drifts {
    nodes: HashMap<String, Node>,
}

impl Drifts {
    /// Takes in what was seen. An Event is due when the number of earlier drifts that were not told is returned.
    pub fn see(&mut self, sighting: &Sighting, now: Instant) -> Option<u32> {
        let (since, _) = sighting.drift.as_ref()?;
        let Some(node) = self.nodes.get_mut(&sighting.node) else {
            let first = Node {
                told: now,
                since: *since,
                untold: 0,
            };
            self.nodes.insert(sighting.node.clone(), first);
            return Some(0);
        };
        if node.since == *since {
            return None;
        }
        node.since = *since;
        if now.duration_since(node.told) < PAUSE {
            node.untold += 1;
            return None;
        }
        node.told = now;
        Some(std::mem::take(&mut node.untold))
    }

    /// Forgets nodes that have been quiet for so long that their next drift is told anyway.
    pub fn forget_quiet(&mut self, now: Instant) {
        self.nodes
            .retain(|_, node| node.untold > 0 || now.duration_since(node.told) < 2 * PAUSE);
    }
}

/// Tells of drifts for as long as NodeProxies are watched, while this process leads.
pub async fn announce_drifts(
    client: Client,
    identity: String,
    leading: watch::Receiver<Leading>,
    mut seen: mpsc::Receiver<Sighting>,
) {
    let mut drifts = Drifts::default();
    while let Some(sighting) = seen.recv().await {
        if leading.borrow().is_none_or(|until| until <= Instant::now()) {
            continue;
        }
        let now = Instant::now();
        drifts.forget_quiet(now);
        let Some(untold) = drifts.see(&sighting, now) else {
            continue;
        };
        let Some(event) = event(&sighting, untold, &identity) else {
            continue;
        };
        let events: Api<Event> = Api::namespaced(client.clone(), NAMESPACE);
        match timeout(REQUEST_LIMIT, events.create(&PostParams::default(), &event)).await {
            Ok(Ok(_)) => debug!(node = sighting.node, "told of changed rules"),
            // Another replica told of the same drift.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {}
            Ok(Err(error)) => warn!(
                node = sighting.node,
                error = chain(&error),
                "an Event about changed rules cannot be written; the condition Drifted says the same"
            ),
            Err(_) => warn!(
                node = sighting.node,
                "an Event about changed rules was not taken within {} s; the condition Drifted says the same",
                REQUEST_LIMIT.as_secs()
            ),
        }
    }
}

/// The Event of a drift. Its name follows from the drift, so that an operator that starts does not tell it again.
fn event(sighting: &Sighting, untold: u32, identity: &str) -> Option<Event> {
    let (since, message) = sighting.drift.as_ref()?;
    let mut hasher = DefaultHasher::new();
    (&sighting.node_uid, since.as_nanosecond()).hash(&mut hasher);
    let text = |text: &str| Some(text.to_owned());
    let before = match untold {
        0 => String::new(),
        times => format!("{times} times before this since it was told last; now: "),
    };
    let mut note = before + message;
    while note.len() > NOTE {
        note.pop();
    }
    Some(Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{:016x}", sighting.node, hasher.finish())),
            namespace: text(NAMESPACE),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(Timestamp::now())),
        action: text("Repair"),
        reason: text("RulesChanged"),
        type_: text("Warning"),
        note: Some(note),
        regarding: Some(ObjectReference {
            api_version: text("v1"),
            kind: text("Node"),
            name: text(&sighting.node),
            uid: sighting.node_uid.clone(),
            ..ObjectReference::default()
        }),
        reporting_controller: text(CONTROLLER),
        // At most 128 letters.
        reporting_instance: Some(identity.chars().take(128).collect()),
        ..Event::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drift(second: Option<i64>) -> Sighting {
        let at = |second| Timestamp::from_second(second).unwrap();
        Sighting {
            node: "node-1".into(),
            node_uid: Some("uid".into()),
            drift: second.map(|second| (at(second), "somebody else changed the agent's rules".into())),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_is_rewritten_all_the_time_is_told_of_every_ten_minutes() {
        let mut drifts = Drifts::default();
        let begin = Instant::now();
        let mut told = Vec::new();
        for second in 0..1500_u64 {
            let now = begin + Duration::from_secs(second);
            drifts.forget_quiet(now);
            // It drifts every second second, and each drift is seen twice.
            let seen = drift((second % 2 == 0).then_some(second.cast_signed()));
            told.extend(drifts.see(&seen, now).map(|untold| (second, untold)));
            assert_eq!(drifts.see(&seen, now), None);
        }
        assert_eq!(told, [(0, 0), (600, 299), (1200, 299)]);
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_are_told_of_by_themselves_and_forgotten_when_quiet() {
        let mut drifts = Drifts::default();
        let begin = Instant::now();
        let other = Sighting {
            node: "node-2".into(),
            ..drift(Some(1))
        };
        assert_eq!(drifts.see(&drift(None), begin), None);
        assert_eq!(drifts.see(&drift(Some(1)), begin), Some(0));
        assert_eq!(drifts.see(&other, begin), Some(0));
        drifts.forget_quiet(begin + 2 * PAUSE);
        assert!(drifts.nodes.is_empty());
    }

    #[test]
    fn an_event_names_the_node_and_what_happened_and_fits() {
        let mut sighting = drift(Some(7));
        let first = event(&sighting, 0, "operator-1").unwrap();
        let regarding = first.regarding.unwrap();
        assert_eq!(
            (regarding.kind.as_deref(), regarding.name.as_deref()),
            (Some("Node"), Some("node-1"))
        );
        assert_eq!(
            event(&sighting, 0, "operator-2").unwrap().metadata.name,
            first.metadata.name,
            "another replica tells the same"
        );
        sighting.drift = Some((Timestamp::from_second(8).unwrap(), "ä".repeat(2000)));
        let long = event(&sighting, 12, "operator-1").unwrap();
        let note = long.note.unwrap();
        assert!(
            note.starts_with("12 times") && note.len() <= 1024,
            "{}",
            note.len()
        );
        assert_ne!(long.metadata.name, first.metadata.name);
        assert!(event(&drift(None), 0, "operator-1").is_none());
    }
}

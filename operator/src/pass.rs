//! One look at the whole fleet: everything that is different from what it should be, as a list of writes. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use pointsman_crds::{NodeProxySpec, ProxyPolicy, ProxyPolicyStatus};

use crate::assignment::{Node, assign};
use crate::fleet::{Fleet, Kind, KnownPolicy, Version};
use crate::node_proxy::{Plan, Wanted, plan};
use crate::status::status;

/// What came out of a look.
#[derive(Debug, Default, PartialEq)]
pub struct Pass {
    /// What has to be written; statuses first, because they say where the fleet is before the rest is written.
    pub writes: Vec<Write>,
    /// The policies that this was decided by: before anything is deleted they are compared with the API server's.
    pub basis: BTreeMap<String, Version>,
    /// NodeProxies that should go and do not carry our label.
    pub foreign: Vec<String>,
    /// Figures for the metrics.
    pub totals: Totals,
}

/// One write, to one object.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// A policy's status.
    Status {
        /// The policy's name.
        policy: String,
        /// Its UID: a policy of the same name that was made since is not meant.
        uid: Option<String>,
        /// The whole status.
        status: Box<ProxyPolicyStatus>,
    },
    /// A node's NodeProxy is created or changed.
    Apply {
        /// The node's name.
        node: String,
        /// What it is to have.
        wanted: Wanted,
    },
    /// A node's NodeProxy is deleted.
    Delete {
        /// The node's name.
        node: String,
        /// The UID of the object that was seen.
        uid: String,
        /// Why it has to go.
        because: Because,
    },
}

impl Write {
    /// The object that is written: its kind and name.
    #[must_use]
    pub fn target(&self) -> (Kind, &str) {
        match self {
            Self::Status { policy, .. } => (Kind::ProxyPolicy, policy),
            Self::Apply { node, .. } | Self::Delete { node, .. } => (Kind::NodeProxy, node),
        }
    }

    /// What is done with it.
    #[must_use]
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Status { .. } => "status",
            Self::Apply { .. } => "apply",
            Self::Delete { .. } => "delete",
        }
    }
}

/// Why a NodeProxy has to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// Its node is gone.
    NoNode,
    /// No policy selects its node.
    NoPolicy,
}

/// Figures for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Policies that can be read.
    pub policies: usize,
    /// Nodes that no policy selects.
    pub unassigned: usize,
    /// Nodes that follow a policy.
    pub assigned: usize,
    /// Of those, the nodes that run its revision.
    pub updated: usize,
    /// Of those that follow one, the nodes that run its revision and are healthy.
    pub ready: usize,
    /// Of those that follow one, the nodes that failed.
    pub failed: usize,
}

/// Looks at everything.
#[must_use]
pub fn look(fleet: &Fleet, now: Timestamp) -> Pass {
    let policies: BTreeMap<&str, &ProxyPolicy> = fleet
        .policies()
        .iter()
        .filter_map(|(name, policy)| match policy {
            KnownPolicy::Readable(policy) => Some((name.as_str(), policy.as_ref())),
            KnownPolicy::Unreadable(_) => None,
        })
        .collect();
    let specs: BTreeMap<&str, Arc<NodeProxySpec>> = policies
        .iter()
        .map(|(name, policy)| (*name, Arc::new(spec(name, policy))))
        .collect();
    let holders = holders(fleet);
    let nodes = fleet.nodes().iter().map(|(name, node)| Node {
        name,
        labels: &node.labels,
        held_by: holders.get(name.as_str()).copied(),
    });
    let assignment = assign(policies.values().copied(), nodes);

    let mut pass = Pass {
        basis: fleet
            .policies()
            .iter()
            .map(|(name, policy)| (name.clone(), policy.version()))
            .collect(),
        ..Pass::default()
    };
    pass.totals.policies = policies.len();
    for (name, policy) in &policies {
        let (Some(share), Some(wanted)) = (assignment.shares.get(name), specs.get(name)) else {
            continue;
        };
        let status = status(policy, wanted, share, fleet.node_proxies(), now);
        pass.totals.count(&status);
        if policy.status.as_ref() != Some(&status) {
            pass.writes.push(Write::Status {
                policy: (*name).to_owned(),
                uid: policy.metadata.uid.clone(),
                status: Box::new(status),
            });
        }
    }

    let names: BTreeSet<&String> = fleet.nodes().keys().chain(fleet.node_proxies().keys()).collect();
    for name in names {
        let node = fleet.nodes().get(name);
        if node.is_some() && holders.contains_key(name.as_str()) {
            continue;
        }
        let winner = assignment.winners.get(name.as_str());
        let wanted = node
            .zip(winner.and_then(|winner| specs.get(winner)))
            .map(|(node, spec)| Wanted {
                node_uid: node.uid.clone(),
                spec: Arc::clone(spec),
            });
        pass.totals.unassigned += usize::from(node.is_some() && wanted.is_none());
        match plan(wanted, fleet.node_proxies().get(name)) {
            Plan::Nothing => {}
            Plan::Apply(wanted) => pass.writes.push(Write::Apply {
                node: name.clone(),
                wanted,
            }),
            Plan::Delete { uid } => {
                let because = if node.is_some() {
                    Because::NoPolicy
                } else {
                    Because::NoNode
                };
                pass.writes.push(Write::Delete {
                    node: name.clone(),
                    uid,
                    because,
                });
            }
            Plan::LeaveForeign => pass.foreign.push(name.clone()),
        }
    }
    pass
}

fn spec(name: &str, policy: &ProxyPolicy) -> NodeProxySpec {
    let settings = policy.spec.settings();
    NodeProxySpec {
        policy: name.to_owned(),
        revision: settings.revision(),
        settings,
    }
}

/// The nodes that follow a policy that cannot be read, with that policy.
///
/// After a downgrade a policy may use a mode that this version does not know. Its nodes are left exactly as they
/// are; to hand them to the next policy, or to take their rules down, would be a guess. A NodeProxy that cannot
/// be read is counted to such a policy, if there is one.
fn holders(fleet: &Fleet) -> BTreeMap<&str, &str> {
    let unreadable: BTreeSet<&str> = fleet
        .policies()
        .iter()
        .filter(|(_, policy)| matches!(policy, KnownPolicy::Unreadable(_)))
        .map(|(name, _)| name.as_str())
        .collect();
    let Some(first) = unreadable.first() else {
        return BTreeMap::new();
    };
    fleet
        .node_proxies()
        .iter()
        .filter_map(|(node, proxy)| {
            let holder = match &proxy.spec {
                Some(spec) => unreadable.get(spec.policy.as_str())?,
                None => first,
            };
            Some((node.as_str(), *holder))
        })
        .collect()
}

impl Totals {
    fn count(&mut self, status: &ProxyPolicyStatus) {
        let number = |count: i32| usize::try_from(count).unwrap_or_default();
        self.assigned += number(status.nodes.matched);
        self.updated += number(status.nodes.updated);
        self.ready += number(status.nodes.ready);
        self.failed += number(status.nodes.failed);
    }
}

//! Everything the operator knows of the cluster: its policies, nodes and NodeProxies, kept up by three watches.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::core::{DeserializeGuard, ObjectMeta, PartialObjectMeta};
use kube::runtime::watcher::Event;
use pointsman_crds::{NodeProxy, NodeProxySpec, NodeProxyStatus, ProxyPolicy};

use crate::mirror::Mirror;
use crate::node_proxy::MANAGED_BY;

/// The kinds that are watched and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// ProxyPolicy.
    ProxyPolicy,
    /// Node.
    Node,
    /// NodeProxy.
    NodeProxy,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ProxyPolicy, Self::Node, Self::NodeProxy];

    /// The plural that kubectl and RBAC use.
    #[must_use]
    pub fn resource(self) -> &'static str {
        match self {
            Self::ProxyPolicy => "proxypolicies",
            Self::Node => "nodes",
            Self::NodeProxy => "nodeproxies",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.resource())
    }
}

/// One event of one watch.
#[derive(Debug)]
pub enum Change {
    /// Of the watch of ProxyPolicies.
    Policy(Event<DeserializeGuard<ProxyPolicy>>),
    /// Of the watch of Nodes, of which only the metadata is asked for.
    Node(Event<PartialObjectMeta<Node>>),
    /// Of the watch of NodeProxies.
    NodeProxy(Event<DeserializeGuard<NodeProxy>>),
}

/// A policy as it is known.
#[derive(Clone, Debug, PartialEq)]
pub enum KnownPolicy {
    /// It can be read.
    Readable(Box<ProxyPolicy>),
    /// It is there, and this version of the operator cannot read it.
    Unreadable(Version),
}

/// Which object, and which state of its spec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Version {
    /// The UID.
    pub uid: Option<String>,
    /// The generation: the API server counts it up when the spec changes or the object is being deleted.
    pub generation: Option<i64>,
}

impl Version {
    /// The version that an object's metadata tells.
    #[must_use]
    pub fn of(metadata: &ObjectMeta) -> Self {
        Self {
            uid: metadata.uid.clone(),
            generation: metadata.generation,
        }
    }
}

impl KnownPolicy {
    /// Which object this is, and which state of its spec.
    #[must_use]
    pub fn version(&self) -> Version {
        match self {
            Self::Readable(policy) => Version::of(&policy.metadata),
            Self::Unreadable(version) => version.clone(),
        }
    }
}

/// What is kept of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownNode {
    /// The UID, by which the NodeProxy names its owner.
    pub uid: String,
    /// The labels, which policies select by.
    pub labels: BTreeMap<String, String>,
}

/// What is kept of a NodeProxy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KnownNodeProxy {
    /// The UID.
    pub uid: String,
    /// The generation of the spec.
    pub generation: Option<i64>,
    /// Whether it carries the operator's label.
    pub ours: bool,
    /// The UIDs of the Nodes that own it.
    pub owners: Vec<String>,
    /// Whether it is being deleted.
    pub leaving: bool,
    /// What the node is to do; `None` when this version of the operator cannot read it.
    pub spec: Option<Arc<NodeProxySpec>>,
    /// What the node's agent reports.
    pub status: NodeProxyStatus,
}

/// What an event brought.
#[derive(Debug, Default)]
pub struct Observation {
    /// Whether a decision may now be different.
    pub changed: bool,
    /// The object of the event, when it cannot be read: kind, name, why.
    pub unreadable: Option<(Kind, String, String)>,
}

/// The state.
#[derive(Debug, Default)]
pub struct Fleet {
    policies: Mirror<KnownPolicy>,
    nodes: Mirror<KnownNode>,
    node_proxies: Mirror<KnownNodeProxy>,
}

impl Fleet {
    /// Takes an event over.
    pub fn observe(&mut self, change: Change) -> Observation {
        let mut unreadable = None;
        let changed = match change {
            Change::Policy(event) => self.policies.observe(event, |DeserializeGuard(read)| match read {
                Ok(policy) => read_policy(policy),
                Err(invalid) => {
                    let name = name_of(&invalid.metadata);
                    unreadable = Some((Kind::ProxyPolicy, name.clone(), invalid.error));
                    (name, KnownPolicy::Unreadable(Version::of(&invalid.metadata)))
                }
            }),
            Change::Node(event) => self.nodes.observe(event, |node| read_node(node.metadata)),
            Change::NodeProxy(event) => {
                self.node_proxies
                    .observe(event, |DeserializeGuard(read)| match read {
                        Ok(proxy) => read_node_proxy(
                            proxy.metadata,
                            Some(proxy.spec),
                            proxy.status.unwrap_or_default(),
                        ),
                        Err(invalid) => {
                            unreadable = Some((Kind::NodeProxy, name_of(&invalid.metadata), invalid.error));
                            read_node_proxy(invalid.metadata, None, NodeProxyStatus::default())
                        }
                    })
            }
        };
        Observation { changed, unreadable }
    }

    /// Whether every watch has listed its kind to the end. Nothing may be decided before: a node that is not
    /// known yet looks like one that is gone.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.policies.is_complete() && self.nodes.is_complete() && self.node_proxies.is_complete()
    }

    /// The policies by name.
    #[must_use]
    pub fn policies(&self) -> &BTreeMap<String, KnownPolicy> {
        self.policies.objects()
    }

    /// The nodes by name.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<String, KnownNode> {
        self.nodes.objects()
    }

    /// The NodeProxies by name, which is their node's.
    #[must_use]
    pub fn node_proxies(&self) -> &BTreeMap<String, KnownNodeProxy> {
        self.node_proxies.objects()
    }
}

fn name_of(metadata: &ObjectMeta) -> String {
    metadata.name.clone().unwrap_or_default()
}

fn read_policy(mut policy: ProxyPolicy) -> (String, KnownPolicy) {
    policy.metadata.managed_fields = None;
    (name_of(&policy.metadata), KnownPolicy::Readable(Box::new(policy)))
}

fn read_node(metadata: ObjectMeta) -> (String, KnownNode) {
    let node = KnownNode {
        uid: metadata.uid.unwrap_or_default(),
        labels: metadata.labels.unwrap_or_default(),
    };
    (metadata.name.unwrap_or_default(), node)
}

fn read_node_proxy(
    metadata: ObjectMeta,
    spec: Option<NodeProxySpec>,
    status: NodeProxyStatus,
) -> (String, KnownNodeProxy) {
    let (label, value) = MANAGED_BY;
    let ours = metadata
        .labels
        .iter()
        .flatten()
        .any(|(key, is)| key == label && is == value);
    let owners = metadata.owner_references.into_iter().flatten();
    let known = KnownNodeProxy {
        uid: metadata.uid.unwrap_or_default(),
        generation: metadata.generation,
        ours,
        owners: owners
            .filter(|owner| owner.kind == "Node")
            .map(|owner| owner.uid)
            .collect(),
        leaving: metadata.deletion_timestamp.is_some(),
        spec: spec.map(Arc::new),
        status,
    };
    (metadata.name.unwrap_or_default(), known)
}

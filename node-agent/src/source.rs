//! Where the agent learns what to do: the API server or a directory of manifests, and the node's own interfaces.
//!
//! Every source turns what it sees into [`Event`]s and forgets the object.

pub mod addresses;
pub mod api;
pub mod manifests;
mod objects;
pub mod rules;

use std::{net::IpAddr, sync::Arc, time::SystemTime};

use ipnet::IpNet;
use pointsman_crds::Settings;
use pointsman_dataplane::model::{EndpointSlice, Service, ServiceName};
use pointsman_dataplane::netlink::ruleset::Touched;

/// Something that the agent learned.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A Service as it is now; none when it is gone or is no proxy's business.
    Service(ServiceName, Parsed<Service>),
    /// An EndpointSlice as it is now, with the Service that it belongs to; none when it is gone. And when what it
    /// tells of happened.
    Slice(
        SliceName,
        Parsed<(ServiceName, EndpointSlice)>,
        Option<SystemTime>,
    ),
    /// A ServiceCIDR as it is now: the ranges that ClusterIPs are allocated from.
    ServiceCidr(String, Parsed<Vec<IpNet>>),
    /// The own Node as it is now; none when it does not exist.
    Node(Option<NodeState>),
    /// What the operator (or the manifest) wants of this node; none when no policy selects it.
    Assignment(Option<Arc<Assignment>>),
    /// The assignment is there but cannot be used; the text says why and what to do. The last one stays in force.
    AssignmentUnusable(String),
    /// The addresses of the node's interfaces.
    Addresses(Vec<IpAddr>),
    /// All objects of a kind follow, because the source begins anew.
    ListBegins(Kind),
    /// They were all; what was not among them is gone.
    ListEnds(Kind),
    /// Objects of this kind cannot be had for now, and are not to be waited for.
    Unavailable(Kind),
    /// Somebody else changed nf_tables rules.
    RulesTouched {
        /// The name of the program, where it is known.
        by: Option<String>,
        /// In which tables.
        touched: Touched,
    },
    /// Health checks of Services that cannot be answered, each with why and what to do; all that there are now.
    Unserved(Vec<String>),
    /// The agent ends: nothing more is to be written.
    Stop,
}

/// The kinds of objects that a source lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Services.
    Services,
    /// EndpointSlices.
    Slices,
    /// The own Node.
    Node,
    /// The own NodeProxy, or the ProxyPolicy of a directory.
    Assignment,
    /// ServiceCIDRs.
    ServiceCidrs,
}

/// An EndpointSlice's namespace and name.
pub type SliceName = ServiceName;

/// What became of an object: the usable part of it, and what was wrong with the rest.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed<T> {
    /// The usable part.
    pub object: Option<T>,
    /// What is wrong, each with the object's name and what to do.
    pub problems: Vec<String>,
}

impl<T> Parsed<T> {
    /// An object that is gone or none of our business.
    #[must_use]
    pub fn gone() -> Self {
        Self {
            object: None,
            problems: Vec::new(),
        }
    }
}

/// What the agent reads of its Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeState {
    /// InternalIPs.
    pub internal_ips: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// Whether load balancers may still send new connections here: the Node is neither being deleted nor tainted
    /// for it by the cluster autoscaler (KEP-3836).
    pub eligible: bool,
}

/// What a node is to do, and where that was said.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// The policy.
    pub policy: String,
    /// Short name of the settings.
    pub revision: String,
    /// Generation of the NodeProxy.
    pub generation: Option<i64>,
    /// The settings.
    pub settings: Settings,
}

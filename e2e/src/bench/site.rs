//! Where a bench takes place: a control plane with our operator, servers, and a node for each subject.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{Backends, Commits, Contest, Observer, Writer};
use crate::{
    ControlPlane, Fabric, Installation, NodeNet, Operator, Options, PeerMode, Pod, Toolchain,
    network::CLUSTER_CIDRS, peer::SCHEDULER,
};

/// The network, the control plane and the servers. One for each [`super::Size`]: what an API server remembers of
/// earlier objects disturbs nobody.
#[derive(Debug)]
pub struct Ground {
    pub(super) toolchain: Toolchain,
    /// The control plane.
    pub control_plane: ControlPlane,
    /// The servers of probe Services.
    pub backends: Backends,
    _backend_node: NodeNet,
    fabric: Fabric,
}

impl Ground {
    /// Starts everything.
    ///
    /// # Errors
    /// When a program cannot be built or does not start.
    pub fn new(toolchain: &Toolchain) -> Result<Self> {
        let fabric = Fabric::new()?;
        let control_plane = ControlPlane::start(toolchain, &fabric, options())?;
        let node = fabric.node("backends")?;
        Ok(Self {
            toolchain: toolchain.clone(),
            control_plane,
            backends: Backends::start(&node)?,
            _backend_node: node,
            fabric,
        })
    }
}

/// A ground with Pointsman installed.
#[derive(Debug)]
pub struct Site<'a> {
    pub(super) ground: &'a Ground,
    /// The client that makes changes.
    pub writer: Writer,
    installation: Installation<'a>,
    _operator: Operator,
}

impl<'a> Site<'a> {
    /// Installs the charts and starts the operator, which also runs while kube-proxy is measured.
    ///
    /// # Errors
    /// When helm or the operator fails.
    pub fn install(ground: &'a Ground, progress: &dyn Fn(&str)) -> Result<Self> {
        progress("installing the charts and starting the operator");
        let installation = Installation::install(&ground.toolchain, &ground.control_plane, &[])?;
        let operator = installation.operator()?;
        Ok(Self {
            ground,
            writer: Writer::new(&ground.control_plane)?,
            installation,
            _operator: operator,
        })
    }

    /// Makes a fresh node with a pod, and waits until the operator has said what its agent is to do. For kube-proxy
    /// the same is made and not used.
    ///
    /// # Errors
    /// When it cannot be made, or when the operator writes no NodeProxy.
    pub fn bed(&self, contest: &Contest, name: &str) -> Result<Bed<'_>> {
        let control_plane = &self.ground.control_plane;
        control_plane
            .apply(&policy(contest).to_string())
            .context("applying the bench's ProxyPolicy")?;
        let node = self.ground.fabric.node(name)?.with_iptables(contest.variant)?;
        let pod = node.add_pod("client")?;
        control_plane.create_node(&node)?;
        let limit = Duration::from_secs(30);
        control_plane
            .wait_for(&["get", "nodeproxy", name], limit)
            .context("waiting for the operator to write the NodeProxy")?;
        Ok(Bed {
            site: self,
            kubeconfig: self.installation.agent_kubeconfig(&node)?,
            commits: match contest.is_told() {
                true => Some(Commits::listen(node.namespace())?),
                false => None,
            },
            observer: Observer::new(pod.namespace()),
            _pod: pod,
            node,
        })
    }
}

/// A fresh node for one subject. When it is dropped its namespace, with every rule and connection in it, is gone,
/// and so are its objects: the most thorough way to clean up after a subject.
#[derive(Debug)]
pub struct Bed<'a> {
    pub(super) site: &'a Site<'a>,
    /// The agent's, with the chart's service account.
    pub(super) kubeconfig: PathBuf,
    /// A client in a pod on the node.
    pub observer: Observer,
    /// Listens to the node's nf_tables, in a contest where both use it.
    pub commits: Option<Commits>,
    _pod: Pod,
    /// The node.
    pub node: NodeNet,
}

impl Drop for Bed<'_> {
    fn drop(&mut self) {
        // The NodeProxy goes with its Node. What stays after a failure goes with the control plane.
        let _ = self
            .site
            .ground
            .control_plane
            .kubectl(&["delete", "node", self.node.name(), "--wait=false"]);
    }
}

/// A control plane without the controllers that look at every Service: they would use the processors that are measured.
pub(super) fn options() -> Options {
    let controllers = [
        "serviceaccount-controller",
        "garbage-collector-controller",
        "namespace-controller",
    ];
    Options {
        controllers: controllers.map(str::to_owned).to_vec(),
        ..Options::default()
    }
}

/// Means what [`crate::Peer`]'s configuration means.
pub(super) fn policy(contest: &Contest) -> serde_json::Value {
    let mut policy = json!({
        "apiVersion": "pointsman.dev/v1alpha1",
        "kind": "ProxyPolicy",
        "metadata": {"name": "bench"},
        "spec": {
            "mode": contest.mode,
            "detectLocal": {"mode": "ClusterCIDR", "clusterCIDRs": CLUSTER_CIDRS},
            "minSyncPeriodMilliseconds": 0,
            "syncPeriodSeconds": contest.sync_period.as_secs(),
        },
    });
    if contest.peer_mode == PeerMode::Ipvs {
        policy["spec"]["scheduler"] = SCHEDULER.into();
    }
    policy
}

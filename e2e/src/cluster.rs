//! A cluster with Pointsman installed, for the tests of the whole: charts, operator, nodes with agents.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    Agent, ControlPlane, Fabric, Installation, NodeNet, Operator, Pod, Toolchain,
    workload::{self, WebPod},
};

/// How long anything in a cluster may take before a test calls it broken. Long, because the machine may build
/// something at the same time.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The whole. The fields drop in their order: who writes ends before what it writes to.
#[derive(Debug)]
pub struct Cluster<'a> {
    /// The agents by node.
    pub agents: BTreeMap<String, Agent>,
    /// The operators; tests stop, kill and add some.
    pub operators: Vec<Operator>,
    /// Pods of the Service `web`, in the order in which they were added.
    pub web: Vec<WebPod>,
    /// A pod on the first node, to ask from.
    pub client: Pod,
    /// The nodes in their order.
    pub nodes: Vec<NodeNet>,
    /// The ClusterIPs of the Service `web` with their port, IPv4 first.
    pub vips: [SocketAddr; 2],
    /// The charts.
    pub installation: Installation<'a>,
    /// The control plane.
    pub control_plane: &'a ControlPlane,
    /// Where further nodes come from.
    pub fabric: &'a Fabric,
}

impl<'a> Cluster<'a> {
    /// Installs the charts, and starts an operator and one node with an agent and a pod of `web` for each of
    /// `nodes` (name, labels). There is no policy yet.
    ///
    /// # Errors
    /// When any part does not start.
    pub fn start(
        toolchain: &Toolchain,
        fabric: &'a Fabric,
        control_plane: &'a ControlPlane,
        nodes: &[(&str, &[(&str, &str)])],
    ) -> Result<Self> {
        let installation = Installation::install(toolchain, control_plane, &[])?;
        let mut made = Vec::new();
        let mut web = Vec::new();
        for (number, (name, labels)) in nodes.iter().enumerate() {
            let node = fabric.node(name)?;
            control_plane.create_node_with(&node, labels)?;
            web.push(WebPod::start(
                control_plane,
                &node,
                &format!("web-{}", number + 1),
            )?);
            made.push(node);
        }
        let first = made.first().context("a cluster has at least one node")?;
        let client = first.add_pod("client")?;
        let vips = workload::create_service(control_plane)?;
        let mut agents = BTreeMap::new();
        for node in &made {
            agents.insert(node.name().to_owned(), installation.agent(node)?);
        }
        let operator = installation.operator()?;
        Ok(Self {
            agents,
            operators: vec![operator],
            web,
            client,
            nodes: made,
            vips,
            installation,
            control_plane,
            fabric,
        })
    }

    /// The node of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> Result<&NodeNet> {
        let found = self.nodes.iter().find(|node| node.name() == name);
        found.with_context(|| format!("no node {name}"))
    }

    /// The agent of this node.
    ///
    /// # Errors
    /// When there is none.
    pub fn agent(&self, node: &str) -> Result<&Agent> {
        self.agents
            .get(node)
            .with_context(|| format!("no agent on {node}"))
    }

    /// Waits until the policy's status speaks of its present spec, `nodes` nodes follow it, and all are ready.
    ///
    /// # Errors
    /// With the policy, when that takes too long.
    pub fn ready(&self, policy: &str, nodes: usize) -> Result<Value> {
        let what = format!("ready on {nodes} nodes");
        self.control_plane
            .until("proxypolicy", policy, &what, LIMIT, |policy| {
                let status = &policy["status"];
                let counts = &status["nodes"];
                let all = ["matched", "updated", "ready"];
                status["observedGeneration"] == policy["metadata"]["generation"]
                    && all.iter().all(|count| counts[count] == nodes)
            })
    }

    /// Waits until the NodeProxy of a node is as `wanted`.
    ///
    /// # Errors
    /// With the NodeProxy, when that takes too long.
    pub fn node_proxy(&self, node: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        self.control_plane.until("nodeproxy", node, what, LIMIT, wanted)
    }
}

/// A part of a test that shares its cluster with others: says how long it took, and its name when it fails.
///
/// # Errors
/// The part's own.
pub fn section<T>(name: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let done = run().with_context(|| format!("in the part `{name}`"));
    note(format_args!("{name}: {:.1} s", started.elapsed().as_secs_f32()));
    done
}

/// Says what was measured; tests show it when they fail, or with --nocapture.
#[allow(
    clippy::print_stdout,
    reason = "the only way to where a test's words are kept"
)]
pub fn note(text: std::fmt::Arguments<'_>) {
    println!("{text}");
}

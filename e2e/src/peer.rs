//! The peer: kube-proxy on a node, to compare with.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use serde_json::json;

use crate::{Access, NodeNet, Process, Program, Toolchain, http, network::CLUSTER_CIDRS};

/// How kube-proxy forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerMode {
    /// `mode: iptables`, in the node's variant.
    Iptables,
    /// `mode: nftables`.
    Nftables,
    /// `mode: ipvs`; in the test kernel ([`crate::inside`]).
    Ipvs,
}

impl PeerMode {
    fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::Ipvs => "ipvs",
        }
    }
}

/// The scheduler of mode ipvs, which is also kube-proxy's own choice.
pub const SCHEDULER: &str = "rr";

/// Choices about kube-proxy.
#[derive(Clone, Debug)]
pub struct PeerOptions {
    /// How it forwards.
    pub mode: PeerMode,
    /// `minSyncPeriod` of its mode: the least time between two syncs. Kube-proxy's own default is 1 s.
    pub min_sync_period: Duration,
    /// `--v`. 4 logs the time of every sync.
    pub verbosity: u8,
    /// What to change in the KubeProxyConfiguration (a JSON merge patch), `null` for nothing.
    pub patch: serde_json::Value,
}

impl PeerOptions {
    /// Kube-proxy in this mode, which syncs without delay.
    #[must_use]
    pub fn new(mode: PeerMode) -> Self {
        Self {
            mode,
            min_sync_period: Duration::ZERO,
            verbosity: 2,
            patch: serde_json::Value::Null,
        }
    }
}

/// A running kube-proxy. Its rules stay in the node's namespace when it is dropped, as they do in real life.
#[derive(Debug)]
pub struct Peer {
    process: Process,
    namespace: crate::Netns,
}

/// Its health check, on every address of the node.
const HEALTH_PORT: u16 = 10256;
/// Its metrics, on the node's loopback.
const METRICS_PORT: u16 = 10249;

impl Peer {
    /// Starts kube-proxy on a node whose Node object exists, as the user system:kube-proxy.
    ///
    /// # Errors
    /// When it cannot be built or started. Whether it works: [`Peer::wait_until_healthy`].
    pub fn start(
        toolchain: &Toolchain,
        access: &Access,
        node: &NodeNet,
        options: &PeerOptions,
    ) -> Result<Self> {
        let config = configuration(access, node, options);
        let config = node
            .folder()
            .write("kube-proxy.json", serde_json::to_vec_pretty(&config)?)?;
        let mut command = node.command(toolchain.program(Program::KubeProxy)?);
        command
            .arg("--config")
            .arg(config)
            .arg(format!("--v={}", options.verbosity));
        let name = format!("kube-proxy on {}", node.name());
        let process = Process::start(&name, command, node.folder().file("kube-proxy.log"))?;
        Ok(Self {
            process,
            namespace: node.namespace().clone(),
        })
    }

    /// Waits until it has synced. Its health check alone is good before that.
    ///
    /// # Errors
    /// With the end of its log, when it ends or `limit` passes first.
    pub fn wait_until_healthy(&self, limit: Duration) -> Result<()> {
        self.process.wait_until("be healthy", limit, || {
            let healthy = http::get(&self.namespace, local(HEALTH_PORT), "/healthz");
            matches!(healthy, Ok((200, _))) && self.has_synced()
        })
    }

    /// Whether its own metrics count a finished sync.
    fn has_synced(&self) -> bool {
        let counts = |line: &str| {
            line.starts_with("kubeproxy_sync_proxy_rules_duration_seconds_count") && !line.ends_with(" 0")
        };
        self.metrics().is_ok_and(|metrics| metrics.lines().any(counts))
    }

    /// Its metrics, in Prometheus' text format.
    ///
    /// # Errors
    /// When it does not serve them.
    pub fn metrics(&self) -> Result<String> {
        let (_, metrics) =
            http::get(&self.namespace, local(METRICS_PORT), "/metrics").context("kube-proxy's metrics")?;
        Ok(metrics)
    }

    /// The process: its log, memory, processor time; to stop or kill it.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }
}

fn local(port: u16) -> SocketAddr {
    (std::net::Ipv4Addr::LOCALHOST, port).into()
}

fn configuration(access: &Access, node: &NodeNet, options: &PeerOptions) -> serde_json::Value {
    // It takes 0 for its default of 1 s (SetDefaults_KubeProxyConfiguration).
    let period = format!("{}ms", options.min_sync_period.as_millis().max(1));
    let sync = json!({"minSyncPeriod": period, "syncPeriod": "30s"});
    let mut config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": options.mode.name(),
        "clientConnection": {"kubeconfig": access.kube_proxy_kubeconfig()},
        "hostnameOverride": node.name(),
        "bindAddress": node.addresses().v4,
        "healthzBindAddress": format!("0.0.0.0:{HEALTH_PORT}"),
        "metricsBindAddress": local(METRICS_PORT),
        "detectLocalMode": "ClusterCIDR",
        "clusterCIDR": CLUSTER_CIDRS.join(","),
        "iptables": sync,
        "nftables": sync,
        "ipvs": {"minSyncPeriod": period, "syncPeriod": "30s", "scheduler": SCHEDULER},
        // In a namespace other than the machine's first, nf_conntrack_max is read-only: 0 leaves it alone.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        // Lowering it needs CAP_SYS_RESOURCE, which a container that runs the tests may not have.
        "oomScoreAdj": 0,
    });
    merge(&mut config, &options.patch);
    config
}

/// A JSON merge patch (RFC 7386), without its deletions.
fn merge(target: &mut serde_json::Value, patch: &serde_json::Value) {
    match (target, patch) {
        (_, serde_json::Value::Null) => {}
        (serde_json::Value::Object(target), serde_json::Value::Object(patch)) => {
            for (name, value) in patch {
                merge(target.entry(name).or_insert(serde_json::Value::Null), value);
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}

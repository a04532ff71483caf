//! What is measured: our agent or kube-proxy, on a node.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Bed, Size};
use crate::{
    Access, Agent, IptablesVariant, Netns, NodeNet, Peer, PeerMode, PeerOptions, Process, Program, Toolchain,
    agent::Source, http,
};

/// Both have their health check and their metrics on the same ports.
const HEALTH_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

/// One of the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    /// pointsman-agent.
    Ours,
    /// kube-proxy.
    Peer,
}

impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Ours => "pointsman-agent",
            Self::Peer => "kube-proxy",
        })
    }
}

/// In what the two are compared.
#[derive(Clone, Debug)]
pub struct Contest {
    /// The policy's mode.
    pub mode: &'static str,
    /// kube-proxy's mode.
    pub peer_mode: PeerMode,
    /// The node's iptables.
    pub variant: IptablesVariant,
    /// kube-proxy's minSyncPeriod. Its default is 1 s, which is also what it takes 0 for
    /// (SetDefaults_KubeProxyConfiguration); 1 ms is where its changes arrive soonest.
    pub peer_min_sync_period: Duration,
    /// How often each looks after everything, whether something changed or not (default of both: 30 s). Longer than
    /// the changes take, so that it falls into neither's.
    pub sync_period: Duration,
    /// How long anything may take before the bench gives up.
    pub limit: Duration,
}

impl Contest {
    /// Both in iptables mode, with this variant of iptables.
    #[must_use]
    pub fn iptables(variant: IptablesVariant) -> Self {
        Self {
            mode: "IPTables",
            peer_mode: PeerMode::Iptables,
            variant,
            peer_min_sync_period: Duration::from_millis(1),
            sync_period: Duration::from_secs(3600),
            limit: Duration::from_secs(600),
        }
    }

    /// Both in nftables mode.
    #[must_use]
    pub fn nftables() -> Self {
        Self {
            mode: "NFTables",
            peer_mode: PeerMode::Nftables,
            ..Self::iptables(IptablesVariant::Nft)
        }
    }

    /// Both in ipvs mode, with the same scheduler.
    #[must_use]
    pub fn ipvs() -> Self {
        Self {
            mode: "IPVS",
            peer_mode: PeerMode::Ipvs,
            // kube-proxy starts an `ipset` for each of its first addresses, and each is dear there.
            limit: Duration::from_secs(1800),
            ..Self::iptables(IptablesVariant::Nft)
        }
    }

    /// Whether the kernel tells of every change of the rules.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.peer_mode == PeerMode::Nftables
    }

    /// How many changes are timed. One of kube-proxy's takes seconds in nftables mode with thousands of Services, and always in
    /// ipvs mode in the test kernel, where each of the hundred programs that it runs is dear.
    #[must_use]
    pub fn changes(&self, subject: Subject, size: Size, asked: usize) -> usize {
        match (subject, self.peer_mode) {
            (Subject::Peer, PeerMode::Nftables) if size.services >= 5000 => asked.min(5),
            (Subject::Peer, PeerMode::Ipvs) if size.services >= 5000 => asked.min(5),
            (Subject::Peer, PeerMode::Ipvs) => asked.min(20),
            _ => asked,
        }
    }

    /// The variant's name.
    #[must_use]
    pub fn variant_name(&self) -> &'static str {
        match self.variant {
            IptablesVariant::Legacy => "legacy",
            IptablesVariant::Nft => "nf_tables",
        }
    }
}

impl fmt::Display for Contest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_told() {
            true => formatter.write_str(self.mode),
            false => write!(formatter, "{}, {}", self.mode, self.variant_name()),
        }
    }
}

/// A subject that runs.
#[derive(Debug)]
pub struct Running {
    program: Started,
    namespace: Netns,
}

#[derive(Debug)]
enum Started {
    Ours(Agent),
    Peer(Peer),
}

impl Subject {
    /// Starts it on a node that is prepared; nothing but the start of the process takes time here.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(self, bed: &Bed<'_>, contest: &Contest) -> Result<Running> {
        let ground = bed.site.ground;
        self.start_on(
            &bed.node,
            contest,
            &bed.kubeconfig,
            &ground.control_plane,
            &ground.toolchain,
        )
    }

    /// The same on any node. The kubeconfig is our agent's.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_on(
        self,
        node: &NodeNet,
        contest: &Contest,
        kubeconfig: &Path,
        access: &Access,
        toolchain: &Toolchain,
    ) -> Result<Running> {
        let program = match self {
            Self::Ours => Started::Ours(Agent::start(node, Source::Kubeconfig(kubeconfig))?),
            Self::Peer => {
                let period = format!("{}s", contest.sync_period.as_secs());
                let options = PeerOptions {
                    min_sync_period: contest.peer_min_sync_period,
                    patch: json!({
                        "iptables": {"syncPeriod": period},
                        "nftables": {"syncPeriod": period},
                        "ipvs": {"syncPeriod": period},
                    }),
                    ..PeerOptions::new(contest.peer_mode)
                };
                Started::Peer(Peer::start(toolchain, access, node, &options)?)
            }
        };
        Ok(Running {
            program,
            namespace: node.namespace().clone(),
        })
    }

    /// Removes what it left in a node's kernel, with its own means. Not needed when the [`Bed`] is dropped.
    ///
    /// # Errors
    /// With what it said, when it fails.
    pub fn clean_up(self, bed: &Bed<'_>) -> Result<()> {
        match self {
            Self::Ours => Agent::clean_up(&bed.node),
            Self::Peer => {
                let program = bed.site.ground.toolchain.program(Program::KubeProxy)?;
                let output = bed
                    .node
                    .command(program)
                    .arg("--cleanup")
                    .output()
                    .context("running kube-proxy --cleanup")?;
                ensure!(
                    output.status.success(),
                    "kube-proxy --cleanup: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                );
                Ok(())
            }
        }
    }

    /// Its version, as it says itself; empty where it says none.
    #[must_use]
    pub fn version(self, node: &NodeNet, toolchain: &Toolchain) -> String {
        let program = match self {
            Self::Ours => crate::binaries::find(crate::binaries::Binary::Agent),
            Self::Peer => toolchain.program(Program::KubeProxy),
        };
        let output = program.and_then(|program| Ok(node.command(program).arg("--version").output()?));
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        // kube-proxy says "Kubernetes v1.36.3".
        text.unwrap_or_default().replace("Kubernetes", "kube-proxy")
    }
}

impl Running {
    /// Its process.
    #[must_use]
    pub fn process(&self) -> &Process {
        match &self.program {
            Started::Ours(agent) => agent.process(),
            Started::Peer(peer) => peer.process(),
        }
    }

    /// Whether it says itself that the kernel holds everything: `/healthz`.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        matches!(self.get(HEALTH_PORT, "/healthz"), Ok((200, _)))
    }

    /// Its metrics, in Prometheus' text format.
    ///
    /// # Errors
    /// When it does not serve them.
    pub fn metrics(&self) -> Result<String> {
        let (_, text) = self
            .get(METRICS_PORT, "/metrics")
            .with_context(|| format!("the metrics of {}", self.process().name()))?;
        Ok(text)
    }

    fn get(&self, port: u16, path: &str) -> Result<(u16, String)> {
        http::get(
            &self.namespace,
            SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            path,
        )
    }

    /// Asks it to end, and waits.
    ///
    /// # Errors
    /// When it can be neither signalled nor waited for.
    pub fn stop(self) -> Result<()> {
        self.process().stop(Duration::from_secs(30))?;
        Ok(())
    }
}

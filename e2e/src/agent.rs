//! Our agent on a node.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    Netns, NodeNet, Process,
    binaries::{self, Binary},
    http,
};

/// Where the agent learns what to do.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// From the API server that this kubeconfig leads to.
    Kubeconfig(&'a Path),
    /// From the files of this directory.
    Manifests(&'a Path),
}

/// A running agent. Its rules stay in the node's namespace when it is dropped, as they do in real life.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    namespace: Netns,
}

const HEALTH_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

impl Agent {
    /// Starts the agent of a node.
    ///
    /// # Errors
    /// When it cannot be built or started. Whether it works: [`Agent::wait_until_healthy`].
    pub fn start(node: &NodeNet, source: Source<'_>) -> Result<Self> {
        Self::start_with(node, source, &[])
    }

    /// [`Agent::start`] with more flags.
    ///
    /// # Errors
    /// When it cannot be built or started.
    pub fn start_with(node: &NodeNet, source: Source<'_>, flags: &[&str]) -> Result<Self> {
        Self::start_command(node, node.command(binaries::find(Binary::Agent)?), source, flags)
    }

    /// [`Agent::start_with`] by a command that ends in the agent's program, such as one that takes something
    /// away from it first.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_command(
        node: &NodeNet,
        mut command: Command,
        source: Source<'_>,
        flags: &[&str],
    ) -> Result<Self> {
        command.arg("--node-name").arg(node.name());
        command.arg("--state-dir").arg(state_dir(node));
        match source {
            Source::Kubeconfig(path) => command.arg("--kubeconfig").arg(path),
            Source::Manifests(path) => command.arg("--manifests").arg(path),
        };
        command.args(flags);
        let name = format!("pointsman-agent on {}", node.name());
        let process = Process::start(&name, command, node.folder().file("pointsman-agent.log"))?;
        Ok(Self {
            process,
            namespace: node.namespace().clone(),
        })
    }

    /// Runs `pointsman-agent --cleanup` on a node.
    ///
    /// # Errors
    /// With what it said, when it fails.
    pub fn clean_up(node: &NodeNet) -> Result<()> {
        let mut command = node.command(binaries::find(Binary::Agent)?);
        command
            .arg("--node-name")
            .arg(node.name())
            .arg("--state-dir")
            .arg(state_dir(node))
            .arg("--cleanup");
        let output = command.output().context("running pointsman-agent --cleanup")?;
        anyhow::ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// Waits until its health check says that the kernel holds everything.
    ///
    /// # Errors
    /// With the end of its log, when it ends or `limit` passes first.
    pub fn wait_until_healthy(&self, limit: Duration) -> Result<()> {
        self.process.wait_until("be healthy", limit, || {
            matches!(self.get(HEALTH_PORT, "/healthz"), Ok((200, _)))
        })
    }

    /// What it answers on its health port (10256): status code and body.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn health(&self, path: &str) -> Result<(u16, String)> {
        self.get(HEALTH_PORT, path)
    }

    /// What it answers on its metrics port (10249): status code and body.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self, path: &str) -> Result<(u16, String)> {
        self.get(METRICS_PORT, path)
    }

    /// The value of a metric, summed over its series that have `label` among their labels: `ip_family="IPv6"`,
    /// or nothing for all of them. 0 without such a series.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn metric(&self, name: &str, label: &str) -> Result<f64> {
        let (_, text) = self.metrics("/metrics")?;
        let samples = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            let is_it = labels.is_empty() || labels.starts_with('{');
            (is_it && labels.contains(label)).then(|| value.parse::<f64>().ok())?
        });
        Ok(samples.sum())
    }

    /// Everything that it has logged, earlier agents of the node among it.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log(&self) -> Result<String> {
        let path = self.process.log();
        let log = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    /// Waits until its log has this text.
    ///
    /// # Errors
    /// With the end of the log, when it ends or `limit` passes first.
    pub fn wait_until_logged(&self, text: &str, limit: Duration) -> Result<()> {
        let has = || self.log().is_ok_and(|log| log.contains(text));
        self.process.wait_until(&format!("log {text:?}"), limit, has)
    }

    fn get(&self, port: u16, path: &str) -> Result<(u16, String)> {
        http::get(
            &self.namespace,
            SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            path,
        )
    }

    /// The process: its log, memory, processor time; to stop or kill it.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }
}

/// Where the agent of a node keeps what outlives it.
#[must_use]
pub fn state_dir(node: &NodeNet) -> PathBuf {
    node.folder().file("pointsman-agent")
}

//! Our operator, beside the control plane.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::Result;

use crate::{
    ControlPlane, Netns, Process,
    binaries::{self, Binary},
    http,
};

/// A running operator.
#[derive(Debug)]
pub struct Operator {
    process: Process,
    namespace: Netns,
    address: SocketAddr,
}

impl Operator {
    /// Starts an operator in the control plane's namespace. Several need different ports.
    ///
    /// # Errors
    /// When it cannot be built or started. Whether it works: [`Operator::wait_until_ready`].
    pub fn start(control_plane: &ControlPlane, kubeconfig: &Path, port: u16, flags: &[&str]) -> Result<Self> {
        let namespace = control_plane.namespace().clone();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut command = namespace.command(binaries::find(Binary::Operator)?);
        command.arg("--kubeconfig").arg(kubeconfig);
        command.arg("--bind-address").arg(address.to_string());
        command.args(flags);
        let log = control_plane
            .folder()
            .file(format!("pointsman-operator-{port}.log"));
        let process = Process::start("pointsman-operator", command, log)?;
        Ok(Self {
            process,
            namespace,
            address,
        })
    }

    /// Waits until it leads or stands by.
    ///
    /// # Errors
    /// With the end of its log, when it ends or `limit` passes first.
    pub fn wait_until_ready(&self, limit: Duration) -> Result<()> {
        self.process
            .wait_until("be ready", limit, || matches!(self.get("/readyz"), Ok((200, _))))
    }

    /// What it answers: status code and body.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        http::get(&self.namespace, self.address, path)
    }

    /// The process: its log, memory, processor time; to stop or kill it.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }
}

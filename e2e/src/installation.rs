//! Pointsman installed with its charts, and its programs run with the service accounts of the chart, so that the
//! chart's roles and admission policy are what is tested.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{Access, Agent, ControlPlane, NodeNet, Operator, Program, Toolchain, agent::Source};

/// The namespace that the charts are installed to.
pub const NAMESPACE: &str = "pointsman-system";
const OPERATOR_ACCOUNT: &str = "pointsman-operator";
const AGENT_ACCOUNT: &str = "pointsman-agent";
const OPERATOR_PORT: u16 = 8080;

/// The charts, installed.
#[derive(Debug)]
pub struct Installation<'a> {
    control_plane: &'a ControlPlane,
    helm: PathBuf,
}

impl<'a> Installation<'a> {
    /// Installs both charts with `helm upgrade --install`; `values` are `--set` arguments for the chart pointsman.
    /// Its pods do not run, for want of kubelets: [`Installation::operator`] and [`Installation::agent`] stand in
    /// for them, with their service accounts.
    ///
    /// # Errors
    /// With what helm said, when it fails.
    pub fn install(toolchain: &Toolchain, control_plane: &'a ControlPlane, values: &[&str]) -> Result<Self> {
        let installation = Self::of(toolchain, control_plane)?;
        installation.helm("pointsman-crds", &[])?;
        installation.helm("pointsman", values)?;
        Ok(installation)
    }

    /// The charts on a control plane where somebody else installs them.
    ///
    /// # Errors
    /// When helm cannot be built.
    pub fn of(toolchain: &Toolchain, control_plane: &'a ControlPlane) -> Result<Self> {
        let helm = toolchain.program(Program::Helm)?;
        Ok(Self { control_plane, helm })
    }

    fn helm(&self, chart: &str, values: &[&str]) -> Result<()> {
        let folder = format!("{}/../charts/{chart}", env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new(&self.helm);
        command.env("HOME", self.control_plane.folder().path());
        command
            .arg("--kubeconfig")
            .arg(self.control_plane.host_kubeconfig());
        command.args(["upgrade", "--install", chart, &folder]);
        command.args(["--namespace", NAMESPACE, "--create-namespace"]);
        for value in values {
            command.args(["--set", value]);
        }
        let output = command.output().context("running helm")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "helm could not install {chart}: {}",
            said.trim()
        );
        Ok(())
    }

    /// Starts the operator with the chart's service account.
    ///
    /// # Errors
    /// When it cannot be started, or is not ready within half a minute.
    pub fn operator(&self) -> Result<Operator> {
        self.operator_at(OPERATOR_PORT)
    }

    /// Another operator, which listens on another port.
    ///
    /// # Errors
    /// When it cannot be started, or is not ready within half a minute.
    pub fn operator_at(&self, port: u16) -> Result<Operator> {
        let token = self.control_plane.token(OPERATOR_ACCOUNT, NAMESPACE, None)?;
        let kubeconfig = self.control_plane.kubeconfig_for_token(&token)?;
        let operator = Operator::start(self.control_plane, &kubeconfig, port, &["--namespace", NAMESPACE])?;
        operator.wait_until_ready(Duration::from_secs(30))?;
        Ok(operator)
    }

    /// A kubeconfig with the chart's agent account, bound to a node whose Node object exists.
    ///
    /// # Errors
    /// When there is no such account or Node.
    pub fn agent_kubeconfig(&self, node: &NodeNet) -> Result<PathBuf> {
        agent_kubeconfig(self.control_plane, node)
    }

    /// Starts the agent of a node with the chart's service account.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn agent(&self, node: &NodeNet) -> Result<Agent> {
        Agent::start(node, Source::Kubeconfig(&self.agent_kubeconfig(node)?))
    }
}

/// [`Installation::agent_kubeconfig`] where somebody else has installed the charts.
///
/// # Errors
/// When there is no such account or Node.
pub fn agent_kubeconfig(access: &Access, node: &NodeNet) -> Result<PathBuf> {
    let token = access.token(AGENT_ACCOUNT, NAMESPACE, Some(node.name()))?;
    access.kubeconfig_for_token(&token)
}

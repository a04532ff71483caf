//! What the demo is played on: nodes, pods, programs, and commands that are shown as they are run.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};
use pointsman_e2e::{
    Agent, ControlPlane, ExternalHost, Fabric, Installation, NodeNet, Operator, Pod, Process, Program,
    Toolchain, requirements,
    toolchain::target_directory,
    workload::{self, WebPod},
};

use crate::commentary::Commentary;

/// Everything that runs. The fields drop in their order: who writes ends before what it writes to.
#[derive(Debug)]
pub struct Stage<'a> {
    /// The agents by node.
    pub agents: BTreeMap<String, Agent>,
    /// The operator, once it was started.
    pub operator: Option<Operator>,
    /// The pods behind the Service `web`: they answer as long as they are here.
    _web: Vec<WebPod>,
    /// A pod on node-1 to ask from.
    pub client: Pod,
    /// A host outside of the cluster.
    pub outside: ExternalHost,
    /// The Service's ClusterIPs with their port, IPv4 first.
    pub vips: [SocketAddr; 2],
    /// The charts.
    pub installation: Installation<'a>,
    /// The control plane.
    pub control_plane: &'a ControlPlane,
    /// The folder that kubectl and helm are in.
    pub tools: PathBuf,
    nodes: [NodeNet; 3],
}

impl<'a> Stage<'a> {
    /// Makes nodes, pods and the Service.
    pub fn set_up(
        tell: &mut Commentary,
        toolchain: &Toolchain,
        fabric: &Fabric,
        control_plane: &'a ControlPlane,
    ) -> Result<Self> {
        let nodes = [
            fabric.node("node-1")?,
            fabric.node("node-2")?,
            fabric.node("node-3")?,
        ];
        let mut web = Vec::new();
        for (node, name) in nodes.iter().zip(["web-1", "web-2", "web-3"]) {
            control_plane.create_node(node)?;
            web.push(WebPod::start(control_plane, node, name)?);
        }
        let client = nodes[0].add_pod("client")?;
        let outside = fabric.external("outside")?;
        let tools = toolchain.program(Program::Kubectl)?;
        let tools = tools.parent().context("kubectl is in no folder")?.to_owned();
        let mut stage = Self {
            agents: BTreeMap::new(),
            operator: None,
            _web: web,
            client,
            outside,
            vips: [SocketAddr::from(([0, 0, 0, 0], 0)); 2],
            installation: Installation::of(toolchain, control_plane)?,
            control_plane,
            tools,
            nodes,
        };
        stage.shown(tell, "kubectl get nodes")?;
        stage.shown(tell, "kubectl apply -f examples/web-service.yaml")?;
        stage.vips = workload::cluster_ips(control_plane, "web")?;
        stage.shown(tell, "kubectl get service web")?;
        Ok(stage)
    }

    /// The nodes in their order.
    pub fn nodes(&self) -> &[NodeNet; 3] {
        &self.nodes
    }

    /// The agent of a node.
    pub fn agent(&self, node: &str) -> Result<&Agent> {
        self.agents
            .get(node)
            .with_context(|| format!("no agent on {node}"))
    }

    /// Runs a command line in a shell, as the reader would, and shows it with its output.
    pub fn shown(&self, tell: &mut Commentary, line: &str) -> Result<String> {
        let output = self.run(line)?;
        let printed = printed(&output);
        tell.command("", line, &printed)?;
        ensure!(output.status.success(), "`{line}` failed with {}", output.status);
        Ok(printed)
    }

    /// [`Stage::shown`] for a command that has to be refused with these words.
    pub fn refused(&self, tell: &mut Commentary, line: &str, words: &str) -> Result<()> {
        let output = self.run(line)?;
        let printed = printed(&output);
        tell.command("", line, &printed)?;
        ensure!(!output.status.success(), "`{line}` was not refused");
        ensure!(
            printed.contains(words),
            "`{line}` was refused, but without saying {words:?}"
        );
        Ok(())
    }

    /// Runs a command line on a node, and shows it with its output.
    pub fn shown_on(&self, tell: &mut Commentary, node: &NodeNet, line: &str) -> Result<String> {
        let mut command = node.command("/bin/sh");
        let output = command.args(["-c", line]).output();
        let output = output.with_context(|| format!("running `{line}` on {}", node.name()))?;
        let printed = printed(&output);
        tell.command(node.name(), line, &printed)?;
        ensure!(
            output.status.success(),
            "`{line}` failed on {} with {}",
            node.name(),
            output.status
        );
        Ok(printed)
    }

    /// Starts `kubectl get ... --watch`; its output is in the log of the process.
    pub fn watch(&self, what: &[&str]) -> Result<Process> {
        let mut command = self.control_plane.namespace().command(self.tools.join("kubectl"));
        command.env("KUBECONFIG", self.control_plane.kubeconfig());
        command.env("HOME", self.control_plane.folder().path());
        command.arg("get").args(what).arg("--watch");
        Process::start(
            "kubectl get --watch",
            command,
            self.control_plane.folder().file("watch.log"),
        )
    }

    fn run(&self, line: &str) -> Result<Output> {
        let mut path = self.tools.clone().into_os_string();
        path.push(":");
        path.push(requirements::search_path());
        Command::new("/bin/sh")
            .args(["-c", line])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .env("PATH", path)
            .env("KUBECONFIG", self.control_plane.host_kubeconfig())
            // Caches of kubectl and helm go where everything else goes.
            .env("HOME", self.control_plane.folder().path())
            .output()
            .with_context(|| format!("running `{line}`"))
    }

    /// Copies all logs to where they stay, and says where.
    pub fn save_logs(&self) -> Result<PathBuf> {
        let target = target_directory()?.join("demo-logs");
        if target.exists() {
            fs::remove_dir_all(&target).with_context(|| format!("removing {}", target.display()))?;
        }
        copy_logs(self.control_plane.folder().path(), &target.join("control-plane"))?;
        for node in &self.nodes {
            copy_logs(node.folder().path(), &target.join(node.name()))?;
        }
        Ok(target)
    }
}

fn printed(output: &Output) -> String {
    let (out, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    format!("{out}{errors}")
}

fn copy_logs(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let path = entry?.path();
        if let (Some("log"), Some(name)) = (path.extension().and_then(|end| end.to_str()), path.file_name()) {
            fs::copy(&path, to.join(name)).with_context(|| format!("copying {}", path.display()))?;
        }
    }
    Ok(())
}

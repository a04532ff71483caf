//! The charts, and what their roles and admission policy let an agent and the operator do.

use std::{
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context, Result, bail, ensure};
use pointsman_e2e::{
    Cluster, ControlPlane, Fabric, Options, Program, Toolchain, cluster::section, installation::NAMESPACE,
    workload::read_example,
};

const AGENT: &str = "pointsman-agent";
const OPERATOR: &str = "pointsman-operator";

#[test]
fn the_charts_install_what_is_needed_and_no_more() -> Result<()> {
    let (toolchain, fabric) = (Toolchain::locate()?, Fabric::new()?);
    let control_plane = ControlPlane::start(&toolchain, &fabric, Options::default())?;
    let cluster = Cluster::start(
        &toolchain,
        &fabric,
        &control_plane,
        &[("node-1", &[]), ("node-2", &[])],
    )?;
    control_plane.apply(&read_example("policy-fleet.yaml")?)?;
    cluster.ready("fleet", 2)?;
    // So that nobody else writes what the parts below try to.
    let Cluster {
        agents, operators, ..
    } = &cluster;
    let processes = agents.values().map(|agent| agent.process());
    for process in processes.chain(operators.iter().map(|operator| operator.process())) {
        process.kill9()?;
    }
    let helm = Helm::new(&toolchain, &control_plane)?;

    section("agent", || {
        an_agent_writes_its_own_status_and_nothing_else(&cluster)
    })?;
    section("token without a node", || {
        a_token_without_a_node_writes_nothing(&cluster)
    })?;
    section("operator", || the_operator_reads_no_secrets(&cluster))?;
    section("upgrades", || upgrading_again_changes_nothing(&cluster, &helm))?;
    section("uninstall", || uninstalling_leaves_the_policies(&cluster, &helm))
}

/// What the API server says when it refuses; an error when it does not.
fn refused(cluster: &Cluster<'_>, as_: &Path, args: &[&str], input: &str) -> Result<String> {
    match cluster.control_plane.kubectl_as(as_, args, input) {
        Ok(_) => bail!("allowed: kubectl {}", args.join(" ")),
        Err(error) => Ok(error.to_string()),
    }
}

fn cannot(cluster: &Cluster<'_>, as_: &Path, verb: &str, resource: &str) -> Result<()> {
    // To kubectl a slash would mean an object of this name.
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let subresource = format!("--subresource={subresource}");
    let said = refused(
        cluster,
        as_,
        &["auth", "can-i", verb, resource, &subresource, "--all-namespaces"],
        "",
    );
    // It ends with 1 and says `no`, which is not an error that it has words for.
    let said = said.with_context(|| format!("{verb} {resource} {subresource}"))?;
    ensure!(
        said.trim_end().ends_with("failed:"),
        "{verb} {resource} {subresource}: {said}"
    );
    Ok(())
}

/// Writes the status of a node's NodeProxy, as that node's agent does.
const REPORT: &[&str] = &[
    "apply",
    "--server-side",
    "--force-conflicts",
    "--subresource=status",
    "--field-manager=pointsman-agent",
    "--validate=false",
    "-f",
    "-",
];

fn report(node: &str) -> String {
    format!(
        "{{apiVersion: pointsman.dev/v1alpha1, kind: NodeProxy, metadata: {{name: {node}}}, status: {{appliedRevision: forged}}}}"
    )
}

fn an_agent_writes_its_own_status_and_nothing_else(cluster: &Cluster<'_>) -> Result<()> {
    let agent = cluster.installation.agent_kubeconfig(&cluster.nodes[0])?;
    let run = |args: &[&str]| cluster.control_plane.kubectl_as(&agent, args, "");
    let own = report("node-1");
    let other = report("node-2");
    cluster
        .control_plane
        .kubectl_as(&agent, REPORT, &own)
        .context("its own status")?;
    let said = refused(cluster, &agent, REPORT, &other)?;
    assert!(
        said.contains("the agent on node node-1 may write only the NodeProxy node-1, not node-2"),
        "{said}"
    );
    let refused = |args: &[&str]| refused(cluster, &agent, args, &other);
    let spec = r#"{"spec": {"settings": {"logVerbosity": 10}}}"#;
    let said = refused(&["patch", "nodeproxy", "node-1", "--type=merge", "-p", spec])?;
    assert!(said.to_lowercase().contains("forbidden"), "{said}");

    // What it has to read, and what else there would be to read.
    for readable in [
        "services",
        "endpointslices",
        "servicecidrs",
        "nodes",
        "nodeproxies",
    ] {
        run(&["get", readable, "--all-namespaces"])?;
    }
    for unreadable in [
        "secrets",
        "configmaps",
        "pods",
        "serviceaccounts",
        "leases",
        "proxypolicies",
    ] {
        let said = refused(&["get", unreadable, "--all-namespaces"])?;
        assert!(said.contains("is forbidden"), "{unreadable}: {said}");
    }
    for (verb, resource) in [
        ("create", "nodeproxies"),
        ("delete", "nodeproxies"),
        ("patch", "nodeproxies"),
        ("patch", "proxypolicies"),
        ("patch", "nodes"),
        ("patch", "nodes/status"),
        ("create", "pods"),
        ("patch", "services"),
        ("create", "events.events.k8s.io"),
        ("create", "serviceaccounts/token"),
        ("patch", "daemonsets.apps"),
        ("impersonate", "users"),
    ] {
        cannot(cluster, &agent, verb, resource)?;
    }

    // A role that grants too much opens nothing: the admission policy stands by itself.
    cluster.control_plane.kubectl(&[
        "create",
        "clusterrolebinding",
        "too-much",
        "--clusterrole=cluster-admin",
        &format!("--serviceaccount={NAMESPACE}:{AGENT}"),
    ])?;
    let delete_one: &[&str] = &["delete", "nodeproxy", "node-2"];
    let delete_all: &[&str] = &["delete", "--raw=/apis/pointsman.dev/v1alpha1/nodeproxies"];
    for args in [REPORT, delete_one, delete_all] {
        let said = refused(args)?;
        assert!(said.contains("may write only the NodeProxy node-1"), "{said}");
    }
    cluster
        .control_plane
        .kubectl(&["delete", "clusterrolebinding", "too-much"])?;
    for node in ["node-1", "node-2"] {
        let proxy = cluster.control_plane.object("nodeproxy", node)?;
        assert!(proxy.is_some(), "the NodeProxy of {node} is gone");
    }
    Ok(())
}

fn a_token_without_a_node_writes_nothing(cluster: &Cluster<'_>) -> Result<()> {
    let token = cluster.control_plane.token(AGENT, NAMESPACE, None)?;
    let nowhere = cluster.control_plane.kubeconfig_for_token(&token)?;
    for node in ["node-1", "node-2"] {
        let said = refused(cluster, &nowhere, REPORT, &report(node))?;
        assert!(said.contains("does not say which node it is on"), "{said}");
    }
    Ok(())
}

fn the_operator_reads_no_secrets(cluster: &Cluster<'_>) -> Result<()> {
    let token = cluster.control_plane.token(OPERATOR, NAMESPACE, None)?;
    let operator = cluster.control_plane.kubeconfig_for_token(&token)?;
    for unreadable in [
        "secrets",
        "configmaps",
        "pods",
        "endpointslices",
        "serviceaccounts",
        "events.events.k8s.io",
    ] {
        let said = refused(cluster, &operator, &["get", unreadable, "--all-namespaces"], "")?;
        assert!(said.contains("is forbidden"), "{unreadable}: {said}");
    }
    for (verb, resource) in [
        ("patch", "nodes"),
        ("patch", "services"),
        ("delete", "events.events.k8s.io"),
        ("patch", "proxypolicies"),
        ("delete", "proxypolicies"),
        ("patch", "nodeproxies/status"),
        ("create", "serviceaccounts/token"),
        ("delete", "leases.coordination.k8s.io"),
    ] {
        cannot(cluster, &operator, verb, resource)?;
    }
    // The agents' reports are theirs.
    let said = refused(cluster, &operator, REPORT, &report("node-1"))?;
    assert!(said.to_lowercase().contains("forbidden"), "{said}");
    Ok(())
}

/// helm, as a person uses it.
struct Helm<'a> {
    program: std::path::PathBuf,
    control_plane: &'a ControlPlane,
}

impl<'a> Helm<'a> {
    fn new(toolchain: &Toolchain, control_plane: &'a ControlPlane) -> Result<Self> {
        Ok(Self {
            program: toolchain.program(Program::Helm)?,
            control_plane,
        })
    }

    fn output(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.program);
        command.env("HOME", self.control_plane.folder().path());
        command
            .arg("--kubeconfig")
            .arg(self.control_plane.host_kubeconfig());
        command.args(["--namespace", NAMESPACE]).args(args);
        command.output().context("running helm")
    }

    fn run(&self, args: &[&str]) -> Result<String> {
        let output = self.output(args)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "helm {} failed: {said}", args.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    }
}

fn chart(name: &str) -> String {
    format!("{}/../charts/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Everything that the charts made, with the generation of each: it moves when a spec changes.
fn installed(cluster: &Cluster<'_>) -> Result<String> {
    cluster.control_plane.kubectl(&[
        "get",
        "customresourcedefinitions,clusterroles,clusterrolebindings,roles,rolebindings,serviceaccounts,daemonsets,deployments,\
         validatingadmissionpolicies,validatingadmissionpolicybindings,proxypolicies",
        "--all-namespaces",
        "--selector",
        "app.kubernetes.io/part-of=pointsman",
        "-o",
        "jsonpath={range .items[*]}{.kind} {.metadata.name} {.metadata.uid} {.metadata.generation}{\"\\n\"}{end}",
    ])
}

fn upgrading_again_changes_nothing(cluster: &Cluster<'_>, helm: &Helm<'_>) -> Result<()> {
    let before = installed(cluster)?;
    assert!(before.lines().count() >= 12, "{before}");
    for _ in 0..2 {
        for name in ["pointsman-crds", "pointsman"] {
            helm.run(&["upgrade", "--install", name, &chart(name)])?;
        }
    }
    assert_eq!(installed(cluster)?, before);
    // The chart's own policy comes and goes with its value, and is one that the API server takes.
    let with_policy = [
        "upgrade",
        "pointsman",
        &chart("pointsman"),
        "--set",
        "defaultPolicy.create=true",
    ];
    helm.run(&with_policy)?;
    assert!(cluster.control_plane.object("proxypolicy", "default")?.is_some());
    let said = String::from_utf8(
        helm.output(&[&with_policy[..], &["--set", "defaultPolicy.spec.mode=userspace"]].concat())?
            .stderr,
    )?;
    assert!(said.contains("removed from Kubernetes in 1.26"), "{said}");
    helm.run(&["upgrade", "pointsman", &chart("pointsman"), "--reset-values"])?;
    assert!(cluster.control_plane.object("proxypolicy", "default")?.is_none());
    assert_eq!(installed(cluster)?, before);
    Ok(())
}

fn uninstalling_leaves_the_policies(cluster: &Cluster<'_>, helm: &Helm<'_>) -> Result<()> {
    for name in ["pointsman", "pointsman-crds"] {
        helm.run(&["uninstall", name])?;
    }
    let left = installed(cluster)?;
    let kinds: Vec<&str> = left
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(
        kinds,
        ["CustomResourceDefinition", "CustomResourceDefinition"],
        "{left}"
    );
    assert!(cluster.control_plane.object("proxypolicy", "fleet")?.is_some());
    // And they are taken up again.
    for name in ["pointsman-crds", "pointsman"] {
        helm.run(&["upgrade", "--install", name, &chart(name)])?;
    }
    Ok(())
}

/// Lint, the schema of the values, and everything else that can be said of the charts without a cluster.
#[test]
fn the_charts_are_well_formed_and_refuse_nonsense() -> Result<()> {
    let helm = Toolchain::locate()?.program(Program::Helm)?;
    let output = Command::new(chart("check.sh")).arg(helm).output()?;
    ensure!(
        output.status.success(),
        "charts/check.sh: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

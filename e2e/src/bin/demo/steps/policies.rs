//! Policies: edited, refused, in conflict, deleted.

use std::fs;

use anyhow::{Result, ensure};
use pointsman_e2e::observe::{condition, eventually};

use super::{LIMIT, node_proxy, ready};
use crate::{commentary::Commentary, stage::Stage};

pub(super) fn edited(tell: &mut Commentary, stage: &Stage<'_>) -> Result<()> {
    tell.step(
        "The policy is edited as YAML",
        "Its revision is a digest of the settings: it changes, and the nodes follow. `kubectl get --watch` looks on.",
    )?;
    let before = ready(stage, "fleet", 3)?["status"]["revision"].clone();
    let watch = stage.watch(&["proxypolicy", "fleet"])?;
    let seen = || fs::read_to_string(watch.log()).unwrap_or_default();
    eventually("kubectl to watch", LIMIT, || Ok(seen().lines().count() >= 2))?;
    stage.shown(
        tell,
        "sed 's/tcpEstablishedTimeoutSeconds: 86400/tcpEstablishedTimeoutSeconds: 7200/' examples/policy-fleet.yaml | kubectl apply -f -",
    )?;
    let policy = ready(stage, "fleet", 3)?;
    let revision = policy["status"]["revision"].as_str().unwrap_or_default();
    ensure!(before != revision, "the revision did not change");
    eventually("kubectl to see the end", LIMIT, || {
        let seen = seen();
        let last: Vec<&str> = seen
            .lines()
            .last()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        Ok(last.get(2) == Some(&revision) && last.get(4..6) == Some(&["3", "3"]))
    })?;
    let mut lines: Vec<String> = seen().lines().map(str::to_owned).collect();
    lines.dedup();
    tell.command("", "kubectl get proxypolicy fleet --watch", &lines.join("\n"))?;
    for node in stage.nodes() {
        node_proxy(stage, node, "at the new revision", |proxy| {
            proxy["status"]["appliedRevision"] == *revision
        })?;
    }
    tell.done("all nodes run the new revision")
}

pub(super) fn wrong_ones_are_refused(tell: &mut Commentary, stage: &Stage<'_>) -> Result<()> {
    tell.step(
        "Wrong policies are refused",
        "By the API server, before anything is stored: the rules are part of the API type.",
    )?;
    for (change, words) in [
        ("s/mode: Auto/mode: userspace/", "removed from Kubernetes in 1.26"),
        ("s|10.96.255.0/24|10.96.255.0/240|", "must be a CIDR such as"),
        (
            "s/net.netfilter.nf_conntrack_max/kernel.core_pattern/",
            "not on the allow-list",
        ),
    ] {
        let line = format!("sed '{change}' examples/policy-fleet.yaml | kubectl apply -f -");
        stage.refused(tell, &line, words)?;
    }
    ready(stage, "fleet", 3)?;
    tell.done("all three were refused, and the policy that was there is untouched")
}

pub(super) fn kernel_parameters(tell: &mut Commentary, stage: &Stage<'_>) -> Result<()> {
    tell.step(
        "Connection tracking is set on every node, and what cannot be set is said",
        "The policy asks for timeouts, and for nf_conntrack_max, which belongs to the whole machine: a network\n\
         namespace, such as the demo's nodes are, cannot write it.",
    )?;
    for node in stage.nodes() {
        let path = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";
        let value = stage.shown_on(tell, node, &format!("cat {path}"))?;
        ensure!(
            value.trim() == "7200",
            "{path} on {} is not 7200 but {value}",
            node.name()
        );
    }
    tell.done("the timeout of the policy is in place on each node")?;
    let said = stage.shown(
        tell,
        r#"kubectl get nodeproxy node-1 -o jsonpath='{range .status.conditions[?(@.type=="SysctlsApplied")]}{.status} {.reason}: {.message}{end}'"#,
    )?;
    ensure!(
        said.starts_with("False") && said.contains("nf_conntrack_max"),
        "the condition SysctlsApplied does not name nf_conntrack_max"
    );
    tell.done(
        "the condition SysctlsApplied names the one that could not be set; forwarding does not depend on it",
    )
}

pub(super) fn a_second_one_wins_a_node(tell: &mut Commentary, stage: &Stage<'_>) -> Result<()> {
    tell.step(
        "A second policy takes one node over",
        "Of several policies that select a node the one with the highest priority wins, and the other one says so.",
    )?;
    stage.shown(tell, "kubectl label node node-3 pool=trading")?;
    stage.shown(tell, "kubectl apply -f examples/policy-trading.yaml")?;
    ready(stage, "trading", 1)?;
    ready(stage, "fleet", 2)?;
    stage.shown(tell, "kubectl get proxypolicy")?;
    stage.shown(tell, "kubectl get nodeproxy")?;
    let fleet = stage.shown(
        tell,
        r#"kubectl get proxypolicy fleet -o jsonpath='{range .status.conditions[?(@.type=="Conflicted")]}{.status} {.reason}: {.message}{end}'"#,
    )?;
    ensure!(
        fleet.starts_with("True") && fleet.contains("policy trading (priority 100)"),
        "the condition Conflicted does not name the winner"
    );
    tell.done("node-3 follows `trading`; `fleet` has Conflicted=True, which names the winner and why it won")
}

pub(super) fn deleted(tell: &mut Commentary, stage: &Stage<'_>) -> Result<()> {
    tell.step(
        "A policy is deleted",
        "Its node falls to the next policy that selects it.",
    )?;
    stage.shown(tell, "kubectl delete proxypolicy trading")?;
    let fleet = ready(stage, "fleet", 3)?;
    ensure!(
        condition(&fleet, "Conflicted").status == "False",
        "`fleet` is still in conflict with somebody"
    );
    tell.done("node-3 follows `fleet` again, and nothing is in conflict")
}

pub(super) fn final_state(tell: &mut Commentary, stage: &Stage<'_>) -> Result<()> {
    tell.step("The final state", "What a person who looks in now sees.")?;
    let fleet = ready(stage, "fleet", 3)?;
    for (type_, expected) in [
        ("Ready", "True"),
        ("Progressing", "False"),
        ("Degraded", "False"),
        ("Conflicted", "False"),
    ] {
        let is = condition(&fleet, type_);
        ensure!(is.status == expected, "the condition {type_} is {is:?}");
    }
    stage.shown(tell, "kubectl get proxypolicy,nodeproxy")?;
    tell.done("one policy, three nodes, all ready")
}

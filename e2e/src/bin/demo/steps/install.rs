//! Helm installs Pointsman, and the first policy makes the nodes forward.

use anyhow::{Result, ensure};

use super::{LIMIT, node_proxy, ready};
use crate::{commentary::Commentary, stage::Stage};

pub(super) fn charts(tell: &mut Commentary, stage: &mut Stage<'_>) -> Result<()> {
    tell.step(
        "Helm installs Pointsman",
        "Two charts: the API types; and the operator, its agents, their service accounts and roles, and an admission\n\
         policy that lets an agent write nothing but its own node's status.",
    )?;
    let to = "--namespace pointsman-system --create-namespace";
    for chart in ["pointsman-crds", "pointsman"] {
        // What helm prints on success is advice for what comes next here.
        let install = format!("helm upgrade --install {chart} charts/{chart} {to} >/dev/null");
        stage.shown(tell, &install)?;
    }
    stage.shown(tell, "helm list --namespace pointsman-system | cut -f 1,2,5-7")?;
    tell.say(
        "The nodes have no kubelet, so the demo starts the programs in their pods' stead, with tokens of the chart's\n\
         service accounts.",
    )?;
    stage.operator = Some(stage.installation.operator()?);
    tell.done("the operator leads")?;
    let agents = stage.nodes().iter().map(|node| {
        let agent = stage.installation.agent(node)?;
        Ok((node.name().to_owned(), agent))
    });
    stage.agents = agents.collect::<Result<_>>()?;
    for agent in stage.agents.values() {
        agent.wait_until_healthy(LIMIT)?;
    }
    tell.done(
        "the agents of node-1, node-2 and node-3 are healthy; no policy selects them, so they touch nothing",
    )
}

pub(super) fn first_policy(tell: &mut Commentary, stage: &Stage<'_>) -> Result<()> {
    tell.step(
        "A ProxyPolicy makes the nodes forward",
        "The operator turns it into one NodeProxy for each node; the agents program the kernel and report back.",
    )?;
    stage.shown(tell, "grep -v '^ *#' examples/policy-fleet.yaml")?;
    stage.shown(tell, "kubectl apply -f examples/policy-fleet.yaml")?;
    let policy = ready(stage, "fleet", 3)?;
    tell.done("all three nodes are updated and ready")?;
    for node in stage.nodes() {
        // The API server's own Service, and `web`.
        node_proxy(stage, node, "reporting its Services", |proxy| {
            proxy["status"]["services"] == 2
        })?;
    }
    ensure!(policy["status"]["mode"] == "NFTables", "the mode is not told");
    stage.shown(tell, "kubectl get proxypolicy")?;
    stage.shown(tell, "kubectl get proxypolicy -o wide | cut -c -230")?;
    stage.shown(tell, "kubectl get nodeproxy -o wide")?;
    Ok(())
}

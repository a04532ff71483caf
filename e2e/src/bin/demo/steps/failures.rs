//! Things go wrong.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pointsman_e2e::{
    observe::condition,
    traffic::{Client, Protocol},
};

use super::{LIMIT, node_proxy, ready};
use crate::{commentary::Commentary, stage::Stage};

pub(super) fn an_agent_is_killed(tell: &mut Commentary, stage: &mut Stage<'_>) -> Result<()> {
    tell.step(
        "An agent is killed",
        "The rules are the kernel's: traffic goes on without the agent, and it takes up where it was.",
    )?;
    let node = &stage.nodes()[1];
    let flood = Client::of(node.namespace()).flood(Protocol::Tcp, stage.vips[0]);
    flood.wait_for(100, LIMIT)?;
    let process = stage.agent("node-2")?.process();
    tell.command(
        "node-2",
        &format!("kill -9 {}    # pointsman-agent", process.id()),
        "",
    )?;
    process.kill9()?;
    flood.wait_for(1_000, LIMIT)?;
    tell.done("1,000 more connections through node-2 while it has no agent")?;
    let agent = stage.installation.agent(node)?;
    agent.wait_until_healthy(LIMIT)?;
    flood.wait_for(100, LIMIT)?;
    let tally = flood
        .stop_without_loss()
        .context("connections were lost while an agent was away")?;
    stage.agents.insert("node-2".to_owned(), agent);
    ready(stage, "fleet", 2)?;
    tell.done(&format!(
        "the agent is back and healthy; of {} connections none was lost",
        tally.ok()
    ))
}

pub(super) fn somebody_flushes_the_rules(tell: &mut Commentary, stage: &Stage<'_>) -> Result<()> {
    tell.step(
        "Somebody flushes the rules",
        "The kernel tells the agent, which puts them back and says so.",
    )?;
    let node = &stage.nodes()[1];
    let client = Client::of(node.namespace()).timeout(Duration::from_millis(200));
    let rules = stage.shown_on(tell, node, "nft list table ip pointsman | wc -l")?;
    stage.shown_on(tell, node, "nft flush ruleset")?;
    let took = client.until(Protocol::Tcp, stage.vips[0], LIMIT, |outcome| {
        outcome.answer().is_some()
    })?;
    let proxy = node_proxy(stage, node, "telling of the drift", |proxy| {
        condition(proxy, "Drifted").status == "True"
    })?;
    ensure!(
        !condition(&proxy, "Drifted").message.is_empty(),
        "the condition does not say what happened"
    );
    tell.done(&format!(
        "connections through node-2 work again {:.0} ms later",
        took.as_secs_f64() * 1000.0
    ))?;
    let again = stage.shown_on(tell, node, "nft list table ip pointsman | wc -l")?;
    ensure!(
        again == rules,
        "the table had {rules} lines before, and {again} now"
    );
    stage.shown(
        tell,
        r#"kubectl get nodeproxy node-2 -o jsonpath='{range .status.conditions[?(@.type=="Drifted")]}{.status} {.reason}: {.message}{end}'"#,
    )?;
    tell.done("every rule is back, and the condition Drifted says what happened")
}

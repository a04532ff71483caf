//! An agent whose policy asks for another mode, and one in mode NFTables: what packets notice, and what is left in the
//! kernel.

#![allow(clippy::print_stdout, reason = "counts are for whoever runs the tests")]

mod support;

use anyhow::{Context as _, Result, ensure};
use pointsman_e2e::{Agent, IptablesVariant, manifests::Policy, nft, traffic::Protocol};
use serde_json::json;
use support::{Forwarding, LIMIT, Site, cluster_ips, eventually, floods, without_loss};

in_both_variants! {
    an_edit_of_the_mode_breaks_no_connection_and_leaves_nothing
}

fn with_mode(site: &Site, mode: &str) -> Policy {
    site.policy().set("mode", json!(mode))
}

/// The table of each family, as nft lists it.
fn tables(site: &Site) -> Result<String> {
    nft::list(site.node.namespace(), "tables")
}

fn runs(agent: &Agent, mode: &str) -> Result<()> {
    let in_force = eventually("the mode is in force", || {
        let (_, running) = agent.metrics("/proxyMode")?;
        ensure!(running == mode, "{running}");
        Ok(())
    });
    in_force.with_context(|| format!("the end of its log:\n{}", agent.process().log_tail(20)))?;
    agent.wait_until_healthy(LIMIT)
}

fn an_edit_of_the_mode_breaks_no_connection_and_leaves_nothing(variant: IptablesVariant) -> Result<()> {
    let site = Site::new(variant)?;
    site.set_policy(with_mode(&site, "IPTables"))?;
    let agent = site.start()?;
    // Those that are held are answered as well, which the server counts a little later than the client hears it.
    let before = site.answered() + 2;
    let mut held = Vec::new();
    for vip in cluster_ips(Protocol::Tcp) {
        held.push(site.outside_client().open(vip)?);
    }
    let floods = floods(&site);
    for _ in 0..3 {
        site.set_policy(with_mode(&site, "NFTables"))?;
        runs(&agent, "nftables")?;
        eventually("the rules of iptables are gone", || {
            let rules = site.rules()?.concat();
            ensure!(!rules.contains("PM-"), "{rules}");
            Ok(())
        })?;
        ensure!(
            tables(&site)?.matches("pointsman").count() == 2,
            "{}",
            tables(&site)?
        );
        site.set_policy(with_mode(&site, "IPTables"))?;
        runs(&agent, "iptables")?;
        eventually("the maps of nftables are gone", || {
            let left = nft::list(site.node.namespace(), "ruleset")?;
            ensure!(!left.contains("map frontends"), "{left}");
            Ok(())
        })?;
    }
    let asked = without_loss(&site, floods, before)?;
    for connection in &mut held {
        connection.ping()?;
    }
    println!("{variant:?}: {asked} attempts during six edits of the mode, none lost");
    Ok(())
}

#[test]
fn in_mode_nftables_a_killed_agent_and_a_flushed_ruleset_are_made_up_for() -> Result<()> {
    let site = Site::new(IptablesVariant::Nft)?;
    site.set_policy(with_mode(&site, "NFTables"))?;
    let mut agent = site.start()?;
    runs(&agent, "nftables")?;
    let before = site.answered();
    let floods = floods(&site);
    for _ in 0..3 {
        agent.process().kill9()?;
        agent = site.start()?;
        let written = agent.metric("pointsman_agent_kernel_objects_written_total", "")?;
        ensure!(written == 0.0, "a restart wrote {written} objects");
    }
    let asked = without_loss(&site, floods, before)?;
    println!("{asked} attempts while the agent was killed and restarted, none lost");

    nft::run(site.node.namespace(), "flush ruleset")?;
    eventually("the table is back", || {
        ensure!(tables(&site)?.matches("pointsman").count() == 2);
        Ok(())
    })?;
    ensure!(agent.metric("pointsman_agent_drifts_total", "IPv4")? >= 1.0);
    support::expect_answers(
        &site.pod_client(),
        Protocol::Tcp,
        cluster_ips(Protocol::Tcp)[0],
        &["web-1", "web-2"],
    )?;
    Agent::clean_up(&site.node)?;
    Ok(())
}

#[test]
fn auto_is_nftables_here_and_what_an_agent_left_in_iptables_goes() -> Result<()> {
    for variant in [IptablesVariant::Legacy, IptablesVariant::Nft] {
        let site = Site::new(variant)?;
        let agent = site.start()?;
        runs(&agent, "iptables")?;
        let before = site.answered() + 2;
        let mut held = Vec::new();
        for vip in cluster_ips(Protocol::Tcp) {
            held.push(site.outside_client().open(vip)?);
        }
        let floods = floods(&site);
        // As after an upgrade from a version whose Auto was IPTables.
        agent.process().kill9()?;
        site.set_policy(with_mode(&site, "Auto"))?;
        let agent = site.start()?;
        runs(&agent, "nftables")?;
        eventually("the rules of iptables are gone", || {
            let rules = site.rules()?.concat();
            ensure!(!rules.contains("PM-"), "{rules}");
            Ok(())
        })?;
        let asked = without_loss(&site, floods, before)?;
        for connection in &mut held {
            connection.ping()?;
        }
        println!("{variant:?}: {asked} attempts while Auto became NFTables, none lost");
    }
    Ok(())
}

#[test]
fn what_others_do_in_tables_of_their_own_is_not_looked_at() -> Result<()> {
    let site = Site::new(Forwarding::Default)?;
    // The slow check does not come in this test.
    site.set_policy(
        site.policy()
            .set("syncPeriodSeconds", 3600)
            .set("logVerbosity", 4),
    )?;
    let agent = site.start()?;
    runs(&agent, "nftables")?;
    let looked = || -> Result<usize> { Ok(agent.log()?.matches("the kernel holds what was meant").count()) };
    // Those that the start brings, by itself.
    nft::run(site.node.namespace(), "add chain ip pointsman stray")?;
    eventually("the chain is found", || {
        ensure!(agent.metric("pointsman_agent_drifts_total", "IPv4")? >= 1.0);
        Ok(())
    })?;
    let before = looked()?;
    for _ in 0..10 {
        nft::run(
            site.node.namespace(),
            "add table inet other; add chain inet other c; delete table inet other",
        )?;
    }
    eventually("the chain is gone", || {
        let left = nft::list(site.node.namespace(), "ruleset")?;
        ensure!(!left.contains("chain stray"), "{left}");
        Ok(())
    })?;
    // What is ours is looked at again, and by then the others' have been heard of.
    nft::run(site.node.namespace(), "add chain ip pointsman stray")?;
    eventually("the chain is found again", || {
        ensure!(agent.metric("pointsman_agent_drifts_total", "IPv4")? >= 2.0);
        Ok(())
    })?;
    // The other family's table was looked at, once.
    let more = looked()? - before;
    ensure!(more <= 1, "everything was read {more} times");
    Ok(())
}

/// What is heard from `nft flush ruleset` until the first connection is answered again.
#[test]
fn a_flush_under_connections_is_repaired_at_once() -> Result<()> {
    let site = Site::new(Forwarding::Default)?;
    site.set_policy(site.policy().set("syncPeriodSeconds", 3600))?;
    let agent = site.start()?;
    runs(&agent, "nftables")?;
    let target = cluster_ips(Protocol::Tcp)[0];
    let client = site.pod_client();
    // An idle connection does not notice: it lives in conntrack, and its next packet comes after the repair.
    let mut idle = site.outside_client().open(target)?;
    idle.ping()?;
    for round in 0..3 {
        nft::run(site.node.namespace(), "flush ruleset")?;
        let took = client
            .clone()
            .timeout(std::time::Duration::from_millis(50))
            .until(Protocol::Tcp, target, LIMIT, |outcome| outcome.answer().is_some())?;
        println!("round {round}: connections are answered again {took:?} after the flush");
        idle.ping()?;
        ensure!(agent.metric("pointsman_agent_drifts_total", "IPv4")? > f64::from(round));
    }
    Ok(())
}

//! An agent in mode IPVS, in the test kernel: what packets notice of edits of the mode, of a killed agent and of what somebody
//! else does to IPVS, and what is left in the kernel.

#![allow(clippy::print_stdout, reason = "counts are for whoever runs the tests")]

mod support;

use anyhow::{Context as _, Result, ensure};
use pointsman_e2e::{
    Agent, IptablesVariant,
    manifests::Policy,
    netns::Netns,
    nft,
    traffic::{Held, Protocol},
};
use serde_json::json;
use support::{
    BOTH, LIMIT, Site, at, cluster_ips, eventually, expect_answers, floods, node_port, without_loss,
};

pointsman_test_kernel::run_inside!("pointsman-agent");

fn with_mode(site: &Site, mode: &str) -> Policy {
    site.policy().set("mode", json!(mode))
}

/// The same, and what is left of mode IPVS waits for no connection longer than a second.
fn without_patience(site: &Site, mode: &str) -> Policy {
    with_mode(site, mode).set("ipvs", json!({"gracefulSeconds": 1}))
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

fn in_ipvs(site: &Site) -> Result<Agent> {
    site.set_policy(with_mode(site, "IPVS"))?;
    let agent = site.start()?;
    runs(&agent, "ipvs")?;
    Ok(agent)
}

fn said(namespace: &Netns, words: &[&str]) -> Result<String> {
    let (program, arguments) = words.split_first().context("no program")?;
    let output = namespace.command(program).args(arguments).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{words:?}: {}", text(&output.stderr));
    Ok(text(&output.stdout))
}

/// What is left of mode IPVS: virtual services, and the link.
fn ipvs_left(site: &Site) -> Result<String> {
    let namespace = site.node.namespace();
    Ok(said(namespace, &["ipvsadm", "-Sn"])? + &said(namespace, &["ip", "-o", "link"])?)
}

fn hold(site: &Site) -> Result<Vec<Held>> {
    let mut held = Vec::new();
    for vip in cluster_ips(Protocol::Tcp) {
        held.push(site.outside_client().open(vip)?);
        held.push(site.pod_client().open(vip)?);
        held.push(site.node_client().open(vip)?);
    }
    held.push(
        site.outside_client()
            .open(site.node.addresses().at_v4(node_port(Protocol::Tcp)))?,
    );
    Ok(held)
}

#[test]
fn every_kind_of_address_answers_from_everywhere() -> Result<()> {
    let site = Site::new(IptablesVariant::Nft)?;
    let agent = in_ipvs(&site)?;
    for protocol in BOTH {
        let mut targets = cluster_ips(protocol).to_vec();
        targets.extend(at(support::EXTERNAL_IP, protocol));
        targets.extend(at(support::BALANCER_IP, protocol));
        targets.extend(site.node.addresses().both(node_port(protocol)));
        for client in [site.pod_client(), site.node_client(), site.outside_client()] {
            for target in &targets {
                expect_answers(&client, protocol, *target, &["web-1", "web-2"])?;
            }
        }
    }
    // What the mode needs is set, and put back when nothing of it is left.
    let tracked = || said(site.node.namespace(), &["sysctl", "-n", "net.ipv4.vs.conntrack"]);
    ensure!(tracked()?.trim() == "1");
    site.set_policy(without_patience(&site, "NFTables"))?;
    runs(&agent, "nftables")?;
    eventually("nothing is left of IPVS", || {
        let left = ipvs_left(&site)?;
        ensure!(!left.contains("-A") && !left.contains("pointsman-ipvs"), "{left}");
        ensure!(tracked()?.trim() == "0", "net.ipv4.vs.conntrack was not put back");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn an_edit_of_the_mode_breaks_no_connection_and_leaves_nothing() -> Result<()> {
    let site = Site::new(IptablesVariant::Nft)?;
    site.set_policy(with_mode(&site, "NFTables"))?;
    let agent = site.start()?;
    runs(&agent, "nftables")?;
    let mut before = site.answered();
    let mut held = hold(&site)?;
    before += held.len() as u64;
    let floods = floods(&site);
    for (mode, runs_as) in [
        ("IPVS", "ipvs"),
        ("NFTables", "nftables"),
        ("IPVS", "ipvs"),
        ("IPTables", "iptables"),
        ("IPVS", "ipvs"),
        ("IPTables", "iptables"),
    ] {
        site.set_policy(with_mode(&site, mode))?;
        runs(&agent, runs_as)?;
        for connection in &mut held {
            connection
                .ping()
                .with_context(|| format!("after the edit to {mode}"))?;
        }
        // Connections that begin in one mode go on in the next.
        let new = hold(&site)?;
        before += new.len() as u64;
        held.extend(new);
    }
    let asked = without_loss(&site, floods, before)?;
    for connection in &mut held {
        connection.ping()?;
    }
    let left = ipvs_left(&site)?;
    ensure!(
        left.contains("pointsman-ipvs"),
        "connections of IPVS are held: {left}"
    );
    let count = held.len();
    drop(held);
    // The kernel remembers closed connections for two minutes, and UDP for five.
    site.set_policy(without_patience(&site, "IPTables"))?;
    eventually("nothing is left of IPVS", || {
        let left = ipvs_left(&site)?;
        ensure!(!left.contains("-A") && !left.contains("pointsman-ipvs"), "{left}");
        Ok(())
    })?;
    println!("{asked} attempts during six edits of the mode, none lost; {count} held connections went on");
    Ok(())
}

#[test]
fn a_killed_agent_loses_nothing_and_a_restart_writes_nothing() -> Result<()> {
    let site = Site::new(IptablesVariant::Nft)?;
    let mut agent = in_ipvs(&site)?;
    let mut before = site.answered();
    let mut held = hold(&site)?;
    before += held.len() as u64;
    let floods = floods(&site);
    for _ in 0..3 {
        agent.process().kill9()?;
        agent = site.start()?;
        let written = agent.metric("pointsman_agent_kernel_objects_written_total", "")?;
        ensure!(written == 0.0, "a restart wrote {written} objects");
    }
    let asked = without_loss(&site, floods, before)?;
    for connection in &mut held {
        connection.ping()?;
    }
    println!("{asked} attempts while the agent was killed and restarted, none lost");
    Ok(())
}

#[test]
fn what_somebody_else_does_is_found_repaired_and_told() -> Result<()> {
    let site = Site::new(IptablesVariant::Nft)?;
    let agent = in_ipvs(&site)?;
    let node = site.node.namespace();
    let [v4, _] = cluster_ips(Protocol::Tcp);
    let service = v4.to_string();
    said(node, &["ipvsadm", "-A", "-t", "192.0.2.77:80", "-s", "rr"])?;
    let tampering: [&[&str]; 5] = [
        &["ipvsadm", "-D", "-t", &service],
        &["ipvsadm", "-E", "-t", &service, "-s", "lc"],
        &["ip", "link", "delete", "pointsman-ipvs"],
        &["nft", "delete", "table", "ip", "pointsman-ipvs"],
        &["ipvsadm", "-C"],
    ];
    for words in tampering {
        let drifts = agent.metric("pointsman_agent_drifts_total", "IPv4")?;
        said(node, words)?;
        eventually("it is found", || {
            let now = agent.metric("pointsman_agent_drifts_total", "IPv4")?;
            ensure!(now > drifts, "{words:?}");
            Ok(())
        })?;
        for client in [site.pod_client(), site.outside_client()] {
            expect_answers(&client, Protocol::Tcp, v4, &["web-1", "web-2"])
                .with_context(|| format!("after {words:?}"))?;
        }
        if !words.contains(&"-C") {
            let others = said(node, &["ipvsadm", "-Sn"])?;
            ensure!(others.contains("192.0.2.77:80"), "{words:?}: {others}");
        }
    }
    agent.process().stop(LIMIT)?;
    Agent::clean_up(&site.node)?;
    let left = ipvs_left(&site)? + &nft::list(node, "tables")?;
    ensure!(!left.contains("-A") && !left.contains("pointsman"), "{left}");
    Ok(())
}

#[test]
fn auto_is_ipvs_where_the_policy_names_a_scheduler() -> Result<()> {
    let site = Site::new(IptablesVariant::Nft)?;
    site.set_policy(with_mode(&site, "Auto").set("scheduler", json!("wlc")))?;
    let agent = site.start()?;
    runs(&agent, "ipvs")?;
    let listed = said(site.node.namespace(), &["ipvsadm", "-Sn"])?;
    ensure!(listed.contains("-s wlc"), "{listed}");
    site.set_policy(with_mode(&site, "Auto"))?;
    runs(&agent, "nftables")?;
    Ok(())
}

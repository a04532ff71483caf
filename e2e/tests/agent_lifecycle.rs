//! An agent that is stopped, killed, restarted, or sent away by its policy, and what packets notice of it.

#![allow(
    clippy::print_stdout,
    reason = "measured times are for whoever runs the tests"
)]

mod support;

use std::{thread, time::Duration};

use anyhow::{Context, Result, ensure};
use pointsman_e2e::{
    Agent, Fabric, IptablesVariant,
    agent::Source,
    manifests::{Policy, Service, Slice},
    nft,
    rules::{Family, iptables, rules},
    sysctl,
    traffic::{Held, Outcome, Protocol},
};
use serde_json::{Value, json};
use support::{
    BOTH, Forwarding, LIMIT, POLICY, Site, TCP_PORT, TCP_TARGET, cluster_ips, eventually, expect_answers,
    floods, node_port, without_loss,
};

in_both_variants! {
    a_stop_and_a_restart_lose_nothing_and_write_nothing
    changes_while_the_agent_is_away_are_made_up_for
    an_agent_killed_while_it_writes_leaves_nothing_wrong
    a_thousand_other_services_change_without_a_loss
    without_a_policy_the_rules_go_and_connections_live_on
    clean_up_removes_everything
    an_agent_without_a_policy_waits_for_one
}

/// Services that nobody talks to: `count` of them, each of which depends on `round`.
fn many(count: u16, round: u16) -> Vec<Value> {
    let mut objects = Vec::new();
    for number in 0..count {
        let name = format!("other-{number}");
        let [high, low] = number.to_be_bytes();
        let service = Service::new(&name)
            .cluster_ip([10, 97, high, low])
            .cluster_ip([0xfd00, 0x10, 0x97, 0, 0, 0, 0, number]);
        let port = TCP_PORT + (number + round) % 7;
        objects.push(service.port("http", Protocol::Tcp, port).into());
        let (mut v4, mut v6) = (Slice::v4(&name), Slice::v6(&name));
        // Now and then one has no endpoints: it moves between the tables.
        for endpoint in 0..(number + round) % 4 {
            v4 = v4.endpoint(
                std::net::Ipv4Addr::new(10, 98, high + endpoint as u8, low),
                "node-2",
            );
            v6 = v6.endpoint(
                std::net::Ipv6Addr::new(0xfd00, 0x98, 0, 0, 0, 0, endpoint, number + 1),
                "node-2",
            );
        }
        objects.push(v4.port("http", Protocol::Tcp, TCP_TARGET).into());
        objects.push(v6.port("http", Protocol::Tcp, TCP_TARGET).into());
    }
    objects
}

/// The rules of a node of the same name and number that has never had another agent.
fn rules_of_a_fresh_node(site: &Site, variant: IptablesVariant) -> Result<[String; 2]> {
    let fabric = Fabric::new()?;
    let node = fabric.node(site.node.name())?.with_iptables(variant)?;
    let agent = Agent::start(&node, Source::Manifests(site.manifests.path()))?;
    agent.wait_until_healthy(LIMIT)?;
    Ok([rules(&node, Family::V4)?, rules(&node, Family::V6)?])
}

fn written(agent: &Agent) -> Result<f64> {
    agent.metric("pointsman_agent_kernel_objects_written_total", "")
}

fn a_stop_and_a_restart_lose_nothing_and_write_nothing(variant: IptablesVariant) -> Result<()> {
    let site = Site::new(variant)?;
    site.manifests.put("others.yaml", many(20, 0))?;
    let mut agent = site.start()?;
    let rules = site.rules()?;
    // Those that are held are answered as well, which the server counts a little later than the client hears it.
    let before = site.answered() + 2;
    let mut held = cluster_ips(Protocol::Tcp)
        .map(|vip| site.outside_client().open(vip))
        .into_iter()
        .collect::<Result<Vec<Held>>>()?;
    let floods = floods(&site);
    for _ in 0..3 {
        ensure!(
            agent.process().stop(Duration::from_secs(5))?,
            "SIGTERM did not end it"
        );
        ensure!(agent.log()?.contains("stopping; the rules stay"));
        ensure!(site.rules()? == rules, "stopping changed the rules");
        agent = site.start()?;
        ensure!(
            written(&agent)? < 1.0,
            "a restart over rules that are right wrote {}",
            written(&agent)?
        );
        // Also by its slow checks.
        thread::sleep(Duration::from_millis(1200));
        ensure!(written(&agent)? < 1.0 && site.rules()? == rules);
        ensure!(
            agent.metric("pointsman_agent_drifts_total", "")? < 1.0,
            "it takes its own rules for foreign ones"
        );
    }
    held.iter_mut().try_for_each(|held| held.ping().map(drop))?;
    let asked = without_loss(&site, floods, before)?;
    println!("{variant:?}: {asked} attempts during three restarts, none lost");
    Ok(())
}

fn changes_while_the_agent_is_away_are_made_up_for(variant: IptablesVariant) -> Result<()> {
    let site = Site::new(variant)?;
    site.manifests.put("others.yaml", many(8, 0))?;
    let agent = site.start()?;
    ensure!(agent.process().stop(LIMIT)?);
    site.set_endpoints(&[&site.pods[1]])?;
    site.manifests.put("others.yaml", many(5, 1))?;
    let agent = site.start()?;
    for protocol in BOTH {
        for vip in cluster_ips(protocol) {
            expect_answers(&site.pod_client(), protocol, vip, &["web-2"])?;
        }
    }
    let written = written(&agent)?;
    ensure!(written > 0.0, "nothing was written");
    let fresh = rules_of_a_fresh_node(&site, variant)?;
    ensure!(
        site.rules()? == fresh,
        "{}\ninstead of\n{}",
        site.rules()?.concat(),
        fresh.concat()
    );
    Ok(())
}

fn an_agent_killed_while_it_writes_leaves_nothing_wrong(variant: IptablesVariant) -> Result<()> {
    let site = Site::new(variant)?;
    let agent = site.start()?;
    let before = site.answered();
    let floods = floods(&site);
    agent.process().kill9()?;
    // Points all over a write of about 100 ms and what comes before it, the same in every run.
    for round in 0..14_u16 {
        let agent = site.launch(&[])?;
        if round % 2 == 0 {
            // While it begins.
            thread::sleep(Duration::from_millis(u64::from(round) * 15));
        } else {
            agent.wait_until_healthy(LIMIT)?;
        }
        site.manifests.put("others.yaml", many(120, round))?;
        thread::sleep(Duration::from_millis(15 + u64::from(round * 37) % 160));
        agent.process().kill9()?;
    }
    let _agent = site.start()?;
    let fresh = rules_of_a_fresh_node(&site, variant)?;
    eventually("the rules are those of a fresh node", || {
        let now = site.rules()?;
        ensure!(now == fresh, "{}\ninstead of\n{}", now.concat(), fresh.concat());
        Ok(())
    })?;
    let asked = without_loss(&site, floods, before)?;
    println!("{variant:?}: {asked} attempts while the agent was killed 14 times, none lost");
    Ok(())
}

fn a_thousand_other_services_change_without_a_loss(variant: IptablesVariant) -> Result<()> {
    others_change_without_a_loss(variant.into())
}

mod nftables {
    use super::{Forwarding, Result, others_change_without_a_loss};

    #[test]
    fn a_thousand_other_services_change_without_a_loss() -> Result<()> {
        others_change_without_a_loss(Forwarding::Default)
    }
}

fn others_change_without_a_loss(forwarding: Forwarding) -> Result<()> {
    let site = Site::new(forwarding)?;
    let agent = site.start()?;
    let before = site.answered();
    let floods = floods(&site);
    // What the kernel has of the last of the others, in the family that is written last.
    let others = |number: u16, round: u16| -> Result<bool> {
        let port = TCP_PORT + (number + round) % 7;
        Ok(match forwarding {
            Forwarding::Iptables(_) => rules(&site.node, Family::V6)?.contains(&format!(
                "--dport {port} -m comment --comment \"default/other-{number}:http"
            )),
            Forwarding::Default => {
                let element = format!("fd00:10:97::{number:x} . tcp . {port}");
                let command = format!("get element ip6 pointsman frontends {{ {element} }}\n");
                // nft says no to an element that is not there.
                nft::run(site.node.namespace(), &command).is_ok()
            }
        })
    };
    for round in 0..3 {
        site.manifests.put("others.yaml", many(1000, round))?;
        let took = eventually("the last Service has changed in the last family", || {
            ensure!(others(999, round)?, "round {round}");
            Ok(())
        })?;
        println!("{forwarding:?}: 1,000 Services of both families changed in {took:?}");
    }
    site.manifests.remove("others.yaml")?;
    eventually("the others are gone", || {
        ensure!(!others(0, 2)? && !others(999, 2)?);
        Ok(())
    })?;
    agent.wait_until_healthy(LIMIT)?;
    let asked = without_loss(&site, floods, before)?;
    println!("{forwarding:?}: {asked} attempts meanwhile, none lost");
    Ok(())
}

/// A policy with settings that show in the kernel.
fn strict(site: &Site) -> Policy {
    site.policy().set(
        "conntrack",
        json!({"tcpCloseWaitTimeoutSeconds": 1234, "udpTimeoutSeconds": 77}),
    )
}

const SYSCTLS: [(&str, &str); 2] = [
    ("net.netfilter.nf_conntrack_tcp_timeout_close_wait", "1234"),
    ("net.netfilter.nf_conntrack_udp_timeout", "77"),
];

fn read(site: &Site) -> Result<[String; 2]> {
    Ok([
        sysctl::read(site.node.namespace(), SYSCTLS[0].0)?,
        sysctl::read(site.node.namespace(), SYSCTLS[1].0)?,
    ])
}

/// Takes the policy away under open connections, and demands that they live on, that new ones are none of our
/// business, and that everything else is as it was found. Returns the connections.
fn stood_down(site: &Site, agent: &Agent, found: &[String; 2]) -> Result<Vec<Held>> {
    let mut held = Vec::new();
    for vip in cluster_ips(Protocol::Tcp) {
        // One to each endpoint: on the node and elsewhere.
        for name in ["web-1", "web-2"] {
            let opened = eventually_by(site, vip, name)?;
            held.push(opened);
        }
    }
    for port in site.node.addresses().both(node_port(Protocol::Tcp)) {
        held.push(site.outside_client().open(port)?);
    }
    site.manifests.remove(POLICY)?;
    for vip in cluster_ips(Protocol::Tcp) {
        site.outside_client()
            .until(Protocol::Tcp, vip, LIMIT, |outcome| outcome.answer().is_none())?;
    }
    eventually("chains and sysctls are gone", || {
        let now = site.rules()?.concat();
        ensure!(!now.contains(" PM-"), "{now}");
        ensure!(read(site)? == *found, "{:?}", read(site)?);
        Ok(())
    })?;
    for _ in 0..3 {
        held.iter_mut()
            .try_for_each(|held| held.ping().map(drop))
            .context("a connection from before")?;
        thread::sleep(Duration::from_millis(100));
    }
    ensure!(
        agent.health("/healthz")?.0 == 200,
        "an agent without a policy has nothing to do, and does it well"
    );
    ensure!(agent.metrics("/proxyMode")?.0 == 404);
    Ok(held)
}

/// A connection from outside to a server of this name.
fn eventually_by(site: &Site, vip: std::net::SocketAddr, name: &str) -> Result<Held> {
    for _ in 0..200 {
        let held = site.outside_client().open(vip)?;
        if held.by() == name {
            return Ok(held);
        }
    }
    anyhow::bail!("{vip} never led to {name}")
}

fn without_a_policy_the_rules_go_and_connections_live_on(variant: IptablesVariant) -> Result<()> {
    for forward in ["ACCEPT", "DROP"] {
        let site = Site::new(variant)?;
        let found = read(&site)?;
        for family in Family::ALL {
            iptables(&site.node, family, &format!("-P FORWARD {forward}"))?;
        }
        site.set_policy(strict(&site))?;
        let agent = site.start()?;
        ensure!(
            read(&site)? == SYSCTLS.map(|(_, value)| value.to_owned()),
            "{:?}",
            read(&site)?
        );
        let mut held = stood_down(&site, &agent, &found)?;
        // What ARCHITECTURE.md says is left, and nothing more: all other chains are built in and empty.
        for family in Family::ALL {
            let rules = rules(&site.node, family)?;
            let left: Vec<_> = rules.lines().filter(|rule| rule.contains(" -")).collect();
            ensure!(
                left.len() == 1 && left[0].contains("connections from before the teardown"),
                "{rules}"
            );
            ensure!(
                left[0].starts_with("filter FORWARD") && left[0].ends_with("-j ACCEPT"),
                "{rules}"
            );
        }
        // And back again, under the same connections; the leftover goes.
        site.set_policy(strict(&site))?;
        for protocol in BOTH {
            for vip in cluster_ips(protocol) {
                expect_answers(&site.outside_client(), protocol, vip, &["web-1", "web-2"])?;
            }
        }
        eventually("the leftover goes", || {
            ensure!(!site.rules()?.concat().contains("before the teardown"));
            Ok(())
        })?;
        held.iter_mut().try_for_each(|held| held.ping().map(drop))?;
        eventually("the mode is told", || {
            ensure!(agent.metrics("/proxyMode")? == (200, "iptables".to_owned()));
            Ok(())
        })?;
    }
    Ok(())
}

fn clean_up_removes_everything(variant: IptablesVariant) -> Result<()> {
    let site = Site::new(variant)?;
    let found = read(&site)?;
    for family in Family::ALL {
        iptables(&site.node, family, "-P FORWARD DROP")?;
    }
    let before = site.rules()?;
    site.set_policy(strict(&site))?;
    let agent = site.start()?;
    stood_down(&site, &agent, &found)?;
    site.set_policy(strict(&site))?;
    agent.wait_until_healthy(LIMIT)?;
    eventually("the policy is followed", || {
        ensure!(read(&site)? != found);
        Ok(())
    })?;
    // Also after an agent that could not stand down.
    agent.process().kill9()?;
    for _ in 0..2 {
        Agent::clean_up(&site.node)?;
        let now = site.rules()?.concat();
        ensure!(!now.contains("PM-") && !now.contains("pointsman"), "{now}");
        ensure!(read(&site)? == found, "{:?}", read(&site)?);
    }
    ensure!(variant == IptablesVariant::Nft || site.rules()? == before);
    let outcome = site.outside_client().tcp(cluster_ips(Protocol::Tcp)[0]);
    ensure!(outcome.answer().is_none(), "{outcome}");
    Ok(())
}

fn an_agent_without_a_policy_waits_for_one(variant: IptablesVariant) -> Result<()> {
    let site = Site::new(variant)?;
    site.manifests.remove(POLICY)?;
    let agent = site.start()?;
    agent.wait_until_logged("no ProxyPolicy is in the directory of --manifests", LIMIT)?;
    let rules = site.rules()?.concat();
    ensure!(
        rules.lines().all(|rule| !rule.contains(" -")),
        "nothing was ever ours here: {rules}"
    );
    let outcome = site.pod_client().tcp(cluster_ips(Protocol::Tcp)[0]);
    ensure!(outcome == Outcome::Unreachable, "{outcome}");
    site.set_policy(site.policy())?;
    for vip in cluster_ips(Protocol::Tcp) {
        expect_answers(&site.pod_client(), Protocol::Tcp, vip, &["web-1", "web-2"])?;
    }
    eventually("the mode is told", || {
        ensure!(agent.metrics("/proxyMode")? == (200, "iptables".to_owned()));
        Ok(())
    })?;
    Ok(())
}

//! Somebody else changes rules: ours come back, theirs stay, and connections go on.

#![allow(
    clippy::print_stdout,
    reason = "measured times are for whoever runs the tests"
)]

mod support;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pointsman_e2e::{
    Agent, IptablesVariant,
    manifests::Service,
    rules::{Family, iptables, rules_of},
    traffic::{Held, Outcome, Protocol},
};
use support::{
    LIMIT, Site, TCP_PORT, UDP_PORT, cluster_ips, eventually, expect_answers, node_port, vips, with_pods,
};

in_both_variants! {
    flushed_chains_come_back
    a_lost_jump_comes_back
    everything_flushed_comes_back
    one_lost_rule_costs_other_services_nothing
    strange_rules_in_our_chains_go
    what_others_wrote_stays_byte_for_byte
}

/// Does something to the rules of both families, and demands that all is right again afterwards, that it was counted
/// and said, and that connections from before went on all the time. Returns how long it took.
fn repaired(
    site: &Site,
    agent: &Agent,
    what: &str,
    tamper: impl Fn(Family) -> Result<()>,
) -> Result<Duration> {
    repaired_while(true, site, agent, what, tamper)
}

/// [`repaired`] with connections from before that talk all the time, or only afterwards.
fn repaired_while(
    they_talk: bool,
    site: &Site,
    agent: &Agent,
    what: &str,
    tamper: impl Fn(Family) -> Result<()>,
) -> Result<Duration> {
    let wanted = site.rules()?;
    let client = site.pod_client();
    let mut held = cluster_ips(Protocol::Tcp)
        .into_iter()
        .chain(site.node.addresses().both(node_port(Protocol::Tcp)))
        .map(|target| client.open(target))
        .collect::<Result<Vec<Held>>>()?;
    let drifts = || {
        Family::ALL.map(|family| {
            agent
                .metric("pointsman_agent_drifts_total", label(family))
                .unwrap_or(0.0)
        })
    };
    let before = drifts();
    for family in Family::ALL {
        tamper(family).with_context(|| what.to_owned())?;
    }
    let took = eventually(what, || {
        if they_talk {
            held.iter_mut()
                .try_for_each(|held| held.ping().map(drop))
                .context("a connection from before")?;
        }
        let (now, drifts) = (site.rules()?, drifts());
        ensure!(
            now == wanted,
            "{what}: the rules are now\n{}\ninstead of\n{}",
            now.concat(),
            wanted.concat()
        );
        ensure!(
            drifts.iter().zip(before).all(|(now, before)| *now > before),
            "{what}: {before:?} drifts became {drifts:?}"
        );
        Ok(())
    })?;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for vip in cluster_ips(protocol) {
            expect_answers(&client, protocol, vip, &["web-1", "web-2"])?;
        }
    }
    held.iter_mut()
        .try_for_each(|held| held.ping().map(drop))
        .context("a connection from before, afterwards")?;
    agent.wait_until_logged("somebody else changed the rules; repairing", LIMIT)?;
    Ok(took)
}

fn label(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip_family=\"IPv4\"",
        Family::V6 => "ip_family=\"IPv6\"",
    }
}

fn flushed_chains_come_back(variant: IptablesVariant) -> Result<()> {
    let site = Site::new(variant)?;
    let agent = site.start()?;
    for words in [
        "-t nat -F PM-SERVICES",
        "-t nat -F PM-POSTROUTING",
        "-t filter -F PM-FORWARD",
    ] {
        let took = repaired(&site, &agent, words, |family| iptables(&site.node, family, words))?;
        println!("{variant:?}: {words}: repaired after {took:?}");
    }
    Ok(())
}

fn a_lost_jump_comes_back(variant: IptablesVariant) -> Result<()> {
    let site = Site::new(variant)?;
    let agent = site.start()?;
    for words in [
        "-t nat -D PREROUTING 1",
        "-t nat -D OUTPUT 1",
        "-t nat -D POSTROUTING 1",
        "-t filter -D INPUT 1",
        "-t filter -F FORWARD",
    ] {
        let took = repaired(&site, &agent, words, |family| iptables(&site.node, family, words))?;
        println!("{variant:?}: {words}: repaired after {took:?}");
    }
    Ok(())
}

fn everything_flushed_comes_back(variant: IptablesVariant) -> Result<()> {
    let site = Site::new(variant)?;
    let agent = site.start()?;
    // With the last rule that needs it the legacy variant stops tracking connections, and with it translating them
    // (nf_ct_netns_put): until the repair those that are open get nothing through, and one to a node port whose client
    // sends just then is reset by the node. Those that are silent live on.
    let they_talk = variant == IptablesVariant::Nft;
    let took = repaired_while(they_talk, &site, &agent, "-F and -X", |family| {
        for table in ["nat", "filter"] {
            // A repair may come between the two, and then -X finds chains in use.
            eventually("-F and -X, one right after the other", || {
                iptables(&site.node, family, &format!("-t {table} -F"))?;
                iptables(&site.node, family, &format!("-t {table} -X"))
            })?;
        }
        Ok(())
    })?;
    println!("{variant:?}: everything flushed: repaired after {took:?}");
    agent.wait_until_healthy(LIMIT)
}

fn one_lost_rule_costs_other_services_nothing(variant: IptablesVariant) -> Result<()> {
    let site = Site::new(variant)?;
    let other = vips(0x0105)
        .into_iter()
        .fold(Service::new("other"), Service::cluster_ip);
    let other = other
        .port("http", Protocol::Tcp, TCP_PORT)
        .port("dns", Protocol::Udp, UDP_PORT);
    site.manifests
        .put("other.yaml", with_pods(other, "other", &[&site.pods[0]]))?;
    let agent = site.start()?;
    let mut floods = Vec::new();
    for vip in vips(0x0105) {
        floods.push(site.pod_client().flood(Protocol::Tcp, (vip, TCP_PORT).into()));
        floods.push(site.outside_client().flood(Protocol::Udp, (vip, UDP_PORT).into()));
    }
    for round in 0..3 {
        // The chain of web's HTTP port: the one behind its comment.
        let lose = |family| {
            let rules = rules_of(&site.node, family, |chain| chain.starts_with("PM-VIP-01"))?;
            let pool = rules.lines().find(|rule| rule.contains("web:http cluster IP"));
            let pool = pool
                .and_then(|rule| rule.rsplit(' ').next())
                .context("web has no chain")?;
            let how = ["-D", "-F", "-D"][round];
            iptables(
                &site.node,
                family,
                &format!("-t nat {how} {pool} {}", if how == "-D" { "1" } else { "" }),
            )
        };
        let took = repaired(&site, &agent, "one rule lost", lose)?;
        println!("{variant:?}: one rule lost: repaired after {took:?}");
    }
    for flood in floods {
        flood.wait_for(20, LIMIT)?;
        flood.stop_without_loss().context("through the other Service")?;
    }
    Ok(())
}

fn strange_rules_in_our_chains_go(variant: IptablesVariant) -> Result<()> {
    let site = Site::new(variant)?;
    let agent = site.start()?;
    for words in [
        "-t nat -I PM-SERVICES -p tcp --dport 80 -j ACCEPT",
        "-t filter -A PM-FORWARD -j DROP",
        "-t nat -N PM-STRAY",
        "-t nat -A PREROUTING -j PM-SERVICES",
    ] {
        repaired(&site, &agent, words, |family| iptables(&site.node, family, words))?;
    }
    Ok(())
}

fn what_others_wrote_stays_byte_for_byte(variant: IptablesVariant) -> Result<()> {
    let site = Site::new(variant)?;
    let foreign = [
        "-t nat -N USER-CHAIN",
        "-t nat -A USER-CHAIN -p tcp --dport 9999 -m comment --comment mine -j RETURN",
        "-t nat -A PREROUTING -j USER-CHAIN",
        "-t nat -N KUBE-SERVICES",
        "-t nat -N KUBE-SVC-ABCDEFGHIJKLMNOP",
        "-t nat -A KUBE-SERVICES -p tcp --dport 9998 -j KUBE-SVC-ABCDEFGHIJKLMNOP",
        "-t nat -A PREROUTING -m comment --comment kubernetes -j KUBE-SERVICES",
        "-t nat -A OUTPUT -j KUBE-SERVICES",
        "-t filter -N KUBE-FORWARD",
        "-t filter -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT",
        "-t filter -A FORWARD -j KUBE-FORWARD",
        "-t filter -A INPUT -s 203.0.113.7 -j DROP",
        "-t filter -N MY-PM-CHAIN",
        "-t filter -A INPUT -p udp --dport 4711 -m comment --comment pointsman -j ACCEPT",
    ];
    for family in Family::ALL {
        for words in foreign {
            let words = if family == Family::V6 {
                words.replace("203.0.113.7", "2001:db8::7")
            } else {
                words.to_owned()
            };
            iptables(&site.node, family, &words)?;
        }
    }
    // All rules without ours; those of built-in chains among them.
    let theirs = || -> Result<String> {
        let mut text = String::new();
        for family in Family::ALL {
            let rules = rules_of(&site.node, family, |chain| !chain.starts_with("PM-"))?;
            let others = rules
                .lines()
                .filter(|rule| !rule.contains(" -j PM-") && !rule.contains("\"pointsman: "));
            others.for_each(|rule| {
                text.push_str(rule);
                text.push('\n');
            });
        }
        Ok(text)
    };
    let before = theirs()?;
    ensure!(
        before.contains("USER-CHAIN") && before.contains("KUBE-SVC-ABCDEFGHIJKLMNOP"),
        "{before}"
    );
    let stays = |when: &str| -> Result<()> {
        let now = theirs()?;
        ensure!(now == before, "{when}: {now}\ninstead of\n{before}");
        Ok(())
    };
    let agent = site.start()?;
    stays("after the start")?;
    site.set_endpoints(&[])?;
    site.pod_client()
        .until(Protocol::Tcp, cluster_ips(Protocol::Tcp)[1], LIMIT, |outcome| {
            *outcome == Outcome::Refused
        })?;
    stays("after a change")?;
    site.set_endpoints(&[&site.pods[0], &site.pods[1]])?;
    expect_answers(
        &site.pod_client(),
        Protocol::Tcp,
        cluster_ips(Protocol::Tcp)[1],
        &["web-1", "web-2"],
    )?;
    repaired(&site, &agent, "a jump is lost", |family| {
        iptables(&site.node, family, "-t nat -D OUTPUT 1")
    })?;
    stays("after a repair")?;
    agent.process().kill9()?;
    let agent = site.start()?;
    stays("after a restart")?;
    site.manifests.remove(support::POLICY)?;
    eventually("the rules are taken down", || {
        ensure!(!site.rules()?.concat().contains(" PM-"));
        Ok(())
    })?;
    stays("after the teardown")?;
    ensure!(agent.process().stop(LIMIT)?);
    Agent::clean_up(&site.node)?;
    stays("after --cleanup")?;
    ensure!(
        !site.rules()?.concat().contains("pointsman: "),
        "our rules are left"
    );
    Ok(())
}

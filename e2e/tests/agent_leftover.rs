//! Rules that a kube-proxy left on an agent's node: told as long as they are there, never changed.

mod support;

use anyhow::{Result, ensure};
use pointsman_e2e::{Agent, nft, traffic::Protocol};
use support::{Forwarding, LIMIT, Site, cluster_ips, eventually, without_loss};

/// In how many places of a family the agent found such rules.
fn places(agent: &Agent, family: &str) -> Result<f64> {
    agent.metric("pointsman_agent_leftover_rules", family)
}

fn until_found(agent: &Agent, wanted: [f64; 2]) -> Result<()> {
    eventually("leftover rules are counted", || {
        let found = [places(agent, "IPv4")?, places(agent, "IPv6")?];
        ensure!(found == wanted, "{found:?}");
        Ok(())
    })?;
    Ok(())
}

/// kube-proxy's table in both families, as far as it drops before translation.
const TABLES: &str = "
    table ip kube-proxy {
        chain firewall-web { ip saddr != 192.0.2.1 drop; }
        map firewall-ips {
            type ipv4_addr . inet_proto . inet_service : verdict
            elements = { 10.96.3.99 . tcp . 80 : goto firewall-web }
        }
        chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
        chain filter-prerouting-pre-dnat {
            type filter hook prerouting priority -110;
            ct state new jump firewall-check
        }
    }
    table ip6 kube-proxy {
        chain filter-forward { type filter hook forward priority 0; }
    }
";

#[test]
fn leftover_tables_are_told_while_they_are_there_and_services_go_on() -> Result<()> {
    let site = Site::new(Forwarding::Default)?;
    // What is found is found because the kernel told of it, not by the slow beat.
    site.set_policy(site.policy().set("syncPeriodSeconds", 3600))?;
    let namespace = site.node.namespace();
    nft::run(namespace, TABLES)?;
    let before = nft::list(namespace, "table ip kube-proxy")?;
    let agent = site.start()?;
    let answered = site.answered();
    let floods = cluster_ips(Protocol::Tcp).map(|vip| site.pod_client().flood(Protocol::Tcp, vip));
    agent.wait_until_logged("10.96.3.99 port 80/TCP", LIMIT)?;
    until_found(&agent, [1.0, 1.0])?;
    ensure!(
        nft::list(namespace, "table ip kube-proxy")? == before,
        "the agent changed what is not its own"
    );
    nft::run(namespace, "delete table ip kube-proxy")?;
    until_found(&agent, [0.0, 1.0])?;
    nft::run(namespace, "delete table ip6 kube-proxy")?;
    until_found(&agent, [0.0, 0.0])?;
    nft::run(namespace, TABLES)?;
    until_found(&agent, [1.0, 1.0])?;
    without_loss(&site, floods.into(), answered)?;
    ensure!(
        agent.metric("pointsman_agent_drifts_total", "")? < 1.0,
        "others' tables are no drift"
    );
    Ok(())
}

//! A host firewall that keeps a table of its own, as firewalld does, beside the agent's: Services go on while it reloads.

mod support;

use std::time::Duration;

use anyhow::{Result, ensure};
use pointsman_e2e::{Netns, nft, traffic::Protocol};
use support::{Forwarding, Site, cluster_ips, floods, without_loss};

/// A firewall that lets through what is asked for and what was translated, and drops the rest. With `let_translated` left
/// out it drops that as well.
fn firewall(let_translated: bool) -> String {
    let translated = if let_translated {
        "ct status dnat accept"
    } else {
        ""
    };
    let chain = |hook: &str| {
        format!(
            "chain filter_{hook} {{
                type filter hook {hook} priority filter + 10; policy drop;
                ct state established,related accept
                {translated}
                iifname lo accept
                meta l4proto {{ icmp, ipv6-icmp }} accept
            }}"
        )
    };
    // A reload makes everything anew in one transaction.
    format!(
        "table inet firewalld {{ }}
        delete table inet firewalld
        table inet firewalld {{\n{}\n{}\n}}",
        chain("input"),
        chain("forward")
    )
}

/// The agent's tables.
fn ours(namespace: &Netns) -> Result<[String; 2]> {
    let table = |family| nft::list(namespace, &format!("table {family} pointsman"));
    Ok([table("ip")?, table("ip6")?])
}

#[test]
fn services_go_on_while_a_firewall_reloads() -> Result<()> {
    let site = Site::new(Forwarding::Default)?;
    let agent = site.start()?;
    let namespace = site.node.namespace();
    nft::run(namespace, &firewall(true))?;
    let before = ours(namespace)?;
    let written = || agent.metric("pointsman_agent_kernel_objects_written_total", "");
    let written_before = written()?;
    let answered = site.answered() + 2;
    let mut held = Vec::new();
    for vip in cluster_ips(Protocol::Tcp) {
        held.push(site.outside_client().open(vip)?);
    }
    let floods = floods(&site);
    for _ in 0..20 {
        nft::run(namespace, &firewall(true))?;
        for connection in &mut held {
            connection.ping()?;
        }
    }
    without_loss(&site, floods, answered)?;
    ensure!(written()? <= written_before, "the agent wrote something");
    ensure!(
        ours(namespace)? == before,
        "the agent's tables are other ones now"
    );
    ensure!(
        agent.metric("pointsman_agent_drifts_total", "")? < 1.0,
        "another table is no drift"
    );

    // Nothing of the agent's outranks a drop of another table.
    nft::run(namespace, &firewall(false))?;
    for vip in cluster_ips(Protocol::Tcp) {
        let client = site.outside_client().timeout(Duration::from_millis(500));
        let outcome = client.ask(Protocol::Tcp, vip);
        ensure!(outcome.answer().is_none(), "{vip}: {outcome}");
    }
    for connection in &mut held {
        connection.ping()?;
    }
    Ok(())
}

//! Clients that never pause, through the whole agent: what they notice of changes, of a restart, and of resets.

mod support;

use anyhow::{Result, ensure};
use pointsman_e2e::{
    Agent,
    traffic::{Outcome, Protocol, UdpFlow},
};
use serde_json::json;
use support::{Forwarding, LIMIT, Site, WEB, cluster_ips, eventually, node_port, slices, web, with_pods};

in_every_mode! {
    flows_follow_their_service_and_walks_are_counted
    a_restart_deletes_what_became_stale_meanwhile_and_nothing_else
    connections_are_reset_when_the_policy_says_so
}

/// Flows of a pod to the ClusterIPs, and of the outside to the node port.
fn flows(site: &Site) -> Result<Vec<UdpFlow>> {
    let [v4, v6] = cluster_ips(Protocol::Udp);
    let port = node_port(Protocol::Udp);
    let outside = site.outside_client();
    [v4, v6]
        .map(|vip| site.pod_client().udp_flow(vip))
        .into_iter()
        .chain([
            outside.udp_flow(site.node.addresses().at_v4(port)),
            outside.udp_flow(site.node.addresses().at_v6(port)),
        ])
        .collect()
}

/// Goes on sending through a flow until its outcome fits.
fn until(flow: &UdpFlow, what: &str, fits: impl Fn(&Outcome) -> bool) -> Result<()> {
    eventually(what, || {
        let outcome = flow.ask();
        ensure!(fits(&outcome), "{outcome}");
        Ok(())
    })?;
    Ok(())
}

fn deleted(agent: &Agent, family: &str) -> Result<f64> {
    let label = format!("ip_family=\"{family}\"");
    agent.metric("kubeproxy_conntrack_reconciler_deleted_entries_total", &label)
}

fn flows_follow_their_service_and_walks_are_counted(forwarding: Forwarding) -> Result<()> {
    let site = Site::new(forwarding)?;
    site.set_endpoints(&[&site.pods[0]])?;
    let agent = site.start()?;
    let flows = flows(&site)?;
    for flow in &flows {
        until(flow, "the first pod answers", |outcome| outcome.is_by("web-1"))?;
    }
    ensure!(deleted(&agent, "IPv4")? == 0.0 && deleted(&agent, "IPv6")? == 0.0);
    site.set_endpoints(&[&site.pods[1]])?;
    for flow in &flows {
        until(flow, "the second pod answers", |outcome| outcome.is_by("web-2"))?;
    }
    site.set_endpoints(&[])?;
    for flow in &flows {
        until(flow, "it is refused", |outcome| *outcome == Outcome::Refused)?;
    }
    site.set_endpoints(&[&site.pods[0]])?;
    for flow in &flows {
        until(flow, "the first pod answers again", |outcome| {
            outcome.is_by("web-1")
        })?;
    }
    site.manifests.remove(WEB)?;
    for flow in &flows {
        until(flow, "nobody answers", |outcome| outcome.answer().is_none())?;
    }
    for family in ["IPv4", "IPv6"] {
        // Three times, the flows of both clients.
        eventually("the entries are counted", || {
            let deleted = deleted(&agent, family)?;
            ensure!(deleted >= 6.0, "{family}: {deleted}");
            Ok(())
        })?;
        let walks = format!("ip_family=\"{family}\"");
        ensure!(
            agent.metric(
                "kubeproxy_conntrack_reconciler_sync_duration_seconds_count",
                &walks
            )? >= 3.0
        );
    }
    Ok(())
}

fn a_restart_deletes_what_became_stale_meanwhile_and_nothing_else(forwarding: Forwarding) -> Result<()> {
    let site = Site::new(forwarding)?;
    let mut agent = site.start()?;
    // Flows to both pods, in both families.
    let mut all = Vec::new();
    let mut met = [[false; 2]; 2];
    while met != [[true; 2]; 2] {
        for (family, vip) in cluster_ips(Protocol::Udp).into_iter().enumerate() {
            let flow = site.pod_client().udp_flow(vip)?;
            let outcome = flow.ask();
            let first = outcome.is_by("web-1");
            ensure!(first || outcome.is_by("web-2"), "{outcome}");
            met[family][usize::from(first)] = true;
            all.push((flow, first));
        }
    }
    agent.process().stop(LIMIT)?;
    agent = site.start()?;
    for (flow, first) in &all {
        let who = if *first { "web-1" } else { "web-2" };
        for _ in 0..3 {
            let outcome = flow.ask();
            ensure!(outcome.is_by(who), "{outcome} instead of {who}");
        }
    }
    agent.process().stop(LIMIT)?;
    site.set_endpoints(&[&site.pods[0]])?;
    let agent = site.start()?;
    for (flow, _) in &all {
        until(flow, "the pod that is left answers", |outcome| {
            outcome.is_by("web-1")
        })?;
    }
    let stale = all.iter().filter(|(_, first)| !first).count();
    eventually("exactly the stale ones are counted", || {
        let deleted = deleted(&agent, "IPv4")? + deleted(&agent, "IPv6")?;
        ensure!(deleted == stale as f64, "{deleted} of {stale}");
        Ok(())
    })?;
    Ok(())
}

fn connections_are_reset_when_the_policy_says_so(forwarding: Forwarding) -> Result<()> {
    let site = Site::new(forwarding)?;
    site.set_policy(
        site.policy()
            .set("conntrack", json!({"resetRemovedEndpoints": true})),
    )?;
    site.set_endpoints(&[&site.pods[0]])?;
    let _agent = site.start()?;
    let mut held = Vec::new();
    for vip in cluster_ips(Protocol::Tcp) {
        held.push(site.pod_client().open(vip)?);
    }
    // The pod terminates, and another takes over: what is open goes on.
    let mut terminating = slices("web", &[&site.pods[0], &site.pods[1]]).map(serde_json::Value::from);
    for slice in &mut terminating {
        slice["endpoints"][0]["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
    }
    let service = [serde_json::Value::from(web())];
    site.manifests.put(WEB, service.into_iter().chain(terminating))?;
    for vip in cluster_ips(Protocol::Tcp) {
        support::expect_answers(&site.pod_client(), Protocol::Tcp, vip, &["web-2"])?;
    }
    for held in &mut held {
        held.ping()?;
    }
    site.manifests
        .put(WEB, with_pods(web(), "web", &[&site.pods[1]]))?;
    for held in &mut held {
        eventually("it is reset", || {
            ensure!(held.ping().is_err(), "it goes on");
            Ok(())
        })?;
    }
    Ok(())
}

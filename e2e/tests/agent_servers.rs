//! The agent's HTTP servers answer as kube-proxy's do.

mod support;

use std::{io, net::SocketAddr};

use anyhow::{Result, ensure};
use pointsman_e2e::{IptablesVariant, http, manifests::Node, traffic::Protocol};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use support::{LIMIT, NODE, Site, cluster_ips, eventually, expect_answers};

#[test]
fn health_follows_the_node_and_liveness_does_not() -> Result<()> {
    let site = Site::new(IptablesVariant::Nft)?;
    let agent = site.start()?;
    let body = |path: &str| -> Result<(u16, Value)> {
        let (code, text) = agent.health(path)?;
        Ok((code, serde_json::from_str(&text)?))
    };
    let (code, healthy) = body("/healthz")?;
    ensure!(code == 200 && healthy["nodeEligible"] == true, "{healthy}");
    ensure!(
        healthy["lastUpdated"].is_string() && healthy["currentTime"].is_string(),
        "{healthy}"
    );
    for going in ["taint", "deletion"] {
        let node = Node::of(&site.node);
        let node: Value = if going == "taint" {
            node.taint("ToBeDeletedByClusterAutoscaler").into()
        } else {
            let mut node: Value = node.into();
            node["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            node
        };
        site.manifests.put(NODE, [node])?;
        eventually("/healthz says that the node is going", || {
            let (code, body) = body("/healthz")?;
            ensure!(
                code == 503 && body["nodeEligible"] == false,
                "{going}: {code} {body}"
            );
            Ok(())
        })?;
        let (code, alive) = body("/livez")?;
        ensure!(code == 200, "{going}: the agent itself works: {alive}");
        // It goes on forwarding.
        for vip in cluster_ips(Protocol::Tcp) {
            expect_answers(&site.pod_client(), Protocol::Tcp, vip, &["web-1", "web-2"])?;
        }
        site.manifests.put(
            NODE,
            [Node::of(&site.node).taint("node.kubernetes.io/unschedulable")],
        )?;
        agent.wait_until_healthy(LIMIT)?;
    }
    ensure!(agent.metric("kubeproxy_proxy_healthz_total", "code=\"503\"")? > 0.0);
    ensure!(agent.metric("kubeproxy_proxy_livez_total", "code=\"200\"")? > 0.0);
    Ok(())
}

#[test]
fn mode_settings_and_metrics_are_served_to_the_node_itself() -> Result<()> {
    let site = Site::new(IptablesVariant::Legacy)?;
    let agent = site.start()?;
    ensure!(agent.metrics("/proxyMode")? == (200, "iptables".to_owned()));
    let (code, configz) = agent.metrics("/configz")?;
    let configz: Value = serde_json::from_str(&configz)?;
    let configz = &configz["pointsman.dev"];
    ensure!(
        code == 200 && configz["policy"] == "everywhere" && configz["settings"]["syncPeriodSeconds"] == 1,
        "{configz}"
    );
    ensure!(
        configz["settings"]["nodePortAddresses"][0] == "Primary",
        "defaults are filled in: {configz}"
    );
    let (code, metrics) = agent.metrics("/metrics")?;
    ensure!(code == 200);
    for name in [
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket{",
        "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 1",
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} ",
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv6\"} ",
        "kubeproxy_sync_proxy_rules_iptables_total{ip_family=\"IPv4\",table=\"nat\"} ",
        "kubeproxy_sync_proxy_rules_service_changes_total ",
        "pointsman_agent_kernel_objects_written_total{ip_family=\"IPv4\"} ",
        "pointsman_agent_kernel_bytes_written_total{ip_family=\"IPv4\"} ",
    ] {
        ensure!(metrics.contains(name), "{name} is not in\n{metrics}");
    }
    site.set_endpoints(&[&site.pods[0]])?;
    for vip in cluster_ips(Protocol::Tcp) {
        expect_answers(&site.pod_client(), Protocol::Tcp, vip, &["web-1"])?;
    }
    let partial = "kubeproxy_sync_partial_proxy_rules_duration_seconds_count";
    eventually("a change was written as one", || {
        ensure!(agent.metric(partial, "ip_family=\"IPv4\"")? > 0.0);
        Ok(())
    })?;
    ensure!(agent.metrics("/debug/flags/v")? == (200, "2\n".to_owned()));
    // Health is for load balancers, metrics are for the node: kube-proxy's defaults.
    let outside = site.outside.namespace();
    ensure!(http::get(outside, site.node.addresses().at_v4(10256), "/healthz")?.0 == 200);
    ensure!(http::get(outside, site.node.addresses().at_v4(10249), "/metrics").is_err());
    ensure!(agent.health("/nonsense")?.0 == 404 && agent.metrics("/nonsense")?.0 == 404);
    Ok(())
}

/// A TCP segment that begins and ends a connection at once, which no connection has (`tcp_error` in the kernel).
const IMPOSSIBLE: [u8; 20] = {
    let mut header = [0; 20];
    [header[0], header[1], header[2], header[3]] = [0x0f, 0xa0, 0x1f, 0x90];
    header[12] = 5 << 4;
    header[13] = 0b11;
    header
};

#[test]
fn packets_that_are_dropped_as_invalid_are_counted() -> Result<()> {
    const SENT: u8 = 7;
    let site = Site::new(IptablesVariant::Nft)?;
    let agent = site.start()?;
    let dropped = || agent.metric("kubeproxy_iptables_ct_state_invalid_dropped_packets_total", "");
    let pod = site.pods[0].addresses().v4;
    let send = || -> Result<()> {
        let sent = site.outside.namespace().run(|| -> io::Result<()> {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(socket2::Protocol::TCP))?;
            for _ in 0..SENT {
                // A raw socket knows no ports.
                socket.send_to(&IMPOSSIBLE, &SocketAddr::from((pod, 0)).into())?;
            }
            Ok(())
        })?;
        Ok(sent?)
    };
    ensure!(dropped()? < 1.0);
    send()?;
    eventually("the count of the slow check", || {
        let dropped = dropped()?;
        ensure!((dropped - f64::from(SENT)).abs() < 0.1, "{dropped}");
        Ok(())
    })?;
    ensure!(
        agent.metric("pointsman_agent_drifts_total", "")? < 1.0,
        "counters are no drift"
    );
    // Whoever lets such packets through has none to count.
    site.set_policy(site.policy().set("conntrack", json!({"tcpBeLiberal": true})))?;
    eventually("the rule is gone", || {
        let rules = site.rules()?.concat();
        ensure!(!rules.contains("INVALID"), "{rules}");
        Ok(())
    })?;
    send()?;
    ensure!((dropped()? - f64::from(SENT)).abs() < 0.1);
    Ok(())
}

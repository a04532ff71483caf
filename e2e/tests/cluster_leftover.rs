//! What the real kube-proxy leaves on nodes, in two of its modes: told in the condition LeftoverRules while it runs, after
//! it was stopped, and until its own clean-up has removed it.

use std::{net::IpAddr, time::Duration};

use anyhow::{Result, ensure};
use pointsman_e2e::{
    Cluster, ControlPlane, Fabric, NodeNet, Options, Peer, PeerMode, PeerOptions, Program, Toolchain,
    cluster::{note, section},
    nft,
    observe::condition,
    traffic::{Client, Protocol},
    workload::read_example,
};
use serde_json::{Value, json};

/// A load balancer's address that only one sender may use.
const BALANCER: &str = "203.0.113.77";

#[test]
fn what_a_kube_proxy_leaves_is_told_until_its_own_clean_up() -> Result<()> {
    let (toolchain, fabric) = (Toolchain::locate()?, Fabric::new()?);
    let control_plane = ControlPlane::start(&toolchain, &fabric, Options::default())?;
    let cluster = Cluster::start(
        &toolchain,
        &fabric,
        &control_plane,
        &[("node-1", &[]), ("node-2", &[])],
    )?;
    restricted_service(&control_plane)?;
    control_plane.apply(&read_example("policy-fleet.yaml")?)?;
    cluster.ready("fleet", 2)?;
    let none = |node: &str| told(&cluster, node, "False", "NothingFound", &[]);
    for node in &cluster.nodes {
        none(node.name())?;
    }

    let balancer = format!("{BALANCER} port 80/TCP");
    let nftables = [
        "table ip kube-proxy",
        "filter-prerouting-pre-dnat",
        balancer.as_str(),
        "nft delete table ip kube-proxy",
    ];
    let iptables = [
        "-A KUBE-FORWARD -m conntrack --ctstate INVALID",
        "kube-proxy --cleanup",
    ];
    let cases = [
        (PeerMode::Nftables, &cluster.nodes[0], &nftables[..]),
        (PeerMode::Iptables, &cluster.nodes[1], &iptables[..]),
    ];
    for (mode, node, words) in cases {
        let told = || told(&cluster, node.name(), "True", "KubeProxyDrops", words);
        section(&format!("{mode:?}"), || {
            let peer = Peer::start(&toolchain, &control_plane, node, &beside_an_agent(mode))?;
            told()?;
            ensure!(
                peer.process().stop(Duration::from_secs(20))?,
                "kube-proxy did not stop"
            );
            told()?;
            answers(&cluster, node)?;
            let before = nft::list(node.namespace(), "ruleset")?;
            ensure!(before.contains("pointsman"), "{before}");
            clean_up(&toolchain, node)?;
            none(node.name())?;
            answers(&cluster, node)
        })?;
    }
    Ok(())
}

/// kube-proxy that leaves the agent its ports.
fn beside_an_agent(mode: PeerMode) -> PeerOptions {
    PeerOptions {
        patch: json!({"healthzBindAddress": "0.0.0.0:11256", "metricsBindAddress": "127.0.0.1:11249"}),
        ..PeerOptions::new(mode)
    }
}

fn restricted_service(control_plane: &ControlPlane) -> Result<()> {
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "restricted", "namespace": "default"},
        "spec": {
            "type": "LoadBalancer",
            "selector": {"app": "web"},
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
            "loadBalancerSourceRanges": ["192.0.2.1/32"],
        },
    });
    control_plane.apply(&service.to_string())?;
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": BALANCER.parse::<IpAddr>()?}]}}});
    control_plane.kubectl(&[
        "patch",
        "service",
        "restricted",
        "--namespace=default",
        "--subresource=status",
        "--type=merge",
        "--patch",
        &status.to_string(),
    ])?;
    Ok(())
}

/// Waits until a node says this of leftover rules, with these words.
fn told(cluster: &Cluster<'_>, node: &str, status: &str, reason: &str, words: &[&str]) -> Result<()> {
    let says = |proxy: &Value| {
        let leftover = condition(proxy, "LeftoverRules");
        (leftover.status.as_str(), leftover.reason.as_str()) == (status, reason)
            && words.iter().all(|words| leftover.message.contains(words))
    };
    let what = format!("{reason} is told with {words:?}");
    let proxy = cluster.node_proxy(node, &what, says)?;
    note(format_args!(
        "{node}: {}",
        condition(&proxy, "LeftoverRules").message
    ));
    Ok(())
}

/// The Service that both know is answered on a node.
fn answers(cluster: &Cluster<'_>, node: &NodeNet) -> Result<()> {
    for vip in cluster.vips {
        let tally = Client::of(node.namespace()).many(Protocol::Tcp, vip, 20)?;
        ensure!(tally.lost() == 0, "{vip}: {tally}");
    }
    Ok(())
}

/// `kube-proxy --cleanup`. It also tries modes that this kernel lacks, and says so: what is left is what counts.
fn clean_up(toolchain: &Toolchain, node: &NodeNet) -> Result<()> {
    let output = node
        .command(toolchain.program(Program::KubeProxy)?)
        .arg("--cleanup")
        .output()?;
    note(format_args!("{}", String::from_utf8_lossy(&output.stderr).trim()));
    Ok(())
}

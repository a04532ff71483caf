//! What Services ask for, with the real API server and beside the real kube-proxy.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use pointsman_e2e::{
    Cluster, ControlPlane, Fabric, Options, Peer, PeerMode, PeerOptions, Toolchain,
    cluster::{LIMIT, section},
    http,
    observe::eventually,
    traffic::{Client, Outcome, Protocol},
    workload::read_example,
};
use serde_json::{Value, json};

const ANNOTATION: &str = "networking.alpha.kubernetes.io/direct-access";

#[test]
fn services_mean_what_kubernetes_means_by_them() -> Result<()> {
    let (toolchain, fabric) = (Toolchain::locate()?, Fabric::new()?);
    let control_plane = ControlPlane::start(&toolchain, &fabric, Options::default())?;
    let cluster = Cluster::start(
        &toolchain,
        &fabric,
        &control_plane,
        &[("node-1", &[]), ("node-2", &[])],
    )?;
    control_plane.apply(&read_example("policy-fleet.yaml")?)?;
    cluster.ready("fleet", 2)?;
    section("unallocated ClusterIPs", || {
        unallocated_cluster_ips_are_dropped(&cluster)
    })?;
    section("direct access", || direct_access_is_told_once(&cluster))?;
    section("health checks", || health_checks_are_answered(&cluster))?;
    section("metrics", || {
        metrics_are_those_of_kube_proxy(&cluster, &toolchain)
    })
}

fn until(cluster: &Cluster<'_>, target: SocketAddr, wanted: &Outcome) -> Result<()> {
    let client = Client::of(cluster.client.namespace());
    client
        .until(Protocol::Tcp, target, LIMIT, |outcome| outcome == wanted)
        .with_context(|| format!("{target} is to be {wanted}"))?;
    Ok(())
}

fn unallocated_cluster_ips_are_dropped(cluster: &Cluster<'_>) -> Result<()> {
    // The API server makes the ServiceCIDR of its own flags.
    for address in ["10.96.200.200", "fd00:10:96::c8c8"] {
        until(
            cluster,
            (address.parse::<IpAddr>()?, 80).into(),
            &Outcome::TimedOut,
        )?;
    }
    for vip in cluster.vips {
        until(cluster, (vip.ip(), 81).into(), &Outcome::Refused)?;
    }
    // Another range comes and goes.
    let other: SocketAddr = "10.97.0.77:80".parse()?;
    until(cluster, other, &Outcome::Unreachable)?;
    let range = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "more"},
        "spec": {"cidrs": ["10.97.0.0/24"]},
    });
    cluster.control_plane.apply(&range.to_string())?;
    until(cluster, other, &Outcome::TimedOut)?;
    cluster
        .control_plane
        .kubectl(&["delete", "servicecidr", "more", "--wait=false"])?;
    until(cluster, other, &Outcome::Unreachable)
}

fn events(control_plane: &ControlPlane) -> Result<Vec<Value>> {
    let text = control_plane.kubectl(&[
        "get",
        "events.events.k8s.io",
        "--field-selector",
        "reason=DirectAccess",
        "-o",
        "json",
    ])?;
    let list: Value = serde_json::from_str(&text)?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

fn direct_access_is_told_once(cluster: &Cluster<'_>) -> Result<()> {
    let control_plane = cluster.control_plane;
    let asks = format!("{ANNOTATION}=true");
    control_plane.kubectl(&["annotate", "service", "web", &asks])?;
    for vip in cluster.vips {
        until(cluster, vip, &Outcome::Refused)?;
    }
    eventually("an Event", LIMIT, || Ok(!events(control_plane)?.is_empty()))?;
    let counted = |number: i64| move |object: &Value| object["status"]["directAccess"] == number;
    for node in ["node-1", "node-2"] {
        cluster.node_proxy(node, "one Service with direct access", counted(1))?;
    }
    control_plane.until("proxypolicy", "fleet", "the same", LIMIT, counted(1))?;
    // By now every node has seen it, and more of it: there is one Event.
    control_plane.kubectl(&["label", "service", "web", "touched=yes"])?;
    let told = events(control_plane)?;
    ensure!(told.len() == 1, "{told:?}");
    let event = &told[0];
    ensure!(
        event["type"] == "Warning"
            && event["regarding"]["kind"] == "Service"
            && event["regarding"]["name"] == "web"
            && event["reportingController"] == "pointsman.dev/operator",
        "{event:#}"
    );
    let described = control_plane.kubectl(&["describe", "service", "web"])?;
    ensure!(described.contains("DirectAccess"), "{described}");

    control_plane.kubectl(&["annotate", "service", "web", &format!("{ANNOTATION}-")])?;
    let client = Client::of(cluster.client.namespace());
    for vip in cluster.vips {
        client.until_answered_by(Protocol::Tcp, vip, &["web-1", "web-2"], LIMIT)?;
    }
    control_plane.until("proxypolicy", "fleet", "none of them", LIMIT, counted(0))?;
    Ok(())
}

fn health_checks_are_answered(cluster: &Cluster<'_>) -> Result<()> {
    let balanced = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "balanced", "namespace": "default"},
        "spec": {
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "ipFamilyPolicy": "PreferDualStack",
            "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}],
        },
    });
    cluster.control_plane.apply(&balanced.to_string())?;
    let service = cluster
        .control_plane
        .object("service", "balanced")?
        .context("the Service is gone")?;
    let port = service["spec"]["healthCheckNodePort"].as_u64();
    let port = u16::try_from(port.context("the API server gave it no health-check port")?)?;
    for node in &cluster.nodes {
        for target in node.addresses().both(port) {
            eventually("a health check", LIMIT, || {
                let (code, body) = http::get(cluster.client.namespace(), target, "/healthz")?;
                let body: Value = serde_json::from_str(&body)?;
                Ok(code == 200 && body["localEndpoints"] == 1)
            })?;
        }
    }
    cluster
        .control_plane
        .kubectl(&["delete", "service", "balanced"])?;
    let gone = cluster.nodes[0].addresses().at_v4(port);
    until(cluster, gone, &Outcome::Refused)
}

/// What Prometheus makes of a text: the metrics' types, the names of their labels, and the bounds of buckets.
#[derive(Debug, Default, PartialEq, Eq)]
struct Shape {
    type_: String,
    labels: BTreeSet<String>,
    bounds: BTreeSet<String>,
}

fn shapes(text: &str) -> BTreeMap<String, Shape> {
    let mut found: BTreeMap<String, Shape> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, type_)) = line.strip_prefix("# TYPE ").and_then(|said| said.split_once(' ')) {
            found.entry(name.to_owned()).or_default().type_ = type_.to_owned();
            continue;
        }
        let Some((sample, _)) = line.rsplit_once(' ').filter(|_| !line.starts_with('#')) else {
            continue;
        };
        let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .filter(|base| found.contains_key(*base))
            .unwrap_or(name);
        let shape = found.entry(base.to_owned()).or_default();
        for label in labels
            .trim_end_matches('}')
            .split(',')
            .filter(|label| !label.is_empty())
        {
            match label.split_once('=') {
                Some(("le", bound)) => shape.bounds.insert(bound.to_owned()),
                Some((name, _)) => shape.labels.insert(name.to_owned()),
                None => continue,
            };
        }
    }
    found.retain(|name, _| name.starts_with("kubeproxy_"));
    found
}

/// The metrics of kube-proxy in mode nftables that the agent has as well (docs/operations.md).
const OURS: [&str; 13] = [
    "kubeproxy_network_programming_duration_seconds",
    "kubeproxy_proxy_healthz_total",
    "kubeproxy_proxy_livez_total",
    "kubeproxy_sync_full_proxy_rules_duration_seconds",
    "kubeproxy_sync_partial_proxy_rules_duration_seconds",
    "kubeproxy_sync_proxy_rules_duration_seconds",
    "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
    "kubeproxy_sync_proxy_rules_endpoint_changes_total",
    "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
    "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
    "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
    "kubeproxy_sync_proxy_rules_service_changes_pending",
    "kubeproxy_sync_proxy_rules_service_changes_total",
];

fn metrics_are_those_of_kube_proxy(cluster: &Cluster<'_>, toolchain: &Toolchain) -> Result<()> {
    let control_plane = cluster.control_plane;
    let node = cluster.fabric.node("peer")?;
    control_plane.create_node(&node)?;
    let peer = Peer::start(
        toolchain,
        control_plane,
        &node,
        &PeerOptions::new(PeerMode::Nftables),
    )?;
    peer.wait_until_healthy(LIMIT)?;
    let agent = cluster.agent("node-1")?;
    ensure!(agent.health("/livez")?.0 == 200 && agent.health("/healthz")?.0 == 200);
    let livez = SocketAddr::from((node.addresses().v4, 10256));
    ensure!(http::get(node.namespace(), livez, "/livez")?.0 == 200);
    // A pod that becomes ready later than both programs began: its slice says when that was.
    let count = "kubeproxy_network_programming_duration_seconds_count";
    let mut ready = true;
    eventually("both count a change of endpoints", LIMIT, || {
        ready = !ready;
        let condition = json!({
            "type": "Ready", "status": if ready { "True" } else { "False" },
            "lastTransitionTime": Timestamp::from_second(Timestamp::now().as_second())?.to_string(),
        });
        let patch = json!({"status": {"conditions": [condition]}}).to_string();
        let arguments = [
            "patch",
            "pod",
            "web-2",
            "--subresource=status",
            "--type=merge",
            "--patch",
        ];
        control_plane.kubectl(&[&arguments[..], &[&patch]].concat())?;
        std::thread::sleep(Duration::from_secs(1));
        Ok(ready && agent.metric(count, "")? > 0.0 && peer.metrics()?.contains(count))
    })?;
    let mut ours = shapes(&agent.metrics("/metrics")?.1);
    // The agent drops and counts these packets in both modes, kube-proxy in mode iptables only.
    ours.remove("kubeproxy_iptables_ct_state_invalid_dropped_packets_total");
    let theirs = shapes(&peer.metrics()?);
    for name in OURS {
        ensure!(
            ours.contains_key(name),
            "the agent does not serve {name}: {:?}",
            ours.keys()
        );
        ensure!(
            theirs.contains_key(name),
            "kube-proxy does not serve {name}: {:?}",
            theirs.keys()
        );
    }
    for (name, shape) in &ours {
        ensure!(
            theirs.get(name) == Some(shape),
            "{name} is {shape:?}, and kube-proxy's is {:?}",
            theirs.get(name)
        );
    }
    Ok(())
}

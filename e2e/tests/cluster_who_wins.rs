//! Several policies and changing nodes: which policy a node follows, and what happens when that changes.

use std::{
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use k8s_openapi::jiff::Timestamp;
use pointsman_e2e::{
    Cluster, ControlPlane, Fabric, Options, Toolchain,
    cluster::{LIMIT, section},
    observe::{condition, eventually},
    traffic::{Client, Protocol},
    workload::WebPod,
};
use serde_json::Value;

#[test]
fn every_node_follows_the_policy_that_wins() -> Result<()> {
    let (toolchain, fabric) = (Toolchain::locate()?, Fabric::new()?);
    let control_plane = ControlPlane::start(&toolchain, &fabric, Options::default())?;
    let mut cluster = Cluster::start(
        &toolchain,
        &fabric,
        &control_plane,
        &[("node-1", &[]), ("node-2", &[("pool", "gold")])],
    )?;
    section("priority", || the_higher_priority_wins(&cluster))?;
    section("age", || of_the_same_priority_the_older_wins(&cluster))?;
    section("name", || of_the_same_age_the_first_by_name_wins(&cluster))?;
    section("no node", || a_policy_that_selects_no_node_says_so(&cluster))?;
    section("new node", || a_new_node_gets_its_node_proxy(&mut cluster))?;
    section("node deleted", || {
        the_node_proxy_of_a_deleted_node_goes(&mut cluster)
    })?;
    section("deletion", || deleting_policies_hands_nodes_on(&cluster))
}

fn policy(name: &str, priority: i32, selector: &str) -> String {
    format!(
        "{{apiVersion: pointsman.dev/v1alpha1, kind: ProxyPolicy, metadata: {{name: {name}}},
           spec: {{priority: {priority}, nodeSelector: {selector}}}}}\n---\n"
    )
}

const ALL: &str = "{}";
const GOLD: &str = "{matchLabels: {pool: gold}}";

/// Waits until the policy has lost this many nodes, and checks that it says why.
fn loses(cluster: &Cluster<'_>, policy: &str, nodes: usize, saying: &[&str]) -> Result<()> {
    let what = format!("Conflicted on {nodes} nodes");
    let object = cluster
        .control_plane
        .until("proxypolicy", policy, &what, LIMIT, |policy| {
            policy["status"]["nodes"]["conflicted"] == nodes
                && saying
                    .iter()
                    .all(|part| condition(policy, "Conflicted").message.contains(part))
        })?;
    assert_eq!(condition(&object, "Conflicted").status, "True", "{object:#}");
    Ok(())
}

fn follows(cluster: &Cluster<'_>, node: &str, policy: &str) -> Result<Value> {
    cluster.node_proxy(node, &format!("following {policy}"), |proxy| {
        proxy["spec"]["policy"] == policy
            && proxy["status"]["appliedRevision"] == proxy["spec"]["revision"]
            && proxy["status"]["observedGeneration"] == proxy["metadata"]["generation"]
    })
}

fn the_higher_priority_wins(cluster: &Cluster<'_>) -> Result<()> {
    cluster.control_plane.apply(&policy("base", 0, ALL))?;
    cluster.ready("base", 2)?;
    cluster.control_plane.apply(&policy("gold", 10, GOLD))?;
    cluster.ready("gold", 1)?;
    cluster.ready("base", 1)?;
    follows(cluster, "node-1", "base")?;
    follows(cluster, "node-2", "gold")?;
    loses(cluster, "base", 1, &["policy gold", "priority 10"])
}

fn of_the_same_priority_the_older_wins(cluster: &Cluster<'_>) -> Result<()> {
    let base = cluster
        .control_plane
        .object("proxypolicy", "base")?
        .context("no policy")?;
    let created: Timestamp = base["metadata"]["creationTimestamp"]
        .as_str()
        .unwrap_or_default()
        .parse()?;
    // The API has whole seconds: the next policy must not be of the same one.
    eventually("the next second", LIMIT, || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        Ok(i64::try_from(now)? > created.as_second())
    })?;
    // Its name comes first, which does not matter here.
    cluster.control_plane.apply(&policy("aaa-younger", 0, ALL))?;
    loses(
        cluster,
        "aaa-younger",
        2,
        &["policy base", "older", "policy gold"],
    )?;
    let younger = cluster
        .control_plane
        .object("proxypolicy", "aaa-younger")?
        .context("no policy")?;
    assert_eq!(younger["status"]["nodes"]["matched"], 0);
    assert_eq!(condition(&younger, "Ready").reason, "NoNodesMatched");
    follows(cluster, "node-1", "base")?;
    cluster
        .control_plane
        .kubectl(&["delete", "proxypolicy", "aaa-younger"])?;
    Ok(())
}

fn of_the_same_age_the_first_by_name_wins(cluster: &Cluster<'_>) -> Result<()> {
    let both = policy("twin-b", 20, GOLD) + &policy("twin-a", 20, GOLD);
    // Two objects of one call may fall into two seconds; then there is nothing to see here.
    eventually("two policies of the same second", LIMIT, || {
        cluster.control_plane.apply(&both)?;
        let ages = cluster.control_plane.kubectl(&[
            "get",
            "proxypolicy",
            "twin-a",
            "twin-b",
            "-o",
            "jsonpath={.items[*].metadata.creationTimestamp}",
        ])?;
        let mut ages = ages.split_whitespace();
        let same = ages.next() == ages.next();
        if !same {
            cluster
                .control_plane
                .kubectl(&["delete", "proxypolicy", "twin-a", "twin-b"])?;
        }
        Ok(same)
    })?;
    loses(
        cluster,
        "twin-b",
        1,
        &["policy twin-a", "priority 20", "name comes first"],
    )?;
    follows(cluster, "node-2", "twin-a")?;
    // Each deletion hands the node to the next.
    for (deleted, next) in [("twin-a", "twin-b"), ("twin-b", "gold")] {
        cluster
            .control_plane
            .kubectl(&["delete", "proxypolicy", deleted])?;
        follows(cluster, "node-2", next)?;
        cluster.ready(next, 1)?;
    }
    Ok(())
}

fn a_policy_that_selects_no_node_says_so(cluster: &Cluster<'_>) -> Result<()> {
    cluster
        .control_plane
        .apply(&policy("nowhere", 0, "{matchLabels: {pool: platinum}}"))?;
    let nowhere = cluster
        .control_plane
        .until("proxypolicy", "nowhere", "explained", LIMIT, |policy| {
            condition(policy, "Ready").reason == "NoNodesSelected"
        })?;
    let ready = condition(&nowhere, "Ready");
    assert_eq!(ready.status, "False");
    assert!(ready.message.contains("platinum"), "{ready:?}");
    // It begins to work when a node gets the label.
    cluster
        .control_plane
        .kubectl(&["label", "node", "node-1", "pool=platinum"])?;
    loses(cluster, "nowhere", 1, &["policy base"])?;
    cluster
        .control_plane
        .kubectl(&["label", "node", "node-1", "pool-"])?;
    cluster
        .control_plane
        .kubectl(&["delete", "proxypolicy", "nowhere"])?;
    Ok(())
}

fn a_new_node_gets_its_node_proxy(cluster: &mut Cluster<'_>) -> Result<()> {
    let node = cluster.fabric.node("node-3")?;
    cluster
        .control_plane
        .create_node_with(&node, &[("pool", "gold")])?;
    cluster
        .agents
        .insert("node-3".to_owned(), cluster.installation.agent(&node)?);
    cluster
        .web
        .push(WebPod::start(cluster.control_plane, &node, "web-3")?);
    follows(cluster, "node-3", "gold")?;
    cluster.ready("gold", 2)?;
    let client = Client::of(node.namespace());
    client.until_answered_by(
        Protocol::Tcp,
        cluster.vips[0],
        &["web-1", "web-2", "web-3"],
        LIMIT,
    )?;
    cluster.nodes.push(node);
    Ok(())
}

/// By the garbage collector, while no operator runs.
fn the_node_proxy_of_a_deleted_node_goes(cluster: &mut Cluster<'_>) -> Result<()> {
    for operator in cluster.operators.drain(..) {
        assert!(
            operator.process().stop(Duration::from_secs(10))?,
            "the operator did not end by itself"
        );
    }
    cluster.control_plane.kubectl(&["delete", "node", "node-3"])?;
    cluster.control_plane.until_gone("nodeproxy", "node-3", LIMIT)?;
    cluster.operators.push(cluster.installation.operator()?);
    cluster.ready("gold", 1)?;
    Ok(())
}

fn deleting_policies_hands_nodes_on(cluster: &Cluster<'_>) -> Result<()> {
    let client = Client::of(cluster.client.namespace());
    cluster
        .control_plane
        .kubectl(&["delete", "proxypolicy", "gold"])?;
    follows(cluster, "node-2", "base")?;
    cluster.ready("base", 2)?;

    // The last policy goes: rules go for new connections, an established connection lives.
    let mut held = cluster
        .vips
        .map(|vip| client.open(vip))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let from_elsewhere = Client::of(cluster.nodes[1].namespace());
    held.push(from_elsewhere.open(cluster.vips[0])?);
    cluster
        .control_plane
        .kubectl(&["delete", "proxypolicy", "base"])?;
    for node in ["node-1", "node-2"] {
        cluster.control_plane.until_gone("nodeproxy", node, LIMIT)?;
    }
    for vip in cluster.vips {
        for client in [&client, &from_elsewhere] {
            eventually("new connections to fail", LIMIT, || {
                Ok(client.many(Protocol::Tcp, vip, 5)?.ok() == 0)
            })?;
        }
    }
    for _ in 0..10 {
        for held in &mut held {
            held.ping()?;
        }
        thread::sleep(Duration::from_millis(50));
    }
    for (node, agent) in &cluster.agents {
        if node != "node-3" {
            assert_eq!(
                agent.health("/healthz")?.0,
                200,
                "{node} has nothing to do, and does it"
            );
            assert_eq!(agent.metrics("/proxyMode")?.0, 404);
        }
    }

    // And back.
    cluster.control_plane.apply(&policy("again", 0, ALL))?;
    cluster.ready("again", 2)?;
    let tally = client.many(Protocol::Tcp, cluster.vips[0], 30)?;
    assert_eq!(tally.lost(), 0, "{tally}");
    for held in &mut held {
        held.ping()?;
    }
    Ok(())
}

//! The main job with everything real: a policy becomes NodeProxies, these become rules, packets follow the rules,
//! and the statuses say so.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use pointsman_e2e::{
    Cluster, ControlPlane, Fabric, Options, Toolchain,
    cluster::{LIMIT, note, section},
    nft,
    observe::{condition, eventually},
    sysctl,
    traffic::{Client, Protocol},
    workload::{NODE_PORT, WebPod, read_example},
};

const ESTABLISHED: &str = "net.netfilter.nf_conntrack_tcp_timeout_established";
const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

#[test]
fn a_policy_becomes_rules_and_the_status_tells_the_truth() -> Result<()> {
    let (toolchain, fabric) = (Toolchain::locate()?, Fabric::new()?);
    let control_plane = ControlPlane::start(&toolchain, &fabric, Options::default())?;
    let mut cluster = Cluster::start(
        &toolchain,
        &fabric,
        &control_plane,
        &[("node-1", &[]), ("node-2", &[])],
    )?;

    section("without a policy nothing is forwarded", || {
        without_a_policy_nothing_is_forwarded(&cluster)
    })?;
    let revision = section("a policy reaches every node", || {
        a_policy_reaches_every_node(&cluster)
    })?;
    section("columns", || columns_say_it(&cluster, &revision))?;
    section("every way in reaches every endpoint", || {
        every_way_in_reaches_every_endpoint(&cluster)
    })?;
    section("endpoints are followed", || endpoints_are_followed(&mut cluster))?;
    section("an edited policy", || {
        an_edited_policy_is_followed_by_all_nodes(&cluster, &revision)
    })?;
    section("an Event tells of a flush", || {
        an_event_tells_who_flushed_the_rules(&cluster)
    })?;
    section("verbosity", || verbosity_changes_without_a_restart(&cluster))
}

fn an_event_tells_who_flushed_the_rules(cluster: &Cluster<'_>) -> Result<()> {
    let events = || {
        let fields =
            "--field-selector=reason=RulesChanged,involvedObject.kind=Node,involvedObject.name=node-1";
        cluster
            .control_plane
            .kubectl(&["get", "events", "--namespace=default", "--output=json", fields])
    };
    // It is told once, however often.
    for _ in 0..3 {
        nft::run(cluster.nodes[0].namespace(), "flush ruleset")?;
        eventually("an Event on the Node", LIMIT, || {
            let found: serde_json::Value = serde_json::from_str(&events()?)?;
            let found = found["items"].as_array().cloned().unwrap_or_default();
            if found.is_empty() {
                return Ok(false);
            }
            ensure!(found.len() == 1, "{found:?}");
            let message = found[0]["message"].as_str().unwrap_or_default();
            ensure!(
                message.contains("table pointsman is gone") && message.contains("\"nft\""),
                "{message}"
            );
            Ok(true)
        })?;
    }
    let described = cluster.control_plane.kubectl(&["describe", "node", "node-1"])?;
    ensure!(described.contains("RulesChanged"), "{described}");
    Ok(())
}

fn without_a_policy_nothing_is_forwarded(cluster: &Cluster<'_>) -> Result<()> {
    for agent in cluster.agents.values() {
        agent.wait_until_healthy(LIMIT)?;
    }
    for vip in cluster.vips {
        let outcome = Client::of(cluster.client.namespace()).tcp(vip);
        assert!(outcome.answer().is_none(), "{vip}: {outcome}");
    }
    let rules = nft::list(cluster.nodes[0].namespace(), "ruleset")?;
    assert!(
        !rules.contains("10.96.") && !rules.contains("pointsman"),
        "{rules}"
    );
    Ok(())
}

/// Returns the revision.
fn a_policy_reaches_every_node(cluster: &Cluster<'_>) -> Result<String> {
    let before = sysctl::read(cluster.nodes[0].namespace(), ESTABLISHED)?;
    assert_ne!(before, "86400", "the test needs a node that has another value");
    cluster.control_plane.apply(&read_example("policy-fleet.yaml")?)?;
    let policy = cluster.ready("fleet", 2)?;
    let (status, counts) = (&policy["status"], &policy["status"]["nodes"]);
    assert_eq!(
        (&counts["selected"], &counts["failed"], &counts["conflicted"]),
        (&2.into(), &0.into(), &0.into()),
        "{policy:#}"
    );
    assert_eq!(status["mode"], "NFTables", "{policy:#}");
    for (type_, expected) in [
        ("Ready", "True"),
        ("Progressing", "False"),
        ("Degraded", "False"),
        ("Conflicted", "False"),
    ] {
        assert_eq!(
            condition(&policy, type_).status,
            expected,
            "{type_} of {policy:#}"
        );
    }
    let revision = status["revision"].as_str().context("no revision")?.to_owned();

    for node in &cluster.nodes {
        let proxy = cluster.node_proxy(node.name(), "reported in full", |proxy| {
            proxy["status"]["services"] == 2 && proxy["status"]["appliedRevision"] == *revision
        })?;
        assert_eq!(proxy["spec"]["policy"], "fleet");
        assert_eq!(proxy["spec"]["revision"], *revision);
        assert_eq!(proxy["metadata"]["ownerReferences"][0]["kind"], "Node");
        for (type_, expected) in [
            ("Applied", "True"),
            ("Healthy", "True"),
            ("Drifted", "False"),
            ("InputsValid", "True"),
        ] {
            assert_eq!(condition(&proxy, type_).status, expected, "{type_} of {proxy:#}");
        }
        // A namespace cannot write the limit of tracked connections, and everything else is in place all the same.
        let sysctls = condition(&proxy, "SysctlsApplied");
        assert_eq!(sysctls.status, "False", "{proxy:#}");
        assert!(sysctls.message.contains("nf_conntrack_max"), "{sysctls:?}");
        assert_eq!(sysctl::read(node.namespace(), ESTABLISHED)?, "86400");
        assert_eq!(
            cluster.agent(node.name())?.metrics("/proxyMode")?,
            (200, "nftables".to_owned())
        );
    }
    Ok(revision)
}

fn columns_say_it(cluster: &Cluster<'_>, revision: &str) -> Result<()> {
    let columns = |args: &[&str]| -> Result<Vec<Vec<String>>> {
        let table = cluster.control_plane.kubectl(args)?;
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
        Ok(table.lines().map(words).collect())
    };
    let policies = columns(&["get", "proxypolicy"])?;
    assert_eq!(
        policies[0],
        [
            "NAME",
            "MODE",
            "SCHEDULER",
            "REVISION",
            "NODES",
            "UPDATED",
            "READY",
            "FAILED",
            "AGE"
        ]
    );
    assert_eq!(
        policies[1][..7],
        ["fleet", "NFTables", revision, "2", "2", "2", "0"]
    );
    let wide = columns(&["get", "ppol", "-o", "wide"])?;
    assert_eq!(wide[0][9..], ["SELECTED", "MESSAGE"]);
    assert_eq!(wide[1][8], "2");
    assert!(
        wide[1][9..].join(" ").starts_with("2 of 2 nodes ready"),
        "{wide:?}"
    );

    let proxies = columns(&["get", "nodeproxy"])?;
    assert_eq!(
        proxies[0],
        [
            "NAME",
            "POLICY",
            "MODE",
            "REVISION",
            "APPLIED",
            "HEALTHY",
            "SERVICES",
            "ENDPOINTS",
            "AGE"
        ]
    );
    for (row, node) in proxies[1..].iter().zip(["node-1", "node-2"]) {
        assert_eq!(
            row[..7],
            [node, "fleet", "NFTables", revision, revision, "True", "2"]
        );
    }
    let wide = columns(&["get", "nprx", "-o", "wide"])?;
    assert_eq!(wide[0][9..], ["SYSCTLS", "DRIFTED", "DIRECT", "MESSAGE"]);
    assert_eq!(wide[1][9..12], ["False", "False", "0"]);
    Ok(())
}

fn every_way_in_reaches_every_endpoint(cluster: &Cluster<'_>) -> Result<()> {
    let outside = cluster.fabric.external("outside")?;
    let mut ways: Vec<(Client, SocketAddr)> = Vec::new();
    for vip in cluster.vips {
        ways.push((Client::of(cluster.client.namespace()), vip));
        ways.push((Client::of(cluster.nodes[1].namespace()), vip));
    }
    for node in &cluster.nodes {
        for address in node.addresses().both(NODE_PORT) {
            ways.push((Client::of(outside.namespace()), address));
        }
    }
    for (client, target) in ways {
        for protocol in BOTH {
            let tally = client.many(protocol, target, 60)?;
            assert_eq!(
                (tally.lost(), tally.answerers()),
                (0, vec!["web-1", "web-2"]),
                "{protocol:?} to {target}: {tally}"
            );
        }
    }
    Ok(())
}

fn endpoints_are_followed(cluster: &mut Cluster<'_>) -> Result<()> {
    let client = Client::of(cluster.client.namespace());
    // What is there already must not notice.
    let flood = client.flood(Protocol::Tcp, cluster.vips[0]);
    let fresh = WebPod::start(cluster.control_plane, &cluster.nodes[1], "web-3")?;
    for vip in cluster.vips {
        for protocol in BOTH {
            let took = client.until_answered_by(protocol, vip, &["web-3"], LIMIT)?;
            note(format_args!(
                "{protocol:?} to {vip} reached a new endpoint {took:?} after the one before"
            ));
        }
    }
    cluster
        .control_plane
        .kubectl(&["delete", "pod", "web-3", "--wait=false"])?;
    for vip in cluster.vips {
        for protocol in BOTH {
            eventually("no packet to the removed endpoint", LIMIT, || {
                Ok(client.many(protocol, vip, 50)?.by("web-3") == 0)
            })?;
        }
    }
    flood.stop_without_loss()?;
    drop(fresh);
    for vip in cluster.vips {
        let tally = client.many(Protocol::Tcp, vip, 50)?;
        assert_eq!(tally.lost(), 0, "{tally}");
    }
    Ok(())
}

fn an_edited_policy_is_followed_by_all_nodes(cluster: &Cluster<'_>, first: &str) -> Result<()> {
    let client = Client::of(cluster.client.namespace());
    let [v4, v6] = cluster.vips;
    let original = read_example("policy-fleet.yaml")?;
    let edited = original
        .replace("10.96.255.0/24", &format!("{}/32", v4.ip()))
        .replace("86400", "7200");
    ensure!(edited != original, "the example has changed: adapt the test");
    cluster.control_plane.apply(&edited)?;
    let policy = cluster.ready("fleet", 2)?;
    assert_ne!(policy["status"]["revision"], *first);
    for node in &cluster.nodes {
        assert_eq!(sysctl::read(node.namespace(), ESTABLISHED)?, "7200");
    }
    assert!(client.tcp(v4).answer().is_none(), "an excluded VIP is left alone");
    assert!(client.tcp(v6).answer().is_some(), "the other one is not excluded");
    let node_port = cluster.nodes[0].addresses().at_v4(NODE_PORT);
    assert!(client.tcp(node_port).answer().is_some(), "nor is the node port");

    // Back to what it was is back to the revision that it was. What the policy no longer names is put back.
    let without_timeouts: String = original
        .lines()
        .filter(|line| !line.contains("tcpEstablished"))
        .flat_map(|line| [line, "\n"])
        .collect();
    cluster.control_plane.apply(&without_timeouts)?;
    cluster.ready("fleet", 2)?;
    for node in &cluster.nodes {
        assert_eq!(sysctl::read(node.namespace(), ESTABLISHED)?, "432000");
    }
    cluster.control_plane.apply(&original)?;
    let policy = cluster.ready("fleet", 2)?;
    assert_eq!(policy["status"]["revision"], *first);
    assert!(client.tcp(v4).answer().is_some());
    Ok(())
}

fn verbosity_changes_without_a_restart(cluster: &Cluster<'_>) -> Result<()> {
    let debug_lines = |node: &str| -> Result<usize> {
        let log = std::fs::read_to_string(cluster.agent(node)?.process().log())?;
        Ok(log.lines().filter(|line| line.contains("DEBUG")).count())
    };
    let original = read_example("policy-fleet.yaml")?;
    assert_eq!(debug_lines("node-1")?, 0, "verbosity 2 is not chatty");
    cluster
        .control_plane
        .apply(&original.replace("logVerbosity: 2", "logVerbosity: 4"))?;
    cluster.ready("fleet", 2)?;
    cluster
        .control_plane
        .kubectl(&["annotate", "service", "web", "touched=yes"])?;
    for node in &cluster.nodes {
        eventually("lines of the higher verbosity", LIMIT, || {
            Ok(debug_lines(node.name())? > 0)
        })?;
        assert!(cluster.agent(node.name())?.process().is_running());
    }
    Ok(())
}

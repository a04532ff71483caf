//! Parts that fail: traffic goes on, and what changed in between is followed afterwards.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use pointsman_e2e::{
    Agent, Cluster, ControlPlane, Fabric, NodeNet, Operator, Options, Toolchain,
    agent::Source,
    cluster::{LIMIT, note, section},
    observe::eventually,
    sysctl,
    traffic::{Client, Flood, Protocol},
    workload::{WebPod, read_example},
};

const ESTABLISHED: &str = "net.netfilter.nf_conntrack_tcp_timeout_established";

#[test]
fn traffic_survives_what_fails_and_changes_are_followed_afterwards() -> Result<()> {
    let (toolchain, fabric) = (Toolchain::locate()?, Fabric::new()?);
    let control_plane = ControlPlane::start(&toolchain, &fabric, Options::default())?;
    let mut cluster = Cluster::start(
        &toolchain,
        &fabric,
        &control_plane,
        &[("node-1", &[]), ("node-2", &[])],
    )?;
    control_plane.apply(&read_example("policy-fleet.yaml")?)?;
    cluster.ready("fleet", 2)?;
    let floods = floods(&cluster);

    section("agent killed", || an_agent_is_killed_and_comes_back(&mut cluster))?;
    section("API server away", || {
        the_api_server_goes_away_and_comes_back(&mut cluster)
    })?;
    section("API server frozen", || the_api_server_freezes(&mut cluster))?;
    section("one of two operators leads", || {
        one_of_two_operators_leads(&mut cluster)
    })?;
    section("leader killed, node cut off", || {
        a_leader_dies_while_a_node_is_cut_off(&mut cluster)
    })?;

    for flood in floods {
        let tally = flood
            .stop_without_loss()
            .context("traffic was disturbed by one of the failures")?;
        note(format_args!("{tally}"));
    }
    Ok(())
}

/// From every node, to both VIPs.
fn floods(cluster: &Cluster<'_>) -> Vec<Flood> {
    let from = |node: &NodeNet| {
        let client = Client::of(node.namespace());
        cluster.vips.map(|vip| client.flood(Protocol::Tcp, vip))
    };
    cluster.nodes.iter().flat_map(from).collect()
}

/// How often an agent, or one before it on its node, has said that it did not reach the API server.
fn failures(agent: &Agent) -> Result<usize> {
    let log = std::fs::read_to_string(agent.process().log())?;
    Ok(log
        .lines()
        .filter(|line| line.contains("the watch fails"))
        .count())
}

/// Adds a pod and returns how long every node took, counted from the last answer of the API server.
fn add_pod(cluster: &mut Cluster<'_>, on: usize, name: &str) -> Result<Duration> {
    let pod = WebPod::start(cluster.control_plane, &cluster.nodes[on], name)?;
    let began = Instant::now();
    cluster.web.push(pod);
    for node in &cluster.nodes {
        reaches(cluster, node, name)?;
    }
    Ok(began.elapsed())
}

fn reaches(cluster: &Cluster<'_>, node: &NodeNet, pod: &str) -> Result<Duration> {
    Client::of(node.namespace()).until_answered_by(Protocol::Tcp, cluster.vips[0], &[pod], LIMIT)
}

/// Changes the policy and waits until the nodes have it.
fn edit_policy(cluster: &Cluster<'_>, seconds: u32) -> Result<()> {
    let edited = read_example("policy-fleet.yaml")?.replace("86400", &seconds.to_string());
    cluster.control_plane.apply(&edited)?;
    cluster.ready("fleet", 2)?;
    for node in &cluster.nodes {
        assert_eq!(sysctl::read(node.namespace(), ESTABLISHED)?, seconds.to_string());
    }
    Ok(())
}

fn an_agent_is_killed_and_comes_back(cluster: &mut Cluster<'_>) -> Result<()> {
    cluster.agent("node-2")?.process().kill9()?;
    let pod = WebPod::start(cluster.control_plane, &cluster.nodes[0], "web-while-dead")?;
    cluster.web.push(pod);
    reaches(cluster, &cluster.nodes[0], "web-while-dead")?;
    // The other one forwards as it did.
    let tally = Client::of(cluster.nodes[1].namespace()).many(Protocol::Tcp, cluster.vips[0], 40)?;
    assert_eq!((tally.lost(), tally.by("web-while-dead")), (0, 0), "{tally}");
    let began = Instant::now();
    let agent = cluster.installation.agent(&cluster.nodes[1])?;
    cluster.agents.insert("node-2".to_owned(), agent);
    reaches(cluster, &cluster.nodes[1], "web-while-dead")?;
    note(format_args!(
        "an agent that comes back forwards to a new endpoint after {:?}",
        began.elapsed()
    ));
    cluster.ready("fleet", 2)?;
    Ok(())
}

fn the_api_server_goes_away_and_comes_back(cluster: &mut Cluster<'_>) -> Result<()> {
    let kubeconfig = cluster.installation.agent_kubeconfig(&cluster.nodes[1])?;
    cluster.control_plane.stop_api_server()?;
    // An agent that starts without the API server leaves the rules of the one before as they are.
    assert!(
        cluster.agent("node-2")?.process().stop(Duration::from_secs(10))?,
        "the agent did not end by itself"
    );
    let before = failures(cluster.agent("node-2")?)?;
    let agent = Agent::start(&cluster.nodes[1], Source::Kubeconfig(&kubeconfig))?;
    eventually(
        "the agent to say that it cannot reach the API server",
        LIMIT,
        || Ok(failures(&agent)? > before),
    )?;
    ensure!(
        agent.health("/healthz")?.0 != 200,
        "it has not seen the Services yet, so it is not healthy"
    );
    ensure!(agent.health("/livez")?.0 == 200, "a restart would not help it");
    cluster.agents.insert("node-2".to_owned(), agent);
    for node in &cluster.nodes {
        let tally = Client::of(node.namespace()).many(Protocol::Tcp, cluster.vips[0], 100)?;
        assert_eq!(tally.lost(), 0, "{tally}");
    }

    cluster.control_plane.start_api_server()?;
    restart_ended_operators(cluster)?;
    let took = add_pod(cluster, 0, "web-after-restart")?;
    note(format_args!(
        "after the API server came back the agents followed a change within {took:?}"
    ));
    edit_policy(cluster, 7200)
}

/// As a kubelet would: an operator that lost its Lease ends.
fn restart_ended_operators(cluster: &mut Cluster<'_>) -> Result<()> {
    for operator in &mut cluster.operators {
        if !operator.process().is_running() {
            *operator = cluster.installation.operator()?;
        }
    }
    Ok(())
}

fn the_api_server_freezes(cluster: &mut Cluster<'_>) -> Result<()> {
    let frozen = cluster.control_plane.freeze_api_server()?;
    for node in &cluster.nodes {
        let flood = Client::of(node.namespace()).flood(Protocol::Tcp, cluster.vips[0]);
        flood.wait_for(1000, LIMIT)?;
        flood.stop_without_loss()?;
    }
    for (node, agent) in &cluster.agents {
        assert_eq!(
            agent.health("/healthz")?.0,
            200,
            "{node} holds what it knows, so it is healthy"
        );
    }
    drop(frozen);
    let took = add_pod(cluster, 0, "web-after-thaw")?;
    note(format_args!(
        "after the API server went on the agents followed a change within {took:?}"
    ));
    restart_ended_operators(cluster)?;
    edit_policy(cluster, 7300)
}

fn leads(operator: &Operator) -> Result<bool> {
    let (_, metrics) = operator.get("/metrics")?;
    Ok(metrics.lines().any(|line| line == "pointsman_operator_leader 1"))
}

fn one_of_two_operators_leads(cluster: &mut Cluster<'_>) -> Result<()> {
    cluster.operators.push(cluster.installation.operator_at(8081)?);
    let [first, second] = cluster.operators.as_slice() else {
        bail!("there should be two operators")
    };
    eventually("the first one to lead", LIMIT, || leads(first))?;
    assert!(!leads(second)?, "both lead");
    assert_eq!(second.get("/readyz")?.0, 200, "standing by is being ready");
    let writes = |operator: &Operator| -> Result<BTreeSet<String>> {
        let (_, metrics) = operator.get("/metrics")?;
        let is_write = |line: &&str| line.starts_with("pointsman_operator_writes_total");
        Ok(metrics.lines().filter(is_write).map(str::to_owned).collect())
    };
    edit_policy(cluster, 7400)?;
    assert!(!writes(first)?.is_empty());
    assert!(writes(second)?.is_empty(), "the one that stands by has written");
    Ok(())
}

/// Two failures at the same time: each takes its 15 s, and neither has to do with the other.
fn a_leader_dies_while_a_node_is_cut_off(cluster: &mut Cluster<'_>) -> Result<()> {
    let began = Instant::now();
    let failures_before = failures(cluster.agent("node-2")?)?;
    let cut = cluster.control_plane.cut_off(&cluster.nodes[1])?;
    cluster.operators[0].process().signal(Signal::SIGKILL)?;

    // Endpoints are the agents' business, and the node that is not cut off goes on.
    let pod = WebPod::start(cluster.control_plane, &cluster.nodes[0], "web-while-cut")?;
    cluster.web.push(pod);
    reaches(cluster, &cluster.nodes[0], "web-while-cut")?;

    let (mut noticed, mut taken_over) = (None, None);
    eventually("the cut to be noticed and the standby to lead", LIMIT, || {
        if noticed.is_none() && failures(cluster.agent("node-2")?)? > failures_before {
            noticed = Some(began.elapsed());
        }
        if taken_over.is_none() && leads(&cluster.operators[1])? {
            taken_over = Some(began.elapsed());
        }
        Ok(noticed.is_some() && taken_over.is_some())
    })?;
    let noticed = noticed.context("not noticed")?;
    note(format_args!(
        "the cut was noticed after {noticed:?}; the standby led after {:?}",
        taken_over.unwrap_or_default()
    ));
    ensure!(
        noticed < Duration::from_secs(15),
        "a dead connection was noticed only after {noticed:?}"
    );

    drop(cut);
    let healed = Instant::now();
    reaches(cluster, &cluster.nodes[1], "web-while-cut")?;
    note(format_args!(
        "after healing the node caught up within {:?}",
        healed.elapsed()
    ));
    cluster.operators.remove(0);
    edit_policy(cluster, 7500)
}

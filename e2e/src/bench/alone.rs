//! Our agent alone, with more Services than an API server is needed for: it reads them from `--manifests`.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Commits, Size, Summary, metrics, rules,
    statistics::round,
    usage::{self, between, mebibytes, milliseconds},
};
use crate::{
    Agent, Fabric, NodeNet,
    agent::Source,
    manifests::{Manifests, Node, Policy, Service, Slice},
    network::CLUSTER_CIDRS,
    traffic::Protocol,
};

/// Services in one file.
const FILE: usize = 1000;
/// How long a full sync may take.
const LIMIT: Duration = Duration::from_secs(600);
/// No commit follows one that ends a sync for this long.
const QUIET: Duration = Duration::from_secs(1);

/// The figures.
#[derive(Clone, Debug, Serialize)]
pub struct Alone {
    /// How many Services.
    pub services: usize,
    /// How many endpoints each.
    pub endpoints_per_service: usize,
    /// From the start of the process, which reads the files first, until the last commit.
    pub start_to_last_commit_ms: f64,
    /// From the first commit to the last.
    pub first_to_last_commit_ms: f64,
    /// How many commits that was.
    pub commits: usize,
    /// The agent's own metric of full syncs: computing and committing, without reading.
    pub own_metric_ms: Option<f64>,
    /// Processor time until then, reading included.
    pub cpu_ms: f64,
    /// From the moment a manifest with another endpoint was in place until the commit. The agent waits until a file
    /// has been quiet for 20 ms: that is in it.
    pub change_ms: Summary,
    /// Processor time for a change.
    pub cpu_ms_per_change: f64,
    /// The most resident memory (VmHWM), in MiB.
    pub peak_rss_mb: f64,
    /// Resident memory at the end, in MiB.
    pub rss_mb: f64,
    /// Rules in the kernel.
    pub rules: u64,
    /// Chains in the kernel.
    pub chains: u64,
}

/// Measures it on a node of its own.
///
/// # Errors
/// When the agent does not start or sync.
pub fn measure(size: Size, changes: usize, progress: &dyn Fn(&str)) -> Result<Alone> {
    progress(&format!("{size} alone: writing manifests"));
    let fabric = Fabric::new()?;
    let node = fabric.node("alone")?;
    let manifests = write(size, &node)?;
    let commits = Commits::listen(node.namespace())?;

    progress(&format!("{size} alone: full sync"));
    let began = Instant::now();
    let agent = Agent::start(&node, Source::Manifests(manifests.path()))?;
    agent.wait_until_healthy(LIMIT)?;
    let synced = commits.settled(began, QUIET, LIMIT)?;
    let (first, last) = synced
        .first()
        .zip(synced.last())
        .context("nothing was committed")?;
    let process = agent.process();
    let cpu_at_sync = usage::cpu(process)?;
    let (_, text) = agent.metrics("/metrics")?;
    let own = metrics::sum(&text, "kubeproxy_sync_full_proxy_rules_duration_seconds_sum");

    progress(&format!("{size} alone: {changes} changes"));
    let mut times = Vec::new();
    for number in 1..=changes {
        let before = Instant::now();
        manifests.put("changed.yaml", changing(number))?;
        let written = Instant::now();
        let arrived = commits.settled(before, Duration::from_millis(150), LIMIT)?;
        let last = arrived.last().context("nothing was committed")?;
        times.push(milliseconds(last.at.saturating_duration_since(written)));
    }
    let used = between(cpu_at_sync, usage::cpu(process)?).total();
    let counted = rules::nftables(node.namespace())?;
    let result = Alone {
        services: size.services,
        endpoints_per_service: size.endpoints,
        start_to_last_commit_ms: round(milliseconds(last.at - began)),
        first_to_last_commit_ms: round(milliseconds(last.at - first.at)),
        commits: synced.len(),
        own_metric_ms: own.map(|seconds| round(seconds * 1e3)),
        cpu_ms: round(milliseconds(cpu_at_sync.total())),
        change_ms: Summary::of(times),
        cpu_ms_per_change: round(milliseconds(used) / changes.max(1) as f64),
        peak_rss_mb: round(mebibytes(process.peak_memory()?)),
        rss_mb: round(mebibytes(usage::resident(process).unwrap_or(0))),
        rules: counted.rules,
        chains: counted.chains,
    };
    process.stop(Duration::from_secs(30))?;
    Ok(result)
}

fn write(size: Size, node: &NodeNet) -> Result<Manifests> {
    let manifests = Manifests::new()?;
    let policy = Policy::new("bench")
        .set("mode", "NFTables")
        .set("syncPeriodSeconds", 3600)
        .set("minSyncPeriodMilliseconds", 0)
        .set(
            "detectLocal",
            json!({"mode": "ClusterCIDR", "clusterCIDRs": CLUSTER_CIDRS}),
        );
    manifests.put("node.yaml", [Value::from(policy), Node::of(node).into()])?;
    manifests.put("changed.yaml", changing(0))?;
    let all: Vec<usize> = (1..size.services).collect();
    for (number, services) in all.chunks(FILE).enumerate() {
        let all = services
            .iter()
            .flat_map(|&service| objects(service, endpoints(service, size.endpoints)))
            .collect::<Vec<_>>();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": all});
        manifests.put_text(&format!("services-{number:03}.json"), &list.to_string())?;
    }
    Ok(manifests)
}

/// The Service with the number 0, with one endpoint, which alternates.
fn changing(step: usize) -> [Value; 2] {
    let host = if step.is_multiple_of(2) { 2 } else { 3 };
    objects(0, [Ipv4Addr::new(10, 244, 255, host)])
}

/// A Service and its slice. Its port is its own, so that no two Services mean the same endpoints.
fn objects(number: usize, endpoints: impl IntoIterator<Item = Ipv4Addr>) -> [Value; 2] {
    let name = format!("service-{number:05}");
    let [.., high, low] = (number + 256).to_be_bytes();
    let service = Service::new(&name)
        .cluster_ip(Ipv4Addr::new(10, 96, high, low))
        .port("http", Protocol::Tcp, 80);
    let port = u16::try_from(1024 + number).unwrap_or(u16::MAX);
    let slice = endpoints.into_iter().fold(
        Slice::v4(&name).port("http", Protocol::Tcp, port),
        |slice, address| slice.endpoint(address, "elsewhere"),
    );
    [service.into(), slice.into()]
}

/// Addresses of pods on nodes that are not there.
fn endpoints(service: usize, count: usize) -> impl Iterator<Item = Ipv4Addr> {
    let octet = |value: usize| u8::try_from(value).unwrap_or(u8::MAX);
    (service * count..)
        .take(count)
        .map(move |place| Ipv4Addr::new(10, 244, octet(16 + place / 250 % 238), octet(2 + place % 250)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_service_has_its_own_address_and_distinct_endpoints() {
        let mut addresses = BTreeSet::new();
        for number in [0, 1, 255, 256, 49_999] {
            let [service, slice] = objects(number, endpoints(number, 5));
            assert!(
                addresses.insert(service["spec"]["clusterIP"].to_string()),
                "{service}"
            );
            assert_eq!(slice["endpoints"].as_array().map(Vec::len), Some(5));
            let distinct: BTreeSet<_> = endpoints(number, 5).collect();
            assert_eq!(distinct.len(), 5);
        }
    }
}

//! Our agent alone, in the test kernel, with more Services than an API server is needed for: it reads them from files.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    SERVERS, Tap, Watcher,
    inside::{self, FIRST_PACKETS, GAP},
    report::{Alone, Netlink},
};
use crate::{
    Agent, Fabric, NodeNet,
    agent::Source,
    bench::{
        Backends, Places, Size, Summary,
        backends::Backend,
        load::probe_places,
        packets, pause,
        statistics::round,
        usage::{self, between, mebibytes, milliseconds},
    },
    manifests::{Manifests, Node, Policy, Service, Slice},
    network::CLUSTER_CIDRS,
    peer::SCHEDULER,
    traffic::Protocol,
};

/// Services in one file.
const FILE: usize = 1000;
/// How long a full sync may take.
const LIMIT: Duration = Duration::from_secs(600);
/// The port of every Service.
const PORT: u16 = 80;

/// Measures it in the test kernel.
///
/// # Errors
/// When the agent does not start or sync.
pub fn measure(mode: &str, size: Size, changes: usize, say: &dyn Fn(&str)) -> Result<Alone> {
    let fabric = Fabric::new()?;
    let servers = fabric.node(SERVERS)?;
    let backends = Backends::start(&servers)?;
    let node = fabric.node("alone")?;
    let client = node.add_pod("client")?;
    say("writing manifests");
    let alone = Objects {
        size,
        places: backends.places(),
        probes: probe_places(size.services),
    };
    let manifests = alone.write(mode, &node)?;
    let (tap, watcher) = (Tap::on(&node)?, Watcher::on(&node)?);

    say("full sync");
    let (began, clock) = (Instant::now(), SystemTime::now());
    let agent = Agent::start(&node, Source::Manifests(manifests.path()))?;
    let process = agent.process();
    let context = || format!("the end of its log:\n{}", process.log_tail(20));
    let meanwhile = || {
        ensure!(process.is_running(), "it ended");
        Ok(())
    };
    let probes = (0..alone.probes.len()).map(|probe| (alone.vip(probe), alone.server(probe, Backend::A)));
    let expected = inside::expected(size, alone.probes.len());
    inside::wait_for_sync(&watcher, probes, expected, LIMIT, meanwhile).with_context(context)?;
    agent.wait_until_healthy(LIMIT)?;
    let cpu = usage::cpu(process)?;
    let full_sync = inside::full_sync(&tap, &watcher, clock, began.elapsed(), cpu, expected)?;

    say(&format!(
        "synced in {:.0} ms; {changes} changes",
        full_sync.last_command_ms
    ));
    let (mut times, mut gaps) = (Vec::new(), Vec::new());
    let change = |number: usize| {
        let probe = number % alone.probes.len();
        let to = alone.backend(probe, number + 1);
        let put = || {
            manifests.put(&file_of_probe(probe), alone.probe(probe, to))?;
            Ok(Instant::now())
        };
        let done = watcher.watch(alone.vip(probe), alone.server(probe, to), LIMIT, put);
        let done = done.with_context(context)?;
        pause(GAP)?;
        anyhow::Ok(done)
    };
    let (before, asked) = (tap.counts(), watcher.asked());
    for number in 0..changes {
        let (written, seen) = change(number)?;
        times.push(milliseconds(seen.arrived.saturating_duration_since(written)));
        gaps.extend(seen.gaps.into_iter().map(milliseconds));
    }
    let used = between(cpu, usage::cpu(process)?).total();
    let counts = tap.counts().since(&before);

    say("packets");
    let vips = (0..alone.probes.len()).map(|probe| alone.vip(probe));
    // The server that it does not lead to, as for both sides.
    let direct =
        (0..alone.probes.len()).map(|probe| alone.server(probe, alone.backend(probe, changes).other()));
    let targets: Vec<_> = vips.chain(direct).collect();
    let mut first = packets::first_packets(client.namespace(), &targets, FIRST_PACKETS)?;
    let direct = first.split_off(alone.probes.len());
    let first_packet_us = Summary::of(first.into_iter().flatten());
    let direct_first_packet_us = Summary::of(direct.into_iter().flatten());
    let result = Alone {
        services: size.services,
        endpoints_per_service: size.endpoints,
        full_sync,
        change_ms: Summary::of(times),
        cpu_ms_per_change: round(milliseconds(used) / changes.max(1) as f64),
        netlink_per_change: Netlink::of(&counts.without_questions(watcher.asked() - asked), changes),
        watcher_gap_ms: Summary::of(gaps),
        peak_rss_mb: round(mebibytes(process.peak_memory()?)),
        rss_mb: round(mebibytes(usage::resident(process).unwrap_or(0))),
        lookup_us: inside::lookup(&first_packet_us, &direct_first_packet_us),
        first_packet_us,
        direct_first_packet_us,
    };
    process.stop(Duration::from_secs(60))?;
    Ok(result)
}

/// What the files have.
struct Objects<'a> {
    size: Size,
    places: &'a Places,
    /// Which Services are probes: their endpoints are really served.
    probes: Vec<usize>,
}

impl Objects<'_> {
    fn write(&self, mode: &str, node: &NodeNet) -> Result<Manifests> {
        let manifests = Manifests::new()?;
        let policy = Policy::new("bench")
            .set("mode", mode)
            .set("scheduler", SCHEDULER)
            .set("syncPeriodSeconds", 3600)
            .set("minSyncPeriodMilliseconds", 0)
            .set(
                "detectLocal",
                json!({"mode": "ClusterCIDR", "clusterCIDRs": CLUSTER_CIDRS}),
            );
        manifests.put("node.yaml", [Value::from(policy), Node::of(node).into()])?;
        for probe in 0..self.probes.len() {
            manifests.put(&file_of_probe(probe), self.probe(probe, Backend::A))?;
        }
        let others: Vec<usize> = (0..self.size.services)
            .filter(|service| self.probes.binary_search(service).is_err())
            .collect();
        for (number, services) in others.chunks(FILE).enumerate() {
            let all = services.iter().flat_map(|&service| {
                let endpoints = endpoints(service, self.size.endpoints);
                objects(service, other_port(service), endpoints)
            });
            let list = json!({"apiVersion": "v1", "kind": "List", "items": all.collect::<Vec<_>>()});
            manifests.put_text(&format!("services-{number:03}.json"), &list.to_string())?;
        }
        Ok(manifests)
    }

    /// Which server a probe leads to after so many changes, which go through the probes in turns.
    fn backend(&self, probe: usize, changes: usize) -> Backend {
        let changed = (changes + self.probes.len() - 1 - probe) / self.probes.len();
        match changed.is_multiple_of(2) {
            true => Backend::A,
            false => Backend::B,
        }
    }

    fn vip(&self, probe: usize) -> SocketAddr {
        let service = self.probes.get(probe).copied().unwrap_or_default();
        (address(service), PORT).into()
    }

    fn server(&self, probe: usize, backend: Backend) -> SocketAddr {
        (self.places.address(backend), Backends::port(probe)).into()
    }

    fn probe(&self, probe: usize, backend: Backend) -> [Value; 2] {
        let service = self.probes.get(probe).copied().unwrap_or_default();
        objects(service, Backends::port(probe), [self.places.address(backend)])
    }
}

fn file_of_probe(probe: usize) -> String {
    format!("probe-{probe}.yaml")
}

/// A Service and its slice.
fn objects(service: usize, port: u16, endpoints: impl IntoIterator<Item = Ipv4Addr>) -> [Value; 2] {
    let name = format!("service-{service:06}");
    let object = Service::new(&name)
        .cluster_ip(address(service))
        .port("http", Protocol::Tcp, PORT);
    let slice = endpoints.into_iter().fold(
        Slice::v4(&name).port("http", Protocol::Tcp, port),
        |slice, address| slice.endpoint(address, "elsewhere"),
    );
    [object.into(), slice.into()]
}

/// 10.96.1.0 and up.
fn address(service: usize) -> Ipv4Addr {
    let first = u32::from(Ipv4Addr::new(10, 96, 1, 0));
    Ipv4Addr::from(first + u32::try_from(service).unwrap_or(0))
}

/// Together with the addresses it is a Service's own, so that no two Services mean the same endpoints.
fn other_port(service: usize) -> u16 {
    10_000 + u16::try_from(service % 50_000).unwrap_or(0)
}

/// Addresses of pods on nodes that are not there.
fn endpoints(service: usize, count: usize) -> impl Iterator<Item = Ipv4Addr> {
    const NODES: usize = 230;
    const PODS: usize = 250;
    let octet = |value: usize| u8::try_from(value).unwrap_or(u8::MAX);
    (service * count..).take(count).map(move |place| {
        let node = place / PODS % NODES;
        Ipv4Addr::new(10, 244, octet(16 + node), octet(2 + place % PODS))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn probes_are_changed_in_turns() {
        let places = Places {
            node: "servers".to_owned(),
            addresses: [Ipv4Addr::LOCALHOST; 2],
        };
        let objects = Objects {
            size: Size {
                services: 3,
                endpoints: 1,
            },
            places: &places,
            probes: vec![0, 1, 2],
        };
        let after = |changes| [0, 1, 2].map(|probe| objects.backend(probe, changes).byte());
        assert_eq!(after(0), *b"AAA");
        assert_eq!(after(1), *b"BAA");
        assert_eq!(after(3), *b"BBB");
        assert_eq!(after(4), *b"ABB");
    }

    #[test]
    fn every_service_has_its_own_address_and_endpoints() {
        let (mut addresses, mut all) = (BTreeSet::new(), BTreeSet::new());
        for service in 0..100_000 {
            assert!(addresses.insert(address(service)));
            for endpoint in endpoints(service, 2) {
                assert!(all.insert((endpoint, other_port(service))), "{service}");
            }
        }
        assert_eq!(all.len(), 200_000);
    }
}

//! What a change costs a backend when there is much.

#![allow(clippy::print_stdout, reason = "it prints what it measures")]

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use pointsman_dataplane::backend::Backend;
use pointsman_dataplane::model::{
    Diff, Endpoint, EndpointPort, EndpointSlice, Family, ForwardingTable, Protocol, Service, ServiceName,
    ServicePort, compile,
};

use super::namespace::Namespace;

const ENDPOINTS: u32 = 10;

fn address(base: u32, at: u32) -> IpAddr {
    Ipv4Addr::from_bits(base + at).into()
}

/// Service `at` with this many endpoints.
fn set(table: &mut ForwardingTable, diff: &mut Diff, at: u32, endpoints: u32) {
    let service = Service {
        name: ServiceName::new("default", &format!("service-{at}")),
        created: 0,
        cluster_ips: vec![address(0x0a60_0001, at)],
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
        }],
        ..Service::default()
    };
    let slice = EndpointSlice {
        family: Family::V4,
        ports: vec![EndpointPort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        endpoints: (0..endpoints)
            .map(|nth| Endpoint {
                address: address(0x0a80_0001, at * ENDPOINTS + nth),
                ready: true,
                serving: true,
                terminating: false,
                local: at.is_multiple_of(100) && nth == 0,
                unplaced: false,
                for_nodes: None,
                common: None,
            })
            .collect(),
    };
    table.set(compile(&service, [&slice], table.context()), diff);
}

/// CPU time of this process and of the programs that it waited for.
fn cpu() -> Duration {
    [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN]
        .into_iter()
        .map(|who| {
            let usage = getrusage(who).unwrap();
            [usage.user_time(), usage.system_time()]
                .into_iter()
                .map(|time| {
                    Duration::from_micros((time.tv_sec() * 1_000_000 + time.tv_usec()).cast_unsigned())
                })
                .sum::<Duration>()
        })
        .sum()
}

fn resident_kib() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T
where
    T: std::fmt::Debug,
{
    let (begin, used) = (Instant::now(), cpu());
    let result = work();
    println!(
        "  {what}: {:?} (CPU {:?}) {result:?}",
        begin.elapsed(),
        cpu() - used
    );
    result
}

/// Prints what a backend takes for a full load and for changes, and demands that the cost of a change follows the change.
pub fn cost(what: &str, make: impl FnOnce() -> Box<dyn Backend> + Send) {
    let services: u32 = std::env::var("POINTSMAN_SCALE").map_or(100, |text| text.parse().unwrap());
    println!("{what}, {services} Services x {ENDPOINTS} endpoints");
    Namespace::new().run(|| {
        let mut backend = make();
        let mut table = ForwardingTable::default();
        (0..services).for_each(|at| set(&mut table, &mut Diff::default(), at, ENDPOINTS));
        let before = resident_kib();
        timed("full sync of an empty kernel", || backend.sync(&table).unwrap());
        println!(
            "  resident memory after it: {} KiB more",
            resident_kib().saturating_sub(before)
        );

        let mut change = |what: &str, at, endpoints| {
            let mut diff = Diff::default();
            set(&mut table, &mut diff, at, endpoints);
            timed(what, || backend.apply(&table, &diff).unwrap())
        };
        for round in 0..5 {
            let report = change("one endpoint less", services / 2, ENDPOINTS - 1 - round);
            assert!(report.bytes < 3000 && report.objects < 20, "{report:?}");
        }
        let report = change("a Service more", services, ENDPOINTS);
        // A bucket, in both tables, and the pool, or elements: what its neighbours are, not what there is.
        assert!(
            report.bytes < 2500 + 400 * (services as usize / 256 + 1),
            "{report:?}"
        );
        change("its last endpoint gone", services, 0);
        change("an endpoint again", services, 1);

        assert!(timed("observe", || backend.observe().unwrap()).is_clean());
        let report = timed("sync without a difference", || backend.sync(&table).unwrap());
        assert_eq!((report.objects, report.bytes), (0, 0));
        timed("teardown", || backend.teardown(None).unwrap());
    });
}

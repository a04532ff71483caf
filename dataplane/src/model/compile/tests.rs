use proptest::prelude::*;

use super::*;
use crate::model::testing::random::{any_context, any_service, any_slices};
use crate::model::testing::{context, ip, port, ready, service, slice};
use crate::model::{
    Common, Diff, Endpoint, ForwardingTable, Protocol, Scheduler, SchedulerKind, Settings, Weight,
};

fn endpoints(compiled: &Compiled) -> Vec<String> {
    compiled
        .pools
        .iter()
        .flat_map(|(_, pool)| &pool.endpoints)
        .map(|e| e.address.to_string())
        .collect()
}

fn kinds(compiled: &Compiled) -> Vec<(FrontendKind, bool)> {
    let rejects = |frontend: &Frontend| frontend.action == Action::Reject;
    compiled
        .frontends
        .iter()
        .map(|(_, frontend)| (frontend.kind, rejects(frontend)))
        .collect()
}

#[test]
fn every_address_of_a_service_is_a_frontend() {
    let mut all = service("web", &["10.96.0.1"]);
    all.external_ips = vec![ip("203.0.113.1")];
    all.load_balancer_ips = vec![ip("198.51.100.1")];
    all.ports[0].node_port = Some(30080);
    let compiled = compile(&all, &[slice(&["10.244.1.5"])], &context());
    let expected = [
        FrontendKind::ClusterIP,
        FrontendKind::LoadBalancerIP,
        FrontendKind::ExternalIP,
        FrontendKind::NodePort,
    ];
    assert_eq!(kinds(&compiled), expected.map(|kind| (kind, false)));
    assert_eq!(endpoints(&compiled), ["10.244.1.5:8080"]);
    assert!(compiled.problems.is_empty());
}

#[test]
fn only_ready_endpoints_get_connections_until_there_are_none() {
    let mut slice = slice(&["10.0.1.1", "10.0.1.2", "10.0.1.3"]);
    slice.endpoints[0] = Endpoint {
        ready: false,
        serving: false,
        ..slice.endpoints[0].clone()
    };
    slice.endpoints[1] = Endpoint {
        ready: false,
        terminating: true,
        ..slice.endpoints[1].clone()
    };
    let web = service("web", &["10.96.0.1"]);
    assert_eq!(
        endpoints(&compile(&web, &[slice.clone()], &context())),
        ["10.0.1.3:8080"]
    );
    slice.endpoints.pop();
    assert_eq!(
        endpoints(&compile(&web, &[slice.clone()], &context())),
        ["10.0.1.2:8080"]
    );
    slice.endpoints.pop();
    let compiled = compile(&web, &[slice], &context());
    assert_eq!(
        (endpoints(&compiled).len(), kinds(&compiled)),
        (0, vec![(FrontendKind::ClusterIP, true)])
    );
}

#[test]
fn slices_are_joined_by_port_name_and_protocol() {
    let mut web = service("web", &["10.96.0.1"]);
    web.ports = vec![port("dns", Protocol::Udp, 53), port("dns-tcp", Protocol::Tcp, 53)];
    let mut named = slice(&["10.0.1.1"]);
    named.ports = vec![
        EndpointPortOf("dns", Protocol::Udp, 1053).into(),
        EndpointPortOf("dns-tcp", Protocol::Tcp, 2053).into(),
        EndpointPortOf("dns", Protocol::Tcp, 3053).into(),
    ];
    assert_eq!(
        endpoints(&compile(&web, &[named], &context())),
        ["10.0.1.1:1053", "10.0.1.1:2053"]
    );
}

struct EndpointPortOf(&'static str, Protocol, u16);

impl From<EndpointPortOf> for crate::model::EndpointPort {
    fn from(EndpointPortOf(name, protocol, port): EndpointPortOf) -> Self {
        Self {
            name: name.into(),
            protocol,
            port,
        }
    }
}

#[test]
fn an_endpoint_in_two_slices_counts_once() {
    let mut moved = slice(&["10.0.1.1", "10.0.1.2"]);
    moved.endpoints[0].local = true;
    let web = service("web", &["10.96.0.1"]);
    let compiled = compile(&web, &[slice(&["10.0.1.1"]), moved], &context());
    assert_eq!(endpoints(&compiled), ["10.0.1.1:8080", "10.0.1.2:8080"]);
    assert!(compiled.pools[0].1.endpoints[0].local);
}

#[test]
fn an_endpoint_without_a_node_may_call_itself_and_is_not_local() {
    let mut written_by_hand = slice(&["10.0.1.1"]);
    written_by_hand.endpoints[0].unplaced = true;
    let mut web = service("web", &["10.96.0.1"]);
    let compiled = compile(&web, [&written_by_hand], &context());
    assert!(compiled.pools[0].1.endpoints[0].local);

    web.internal_policy = TrafficPolicy::Local;
    let compiled = compile(&web, [&written_by_hand], &context());
    assert!(compiled.pools.is_empty(), "{compiled:?}");
}

#[test]
fn families_share_nothing() {
    let web = service("web", &["10.96.0.1", "fd00:96::1"]);
    let compiled = compile(&web, &[slice(&["10.0.1.1"])], &context());
    assert_eq!(
        kinds(&compiled),
        [(FrontendKind::ClusterIP, false), (FrontendKind::ClusterIP, true)]
    );
}

#[test]
fn an_address_of_a_family_that_the_service_lacks_is_left_out_and_said() {
    let mut web = service("web", &["10.96.0.1"]);
    web.external_ips = vec![ip("fd00::99"), ip("203.0.113.1")];
    let compiled = compile(&web, &[slice(&["10.0.1.1"])], &context());
    assert_eq!(compiled.frontends.len(), 2);
    let said = compiled.problems[0].to_string();
    assert!(
        said.contains("fd00::99") && said.contains("spec.ipFamilies"),
        "{said}"
    );
}

#[test]
fn impossible_endpoints_are_left_out_and_said() {
    for address in [
        "0.0.0.0",
        "127.0.0.1",
        "169.254.0.1",
        "224.0.0.1",
        "255.255.255.255",
    ] {
        let mut bad = slice(&["10.0.1.1"]);
        bad.endpoints.push(ready(address));
        let compiled = compile(&service("web", &["10.96.0.1"]), &[bad], &context());
        assert_eq!(endpoints(&compiled), ["10.0.1.1:8080"]);
        assert!(compiled.problems[0].to_string().contains(address));
    }
    let mut mixed = slice(&["10.0.1.1"]);
    mixed.endpoints.push(ready("fd00::5"));
    let compiled = compile(&service("web", &["10.96.0.1"]), &[mixed], &context());
    assert!(compiled.problems[0].to_string().contains("addressType"));
}

#[test]
fn duplicate_ports_and_second_cluster_ips_are_said() {
    let mut web = service("web", &["10.96.0.1", "10.96.0.2"]);
    web.ports.push(port("again", Protocol::Tcp, 80));
    let compiled = compile(&web, &[slice(&["10.0.1.1"])], &context());
    assert_eq!((compiled.frontends.len(), compiled.problems.len()), (1, 2));
}

#[test]
fn excluded_addresses_are_left_alone_and_the_others_stay() {
    let mut web = service("web", &["10.96.0.1"]);
    web.ports[0].node_port = Some(30080);
    let mut context = context();
    context.settings = Settings {
        exclude_cidrs: vec!["10.96.0.0/24".parse().unwrap()],
        ..context.settings
    };
    let compiled = compile(&web, &[slice(&["10.0.1.1"])], &context);
    assert_eq!(kinds(&compiled), [(FrontendKind::NodePort, false)]);
    web.ports[0].node_port = None;
    let compiled = compile(&web, &[slice(&["10.0.1.1"])], &context);
    assert!(compiled.frontends.is_empty() && compiled.pools.is_empty());
}

/// A Service with every kind of address, and the given policies.
fn all_kinds(internal: TrafficPolicy, external: TrafficPolicy) -> Service {
    let mut web = service("web", &["10.96.0.1"]);
    web.external_ips = vec![ip("203.0.113.1")];
    web.load_balancer_ips = vec![ip("198.51.100.1")];
    web.ports[0].node_port = Some(30080);
    (web.internal_policy, web.external_policy) = (internal, external);
    web
}

/// A slice with an endpoint of this node, which is the first, and one elsewhere.
fn here_and_there() -> EndpointSlice {
    let mut slice = slice(&["10.244.1.5", "10.244.2.5"]);
    slice.endpoints[0].local = true;
    slice
}

fn of_kind(compiled: &Compiled, kind: FrontendKind) -> &Frontend {
    let mut found = compiled.frontends.iter().map(|(_, frontend)| frontend);
    found.find(|frontend| frontend.kind == kind).unwrap()
}

fn pool_of(compiled: &Compiled, policy: TrafficPolicy) -> Option<Vec<String>> {
    let pool = compiled.pools.iter().find(|(key, _)| key.policy == policy)?;
    Some(
        pool.1
            .endpoints
            .iter()
            .map(|endpoint| endpoint.address.to_string())
            .collect(),
    )
}

const EXTERNAL: [FrontendKind; 3] = [
    FrontendKind::ExternalIP,
    FrontendKind::LoadBalancerIP,
    FrontendKind::NodePort,
];

#[test]
fn external_policy_local_has_two_pools_and_leaves_the_cluster_ip_alone() {
    let web = all_kinds(TrafficPolicy::Cluster, TrafficPolicy::Local);
    let compiled = compile(&web, &[here_and_there()], &context());
    for kind in EXTERNAL {
        match &of_kind(&compiled, kind).action {
            Action::External {
                inside,
                outside: Some(outside),
            } => {
                assert_eq!(
                    (inside.policy, outside.policy),
                    (TrafficPolicy::Cluster, TrafficPolicy::Local)
                );
            }
            other => panic!("{kind}: {other:?}"),
        }
    }
    assert!(matches!(
        &of_kind(&compiled, FrontendKind::ClusterIP).action,
        Action::Balance { pool, masquerade: Masquerade::NonLocal } if pool.policy == TrafficPolicy::Cluster
    ));
    assert_eq!(
        pool_of(&compiled, TrafficPolicy::Local).unwrap(),
        ["10.244.1.5:8080"]
    );
    assert_eq!(
        pool_of(&compiled, TrafficPolicy::Cluster).unwrap(),
        ["10.244.1.5:8080", "10.244.2.5:8080"]
    );
    assert!(compiled.without_local.is_empty());
}

#[test]
fn internal_policy_local_is_the_cluster_ips_alone() {
    let web = all_kinds(TrafficPolicy::Local, TrafficPolicy::Cluster);
    let compiled = compile(&web, &[here_and_there()], &context());
    let policy = |kind| match &of_kind(&compiled, kind).action {
        Action::Balance { pool, masquerade } => (pool.policy, *masquerade),
        other => panic!("{kind}: {other:?}"),
    };
    assert_eq!(
        policy(FrontendKind::ClusterIP),
        (TrafficPolicy::Local, Masquerade::NonLocal)
    );
    for kind in EXTERNAL {
        assert_eq!(policy(kind), (TrafficPolicy::Cluster, Masquerade::Always));
    }
}

#[test]
fn policy_local_without_local_endpoints_drops_and_is_counted_for_its_side() {
    let elsewhere = slice(&["10.244.2.5"]);
    let compile = |internal, external| {
        compile(
            &all_kinds(internal, external),
            std::slice::from_ref(&elsewhere),
            &context(),
        )
    };
    let both = compile(TrafficPolicy::Local, TrafficPolicy::Local);
    assert_eq!(of_kind(&both, FrontendKind::ClusterIP).action, Action::Drop);
    for kind in EXTERNAL {
        assert!(matches!(
            of_kind(&both, kind).action,
            Action::External { outside: None, .. }
        ));
    }
    let sides = [TrafficSide::Internal, TrafficSide::External].map(|side| (Family::V4, side));
    assert_eq!(both.without_local, sides);
    let internal = compile(TrafficPolicy::Local, TrafficPolicy::Cluster);
    assert_eq!(internal.without_local, sides[..1]);
    let external = compile(TrafficPolicy::Cluster, TrafficPolicy::Local);
    assert_eq!(external.without_local, sides[1..]);
    assert!(
        compile(TrafficPolicy::Cluster, TrafficPolicy::Cluster)
            .without_local
            .is_empty()
    );
}

#[test]
fn policy_local_without_any_endpoints_refuses_and_is_not_counted() {
    let web = all_kinds(TrafficPolicy::Local, TrafficPolicy::Local);
    let compiled = compile(&web, &[], &context());
    assert!(kinds(&compiled).iter().all(|(_, rejects)| *rejects));
    assert!(compiled.without_local.is_empty() && compiled.pools.is_empty());
}

#[test]
fn a_side_that_a_service_does_not_have_needs_no_pool() {
    let mut web = service("web", &["10.96.0.1"]);
    (web.internal_policy, web.external_policy) = (TrafficPolicy::Local, TrafficPolicy::Local);
    let compiled = compile(&web, &[here_and_there()], &context());
    assert_eq!(pool_of(&compiled, TrafficPolicy::Cluster), None);
    let compiled = compile(&web, &[slice(&["10.244.2.5"])], &context());
    assert_eq!(compiled.without_local, [(Family::V4, TrafficSide::Internal)]);
}

#[test]
fn only_load_balancer_ips_ask_for_the_source_and_not_without_endpoints() {
    let mut web = all_kinds(TrafficPolicy::Cluster, TrafficPolicy::Cluster);
    web.source_ranges = Some(vec!["203.0.113.0/24".parse().unwrap()]);
    let compiled = compile(&web, &[here_and_there()], &context());
    for (_, frontend) in &compiled.frontends {
        let asks = frontend.kind == FrontendKind::LoadBalancerIP;
        assert_eq!(frontend.sources.is_some(), asks, "{}", frontend.kind);
    }
    let compiled = compile(&web, &[], &context());
    assert!(
        compiled
            .frontends
            .iter()
            .all(|(_, frontend)| frontend.sources.is_none())
    );
}

#[test]
fn source_ranges_are_of_one_family_and_include_the_load_balancer_where_they_include_the_node() {
    let sources = |ranges: &[&str]| {
        let mut web = all_kinds(TrafficPolicy::Cluster, TrafficPolicy::Cluster);
        web.source_ranges = Some(ranges.iter().map(|range| range.parse().unwrap()).collect());
        let compiled = compile(&web, &[here_and_there()], &context());
        let sources = of_kind(&compiled, FrontendKind::LoadBalancerIP).sources.clone();
        sources.map(|ranges| ranges.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(
        sources(&["203.0.113.0/24", "fd00::/8"]).unwrap(),
        ["203.0.113.0/24"]
    );
    assert_eq!(
        sources(&["192.168.0.0/24", "10.0.0.0/8", "10.0.0.0/8"]).unwrap(),
        ["10.0.0.0/8", "192.168.0.0/24", "198.51.100.1/32"]
    );
    // As kube-proxy has it: nothing is said about this family.
    assert_eq!(sources(&["fd00::/8"]), None);
    // All ranges that were given were unusable: nobody is let in by a slip of the pen.
    assert_eq!(sources(&[]).unwrap(), [""; 0]);
}

#[test]
fn a_health_check_counts_the_ready_addresses_here_once_for_all_ports() {
    let mut web = service("web", &["10.96.0.1", "fd00:96::1"]);
    web.ports = vec![port("a", Protocol::Tcp, 80), port("b", Protocol::Udp, 80)];
    web.external_policy = TrafficPolicy::Local;
    let mut first = here_and_there();
    first.ports = vec![
        EndpointPortOf("a", Protocol::Tcp, 1).into(),
        EndpointPortOf("b", Protocol::Udp, 2).into(),
    ];
    let mut second = first.clone();
    for (address, ready, terminating) in [("10.244.1.6", true, false), ("10.244.1.7", false, true)] {
        second.endpoints.push(Endpoint {
            ready: self::ready(address).ready && ready,
            terminating,
            local: true,
            ..self::ready(address)
        });
    }
    let slices = [first, second];
    assert!(compile(&web, &slices, &context()).health_checks.is_empty());
    web.health_check_port = Some(31080);
    let check = |local_endpoints| HealthCheck {
        port: 31080,
        local_endpoints,
    };
    assert_eq!(
        compile(&web, &slices, &context()).health_checks,
        [(Family::V4, check(2)), (Family::V6, check(0))]
    );
}

#[test]
fn direct_access_refuses_everything_and_has_no_pools() {
    let mut web = all_kinds(TrafficPolicy::Local, TrafficPolicy::Local);
    web.direct_access = true;
    web.health_check_port = Some(31080);
    web.source_ranges = Some(vec!["203.0.113.0/24".parse().unwrap()]);
    let compiled = compile(&web, &[here_and_there()], &context());
    assert!(
        compiled
            .frontends
            .iter()
            .all(|(_, it)| it.action == Action::Reject && it.sources.is_none())
    );
    assert_eq!((compiled.frontends.len(), compiled.pools.len()), (4, 0));
    assert!(compiled.direct_access && compiled.without_local.is_empty());
    assert_eq!(compiled.health_checks[0].1.local_endpoints, 0);
}

#[test]
fn masquerade_all_is_for_cluster_ips() {
    let mut context = context();
    context.settings.masquerade_all = true;
    let web = all_kinds(TrafficPolicy::Cluster, TrafficPolicy::Local);
    let compiled = compile(&web, &[here_and_there()], &context);
    assert!(matches!(
        of_kind(&compiled, FrontendKind::ClusterIP).action,
        Action::Balance {
            masquerade: Masquerade::Always,
            ..
        }
    ));
    assert!(matches!(
        of_kind(&compiled, FrontendKind::NodePort).action,
        Action::External { .. }
    ));
}

#[test]
fn both_pools_remember_as_long_as_the_service_says() {
    let mut web = all_kinds(TrafficPolicy::Cluster, TrafficPolicy::Local);
    web.affinity = Some(60);
    let compiled = compile(&web, &[here_and_there()], &context());
    let all: Vec<_> = compiled.pools.iter().map(|(_, pool)| pool.affinity).collect();
    assert_eq!(all, [Some(60), Some(60)]);
}

#[test]
fn an_address_that_two_fields_have_is_one_frontend_of_the_first() {
    let mut web = all_kinds(TrafficPolicy::Cluster, TrafficPolicy::Cluster);
    web.external_ips = vec![ip("10.96.0.1"), ip("198.51.100.1")];
    let compiled = compile(&web, &[here_and_there()], &context());
    let expected = [
        FrontendKind::ClusterIP,
        FrontendKind::LoadBalancerIP,
        FrontendKind::NodePort,
    ];
    assert_eq!(kinds(&compiled), expected.map(|kind| (kind, false)));
}

#[test]
fn cluster_ips_are_those_that_are_not_excluded() {
    let web = service("web", &["10.96.0.1", "fd00:96::1"]);
    let mut context = context();
    assert_eq!(
        compile(&web, &[], &context).cluster_ips,
        [ip("10.96.0.1"), ip("fd00:96::1")]
    );
    context.settings.exclude_cidrs = vec!["10.0.0.0/8".parse().unwrap()];
    assert_eq!(compile(&web, &[], &context).cluster_ips, [ip("fd00:96::1")]);
}

proptest! {
    #[test]
    fn the_order_of_slices_and_endpoints_does_not_matter(
        context in any_context(),
        service in any_service(),
        (slices, shuffled) in any_slices().prop_flat_map(|slices| {
            let inside: Vec<_> = slices
                .iter()
                .map(|slice| (Just(slice.clone()), Just(slice.endpoints.clone()).prop_shuffle(), Just(slice.ports.clone()).prop_shuffle()))
                .collect();
            let shuffled = inside
                .prop_map(|slices| slices.into_iter().map(|(slice, endpoints, ports)| EndpointSlice { endpoints, ports, ..slice }).collect::<Vec<_>>())
                .prop_flat_map(|slices| Just(slices).prop_shuffle());
            (Just(slices), shuffled)
        }),
    ) {
        let compile = |slices: &[EndpointSlice]| {
            let mut compiled = compile(&service, slices, &context);
            compiled.problems.sort_unstable();
            compiled
        };
        prop_assert_eq!(compile(&slices), compile(&shuffled));
    }

    #[test]
    fn what_is_compiled_holds_together(
        context in any_context(),
        service in any_service(),
        slices in any_slices(),
    ) {
        let compiled = compile(&service, &slices, &context);
        let keys: BTreeSet<_> = compiled.frontends.iter().map(|(key, _)| *key).collect();
        prop_assert_eq!(keys.len(), compiled.frontends.len(), "a key twice");
        let pools: BTreeSet<_> = compiled.pools.iter().map(|(key, _)| key).collect();
        prop_assert_eq!(pools.len(), compiled.pools.len(), "a pool twice");
        for key in compiled.frontends.iter().flat_map(|(_, frontend)| frontend.action.pools()) {
            prop_assert!(pools.contains(key), "{:?} is not there", key);
        }
        for (_, pool) in &compiled.pools {
            prop_assert!(pool.endpoints.is_sorted() && !pool.endpoints.is_empty());
        }
    }
}

#[test]
fn an_endpoint_exists_as_long_as_a_slice_names_it() {
    let mut context = context();
    let mut web = service("web", &["10.96.0.1"]);
    web.ports.push(port("dns", Protocol::Udp, 53));
    let mut terminating = ready("10.0.1.2");
    terminating.ready = false;
    terminating.serving = false;
    terminating.terminating = true;
    let mut slice = slice(&["10.0.1.1"]);
    slice.endpoints.push(terminating);
    let off = compile(&web, [&slice], &context);
    assert!(off.existing.is_empty(), "nobody asked for it");

    context.settings.reset_removed = true;
    let on = compile(&web, [&slice, &slice], &context);
    assert_eq!(on.existing.len(), 1, "only TCP has it");
    let addresses: Vec<_> = on.existing[0].1.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.1.1:8080", "10.0.1.2:8080"]);
    assert_eq!(on.pools[0].1.endpoints.len(), 1);

    let mut table = ForwardingTable::default();
    table.set(on, &mut Diff::default());
    slice.endpoints.truncate(1);
    let mut diff = Diff::default();
    table.set(compile(&web, [&slice], &context), &mut diff);
    assert!(diff.pools.is_empty() && diff.frontends.is_empty() && !diff.is_empty());
    assert_eq!(
        diff.existing
            .values()
            .next()
            .unwrap()
            .after
            .as_ref()
            .unwrap()
            .len(),
        1
    );
    // Without any, it is known that there is none; not so when the Service is gone.
    slice.endpoints.clear();
    table.set(compile(&web, [&slice], &context), &mut diff);
    let key = diff.existing.keys().next().unwrap().clone();
    assert_eq!(table.existing(&key).map(|addresses| addresses.len()), Some(0));
    table.remove(&web.name, &mut diff);
    assert_eq!(table.existing(&key), None);
    // Direct access stops balancing, and ends nothing.
    web.direct_access = true;
    let direct = compile(&web, [&crate::model::testing::slice(&["10.0.1.1"])], &context);
    assert_eq!(direct.existing[0].1.len(), 1);
}

/// The shares of a Service's first pool.
fn shares(compiled: &Compiled) -> Vec<(String, u8)> {
    let pool = compiled.pools.first().map(|(_, pool)| pool);
    let endpoints = pool.iter().flat_map(|pool| &pool.endpoints);
    endpoints
        .map(|it| (it.address.ip().to_string(), it.share))
        .collect()
}

fn weighing(addresses: &[&str], weight: &Weight) -> EndpointSlice {
    let mut slice = slice(addresses);
    for endpoint in &mut slice.endpoints {
        *endpoint = endpoint.clone().weighing(weight.clone());
    }
    slice
}

#[test]
fn a_slice_weighs_its_endpoints() {
    let web = service("web", &["10.96.0.1"]);
    let stable = weighing(&["10.0.1.1", "10.0.1.2"], &Weight::Given(Some(18)));
    let canary = weighing(&["10.0.1.3"], &Weight::Given(Some(2)));
    let found = shares(&compile(&web, &[stable, canary], &context()));
    assert_eq!(
        found,
        [
            ("10.0.1.1".into(), 9),
            ("10.0.1.2".into(), 9),
            ("10.0.1.3".into(), 1)
        ]
    );
    // Who is in two slices has the larger weight, in whatever order they come.
    let both = [
        weighing(&["10.0.1.1", "10.0.1.2"], &Weight::Given(Some(3))),
        weighing(&["10.0.1.2"], &Weight::Given(Some(0))),
        weighing(&["10.0.1.2", "10.0.1.3"], &Weight::USUAL),
    ];
    let expected = [
        ("10.0.1.1".into(), 3),
        ("10.0.1.2".into(), 3),
        ("10.0.1.3".into(), 1),
    ];
    assert_eq!(shares(&compile(&web, &both, &context())), expected);
    assert_eq!(shares(&compile(&web, both.iter().rev(), &context())), expected);
}

#[test]
fn a_service_weighs_its_workloads_and_slices_come_first() {
    let mut web = service("web", &["10.96.0.1"]);
    web.weights.add("web", 9);
    let stable = weighing(&["10.0.1.1"], &Weight::Workload("web-6d4cf56db6".into()));
    let other = weighing(&["10.0.1.2"], &Weight::Workload("other-6d4cf56db6".into()));
    let slice = weighing(&["10.0.1.3"], &Weight::Given(Some(3)));
    let found = shares(&compile(&web, &[stable, other, slice], &context()));
    assert_eq!(
        found,
        [
            ("10.0.1.1".into(), 9),
            ("10.0.1.2".into(), 1),
            ("10.0.1.3".into(), 3)
        ]
    );
}

#[test]
fn both_pools_of_a_service_have_its_scheduler() {
    let mut web = service("web", &["10.96.0.1"]);
    web.internal_policy = TrafficPolicy::Local;
    web.external_ips.push(ip("203.0.113.7"));
    let mut here = slice(&["10.244.1.1"]);
    here.endpoints[0].local = true;
    for kind in [None, Some(SchedulerKind::MaglevHashing)] {
        web.scheduler = kind.map(Scheduler::from);
        let compiled = compile(&web, std::slice::from_ref(&here), &context());
        let pools = compiled.pools.iter();
        let found: Vec<_> = pools.map(|(key, pool)| (key.policy, pool.scheduler)).collect();
        let expected = [TrafficPolicy::Cluster, TrafficPolicy::Local].map(|policy| (policy, web.scheduler));
        assert_eq!(found, expected);
    }
}

#[test]
fn weight_0_rests() {
    let web = service("web", &["10.96.0.1"]);
    let resting = weighing(&["10.0.1.2"], &Weight::Given(Some(0)));
    let compiled = compile(&web, &[slice(&["10.0.1.1"]), resting.clone()], &context());
    assert_eq!(endpoints(&compiled), ["10.0.1.1:8080"]);
    assert!(compiled.pools[0].1.draining.is_empty(), "TCP");
    // With nobody else the Service refuses, as if it had no endpoints.
    let compiled = compile(&web, &[resting], &context());
    assert!(compiled.pools.is_empty());
    assert_eq!(kinds(&compiled), [(FrontendKind::ClusterIP, true)]);
}

#[test]
fn udp_flows_stay_where_the_weight_became_0() {
    let mut dns = service("dns", &["10.96.0.1"]);
    dns.ports[0].protocol = Protocol::Udp;
    let of_udp = |mut slice: EndpointSlice| {
        slice.ports[0].protocol = Protocol::Udp;
        slice
    };
    let mut terminating = of_udp(slice(&["10.0.1.1", "10.0.1.4"]));
    terminating.endpoints[0].ready = false;
    terminating.endpoints[0].terminating = true;
    let resting = of_udp(weighing(&["10.0.1.0", "10.0.1.3"], &Weight::Given(Some(0))));
    let compiled = compile(&dns, &[terminating, resting], &context());
    let draining: Vec<_> = compiled.pools[0]
        .1
        .draining
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(draining, ["10.0.1.0:8080", "10.0.1.1:8080", "10.0.1.3:8080"]);
}

#[test]
fn a_resting_endpoint_is_nobody_for_hints_and_health_checks() {
    let mut web = service("web", &["10.96.0.1"]);
    web.external_policy = TrafficPolicy::Local;
    web.health_check_port = Some(31_000);
    let mut near = weighing(&["10.244.1.1"], &Weight::Given(Some(0)));
    near.endpoints[0].local = true;
    let in_zone = |zone: &str, weight| {
        let for_zones = Some([Box::from(zone)].into());
        Some(Arc::new(Common { for_zones, weight }))
    };
    near.endpoints[0].common = in_zone("zone-a", Weight::Given(Some(0)));
    let mut far = slice(&["10.244.2.1"]);
    far.endpoints[0].common = in_zone("zone-b", Weight::USUAL);
    let compiled = compile(&web, &[near, far], &context());
    assert_eq!(
        endpoints(&compiled),
        ["10.244.2.1:8080"],
        "its zone has nobody else"
    );
    assert_eq!(compiled.health_checks[0].1.local_endpoints, 0);
}

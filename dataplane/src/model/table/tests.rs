use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::model::testing::history::{Objects, step};
use crate::model::testing::random::{any_context, any_service, any_slices};
use crate::model::testing::{context, ip, service, slice};
use crate::model::{
    Destination, EndpointSlice, Family, Protocol, Scheduler, SchedulerKind, Service, Weight, compile,
};

fn key(address: &str) -> FrontendKey {
    let address = ip(address);
    let destination = Destination::Address(address);
    FrontendKey {
        family: Family::of(address),
        destination,
        protocol: Protocol::Tcp,
        port: 80,
    }
}

fn put(table: &mut ForwardingTable, diff: &mut Diff, service: &Service, slice: &EndpointSlice) {
    table.set(compile(service, [slice], &context()), diff);
}

fn owner(table: &ForwardingTable, address: &str) -> Option<String> {
    table
        .frontend(&key(address))
        .map(|frontend| frontend.owner.to_string())
}

#[test]
fn a_change_of_one_endpoint_is_one_changed_pool() {
    let (mut table, mut diff) = (ForwardingTable::default(), Diff::default());
    let web = service("web", &["10.96.0.1"]);
    put(&mut table, &mut diff, &web, &slice(&["10.0.1.1", "10.0.1.2"]));
    assert_eq!(
        (diff.frontends.len(), diff.pools.len(), table.endpoint_count()),
        (1, 1, 2)
    );
    let mut diff = Diff::default();
    put(&mut table, &mut diff, &web, &slice(&["10.0.1.1", "10.0.1.3"]));
    assert_eq!((diff.frontends.len(), diff.pools.len()), (0, 1));
    let mut diff = Diff::default();
    put(&mut table, &mut diff, &web, &slice(&["10.0.1.3", "10.0.1.1"]));
    assert!(diff.is_empty(), "the order of endpoints is no change");
}

#[test]
fn another_scheduler_is_a_changed_pool_and_another_digest() {
    let (mut table, mut diff) = (ForwardingTable::default(), Diff::default());
    let mut web = service("web", &["10.96.0.1"]);
    let mut seen = Vec::new();
    let hashing = Scheduler::from(SchedulerKind::MaglevHashing);
    let by_port = Scheduler {
        port: true,
        ..hashing
    };
    for scheduler in [None, Some(hashing), Some(by_port)] {
        web.scheduler = scheduler;
        put(&mut table, &mut diff, &web, &slice(&["10.0.1.1"]));
        assert_eq!(diff.pools.len(), 1, "{scheduler:?}");
        assert!(!seen.contains(&table.digest()), "{scheduler:?}");
        seen.push(table.digest());
        diff = Diff::default();
    }
}

#[test]
fn a_change_of_a_weight_is_one_changed_pool() {
    let (mut table, mut diff) = (ForwardingTable::default(), Diff::default());
    let web = service("web", &["10.96.0.1"]);
    let weighing = |weights: [u8; 2]| {
        let mut slice = slice(&["10.0.1.1", "10.0.1.2"]);
        for (endpoint, weight) in slice.endpoints.iter_mut().zip(weights) {
            *endpoint = endpoint.clone().weighing(Weight::Given(Some(weight)));
        }
        slice
    };
    put(&mut table, &mut diff, &web, &slice(&["10.0.1.1", "10.0.1.2"]));
    let digest = table.digest();
    let mut diff = Diff::default();
    put(&mut table, &mut diff, &web, &weighing([7, 7]));
    let changes: Vec<_> = diff.pools.values().collect();
    let (Some(before), Some(after)) = (&changes[0].before, &changes[0].after) else {
        panic!("{changes:?}");
    };
    assert_eq!(
        before.endpoints, after.endpoints,
        "equal weights are equal shares"
    );
    assert_eq!((before.unit, after.unit), (1, 7));
    put(&mut table, &mut diff, &web, &weighing([1, 9]));
    assert_eq!((diff.frontends.len(), diff.pools.len()), (0, 1));
    assert_ne!(table.digest(), digest);
    let mut diff = Diff::default();
    let digest = table.digest();
    put(&mut table, &mut diff, &web, &weighing([10, 90]));
    assert_eq!(diff.pools.len(), 1, "the same shares, but ten times the weights");
    assert_ne!(table.digest(), digest);
}

#[test]
fn there_and_back_is_no_change() {
    let (mut table, mut diff) = (ForwardingTable::default(), Diff::default());
    let web = service("web", &["10.96.0.1"]);
    put(&mut table, &mut diff, &web, &slice(&["10.0.1.1"]));
    table.remove(&web.name, &mut diff);
    assert!(diff.is_empty());
    assert_eq!(
        (table.digest(), table.service_count(), table.endpoint_count()),
        (0, 0, 0)
    );
}

#[test]
fn nothing_is_left_of_a_service_whose_addresses_are_left_to_others() {
    let mut context = context();
    context.settings.exclude_cidrs = vec!["10.96.0.0/16".parse().unwrap()];
    context.settings.reset_removed = true;
    let (mut table, mut diff) = (ForwardingTable::default(), Diff::default());
    let web = service("web", &["10.96.0.1"]);
    table.set(compile(&web, [&slice(&["10.0.1.1"])], &context), &mut diff);
    table.remove(&web.name, &mut diff);
    assert!(diff.is_empty(), "{diff:?}");
}

#[test]
fn the_older_of_two_services_has_a_shared_address_and_the_other_one_gets_it_after() {
    let (mut table, mut diff) = (ForwardingTable::default(), Diff::default());
    let mut young = service("a-young", &["10.96.0.1"]);
    young.created = 20;
    young.external_ips = vec![ip("203.0.113.1")];
    let mut old = service("b-old", &["10.96.0.2"]);
    old.created = 10;
    old.external_ips = vec![ip("203.0.113.1")];
    put(&mut table, &mut diff, &young, &slice(&["10.0.1.1"]));
    put(&mut table, &mut diff, &old, &slice(&["10.0.1.2"]));
    assert_eq!(owner(&table, "203.0.113.1").as_deref(), Some("default/b-old"));
    table.remove(&old.name, &mut diff);
    assert_eq!(owner(&table, "203.0.113.1").as_deref(), Some("default/a-young"));
}

#[test]
fn an_external_ip_never_takes_a_cluster_ip_over() {
    let (mut table, mut diff) = (ForwardingTable::default(), Diff::default());
    let mut thief = service("thief", &["10.96.0.9"]);
    thief.external_ips = vec![ip("10.96.0.1")];
    let mut victim = service("victim", &["10.96.0.1"]);
    victim.created = 99;
    put(&mut table, &mut diff, &thief, &slice(&["10.0.1.1"]));
    put(&mut table, &mut diff, &victim, &slice(&["10.0.1.2"]));
    assert_eq!(owner(&table, "10.96.0.1").as_deref(), Some("default/victim"));
}

#[test]
fn a_service_without_any_address_is_not_counted_when_it_is_gone() {
    let (mut table, mut diff) = (ForwardingTable::default(), Diff::default());
    let mut web = service("web", &["10.96.0.1"]);
    web.direct_access = true;
    let mut context = context();
    context.settings.exclude_cidrs = vec!["10.96.0.0/16".parse().unwrap()];
    table.set(compile(&web, &[], &context), &mut diff);
    assert_eq!(table.direct_access_count(), 1);
    table.remove(&web.name, &mut diff);
    assert_eq!((table.direct_access_count(), diff), (0, Diff::default()));
}

/// What backends have of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Content {
    frontends: BTreeMap<FrontendKey, Frontend>,
    pools: BTreeMap<PoolKey, Arc<Pool>>,
    cluster_ips: BTreeSet<IpAddr>,
}

impl Content {
    fn of(table: &ForwardingTable) -> Self {
        let frontends = table.frontends().map(|(key, frontend)| (*key, frontend.clone()));
        let pools = table.pools().map(|(key, pool)| (key.clone(), Arc::clone(pool)));
        Self {
            frontends: frontends.collect(),
            pools: pools.collect(),
            cluster_ips: table.cluster_ips().collect(),
        }
    }

    /// Does what a diff says, as a backend would.
    fn follow(&mut self, diff: &Diff) {
        follow_one(&mut self.frontends, &diff.frontends);
        follow_one(&mut self.pools, &diff.pools);
        for (address, change) in &diff.cluster_ips {
            assert_eq!(self.cluster_ips.contains(address), change.before.is_some());
            match change.after {
                Some(()) => self.cluster_ips.insert(*address),
                None => self.cluster_ips.remove(address),
            };
        }
    }
}

fn follow_one<K: Ord + Clone, T: Clone + PartialEq + std::fmt::Debug>(
    have: &mut BTreeMap<K, T>,
    changes: &BTreeMap<K, Change<T>>,
) {
    for (key, change) in changes {
        assert_eq!(have.get(key), change.before.as_ref());
        assert_ne!(change.before, change.after, "a change that is none");
        match &change.after {
            Some(value) => have.insert(key.clone(), value.clone()),
            None => have.remove(key),
        };
    }
}

/// What a table says beside packets.
fn sums(table: &ForwardingTable) -> impl PartialEq + std::fmt::Debug + use<> {
    let mut checks: Vec<_> = table
        .health_checks()
        .map(|(name, family, check)| (name.clone(), family, check.port, check.local_endpoints))
        .collect();
    checks.sort_unstable();
    let sides = [TrafficSide::Internal, TrafficSide::External];
    let without_local = Family::ALL.map(|family| sides.map(|side| table.without_local(family, side)));
    let counts = [
        table.direct_access_count(),
        table.service_count(),
        table.endpoint_count(),
    ];
    (checks, without_local, counts, table.digest())
}

proptest! {
    #[test]
    fn following_the_diffs_in_any_split_gives_the_table(
        steps in prop::collection::vec(step(), 1..30),
        splits in prop::collection::vec(any::<bool>(), 30),
    ) {
        let (mut table, mut diff) = (ForwardingTable::default(), Diff::default());
        let (mut copy, mut objects) = (Content::default(), Objects::default());
        for (step, split) in steps.iter().zip(splits) {
            objects.take(&mut table, &mut diff, step);
            if split {
                copy.follow(&std::mem::take(&mut diff));
            }
        }
        copy.follow(&diff);
        prop_assert_eq!(&copy, &Content::of(&table));
        // And it is the table of somebody who begins now.
        let fresh = Objects::build(&objects.context, objects.services.values());
        prop_assert_eq!(&copy, &Content::of(&fresh));
        prop_assert_eq!(sums(&table), sums(&fresh));
        // Nothing refers to a pool that is not there, and no pool is empty.
        for pool in copy.frontends.values().flat_map(|frontend| frontend.action.pools()) {
            prop_assert!(copy.pools.get(pool).is_some_and(|pool| !pool.endpoints.is_empty()));
        }
        let endpoints: usize = copy.pools.values().map(|pool| pool.endpoints.len()).sum();
        prop_assert_eq!(endpoints, table.endpoint_count());
    }

    #[test]
    fn there_and_back_again_is_no_change(
        before in (any_context(), prop::collection::vec((any_service(), any_slices()), 0..4)),
        (service, slices) in (any_service(), any_slices()),
    ) {
        let (context, others) = before;
        let mut table = Objects::build(&context, &others);
        let earlier = others.iter().rev().find(|(other, _)| other.name == service.name);
        let (sums_before, mut diff) = (sums(&table), Diff::default());
        table.set(compile(&service, &slices, &context), &mut diff);
        match earlier {
            Some((service, slices)) => table.set(compile(service, slices, &context), &mut diff),
            None => table.remove(&service.name, &mut diff),
        }
        prop_assert!(diff.is_empty(), "{:?}", diff);
        prop_assert_eq!(sums(&table), sums_before);
    }

    #[test]
    fn the_order_in_which_services_come_does_not_matter(
        context in any_context(),
        (services, shuffled) in prop::collection::vec((any_service(), any_slices()), 1..8).prop_flat_map(|services| {
            // The last word on each Service counts, so that only one for each is kept.
            let last: BTreeMap<ServiceName, _> =
                services.into_iter().map(|objects| (objects.0.name.clone(), objects)).collect();
            let services: Vec<_> = last.into_values().collect();
            (Just(services.clone()), Just(services).prop_shuffle())
        })
    ) {
        let (one, other) = (Objects::build(&context, &services), Objects::build(&context, &shuffled));
        prop_assert_eq!(Content::of(&one), Content::of(&other));
        prop_assert_eq!(sums(&one), sums(&other));
    }
}

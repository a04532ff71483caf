use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::model::testing::{context, ip, service, slice};
use crate::model::{Destination, EndpointSlice, Family, Protocol, Service, compile};

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

/// What may happen to a table.
#[derive(Clone, Debug)]
enum Step {
    Set {
        service: u8,
        address: u8,
        shared: bool,
        created: u8,
        endpoints: Vec<u8>,
    },
    Remove {
        service: u8,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let endpoints = prop::collection::vec(1_u8..5, 0..4);
    prop_oneof![
        4 => (0_u8..6, 1_u8..5, any::<bool>(), 0_u8..3, endpoints).prop_map(
            |(service, address, shared, created, endpoints)| Step::Set { service, address, shared, created, endpoints }
        ),
        1 => (0_u8..6).prop_map(|service| Step::Remove { service }),
    ]
}

fn take(table: &mut ForwardingTable, diff: &mut Diff, step: &Step) {
    match step {
        Step::Set {
            service: number,
            address,
            shared,
            created,
            endpoints,
        } => {
            let mut one = service(&format!("s{number}"), &[&format!("10.96.0.{address}")]);
            one.created = i64::from(*created);
            if *shared {
                one.external_ips = vec![ip("203.0.113.1")];
            }
            let addresses: Vec<String> = endpoints.iter().map(|last| format!("10.0.1.{last}")).collect();
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            put(table, diff, &one, &slice(&addresses));
        }
        Step::Remove { service: number } => table.remove(&service(&format!("s{number}"), &[]).name, diff),
    }
}

type Content = (BTreeMap<FrontendKey, Frontend>, BTreeMap<PoolKey, Arc<Pool>>);

fn content(table: &ForwardingTable) -> Content {
    let frontends = table
        .frontends()
        .map(|(key, frontend)| (*key, frontend.clone()))
        .collect();
    (
        frontends,
        table
            .pools()
            .map(|(key, pool)| (key.clone(), Arc::clone(pool)))
            .collect(),
    )
}

/// Does to a copy of the content what a diff says, as a backend would.
fn follow((frontends, pools): &mut Content, diff: &Diff) {
    for (key, change) in &diff.frontends {
        assert_eq!(frontends.get(key), change.before.as_ref());
        match &change.after {
            Some(frontend) => frontends.insert(*key, frontend.clone()),
            None => frontends.remove(key),
        };
    }
    for (key, change) in &diff.pools {
        assert_eq!(pools.get(key), change.before.as_ref());
        match &change.after {
            Some(pool) => pools.insert(key.clone(), Arc::clone(pool)),
            None => pools.remove(key),
        };
    }
}

proptest! {
    #[test]
    fn following_the_diffs_in_any_split_gives_the_table(
        steps in prop::collection::vec(step(), 1..40),
        splits in prop::collection::vec(any::<bool>(), 40),
    ) {
        let (mut table, mut diff) = (ForwardingTable::default(), Diff::default());
        let mut copy = Content::default();
        for (step, split) in steps.iter().zip(splits) {
            take(&mut table, &mut diff, step);
            if split {
                follow(&mut copy, &std::mem::take(&mut diff));
            }
        }
        follow(&mut copy, &diff);
        prop_assert_eq!(&copy, &content(&table));
        // Nothing refers to a pool that is not there, and no pool is empty.
        for frontend in copy.0.values() {
            if let Action::Balance { pool, .. } = &frontend.action {
                prop_assert!(copy.1.get(pool).is_some_and(|pool| !pool.endpoints.is_empty()));
            }
        }
        let endpoints: usize = copy.1.values().map(|pool| pool.endpoints.len()).sum();
        prop_assert_eq!(endpoints, table.endpoint_count());
    }

    #[test]
    fn the_order_in_which_services_come_does_not_matter(
        (steps, shuffled) in prop::collection::vec(step(), 1..12).prop_flat_map(|steps| {
            // The last word on each Service counts, so that only one step for each is kept.
            let mut last = BTreeMap::new();
            for step in steps {
                let (Step::Set { service, .. } | Step::Remove { service }) = step;
                last.insert(service, step);
            }
            let steps: Vec<Step> = last.into_values().collect();
            (Just(steps.clone()), Just(steps).prop_shuffle())
        })
    ) {
        let build = |steps: &[Step]| {
            let (mut table, mut diff) = (ForwardingTable::default(), Diff::default());
            steps.iter().for_each(|step| take(&mut table, &mut diff, step));
            table
        };
        let (one, other) = (build(&steps), build(&shuffled));
        prop_assert_eq!(content(&one), content(&other));
        prop_assert_eq!(one.digest(), other.digest());
    }
}

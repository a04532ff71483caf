use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::model::{IpPort, PoolEndpoint};

fn address(last: u8) -> IpPort {
    IpPort::from(([10, 0, 0, last], 80))
}

fn pool(lasts: &[u8], affinity: Option<u32>) -> Pool {
    let shared: Vec<_> = lasts.iter().map(|last| (*last, 1)).collect();
    weighted(&shared, affinity)
}

fn weighted(lasts: &[(u8, u8)], affinity: Option<u32>) -> Pool {
    let mut endpoints: Vec<_> = lasts
        .iter()
        .map(|(last, share)| PoolEndpoint {
            address: address(*last),
            local: false,
            share: *share,
        })
        .collect();
    endpoints.sort_unstable();
    endpoints.dedup_by_key(|it| it.address);
    Pool {
        endpoints: endpoints.into(),
        affinity,
        scheduler: None,
        unit: 1,
        draining: Box::default(),
    }
}

fn change(slots: &mut Slots, pool: Option<&Pool>) -> Stages {
    let mut stages = Stages::default();
    slots.change(pool.map(|pool| Arc::new(pool.clone())).as_ref(), &mut stages);
    stages
}

#[test]
fn one_endpoint_for_another_is_one_slot() {
    let mut slots = Slots::new(16);
    change(&mut slots, Some(&pool(&[1, 2, 3], None)));
    let stages = change(&mut slots, Some(&pool(&[1, 3, 9], None)));
    assert_eq!(stages.switch_out, [Entry::Endpoint(16, 1, address(2))]);
    assert_eq!(stages.switch_in, [Entry::Endpoint(16, 1, address(9))]);
    assert!(stages.grow.is_empty() && stages.shrink.is_empty());
}

#[test]
fn one_endpoint_less_moves_the_last_into_its_place() {
    let mut slots = Slots::new(16);
    change(&mut slots, Some(&pool(&[1, 2, 3], None)));
    let stages = change(&mut slots, Some(&pool(&[2, 3], None)));
    assert_eq!(stages.switch_in, [Entry::Endpoint(16, 0, address(3))]);
    assert_eq!(
        stages.shrink,
        [Entry::Endpoint(16, 2, address(3))],
        "kept until nothing leads to it"
    );
}

#[test]
fn a_member_is_not_given_away_at_once() {
    let mut slots = Slots::new(16);
    change(&mut slots, Some(&pool(&[1, 2], Some(60))));
    let stages = change(&mut slots, Some(&pool(&[2, 3], Some(60))));
    assert!(
        stages
            .switch_out
            .contains(&Entry::Member(of_member(0, 16), address(1)))
    );
    assert!(stages.grow.contains(&Entry::Member(of_member(2, 16), address(3))));
    change(&mut slots, Some(&pool(&[2, 3, 4], Some(60))));
    let members: Vec<_> = slots.slots().filter_map(|slot| slot.member).collect();
    assert_eq!(members, [2, 1, 3]);
}

#[test]
fn one_more_of_ten_is_one_slot() {
    let mut slots = Slots::new(16);
    change(&mut slots, Some(&weighted(&[(1, 1), (2, 9)], None)));
    let stages = change(&mut slots, Some(&weighted(&[(1, 2), (2, 8)], None)));
    assert_eq!((stages.switch_out.len(), stages.switch_in.len()), (1, 1));
    assert!(stages.grow.is_empty() && stages.shrink.is_empty());
    let stages = change(&mut slots, Some(&weighted(&[(1, 2), (2, 9)], None)));
    assert_eq!(stages.grow, [Entry::Endpoint(16, 10, address(2))]);
    assert!(stages.switch_in.is_empty() && stages.shrink.is_empty());
}

#[test]
fn all_slots_of_an_endpoint_have_one_member() {
    let mut slots = Slots::new(16);
    change(&mut slots, Some(&weighted(&[(1, 1), (2, 3)], Some(60))));
    let member = Entry::Member(of_member(1, 16), address(2));
    assert_eq!(slots.entries().filter(|entry| *entry == member).count(), 1);
    let members = |slots: &Slots| -> Vec<_> { slots.slots().filter_map(|slot| slot.member).collect() };
    assert_eq!(members(&slots), [0, 1, 1, 1]);
    // Whatever becomes of the weight, who is remembered stays.
    let stages = change(&mut slots, Some(&weighted(&[(1, 5), (2, 1)], Some(60))));
    let all = [stages.grow, stages.switch_out, stages.switch_in, stages.shrink].concat();
    assert!(
        !all.iter().any(|entry| matches!(entry, Entry::Member(..))),
        "{all:?}"
    );
}

#[test]
fn a_pool_whose_members_do_not_suffice_for_a_change_remembers_nobody_until_the_next() {
    let many = |first: u16| Pool {
        endpoints: (first..first + 3000)
            .map(|port| PoolEndpoint {
                address: IpPort::from(([10, 0, 0, 1], port)),
                local: false,
                share: 1,
            })
            .collect(),
        affinity: Some(60),
        scheduler: None,
        unit: 1,
        draining: Box::default(),
    };
    let mut slots = Slots::new(16);
    change(&mut slots, Some(&many(1)));
    assert_eq!(slots.class(), Some(Class::Sticky(3000, 60)));
    change(&mut slots, Some(&many(10_000)));
    assert_eq!(slots.class(), Some(Class::Pick(3000)));
    let stages = change(&mut slots, Some(&many(10_001)));
    assert_eq!(slots.class(), Some(Class::Sticky(3000, 60)));
    let members = |entry: &&Entry| matches!(entry, Entry::Member(..));
    assert_eq!(stages.grow.iter().filter(members).count(), 3000);
}

proptest! {
    /// Whatever changes: the kernel ends with just the pool's endpoints, and no stage takes away what the one before
    /// still needs.
    #[test]
    fn stages_lead_from_each_pool_to_the_next(
        pools in prop::collection::vec(prop::option::of((prop::collection::vec((0_u8..12, 1_u8..5), 0..9), any::<bool>())), 1..8),
    ) {
        let mut slots = Slots::new(16);
        let mut kernel: BTreeMap<Vec<u8>, Entry> = BTreeMap::new();
        let key = |entry: &Entry| [vec![entry.map() as u8], entry.key().key].concat();
        for pool in pools {
            let pool = pool.map(|(lasts, sticky)| weighted(&lasts, sticky.then_some(60)));
            let before = slots.clone();
            let stages = change(&mut slots, pool.as_ref());
            for entry in &stages.grow {
                prop_assert!(kernel.insert(key(entry), *entry).is_none(), "{entry:?} was there");
            }
            // Before the switch every slot of the old pool is still what it was.
            for (at, slot) in before.slots().enumerate() {
                let entry = Entry::Endpoint(16, at as u32, slot.endpoint);
                prop_assert_eq!(kernel.get(&key(&entry)), Some(&entry));
            }
            for entry in &stages.switch_out {
                prop_assert_eq!(kernel.remove(&key(entry)), Some(*entry));
            }
            for entry in &stages.switch_in {
                prop_assert!(kernel.insert(key(entry), *entry).is_none());
            }
            // After it every slot of the new one is there.
            for (at, slot) in slots.slots().enumerate() {
                let entry = Entry::Endpoint(16, at as u32, slot.endpoint);
                prop_assert_eq!(kernel.get(&key(&entry)), Some(&entry));
                if let Some(member) = slot.member {
                    let entry = Entry::Member(of_member(member, 16), slot.endpoint);
                    prop_assert_eq!(kernel.get(&key(&entry)), Some(&entry));
                }
            }
            for entry in &stages.shrink {
                prop_assert_eq!(kernel.remove(&key(entry)), Some(*entry));
            }
            // Each endpoint has as many slots as it has shares, and no slot moved that could stay.
            let wanted = pool.map(|pool| pool.endpoints).unwrap_or_default();
            let endpoints = |slots: &Slots| slots.slots().map(|slot| slot.endpoint).collect::<Vec<_>>();
            let (before, after) = (endpoints(&before), endpoints(&slots));
            let mut moved = after.len();
            for endpoint in &wanted {
                let share = usize::from(endpoint.share);
                let of = |slots: &[IpPort]| slots.iter().filter(|slot| **slot == endpoint.address).count();
                prop_assert_eq!(of(&after), share);
                moved -= share.min(of(&before[..before.len().min(after.len())]));
            }
            let count: usize = wanted.iter().map(|it| usize::from(it.share)).sum();
            prop_assert_eq!(after.len(), count);
            let changed = (0..count).filter(|at| before.get(*at) != after.get(*at));
            prop_assert_eq!(changed.count(), moved);
            let remembered = if slots.affinity.is_some() { count + wanted.len() } else { 0 };
            prop_assert_eq!(kernel.len(), count + remembered);
            prop_assert_eq!(slots.entries().collect::<HashSet<_>>(), kernel.values().copied().collect());
            prop_assert_eq!(slots.entries().count(), kernel.len());
        }
    }
}

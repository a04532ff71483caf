use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::model::PoolEndpoint;

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 80))
}

fn pool(lasts: &[u8], affinity: Option<u32>) -> Pool {
    let mut endpoints: Vec<_> = lasts
        .iter()
        .map(|last| PoolEndpoint {
            address: address(*last),
            local: false,
        })
        .collect();
    endpoints.sort_unstable();
    endpoints.dedup();
    Pool {
        endpoints: endpoints.into(),
        affinity,
        draining: Box::default(),
    }
}

fn change(slots: &mut Slots, pool: Option<&Pool>) -> Stages {
    let mut stages = Stages::default();
    slots.change(pool, &mut stages);
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
    let members: Vec<_> = slots.slots.iter().filter_map(|slot| slot.member).collect();
    assert_eq!(members, [2, 1, 3]);
}

proptest! {
    /// Whatever changes: the kernel ends with just the pool's endpoints, and no stage takes away what the one before
    /// still needs.
    #[test]
    fn stages_lead_from_each_pool_to_the_next(
        pools in prop::collection::vec(prop::option::of((prop::collection::vec(0_u8..12, 0..9), any::<bool>())), 1..8),
    ) {
        let mut slots = Slots::new(16);
        let mut kernel: BTreeMap<Vec<u8>, Entry> = BTreeMap::new();
        let key = |entry: &Entry| [vec![entry.map() as u8], entry.key().key].concat();
        for pool in pools {
            let pool = pool.map(|(lasts, sticky)| super::tests::pool(&lasts, sticky.then_some(60)));
            let before = slots.clone();
            let stages = change(&mut slots, pool.as_ref());
            for entry in &stages.grow {
                prop_assert!(kernel.insert(key(entry), *entry).is_none(), "{entry:?} was there");
            }
            // Before the switch every slot of the old pool is still what it was.
            for (at, slot) in before.slots.iter().enumerate() {
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
            for (at, slot) in slots.slots.iter().enumerate() {
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
            let wanted = pool.map(|pool| pool.endpoints.iter().map(|it| it.address).collect::<Vec<_>>()).unwrap_or_default();
            let mut found: Vec<_> = slots.slots.iter().map(|slot| slot.endpoint).collect();
            found.sort_unstable();
            prop_assert_eq!(&found, &wanted);
            let factor = if slots.affinity.is_some() { 3 } else { 1 };
            prop_assert_eq!(kernel.len(), wanted.len() * factor);
        }
    }
}

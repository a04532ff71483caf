//! Makes a run that shows a difference as small as it gets.

use super::{
    generate::Stage,
    world::{Kind, Service, Slice, World},
};
use anyhow::Result;

/// Tries ever smaller runs for as long as `goes_on` says so, and returns the smallest that still `shows` it. `run` is
/// one that does.
///
/// # Errors
/// Those of `shows`.
pub fn shrink(
    run: Vec<Stage>,
    mut shows: impl FnMut(&[Stage]) -> Result<bool>,
    mut goes_on: impl FnMut() -> bool,
) -> Result<Vec<Stage>> {
    let mut best = run;
    'smaller: loop {
        for candidate in candidates(&best) {
            if !goes_on() {
                return Ok(best);
            }
            if shows(&candidate)? {
                best = candidate;
                continue 'smaller;
            }
        }
        return Ok(best);
    }
}

/// The ends of a run, the shortest first: the last settled stage alone, then twice as many, up to all.
#[must_use]
pub fn ends(run: &[Stage]) -> Vec<Vec<Stage>> {
    let mut found = Vec::new();
    let mut length = 1;
    while length < run.len() {
        found.push(run[run.len() - length..].to_vec());
        length *= 2;
    }
    found.push(run.to_vec());
    found
}

/// Runs that are a bit smaller, what removes most first.
fn candidates(run: &[Stage]) -> Vec<Vec<Stage>> {
    let mut found = Vec::new();
    let last = run.len().saturating_sub(1);
    // Half of what is before the last, then each stage.
    if last > 3 {
        found.push(run[last / 2..].to_vec());
    }
    for number in 0..last {
        let mut shorter = run.to_vec();
        shorter.remove(number);
        found.push(shorter);
    }
    let everywhere = |change: &dyn Fn(&mut World)| {
        let mut changed = run.to_vec();
        changed.iter_mut().for_each(|stage| change(&mut stage.world));
        changed
    };
    let mut try_everywhere = |change: &dyn Fn(&mut World)| {
        let changed = everywhere(change);
        if changed != run {
            found.push(changed);
        }
    };
    let slots: Vec<u8> = (0..super::world::SLOTS).collect();
    for &slot in &slots {
        try_everywhere(&|world| {
            world.services.remove(&slot);
            world.slices.retain(|(owner, _), _| *owner != slot);
        });
    }
    for &slot in &slots {
        try_everywhere(&|world| drop(world.services.remove(&slot)));
    }
    for &slot in &slots {
        for number in 0..super::world::SLICES {
            try_everywhere(&|world| drop(world.slices.remove(&(slot, number))));
        }
    }
    try_everywhere(&|world| world.zone = 0);
    for &slot in &slots {
        for simpler in SIMPLER_SERVICE {
            try_everywhere(&|world| {
                if let Some(service) = world.services.get_mut(&slot) {
                    simpler(service);
                }
            });
        }
        for number in 0..super::world::SLICES {
            for simpler in SIMPLER_SLICE {
                try_everywhere(&|world| {
                    if let Some(slice) = world.slices.get_mut(&(slot, number)) {
                        simpler(slice);
                    }
                });
            }
        }
    }
    found
}

/// Each takes one thing away from a Service that has it.
const SIMPLER_SERVICE: &[fn(&mut Service)] = &[
    |it| remove_of_many(&mut it.ports, 0),
    |it| remove_of_many(&mut it.ports, 1),
    |it| remove_of_many(&mut it.ports, 2),
    |it| it.external.clear(),
    |it| it.ingress.clear(),
    |it| it.affinity = None,
    |it| it.ranges.clear(),
    |it| it.label = None,
    |it| it.internal_local = false,
    |it| it.external_local = false,
    |it| it.publish_not_ready = false,
    |it| remove_of_many(&mut it.external, 1),
    |it| remove_of_many(&mut it.ingress, 0),
    |it| remove_of_many(&mut it.ingress, 1),
    |it| remove_of_many(&mut it.ranges, 0),
    |it| remove_of_many(&mut it.ranges, 1),
    |it| it.ingress.iter_mut().for_each(|(_, mode)| *mode = None),
    |it| it.families.truncate(1),
    |it| remove_of_many(&mut it.families, 0),
    |it| {
        if it.has_vip() {
            it.kind = Kind::ClusterIp;
        }
    },
];

/// Each takes one thing away from a slice that has it.
const SIMPLER_SLICE: &[fn(&mut Slice)] = &[
    |it| remove_of_many(&mut it.endpoints, 0),
    |it| remove_of_many(&mut it.endpoints, 1),
    |it| remove_of_many(&mut it.endpoints, 2),
    |it| remove_of_many(&mut it.endpoints, 3),
    |it| remove_of_many(&mut it.ports, 0),
    |it| remove_of_many(&mut it.ports, 1),
    |it| remove_of_many(&mut it.ports, 2),
    |it| it.headless = false,
    |it| {
        it.endpoints
            .iter_mut()
            .for_each(|endpoint| endpoint.zones.clear())
    },
    |it| {
        it.endpoints
            .iter_mut()
            .for_each(|endpoint| endpoint.nodes.clear())
    },
    |it| it.endpoints.iter_mut().for_each(|endpoint| endpoint.named = true),
    |it| {
        for endpoint in &mut it.endpoints {
            (endpoint.ready, endpoint.serving, endpoint.terminating) = (Some(true), Some(true), Some(false));
        }
    },
];

fn remove_of_many<T>(list: &mut Vec<T>, number: usize) {
    if list.len() > 1 && number < list.len() {
        list.remove(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::{generate, random::Random};

    fn run() -> Vec<Stage> {
        let mut world = World::default();
        let mut stages = Vec::new();
        for number in 0..40 {
            stages.extend(generate::step(&world, &mut Random::of(11, number)));
            world = stages.last().unwrap().world.clone();
        }
        stages
    }

    #[test]
    fn what_does_not_matter_goes() {
        let run = run();
        let slot = *run.last().unwrap().world.services.keys().next().unwrap();
        let shows = |stages: &[Stage]| Ok(stages.last().unwrap().world.services.contains_key(&slot));
        let small = shrink(run, shows, || true).unwrap();
        assert_eq!(small.len(), 1);
        let world = &small[0].world;
        assert_eq!((world.services.len(), world.slices.len()), (1, 0));
        let service = &world.services[&slot];
        assert_eq!((service.ports.len(), service.families.len()), (1, 1));
        assert!(service.external.is_empty() && service.ranges.is_empty());
    }

    #[test]
    fn what_needs_a_change_keeps_two_stages() {
        let run = run();
        // A zone that the node is in at first and not at the end.
        let shows = |stages: &[Stage]| {
            let zones: Vec<usize> = stages.iter().map(|stage| stage.world.zone).collect();
            Ok(zones.windows(2).any(|pair| pair[0] != pair[1]))
        };
        assert!(shows(&run).unwrap());
        let small = shrink(run, shows, || true).unwrap();
        assert_eq!(small.len(), 2);
        assert!(small.iter().all(|stage| stage.world.services.is_empty()));
    }

    #[test]
    fn the_time_is_bounded() {
        let mut left = 3;
        let shows = |_: &[Stage]| Ok(true);
        let goes_on = || {
            left -= 1;
            left > 0
        };
        assert!(shrink(run(), shows, goes_on).unwrap().len() > 1);
    }

    #[test]
    fn ends_are_tried_from_the_shortest() {
        let run = run();
        let lengths: Vec<usize> = ends(&run).iter().map(Vec::len).collect();
        assert_eq!(lengths[..3], [1, 2, 4]);
        assert_eq!(lengths.last(), Some(&run.len()));
    }
}

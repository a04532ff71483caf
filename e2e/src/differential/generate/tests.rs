use std::collections::BTreeSet;

use super::*;

fn run(seed: u64, steps: u64) -> Vec<Stage> {
    let mut world = World::default();
    let mut stages = Vec::new();
    for number in 0..steps {
        stages.extend(step(&world, &mut Random::of(seed, number)));
        world = stages.last().map(|stage| stage.world.clone()).unwrap_or_default();
    }
    stages
}

#[test]
fn a_seed_gives_the_same_run_and_another_one_another() {
    assert_eq!(run(1, 30), run(1, 30));
    assert_ne!(run(1, 30), run(2, 30));
}

#[test]
fn nothing_is_allocated_twice_in_a_step() {
    for seed in 0..20 {
        let mut before = World::default();
        for number in 0..100 {
            let stages = step(&before, &mut Random::of(seed, number));
            for stage in &stages {
                let mut taken = BTreeSet::new();
                for service in stage.world.services.values() {
                    assert!(!service.ports.is_empty());
                    assert!(taken.insert(u16::from(service.vip)), "{:?}", stage.world);
                    for port in service.ports.iter().filter_map(|port| port.node_port) {
                        assert!(taken.insert(port), "{:?}", stage.world);
                    }
                }
                for slice in stage.world.slices.values() {
                    let places: BTreeSet<_> = slice.endpoints.iter().map(|it| it.place).collect();
                    assert_eq!(places.len(), slice.endpoints.len());
                }
            }
            before = stages.last().map(|stage| stage.world.clone()).unwrap_or_default();
        }
    }
}

#[test]
fn every_kind_of_thing_comes_up() {
    let stages = run(3, 600);
    let services: Vec<&Service> = stages.iter().flat_map(|it| it.world.services.values()).collect();
    for kind in [
        Kind::ClusterIp,
        Kind::NodePort,
        Kind::LoadBalancer,
        Kind::Headless,
        Kind::ExternalName,
    ] {
        assert!(services.iter().any(|it| it.kind == kind), "{kind:?}");
    }
    let has = |what: &dyn Fn(&Service) -> bool| services.iter().any(|it| what(it));
    assert!(has(&|it| it.label == Some(PROXY_NAME)) && has(&|it| it.label == Some(HEADLESS)));
    assert!(has(&|it| it.affinity.is_some()) && has(&|it| !it.ranges.is_empty()));
    assert!(has(&|it| it
        .ingress
        .iter()
        .any(|(_, mode)| *mode == Some("Proxy"))));
    assert!(has(&|it| it.external.contains(&NODE_ITSELF)));
    assert!(has(&|it| it
        .ports
        .iter()
        .any(|port| port.protocol == Protocol::Sctp)));
    assert!(stages.iter().any(|it| it.world.zone == 2) && stages.iter().any(|it| !it.settle));
    let endpoints: Vec<_> = stages
        .iter()
        .flat_map(|it| it.world.slices.values().flat_map(|slice| &slice.endpoints))
        .collect();
    assert!(
        endpoints.iter().any(|it| !it.zones.is_empty()) && endpoints.iter().any(|it| !it.nodes.is_empty())
    );
    assert!(
        endpoints
            .iter()
            .any(|it| it.terminating == Some(true) && it.ready == Some(false))
    );
}

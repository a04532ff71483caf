//! Random clusters, and how they change.

use super::{
    random::Random,
    world::{
        EXTERNALS, Endpoint, Family, HEADLESS, Kind, NODE_ITSELF, NODE_PORTS, PORTS, PROXY_NAME, Place, Port,
        Protocol, RANGES, SLICES, SLOTS, Service, Slice, TARGETS, VIPS, World, ZONES,
    },
};

/// One moment of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// What the API server is to hold.
    pub world: World,
    /// Whether to wait until both sides have it. Otherwise the next stage follows at once.
    pub settle: bool,
}

/// The stages of one step: each changes one object, and both sides settle after the last. What depends on chance is
/// decided by `random` alone.
#[must_use]
pub fn step(before: &World, random: &mut Random) -> Vec<Stage> {
    // A new cluster fills quickly; then one change is as frequent as several.
    let count = if before.services.len() + before.slices.len() < 4 {
        4
    } else if random.chance(50) {
        1
    } else {
        2 + random.below(5)
    };
    let mut world = before.clone();
    let mut stages = Vec::new();
    for _ in 0..count {
        change(&mut world, before, random);
        stages.push(Stage {
            world: world.clone(),
            settle: false,
        });
    }
    if let Some(last) = stages.last_mut() {
        last.settle = true;
    }
    stages
}

/// Changes one object. What `before` has allocated is left alone, so that no step's order of writes matters to the
/// API server's allocators.
fn change(world: &mut World, before: &World, random: &mut Random) {
    let slot = random.below(SLOTS.into()) as u8;
    match random.below(100) {
        0..5 => world.zone = random.below(ZONES.len()),
        5..45 => change_service(world, before, slot, random),
        _ => change_slice(world, slot, random),
    }
}

fn change_service(world: &mut World, before: &World, slot: u8, random: &mut Random) {
    let free = Free::of(world, before, slot);
    match world.services.remove(&slot) {
        None => drop(world.services.insert(slot, service(slot, &free, random))),
        // One that goes is gone at the end of the step, unless a later change brings another one.
        Some(_) if random.chance(12) => {}
        Some(mut changed) => {
            edit(&mut changed, slot, &free, random);
            world.services.insert(slot, changed);
        }
    }
}

/// What a Service may allocate.
struct Free {
    vips: Vec<u8>,
    node_ports: Vec<u16>,
}

impl Free {
    fn of(world: &World, before: &World, slot: u8) -> Self {
        let others = world.services.iter().chain(&before.services);
        let others: Vec<_> = others
            .filter(|(other, _)| **other != slot)
            .map(|(_, it)| it)
            .collect();
        let own: Vec<_> = before.services.get(&slot).into_iter().collect();
        let taken = |number: u16| {
            let mut services = others.iter().chain(&own);
            services.any(|it| it.ports.iter().any(|port| port.node_port == Some(number)))
        };
        Self {
            vips: VIPS
                .into_iter()
                .filter(|vip| others.iter().chain(&own).all(|it| it.vip != *vip))
                .collect(),
            node_ports: NODE_PORTS.into_iter().filter(|number| !taken(*number)).collect(),
        }
    }
}

/// The names that a Service's ports are drawn from. The last slot's has one port, which needs no name.
fn names(slot: u8) -> &'static [&'static str] {
    if slot == SLOTS - 1 {
        &[""]
    } else {
        &["one", "two", "three"]
    }
}

fn service(slot: u8, free: &Free, random: &mut Random) -> Service {
    let kind = match random.below(100) {
        0..30 => Kind::ClusterIp,
        30..55 => Kind::NodePort,
        55..92 => Kind::LoadBalancer,
        92..96 => Kind::Headless,
        _ => Kind::ExternalName,
    };
    let families = match random.below(10) {
        0..6 => vec![Family::V4, Family::V6],
        6 => vec![Family::V6, Family::V4],
        7..9 => vec![Family::V4],
        _ => vec![Family::V6],
    };
    let mut made = Service {
        kind,
        families,
        vip: random.pick(&free.vips).unwrap_or(200 + slot),
        ports: Vec::new(),
        external: externals(random, 35),
        ingress: ingress(random),
        affinity: affinity(random, 20),
        internal_local: random.chance(20),
        external_local: random.chance(45),
        ranges: ranges(random, 30),
        label: label(random, 4),
        publish_not_ready: random.chance(10),
    };
    made.ports = ports(slot, free, random);
    made
}

fn edit(service: &mut Service, slot: u8, free: &Free, random: &mut Random) {
    match random.below(11) {
        0 => service.affinity = affinity(random, 50),
        1 => service.internal_local ^= true,
        2 | 3 => service.external_local ^= true,
        4 => service.external = externals(random, 60),
        5 => service.ingress = ingress(random),
        6 => service.ranges = ranges(random, 60),
        7 | 8 => service.ports = ports(slot, free, random),
        9 => service.label = label(random, if service.label.is_some() { 0 } else { 50 }),
        _ if service.has_vip() => {
            let kinds = [Kind::ClusterIp, Kind::NodePort, Kind::LoadBalancer];
            service.kind = random.pick(&kinds).unwrap_or(Kind::ClusterIp);
        }
        _ => service.publish_not_ready ^= true,
    }
}

fn ports(slot: u8, free: &Free, random: &mut Random) -> Vec<Port> {
    let names = names(slot);
    let count = 1 + random.below(names.len());
    let names = random.some(names, count);
    let mut numbers = random.some(&free.node_ports, names.len()).into_iter();
    let mut chosen: Vec<Port> = Vec::new();
    for name in names {
        let Some(port) = random.pick(&PORTS) else {
            continue;
        };
        let protocol = protocol(slot, name, random);
        if chosen
            .iter()
            .any(|other| (other.protocol, other.port) == (protocol, port))
        {
            continue;
        }
        chosen.push(Port {
            name,
            protocol,
            port,
            // Type NodePort needs one for each port, or the API server picks them.
            node_port: numbers.next(),
        });
    }
    chosen
}

fn externals(random: &mut Random, percent: usize) -> Vec<u8> {
    if !random.chance(percent) {
        return Vec::new();
    }
    if random.chance(8) {
        return vec![NODE_ITSELF];
    }
    let count = 1 + random.below(2);
    random.some(&EXTERNALS, count)
}

fn ingress(random: &mut Random) -> Vec<(u8, Option<&'static str>)> {
    let count = random.below(3);
    let numbers = random.some(&EXTERNALS, count);
    let modes = [None, None, Some("VIP"), Some("VIP"), Some("Proxy")];
    numbers
        .into_iter()
        .map(|number| (number, random.pick(&modes).flatten()))
        .collect()
}

fn affinity(random: &mut Random, percent: usize) -> Option<u32> {
    let timeouts = [1, 1, 1, 10_800];
    let timeout = random.pick(&timeouts);
    timeout.filter(|_| random.chance(percent))
}

fn ranges(random: &mut Random, percent: usize) -> Vec<usize> {
    let all: Vec<usize> = (0..RANGES.len()).collect();
    let count = 1 + random.below(3);
    if random.chance(percent) {
        random.some(&all, count)
    } else {
        Vec::new()
    }
}

fn label(random: &mut Random, percent: usize) -> Option<&'static str> {
    let label = random.pick(&[PROXY_NAME, HEADLESS]);
    label.filter(|_| random.chance(percent))
}

fn change_slice(world: &mut World, slot: u8, random: &mut Random) {
    let key = (slot, random.below(SLICES.into()) as u8);
    // An endpoint in two slices that say different things of it is rare: nobody can tell what it means.
    let others = world.slices.range((slot, 0)..=(slot, u8::MAX));
    let others = others.filter(|(other, _)| **other != key);
    let elsewhere: Vec<Place> = others
        .flat_map(|(_, it)| it.endpoints.iter().map(|it| it.place))
        .collect();
    let free = Place::ALL.into_iter().filter(|place| !elsewhere.contains(place));
    let places: Vec<Place> = if random.chance(5) {
        Place::ALL.to_vec()
    } else {
        free.collect()
    };
    match world.slices.remove(&key) {
        None => drop(world.slices.insert(key, slice(slot, &places, random))),
        Some(_) if random.chance(12) => {}
        Some(mut changed) => {
            match random.below(10) {
                0 => changed.ports = slice_ports(slot, random),
                1 => changed.headless = !changed.headless && random.chance(20),
                2 => changed.endpoints.clear(),
                3..5 => move_endpoint(world, slot, &mut changed, random),
                5..8 => {
                    let number = random.below(changed.endpoints.len());
                    if let Some(endpoint) = changed.endpoints.get_mut(number) {
                        set_conditions(endpoint, random);
                    }
                }
                _ => changed.endpoints = endpoints(&places, random),
            }
            world.slices.insert(key, changed);
        }
    }
}

/// Moves an endpoint from another slice of the Service into this one, or copies it: for a while a moved endpoint is in
/// both.
fn move_endpoint(world: &mut World, slot: u8, to: &mut Slice, random: &mut Random) {
    let keep = random.chance(50);
    let mut others = world.slices.range_mut((slot, 0)..=(slot, u8::MAX));
    let Some((_, from)) = others.find(|(_, from)| from.family == to.family && !from.endpoints.is_empty())
    else {
        return;
    };
    let number = random.below(from.endpoints.len());
    let Some(endpoint) = from.endpoints.get(number).cloned() else {
        return;
    };
    if to.endpoints.iter().all(|other| other.place != endpoint.place) {
        to.endpoints.push(endpoint);
        if !keep {
            from.endpoints.remove(number);
        }
    }
}

fn slice(slot: u8, places: &[Place], random: &mut Random) -> Slice {
    Slice {
        family: if random.chance(60) { Family::V4 } else { Family::V6 },
        ports: slice_ports(slot, random),
        endpoints: endpoints(places, random),
        headless: random.chance(3),
    }
}

/// The protocol of a port name: mostly the same one in a Service and its slices, or nobody would ever answer.
fn protocol(slot: u8, name: &str, random: &mut Random) -> Protocol {
    let usual = if slot.is_multiple_of(2) ^ (name == "two") {
        Protocol::Tcp
    } else {
        Protocol::Udp
    };
    match random.below(100) {
        0..86 => usual,
        86..91 => Protocol::Tcp,
        91..96 => Protocol::Udp,
        _ => Protocol::Sctp,
    }
}

/// A slice has the ports of its Service by name; a name may mean another protocol there than here.
fn slice_ports(slot: u8, random: &mut Random) -> Vec<(&'static str, Protocol, u16)> {
    let mut ports = Vec::new();
    for &name in names(slot) {
        let Some(target) = random.pick(&TARGETS) else {
            continue;
        };
        let protocol = protocol(slot, name, random);
        if random.chance(90) {
            ports.push((name, protocol, target));
        }
    }
    ports
}

fn endpoints(places: &[Place], random: &mut Random) -> Vec<Endpoint> {
    let count = random.below(5);
    let places = random.some(places, count);
    // Hints count only when all have some, so they come for all or, to see that they do not, for most.
    let hints = random.below(6);
    places
        .into_iter()
        .map(|place| {
            let mut endpoint = Endpoint {
                place,
                named: random.chance(95),
                ready: None,
                serving: None,
                terminating: None,
                zones: Vec::new(),
                nodes: Vec::new(),
            };
            set_conditions(&mut endpoint, random);
            let hinted = random.chance(92);
            if hinted && matches!(hints, 0 | 2) {
                let count = 1 + random.below(2);
                endpoint.zones = random.some(&[0, 1], count);
            }
            if hinted && matches!(hints, 1 | 2) {
                let count = 1 + random.below(2);
                endpoint.nodes = random.some(&[1, 2], count);
            }
            endpoint
        })
        .collect()
}

fn set_conditions(endpoint: &mut Endpoint, random: &mut Random) {
    let (ready, serving, terminating) = match random.below(20) {
        0..9 => (Some(true), Some(true), Some(false)),
        9..11 => (None, None, None),
        11..14 => (Some(false), Some(true), Some(true)),
        14 => (Some(false), Some(false), Some(true)),
        15 => (Some(false), Some(false), Some(false)),
        16 => (Some(true), Some(true), Some(true)),
        17 => (Some(false), None, Some(true)),
        18 => (Some(false), Some(true), None),
        _ => (None, Some(true), Some(true)),
    };
    endpoint.ready = ready;
    endpoint.serving = serving;
    endpoint.terminating = terminating;
}

#[cfg(test)]
mod tests;

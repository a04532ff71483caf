use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use proptest::prelude::*;

use super::super::entry::testing::entry;
use super::*;
use crate::model::{
    Action, Context, Destination, Diff, Endpoint, EndpointPort, EndpointSlice, ForwardingTable, FrontendKey,
    IpPort, NodePortAddresses, PortKey, Service, ServiceName, ServicePort, TrafficPolicy, compile,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn key(port: u16) -> FrontendKey {
    FrontendKey {
        family: Family::V4,
        destination: Destination::Address(ip("10.96.0.10")),
        protocol: Protocol::Udp,
        port,
    }
}

/// A review of 10.96.0.10 at this port.
fn review(port: u16, allowed: Allowed, suspect: bool) -> Review {
    let mut review = Review::default();
    review.put(key(port), Subject { allowed, suspect });
    review
}

fn at(port: u16) -> Entry {
    entry(Protocol::Udp, &format!("10.96.0.10:{port}"), "10.0.0.1:53")
}

#[test]
fn a_change_waits_for_its_rules() {
    let mut queue = Queue::default();
    queue.changing(review(1, Allowed::Nobody, true));
    assert!(!queue.is_due() && queue.take().is_none());
    queue.written(Family::V6);
    assert!(!queue.is_due());
    queue.written(Family::V4);
    assert!(queue.is_due());
    assert!(queue.take().unwrap().is_stale(&at(1)));
    assert!(queue.take().is_none());
    // What changes again before a walk waits again, and is not forgotten.
    queue.changing(review(1, Allowed::Nobody, true));
    queue.written(Family::V4);
    queue.changing(review(1, Allowed::Anybody, false));
    assert!(!queue.is_due());
    queue.written(Family::V4);
    assert!(queue.is_due() && !queue.take().unwrap().is_stale(&at(1)));
}

#[test]
fn what_changes_during_a_walk_is_for_the_next_one_to_decide() {
    let mut queue = Queue::default();
    queue.changing(review(1, Allowed::Nobody, true));
    queue.written(Family::V4);
    let walk = queue.take().unwrap();
    assert!(walk.is_stale(&at(1)) && queue.confirms(&at(1)));
    // An endpoint came: nothing to look for, were it not for the walk.
    queue.changing(review(1, Allowed::Anybody, false));
    assert!(!queue.confirms(&at(1)) && queue.confirms(&at(2)));
    queue.written(Family::V4);
    assert!(!queue.confirms(&at(1)));
    queue.walked();
    assert!(queue.take().is_some_and(|next| !next.is_stale(&at(1))));

    // Nothing to look for and no walk: forgotten.
    queue.walked();
    queue.changing(review(1, Allowed::Anybody, false));
    queue.written(Family::V4);
    assert!(queue.confirms(&at(1)));
}

#[test]
fn what_is_stale_either_way_need_not_wait() {
    let mut queue = Queue::default();
    queue.changing(review(1, Allowed::Nobody, true));
    queue.written(Family::V4);
    assert!(queue.take().is_some());
    // However often the frontend changes.
    for _ in 0..3 {
        queue.changing(review(1, Allowed::Gone, true));
        assert!(queue.confirms(&at(1)));
        queue.written(Family::V4);
        assert!(queue.confirms(&at(1)));
    }
    queue.changing(review(1, Allowed::Anybody, true));
    assert!(!queue.confirms(&at(1)), "the newest word counts");
    // When all frontends are known and this is none of them, what is translated is stale.
    queue.written_all(Family::V4, {
        let mut all = review(2, Allowed::Anybody, true);
        all.rest.insert(Family::V4, Default::default());
        all
    });
    assert!(queue.confirms(&at(1)) && queue.confirms(&at(3)));
    assert!(!queue.confirms(&entry(Protocol::Udp, "10.96.0.10:3", "10.96.0.10:3")));
    assert!(!queue.confirms(&entry(Protocol::Tcp, "10.96.0.10:3", "10.0.0.1:53")));
}

#[test]
fn what_was_forgotten_deletes_nothing() {
    let mut queue = Queue::default();
    queue.changing(review(1, Allowed::Nobody, true));
    queue.written(Family::V4);
    let walk = queue.take().unwrap();
    queue.forget();
    assert!(!queue.confirms(&at(1)));
    queue.put_back(walk);
    assert!(!queue.is_due() && queue.confirms(&at(1)));
}

#[test]
fn a_failed_walk_is_made_up_for() {
    let mut queue = Queue::default();
    for port in [1, 2, 3] {
        queue.changing(review(port, Allowed::Nobody, true));
    }
    queue.written(Family::V4);
    let walk = queue.take().unwrap();
    queue.changing(review(1, Allowed::Anybody, false));
    queue.written(Family::V4);
    queue.changing(review(2, Allowed::Anybody, false));
    queue.put_back(walk);
    let again = queue.take().unwrap();
    assert!(!again.is_stale(&at(1)) && !again.is_stale(&at(2)) && again.is_stale(&at(3)));
    assert!(!again.subjects.contains_key(&key(2)), "its rules are not in");
    queue.walked();
    queue.written(Family::V4);
    assert!(queue.is_due(), "whoever used 2 is still to be looked at");
}

#[test]
fn what_is_in_no_full_table_is_gone() {
    let mut queue = Queue::default();
    queue.changing(review(1, Allowed::Anybody, true));
    queue.changing(review(2, Allowed::Anybody, true));
    queue.written_all(Family::V4, review(2, Allowed::Anybody, true));
    let walk = queue.take().unwrap();
    assert!(walk.is_stale(&at(1)) && !walk.is_stale(&at(2)));
}

#[test]
fn too_much_that_waits_is_left_to_the_full_sync() {
    let mut queue = Queue::default();
    let mut many = Review::default();
    let subject = Subject {
        allowed: Allowed::Nobody,
        suspect: true,
    };
    for nth in 0..=u32::try_from(WAITING).unwrap() {
        let destination = Destination::Address(std::net::Ipv4Addr::from_bits(nth).into());
        many.put(
            FrontendKey {
                destination,
                ..key(1)
            },
            subject.clone(),
        );
    }
    queue.changing(many);
    queue.written(Family::V4);
    assert!(!queue.is_due());
}

const ENDPOINTS: [&str; 4] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "192.168.0.1"];
const NODE: [&str; 2] = ["192.168.0.1", "192.168.0.2"];

/// A Service as a property has it.
#[derive(Clone, Debug)]
struct Shape {
    /// Whether it also has the node's address as an external IP.
    external: bool,
    local: [bool; 2],
    direct: bool,
    node_port: Option<u16>,
    target: u16,
    /// Per endpoint: absent, ready, terminating, neither.
    endpoints: [u8; 4],
}

/// What happens: a Service is as it is now, or gone, or NodePorts answer on other addresses.
#[derive(Clone, Debug)]
enum Step {
    Service(u8, Option<Shape>),
    Node(bool, bool),
    /// The rules of what happened are in.
    Written,
}

fn shapes() -> impl Strategy<Value = Shape> {
    (
        any::<bool>(),
        any::<[bool; 2]>(),
        prop::bool::weighted(0.1),
        prop::option::of(prop::sample::select(vec![53_u16, 30_053])),
        prop::sample::select(vec![53_u16, 5353]),
        prop::array::uniform4(0..4_u8),
    )
        .prop_map(|(external, local, direct, node_port, target, endpoints)| Shape {
            external,
            local,
            direct,
            node_port,
            target,
            endpoints,
        })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..3_u8, prop::option::weighted(0.8, shapes())).prop_map(|(name, shape)| Step::Service(name, shape)),
        1 => any::<(bool, bool)>().prop_map(|(first, second)| Step::Node(first, second)),
        2 => Just(Step::Written),
    ];
    prop::collection::vec(step, 1..12)
}

struct World {
    table: ForwardingTable,
    shapes: BTreeMap<u8, Shape>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            table: ForwardingTable::default(),
            shapes: BTreeMap::new(),
        };
        world.take(&Step::Node(true, false), &mut Diff::default());
        world
    }

    fn take(&mut self, step: &Step, diff: &mut Diff) {
        match step {
            Step::Service(name, shape) => {
                match shape {
                    Some(shape) => self.shapes.insert(*name, shape.clone()),
                    None => self.shapes.remove(name),
                };
                self.compile(*name, diff);
            }
            Step::Node(first, second) => {
                let mut context = Context::default();
                context.settings.reset_removed = true;
                context.settings.node_port_addresses = vec![NodePortAddresses::Primary];
                let answering = NODE.iter().zip([first, second]).filter(|(_, answers)| **answers);
                context.node.internal_ips = answering.map(|(address, _)| ip(address)).collect();
                self.table.set_context(context, diff);
                for name in 0..3 {
                    self.compile(name, diff);
                }
            }
            Step::Written => {}
        }
    }

    fn compile(&mut self, name: u8, diff: &mut Diff) {
        let full_name = ServiceName::new("default", &format!("service-{name}"));
        let Some(shape) = self.shapes.get(&name) else {
            self.table.remove(&full_name, diff);
            return;
        };
        let policy = |local| {
            if local {
                TrafficPolicy::Local
            } else {
                TrafficPolicy::Cluster
            }
        };
        let protocols = [("udp", Protocol::Udp), ("tcp", Protocol::Tcp)];
        let service = Service {
            name: full_name,
            created: name.into(),
            cluster_ips: vec![ip(&format!("10.96.0.{}", name + 1))],
            external_ips: shape.external.then(|| ip(NODE[0])).into_iter().collect(),
            internal_policy: policy(shape.local[0]),
            external_policy: policy(shape.local[1]),
            direct_access: shape.direct,
            ports: protocols
                .map(|(name, protocol)| ServicePort {
                    name: name.into(),
                    protocol,
                    port: 53,
                    node_port: shape.node_port,
                })
                .into(),
            ..Service::default()
        };
        let there = ENDPOINTS
            .iter()
            .zip(shape.endpoints)
            .filter(|(_, state)| *state > 0);
        let slice = EndpointSlice {
            family: Family::V4,
            ports: protocols
                .map(|(name, protocol)| EndpointPort {
                    name: name.into(),
                    protocol,
                    port: shape.target,
                })
                .into(),
            endpoints: there
                .map(|(address, state)| Endpoint {
                    address: ip(address),
                    ready: state == 1,
                    serving: state < 3,
                    terminating: state == 2,
                    local: *address == ENDPOINTS[0],
                    unplaced: false,
                    for_nodes: None,
                    common: None,
                })
                .collect(),
        };
        self.table
            .set(compile(&service, [&slice], self.table.context()), diff);
    }

    /// Whether the destination is a ClusterIP that somebody has, with its port.
    fn has_vip(&self, entry: &Entry) -> bool {
        let to = entry.original.destination;
        let vips = self
            .shapes
            .keys()
            .map(|name| ip(&format!("10.96.0.{}", name + 1)));
        to.port() == 53 && vips.into_iter().any(|vip| vip == to.ip())
    }

    /// What `entry` is by the table alone: whether a proxy that begins with it would leave this connection be.
    fn is_good(&self, entry: &Entry) -> bool {
        let to = entry.original.destination;
        let at = |destination| FrontendKey {
            family: Family::V4,
            destination,
            protocol: entry.protocol,
            port: to.port(),
        };
        let by_address = self.table.frontend(&at(Destination::Address(to.ip())));
        let answers = self
            .table
            .context()
            .node_port_addresses(Family::V4)
            .contains(&to.ip());
        let by_port = || {
            self.table
                .frontend(&at(Destination::NodePort))
                .filter(|_| answers)
        };
        let frontend = by_address.or_else(by_port);
        let Some(frontend) = frontend else {
            return entry.protocol == Protocol::Tcp || !entry.is_translated();
        };
        if entry.protocol == Protocol::Tcp {
            let port = PortKey {
                owner: std::sync::Arc::clone(&frontend.owner),
                family: Family::V4,
            };
            let existing = self.table.existing(&port).unwrap();
            return !entry.is_translated() || existing.contains(&entry.reply.source);
        }
        match &frontend.action {
            Action::Reject | Action::Drop => !entry.is_translated(),
            action => action.pools().any(|pool| {
                let pool = self.table.pool(pool).unwrap();
                let endpoints = pool.endpoints.iter().map(|endpoint| endpoint.address);
                let mut serving = endpoints.chain(pool.draining.iter().copied());
                serving.any(|address| address == entry.reply.source)
            }),
        }
    }
}

/// Every connection that there could be.
fn connections() -> Vec<Entry> {
    let mut all = Vec::new();
    let vips = ["10.96.0.1", "10.96.0.2", "10.96.0.3"];
    for to in vips.iter().chain(&NODE) {
        for port in [53, 30_053] {
            let to = IpPort::new(ip(to), port);
            let targets = ENDPOINTS
                .iter()
                .flat_map(|address| [53, 5353].map(|port| IpPort::new(ip(address), port)));
            for goes_to in targets.chain([to]) {
                for protocol in [Protocol::Udp, Protocol::Tcp] {
                    all.push(entry(protocol, &to.to_string(), &goes_to.to_string()));
                }
            }
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever happens, and however it is gathered: of the connections that were good before, those go that are not
    /// good any more, and no others.
    #[test]
    fn what_was_good_goes_when_it_is_not_any_more(first in steps(), then in steps()) {
        let mut world = World::new();
        let mut answered = BTreeMap::new();
        for step in &first {
            world.take(step, &mut Diff::default());
        }
        answered.insert(Family::V4, world.table.context().node_port_addresses(Family::V4));
        // A TCP connection that is translated has a frontend.
        let good = connections().into_iter().filter(|entry| world.is_good(entry));
        let good: Vec<_> = good.filter(|entry| entry.protocol == Protocol::Udp || world.has_vip(entry)).collect();

        let mut queue = Queue::default();
        let mut diff = Diff::default();
        for step in then.iter().chain([&Step::Written]) {
            world.take(step, &mut diff);
            if matches!(step, Step::Written) {
                let review = Review::of_changes(&world.table, &std::mem::take(&mut diff), &answered);
                answered.insert(Family::V4, world.table.context().node_port_addresses(Family::V4));
                queue.changing(review);
                queue.written(Family::V4);
            }
        }
        let review = queue.take().unwrap_or_default();
        // Nor is it looked at after that has gone.
        let gone = then.iter().any(|step| matches!(step, Step::Service(_, None)));
        let stayed = |entry: &Entry| entry.protocol == Protocol::Udp || !gone;
        for entry in good {
            let (stale, good) = (review.is_stale(&entry), world.is_good(&entry));
            prop_assert!(!(stale && good), "{:?} is good", entry);
            prop_assert!(stale || good || !stayed(&entry), "{:?} is stale", entry);
        }
    }

    /// Whatever happens while a walk is under way, nothing that is good by the newest table is deleted.
    #[test]
    fn a_walk_deletes_nothing_that_is_good_now(before in steps(), during in steps(), whole in any::<bool>()) {
        let mut world = World::new();
        let mut queue = Queue::default();
        let mut answered = BTreeMap::new();
        let mut diff = Diff::default();
        let mut walk = Review::default();
        for (at, step) in before.iter().chain([&Step::Written]).chain(&during).chain([&Step::Written]).enumerate() {
            world.take(step, &mut diff);
            if matches!(step, Step::Written) {
                let review = Review::of_changes(&world.table, &std::mem::take(&mut diff), &answered);
                answered.insert(Family::V4, world.table.context().node_port_addresses(Family::V4));
                queue.changing(review);
                // A TCP connection to an address that NodePorts left has an end that is gone, whoever has the port now.
                let looked_at = |entry: &Entry| {
                    entry.protocol == Protocol::Udp || !NODE.contains(&&*entry.original.destination.ip().to_string())
                };
                for entry in connections().into_iter().filter(looked_at) {
                    let deleted = walk.is_stale(&entry) && queue.confirms(&entry);
                    prop_assert!(!deleted || !world.is_good(&entry), "{:?} is good", entry);
                }
                if whole {
                    queue.written_all(Family::V4, Review::of_all(&world.table, Family::V4, HashSet::new()));
                } else {
                    queue.written(Family::V4);
                }
                if at == before.len() {
                    walk = queue.take().unwrap_or_default();
                }
            }
        }
    }

    /// A comparison with everything finds what is not good, but for destinations that nobody has.
    #[test]
    fn everything_is_found_that_a_frontend_has(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.take(step, &mut Diff::default());
        }
        let review = Review::of_all(&world.table, Family::V4, HashSet::new());
        for entry in connections() {
            let stale = review.is_stale(&entry);
            prop_assert!(!stale || !world.is_good(&entry), "{entry:?} is good");
            let at = |destination| FrontendKey {
                family: Family::V4,
                destination,
                protocol: entry.protocol,
                port: entry.original.destination.port(),
            };
            let known = world.table.frontend(&at(Destination::Address(entry.original.destination.ip()))).is_some();
            prop_assert!(!known || stale != world.is_good(&entry), "{entry:?}");
        }
    }
}

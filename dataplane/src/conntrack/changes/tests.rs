use super::super::entry::testing::entry;
use super::*;
use crate::model::{
    Context, Endpoint, EndpointPort, EndpointSlice, NodePortAddresses, Service, ServiceName, ServicePort,
    compile,
};

fn context(reset_removed: bool) -> Context {
    let mut context = Context::default();
    context.settings.reset_removed = reset_removed;
    context.settings.node_port_addresses = vec![NodePortAddresses::Primary];
    context.node.internal_ips = vec!["192.168.0.1".parse().unwrap()];
    context
}

/// `dns` with TCP and UDP on port 53 of 10.96.0.10, and node port 30053.
fn service() -> Service {
    let port = |name: &str, protocol| ServicePort {
        name: name.into(),
        protocol,
        port: 53,
        node_port: Some(30_053),
    };
    Service {
        name: ServiceName::new("default", "dns"),
        cluster_ips: vec!["10.96.0.10".parse().unwrap()],
        ports: vec![
            port("udp", Protocol::Udp),
            port("tcp", Protocol::Tcp),
            port("sctp", Protocol::Sctp),
        ],
        ..Service::default()
    }
}

/// Ready endpoints, and ones that terminate.
fn slice(ready: &[&str], terminating: &[&str]) -> EndpointSlice {
    let port = |name: &str, protocol| EndpointPort {
        name: name.into(),
        protocol,
        port: 53,
    };
    let endpoint = |address: &&str, ready| Endpoint {
        address: address.parse().unwrap(),
        ready,
        serving: true,
        terminating: !ready,
        local: false,
        unplaced: false,
        for_nodes: None,
        common: None,
    };
    let ready = ready.iter().map(|address| endpoint(address, true));
    EndpointSlice {
        family: Family::V4,
        ports: vec![
            port("udp", Protocol::Udp),
            port("tcp", Protocol::Tcp),
            port("sctp", Protocol::Sctp),
        ],
        endpoints: ready
            .chain(terminating.iter().map(|address| endpoint(address, false)))
            .collect(),
    }
}

struct World {
    table: ForwardingTable,
    answered: BTreeMap<Family, Vec<IpAddr>>,
}

impl World {
    fn new(reset_removed: bool, slice: &EndpointSlice) -> Self {
        let mut world = Self {
            table: ForwardingTable::default(),
            answered: BTreeMap::new(),
        };
        let mut diff = Diff::default();
        world.table.set_context(context(reset_removed), &mut diff);
        world.review(&mut diff, slice);
        world
    }

    fn review(&mut self, diff: &mut Diff, slice: &EndpointSlice) -> Review {
        self.table
            .set(compile(&service(), [slice], self.table.context()), diff);
        let review = Review::of_changes(&self.table, diff, &self.answered);
        let addresses = |family| (family, self.table.context().node_port_addresses(family));
        self.answered = Family::ALL.map(addresses).into();
        review
    }

    fn change(&mut self, slice: &EndpointSlice) -> Review {
        self.review(&mut Diff::default(), slice)
    }
}

fn udp(goes_to: &str) -> super::super::entry::Entry {
    entry(Protocol::Udp, "10.96.0.10:53", goes_to)
}

fn tcp(goes_to: &str) -> super::super::entry::Entry {
    entry(Protocol::Tcp, "10.96.0.10:53", goes_to)
}

#[test]
fn a_changed_pool_is_a_matter_of_its_frontends() {
    let mut world = World::new(false, &slice(&["10.0.0.1", "10.0.0.2"], &[]));
    let review = world.change(&slice(&["10.0.0.1"], &[]));
    assert_eq!(review.scope(), [(Family::V4, vec![Protocol::Udp])].into());
    assert_eq!(review.subjects.len(), 2, "the ClusterIP and the node port");
    assert!(review.is_stale(&udp("10.0.0.2:53")) && !review.is_stale(&udp("10.0.0.1:53")));
    assert!(review.is_stale(&entry(Protocol::Udp, "192.168.0.1:30053", "10.0.0.2:53")));
    assert!(
        !review.is_stale(&tcp("10.0.0.2:53"))
            && !review.is_stale(&entry(Protocol::Sctp, "10.96.0.10:53", "10.0.0.2:53"))
    );
}

#[test]
fn more_endpoints_are_known_and_nothing_to_look_for() {
    let mut world = World::new(false, &slice(&["10.0.0.1"], &[]));
    let review = world.change(&slice(&["10.0.0.1", "10.0.0.2"], &[]));
    assert!(!review.is_needed());
    assert!(!review.is_stale(&udp("10.0.0.2:53")));
    assert!(!world.change(&slice(&["10.0.0.1", "10.0.0.2"], &[])).is_needed());
}

#[test]
fn tcp_is_a_matter_of_what_exists() {
    let mut world = World::new(true, &slice(&["10.0.0.1", "10.0.0.2"], &[]));
    let terminates = world.change(&slice(&["10.0.0.1"], &["10.0.0.2"]));
    assert!(!terminates.is_stale(&tcp("10.0.0.2:53")) && !terminates.is_stale(&udp("10.0.0.2:53")));
    assert!(!terminates.is_needed(), "it serves what it has");
    let gone = world.change(&slice(&["10.0.0.1"], &[]));
    assert!(gone.is_stale(&tcp("10.0.0.2:53")) && !gone.is_stale(&tcp("10.0.0.1:53")));
    assert!(gone.is_stale(&udp("10.0.0.2:53")) && !gone.is_stale(&udp("10.0.0.1:53")));
    // The connections of a Service that is deleted go on: nothing would answer their packets.
    let mut diff = Diff::default();
    world.table.remove(&service().name, &mut diff);
    let deleted = Review::of_changes(&world.table, &diff, &world.answered);
    assert!(!deleted.is_stale(&tcp("10.0.0.1:53")) && deleted.is_stale(&udp("10.0.0.1:53")));
}

#[test]
fn the_setting_counts_from_when_it_is_made() {
    let mut world = World::new(false, &slice(&["10.0.0.1"], &[]));
    let mut diff = Diff::default();
    world.table.set_context(context(true), &mut diff);
    let on = world.review(&mut diff, &slice(&["10.0.0.1"], &[]));
    assert!(on.is_stale(&tcp("10.0.0.2:53")) && !on.is_stale(&tcp("10.0.0.1:53")));
    assert_eq!(on.scope(), [(Family::V4, vec![Protocol::Tcp])].into());
    let mut diff = Diff::default();
    world.table.set_context(context(false), &mut diff);
    let off = world.review(&mut diff, &slice(&[], &[]));
    assert!(!off.is_stale(&tcp("10.0.0.2:53")));
}

#[test]
fn everything_is_compared_when_nothing_is_known_of_before() {
    let world = World::new(true, &slice(&["10.0.0.1"], &[]));
    let all = Review::of_all(&world.table, Family::V4, HashSet::new());
    assert!(all.is_stale(&udp("10.0.0.2:53")) && all.is_stale(&udp("10.96.0.10:53")));
    assert!(all.is_stale(&tcp("10.0.0.2:53")) && !all.is_stale(&tcp("10.0.0.1:53")));
    assert!(all.is_stale(&entry(Protocol::Udp, "192.168.0.1:30053", "10.0.0.2:53")));
    assert_eq!(all.subjects.len(), 4);
    let other = Review::of_all(&world.table, Family::V6, HashSet::new());
    assert!(other.subjects.is_empty() && other.is_needed());
    let off = World::new(false, &slice(&["10.0.0.1"], &[]));
    let all = Review::of_all(&off.table, Family::V4, HashSet::new());
    assert!(!all.is_stale(&tcp("10.0.0.2:53")));
    assert_eq!(all.scope(), [(Family::V4, vec![Protocol::Udp])].into());
}

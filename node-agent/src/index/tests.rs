use pointsman_dataplane::model::{Endpoint, EndpointPort, Family, Protocol, ServicePort};

use super::*;

fn name(name: &str) -> ServiceName {
    ServiceName::new("default", name)
}

fn service(last: u8) -> Parsed<Service> {
    let port = ServicePort {
        name: "".into(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
    };
    let object = Service {
        name: name("web"),
        created: 0,
        cluster_ips: vec![[10, 96, 0, last].into()],
        ports: vec![port],
        ..Service::default()
    };
    Parsed {
        object: Some(object),
        problems: Vec::new(),
    }
}

fn slice(owner: &str, last: u8) -> Parsed<(ServiceName, EndpointSlice)> {
    let endpoint = Endpoint {
        address: [10, 0, 1, last].into(),
        ready: true,
        serving: true,
        terminating: false,
        local: false,
        for_nodes: None,
        unplaced: false,
        common: None,
    };
    let port = EndpointPort {
        name: "".into(),
        protocol: Protocol::Tcp,
        port: 8080,
    };
    let slice = EndpointSlice {
        family: Family::V4,
        ports: vec![port],
        endpoints: vec![endpoint],
    };
    Parsed {
        object: Some((name(owner), slice)),
        problems: Vec::new(),
    }
}

/// The Services that changed, each with its number of endpoints.
fn changes(index: &mut Index) -> Vec<(String, usize)> {
    let mut changed: Vec<_> = index
        .compile_changes(&Context::default())
        .map(|c| {
            (
                c.service.name.to_string(),
                c.pools.iter().map(|(_, pool)| pool.endpoints.len()).sum(),
            )
        })
        .collect();
    changed.sort();
    changed
}

#[test]
fn only_what_is_different_is_compiled() {
    let mut index = Index::default();
    index.set_service(name("web"), service(1));
    index.set_slice(name("web-1"), slice("web", 1));
    assert_eq!(changes(&mut index), [("web".to_owned(), 1)]);
    index.set_service(name("web"), service(1));
    index.set_slice(name("web-1"), slice("web", 1));
    assert!(!index.has_changes());
    index.set_slice(name("web-2"), slice("web", 2));
    assert_eq!(changes(&mut index), [("web".to_owned(), 2)]);
}

#[test]
fn what_waits_to_be_compiled_is_counted_by_service() {
    let mut index = Index::default();
    index.set_service(name("web"), service(1));
    index.set_slice(name("web-1"), slice("web", 1));
    index.set_slice(name("web-2"), slice("web", 2));
    index.set_slice(name("web-2"), slice("web", 3));
    index.set_slice(name("other-1"), slice("other", 1));
    let pending = Changes {
        services: 1,
        slices: 2,
    };
    assert_eq!((index.pending, index.changes.slices), (pending, 4));
    index.compile_changes(&Context::default()).for_each(drop);
    assert_eq!(index.pending, Changes::default());
    index.set_service(name("web"), service(1));
    assert_eq!(index.pending, Changes::default(), "nothing is different");
    let different = index.set_slice(name("web-1"), slice("other", 1));
    assert_eq!(different, Some(name("other")), "a slice that moves");
    assert_eq!(index.pending.slices, 2, "both Services are different");
    assert_eq!(index.set_slice(name("web-1"), slice("other", 1)), None);
}

#[test]
fn slices_may_come_before_their_service() {
    let mut index = Index::default();
    index.set_slice(name("web-1"), slice("web", 1));
    assert_eq!(changes(&mut index), [("web".to_owned(), 0)]);
    index.set_service(name("web"), service(1));
    assert_eq!(changes(&mut index), [("web".to_owned(), 1)]);
}

#[test]
fn a_slice_that_changes_hands_leaves_its_first_service() {
    let mut index = Index::default();
    index.set_service(name("web"), service(1));
    index.set_slice(name("s"), slice("web", 1));
    changes(&mut index);
    index.set_slice(name("s"), slice("other", 1));
    assert_eq!(
        changes(&mut index),
        [("other".to_owned(), 0), ("web".to_owned(), 0)]
    );
    index.set_slice(name("s"), Parsed::gone());
    assert_eq!(changes(&mut index).len(), 1);
}

#[test]
fn what_a_new_list_does_not_name_is_gone() {
    let mut index = Index::default();
    index.set_service(name("web"), service(1));
    index.set_slice(name("s1"), slice("web", 1));
    index.set_slice(name("s2"), slice("web", 2));
    changes(&mut index);
    index.list_begins(Kind::Slices);
    index.set_slice(name("s2"), slice("web", 2));
    assert!(
        !index.has_changes(),
        "nothing is gone before the list is complete"
    );
    index.list_ends(Kind::Slices);
    assert_eq!(changes(&mut index), [("web".to_owned(), 1)]);
    index.list_begins(Kind::Services);
    index.list_ends(Kind::Services);
    assert_eq!(changes(&mut index), [("web".to_owned(), 0)]);
}

#[test]
fn problems_go_with_their_object() {
    let mut index = Index::default();
    index.set_service(
        name("web"),
        Parsed {
            object: None,
            problems: vec!["bad".to_owned()],
        },
    );
    assert_eq!(index.problems().count(), 1);
    index.set_slice(name("web"), slice("web", 1));
    assert_eq!(index.problems().count(), 1);
    index.set_service(name("web"), Parsed::gone());
    assert_eq!(index.problems().count(), 0);
}

#[test]
fn endpoints_of_services_that_are_not_ours_are_known_as_such() {
    let mut index = Index::default();
    let foreign = |index: &Index| index.foreign_endpoints().count();
    index.set_slice(name("web-1"), slice("web", 1));
    assert_eq!(foreign(&index), 1, "whose Service has not been told of");
    index.set_service(name("web"), service(1));
    assert_eq!(foreign(&index), 0);
    index.set_service(name("web"), Parsed::gone());
    assert_eq!(foreign(&index), 1);
}

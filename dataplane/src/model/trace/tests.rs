use proptest::prelude::*;

use super::*;
use crate::model::testing::random::{any_context, any_packet, any_service, any_slices};
use crate::model::testing::{context, ip, service, slice};
use crate::model::{Context, DetectLocal, Diff, compile};

/// A table with one Service at 10.96.0.1:80 and node port 30080, an endpoint of this node and one elsewhere.
fn table(change: impl FnOnce(&mut Context)) -> ForwardingTable {
    let mut context = context();
    change(&mut context);
    let mut web = service("web", &["10.96.0.1"]);
    web.ports[0].node_port = Some(30080);
    let mut endpoints = slice(&["10.244.1.5", "10.244.2.5"]);
    endpoints.endpoints[0].local = true;
    let empty = service("empty", &["10.96.0.2"]);
    let (mut table, mut diff) = (ForwardingTable::default(), Diff::default());
    table.set_context(context.clone(), &mut diff);
    table.set(compile(&web, &[endpoints], &context), &mut diff);
    table.set(compile(&empty, &[], &context), &mut diff);
    table
}

fn packet(source: &str, interface: Option<&str>, destination: &str, port: u16) -> Packet {
    let ingress = interface.map_or(Ingress::Host, |name| Ingress::Interface(name.to_owned()));
    Packet {
        source: ip(source),
        destination: ip(destination),
        protocol: Protocol::Tcp,
        port,
        ingress,
    }
}

/// For each target whether it is masqueraded.
fn masqueraded(table: &ForwardingTable, packet: &Packet) -> Vec<bool> {
    match table.trace(packet) {
        Verdict::Balance(targets) => targets.iter().map(|target| target.masqueraded).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_cluster_ip_keeps_a_pods_source_and_hides_everybody_elses() {
    let table = table(|_| {});
    assert_eq!(
        masqueraded(&table, &packet("10.244.1.9", Some("veth0"), "10.96.0.1", 80)),
        [false, false]
    );
    assert_eq!(
        masqueraded(&table, &packet("192.168.0.1", None, "10.96.0.1", 80)),
        [true, true]
    );
    assert_eq!(
        masqueraded(&table, &packet("192.168.0.77", Some("eth0"), "10.96.0.1", 80)),
        [true, true]
    );
}

#[test]
fn a_pod_that_reaches_itself_is_masqueraded() {
    let table = table(|_| {});
    assert_eq!(
        masqueraded(&table, &packet("10.244.1.5", Some("veth0"), "10.96.0.1", 80)),
        [true, false]
    );
}

#[test]
fn without_a_way_to_tell_pods_nobody_is_masqueraded_towards_cluster_ips() {
    let table = table(|context| context.node.pod_cidrs.clear());
    assert_eq!(
        masqueraded(&table, &packet("192.168.0.77", Some("eth0"), "10.96.0.1", 80)),
        [false, false]
    );
}

#[test]
fn pods_can_be_told_by_interface() {
    let table =
        table(|context| context.settings.detect_local = DetectLocal::InterfaceNamePrefix("veth".into()));
    assert_eq!(
        masqueraded(&table, &packet("10.9.9.9", Some("veth7"), "10.96.0.1", 80)),
        [false, false]
    );
    assert_eq!(
        masqueraded(&table, &packet("10.244.1.9", Some("eth0"), "10.96.0.1", 80)),
        [true, true]
    );
}

#[test]
fn masquerade_all_hides_pods_too() {
    let table = table(|context| context.settings.masquerade_all = true);
    assert_eq!(
        masqueraded(&table, &packet("10.244.1.9", Some("veth0"), "10.96.0.1", 80)),
        [true, true]
    );
}

#[test]
fn node_ports_answer_on_the_chosen_addresses_only() {
    let table = table(|_| {});
    assert_eq!(
        masqueraded(&table, &packet("10.244.1.9", Some("veth0"), "192.168.0.1", 30080)),
        [true, true]
    );
    assert_eq!(
        table.trace(&packet("192.168.0.77", Some("eth0"), "172.16.0.1", 30080)),
        Verdict::Pass
    );
    assert_eq!(
        table.trace(&packet("192.168.0.77", Some("eth0"), "10.96.0.1", 30080)),
        Verdict::Reject,
        "a ClusterIP has its Service's ports only"
    );
}

#[test]
fn a_service_without_endpoints_refuses() {
    let table = table(|_| {});
    assert_eq!(
        table.trace(&packet("10.244.1.9", Some("veth0"), "10.96.0.2", 80)),
        Verdict::Reject
    );
    assert_eq!(
        table.trace(&packet("10.244.1.9", Some("veth0"), "10.96.0.3", 80)),
        Verdict::Drop,
        "no Service has this address"
    );
    assert_eq!(
        table.trace(&packet("10.244.1.9", Some("veth0"), "10.97.0.3", 80)),
        Verdict::Pass,
        "nor can any have it"
    );
}

proptest! {
    #[test]
    fn every_packet_has_an_answer_in_every_table(
        context in any_context(),
        services in prop::collection::vec((any_service(), any_slices()), 0..6),
        packets in prop::collection::vec(any_packet(), 40),
    ) {
        let (mut table, mut diff) = (ForwardingTable::default(), Diff::default());
        table.set_context(context.clone(), &mut diff);
        for (service, slices) in &services {
            table.set(compile(service, slices, &context), &mut diff);
        }
        for packet in packets {
            let family = Family::of(packet.destination);
            match table.trace(&packet) {
                Verdict::Balance(targets) => {
                    prop_assert!(!targets.is_empty(), "{:?}", packet);
                    for target in targets {
                        let address = target.address.ip();
                        prop_assert_eq!(Family::of(address), family);
                        prop_assert!(target.masqueraded || address != packet.source, "a pod that answers itself");
                    }
                }
                Verdict::Pass => {
                    let known = table.is_cluster_ip(packet.destination) || context.is_service_address(packet.destination);
                    prop_assert!(!known, "{:?} is a Service's", packet);
                }
                Verdict::Reject | Verdict::Drop => {
                    let node_port = context.node_port_addresses(family).contains(&packet.destination);
                    let claimed = services.iter().any(|(service, _)| {
                        let lists = [&service.cluster_ips, &service.external_ips, &service.load_balancer_ips];
                        lists.iter().any(|list| list.contains(&packet.destination))
                    });
                    let any = node_port || claimed || context.is_service_address(packet.destination);
                    prop_assert!(any, "{:?} is none of ours", packet);
                }
            }
        }
    }

    #[test]
    fn who_is_in_no_range_of_a_load_balancer_gets_nothing(
        context in any_context(),
        (mut service, slices) in (any_service(), any_slices()),
        packet in any_packet(),
    ) {
        service.load_balancer_ips = vec![ip("203.0.113.1")];
        service.external_ips.clear();
        service.source_ranges = Some(vec!["203.0.113.64/26".parse().unwrap()]);
        let (mut table, mut diff) = (ForwardingTable::default(), Diff::default());
        table.set_context(context.clone(), &mut diff);
        table.set(compile(&service, &slices, &context), &mut diff);
        let packet = Packet { destination: ip("203.0.113.1"), ..packet };
        if let Verdict::Balance(targets) = table.trace(&packet) {
            prop_assert!(false, "{:?} from {}", targets, packet.source);
        }
    }
}

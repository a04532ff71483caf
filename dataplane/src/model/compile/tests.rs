use super::*;
use crate::model::testing::{context, ip, port, ready, service, slice};
use crate::model::{Endpoint, Protocol, Settings};

fn endpoints(compiled: &Compiled) -> Vec<String> {
    compiled
        .pools
        .iter()
        .flat_map(|(_, pool)| &pool.endpoints)
        .map(|e| e.address.to_string())
        .collect()
}

fn kinds(compiled: &Compiled) -> Vec<(FrontendKind, bool)> {
    let rejects = |frontend: &Frontend| frontend.action == Action::Reject;
    compiled
        .frontends
        .iter()
        .map(|(_, frontend)| (frontend.kind, rejects(frontend)))
        .collect()
}

#[test]
fn every_address_of_a_service_is_a_frontend() {
    let mut all = service("web", &["10.96.0.1"]);
    all.external_ips = vec![ip("203.0.113.1")];
    all.load_balancer_ips = vec![ip("198.51.100.1")];
    all.ports[0].node_port = Some(30080);
    let compiled = compile(&all, &[slice(&["10.244.1.5"])], &context());
    let expected = [
        FrontendKind::ClusterIP,
        FrontendKind::LoadBalancerIP,
        FrontendKind::ExternalIP,
        FrontendKind::NodePort,
    ];
    assert_eq!(kinds(&compiled), expected.map(|kind| (kind, false)));
    assert_eq!(endpoints(&compiled), ["10.244.1.5:8080"]);
    assert!(compiled.problems.is_empty());
}

#[test]
fn only_ready_endpoints_get_connections_until_there_are_none() {
    let mut slice = slice(&["10.0.1.1", "10.0.1.2", "10.0.1.3"]);
    slice.endpoints[0] = Endpoint {
        ready: false,
        serving: false,
        ..slice.endpoints[0].clone()
    };
    slice.endpoints[1] = Endpoint {
        ready: false,
        terminating: true,
        ..slice.endpoints[1].clone()
    };
    let web = service("web", &["10.96.0.1"]);
    assert_eq!(
        endpoints(&compile(&web, &[slice.clone()], &context())),
        ["10.0.1.3:8080"]
    );
    slice.endpoints.pop();
    assert_eq!(
        endpoints(&compile(&web, &[slice.clone()], &context())),
        ["10.0.1.2:8080"]
    );
    slice.endpoints.pop();
    let compiled = compile(&web, &[slice], &context());
    assert_eq!(
        (endpoints(&compiled).len(), kinds(&compiled)),
        (0, vec![(FrontendKind::ClusterIP, true)])
    );
}

#[test]
fn slices_are_joined_by_port_name_and_protocol() {
    let mut web = service("web", &["10.96.0.1"]);
    web.ports = vec![port("dns", Protocol::Udp, 53), port("dns-tcp", Protocol::Tcp, 53)];
    let mut named = slice(&["10.0.1.1"]);
    named.ports = vec![
        EndpointPortOf("dns", Protocol::Udp, 1053).into(),
        EndpointPortOf("dns-tcp", Protocol::Tcp, 2053).into(),
        EndpointPortOf("dns", Protocol::Tcp, 3053).into(),
    ];
    assert_eq!(
        endpoints(&compile(&web, &[named], &context())),
        ["10.0.1.1:1053", "10.0.1.1:2053"]
    );
}

struct EndpointPortOf(&'static str, Protocol, u16);

impl From<EndpointPortOf> for crate::model::EndpointPort {
    fn from(EndpointPortOf(name, protocol, port): EndpointPortOf) -> Self {
        Self {
            name: name.into(),
            protocol,
            port,
        }
    }
}

#[test]
fn an_endpoint_in_two_slices_counts_once() {
    let mut moved = slice(&["10.0.1.1", "10.0.1.2"]);
    moved.endpoints[0].local = true;
    let web = service("web", &["10.96.0.1"]);
    let compiled = compile(&web, &[slice(&["10.0.1.1"]), moved], &context());
    assert_eq!(endpoints(&compiled), ["10.0.1.1:8080", "10.0.1.2:8080"]);
    assert!(compiled.pools[0].1.endpoints[0].local);
}

#[test]
fn families_share_nothing() {
    let web = service("web", &["10.96.0.1", "fd00:96::1"]);
    let compiled = compile(&web, &[slice(&["10.0.1.1"])], &context());
    assert_eq!(
        kinds(&compiled),
        [(FrontendKind::ClusterIP, false), (FrontendKind::ClusterIP, true)]
    );
}

#[test]
fn an_address_of_a_family_that_the_service_lacks_is_left_out_and_said() {
    let mut web = service("web", &["10.96.0.1"]);
    web.external_ips = vec![ip("fd00::99"), ip("203.0.113.1")];
    let compiled = compile(&web, &[slice(&["10.0.1.1"])], &context());
    assert_eq!(compiled.frontends.len(), 2);
    let said = compiled.problems[0].to_string();
    assert!(
        said.contains("fd00::99") && said.contains("spec.ipFamilies"),
        "{said}"
    );
}

#[test]
fn impossible_endpoints_are_left_out_and_said() {
    for address in [
        "0.0.0.0",
        "127.0.0.1",
        "169.254.0.1",
        "224.0.0.1",
        "255.255.255.255",
    ] {
        let mut bad = slice(&["10.0.1.1"]);
        bad.endpoints.push(ready(address));
        let compiled = compile(&service("web", &["10.96.0.1"]), &[bad], &context());
        assert_eq!(endpoints(&compiled), ["10.0.1.1:8080"]);
        assert!(compiled.problems[0].to_string().contains(address));
    }
    let mut mixed = slice(&["10.0.1.1"]);
    mixed.endpoints.push(ready("fd00::5"));
    let compiled = compile(&service("web", &["10.96.0.1"]), &[mixed], &context());
    assert!(compiled.problems[0].to_string().contains("addressType"));
}

#[test]
fn duplicate_ports_and_second_cluster_ips_are_said() {
    let mut web = service("web", &["10.96.0.1", "10.96.0.2"]);
    web.ports.push(port("again", Protocol::Tcp, 80));
    let compiled = compile(&web, &[slice(&["10.0.1.1"])], &context());
    assert_eq!((compiled.frontends.len(), compiled.problems.len()), (1, 2));
}

#[test]
fn excluded_addresses_are_left_alone_and_the_others_stay() {
    let mut web = service("web", &["10.96.0.1"]);
    web.ports[0].node_port = Some(30080);
    let mut context = context();
    context.settings = Settings {
        exclude_cidrs: vec!["10.96.0.0/24".parse().unwrap()],
        ..context.settings
    };
    let compiled = compile(&web, &[slice(&["10.0.1.1"])], &context);
    assert_eq!(kinds(&compiled), [(FrontendKind::NodePort, false)]);
    web.ports[0].node_port = None;
    let compiled = compile(&web, &[slice(&["10.0.1.1"])], &context);
    assert!(compiled.frontends.is_empty() && compiled.pools.is_empty());
}

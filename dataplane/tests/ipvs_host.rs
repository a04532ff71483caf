//! Mode IPVS and endpoints in nodes' own networks, as API servers are, in the test kernel.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by failing"
)]

mod support;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pointsman_dataplane::backend::Backend as _;
use pointsman_dataplane::ipvs::Ipvs;
use pointsman_dataplane::model::{
    Context, Diff, Endpoint, EndpointPort, EndpointSlice, Family, ForwardingTable, IpvsSettings, NodeFacts,
    NodePortAddresses, Protocol, Service, ServiceName, ServicePort, Settings, compile,
};

use support::flows::world::{self, Place, both};
use support::ipvs::PARAMETERS;
use support::network::Network;
use support::talk::{Answer, Ending};

pointsman_test_kernel::run_inside!();

const PATIENCE: Duration = Duration::from_secs(10);

/// A node in mode IPVS with the Service `kubernetes`, whose endpoint is at these addresses, one of each family.
fn node_with_endpoint(addresses: [IpAddr; 2], local: bool) -> Network {
    let network = Network::new();
    for (name, value) in PARAMETERS {
        network.host.sysctl(name, value);
    }
    let all = |texts: &[&str]| texts.iter().flat_map(|text| both(text)).collect::<Vec<IpAddr>>();
    let addresses_of_node: Vec<&str> = world::node_addresses().collect();
    let context = Context {
        settings: Settings {
            node_port_addresses: vec![NodePortAddresses::All],
            ipvs: IpvsSettings::default(),
            ..Settings::default()
        },
        node: NodeFacts {
            internal_ips: all(&[world::NODE]),
            pod_cidrs: vec![
                world::POD_RANGE.parse().unwrap(),
                "fd00::10:244:1:0/112".parse().unwrap(),
            ],
            interface_addresses: all(&addresses_of_node),
            zone: None,
        },
        service_cidrs: vec![
            world::SERVICE_RANGE.parse().unwrap(),
            "fd00::10:96:0:0/96".parse().unwrap(),
        ],
    };
    let (mut table, mut diff) = (ForwardingTable::default(), Diff::default());
    table.set_context(context, &mut diff);
    let service = Service {
        name: ServiceName::new("default", "kubernetes"),
        cluster_ips: all(&["10.96.0.1"]),
        external_ips: all(&["198.51.100.10"]),
        ports: vec![ServicePort {
            name: "https".into(),
            protocol: Protocol::Tcp,
            port: 443,
            node_port: Some(30_443),
        }],
        ..Service::default()
    };
    let slices = addresses.map(|address| EndpointSlice {
        family: Family::of(address),
        ports: vec![EndpointPort {
            name: "https".into(),
            protocol: Protocol::Tcp,
            port: 6443,
        }],
        endpoints: vec![Endpoint {
            address,
            ready: true,
            serving: true,
            terminating: false,
            local,
            for_nodes: None,
            unplaced: false,
            common: None,
        }],
    });
    table.set(compile(&service, &slices, table.context()), &mut diff);
    for family in Family::ALL {
        network.host.run(|| Ipvs::new(family).sync(&table)).unwrap();
    }
    network
}

/// Every way to the Service, from everywhere, ends at the endpoint.
fn reaches(network: &Network, addresses: [IpAddr; 2]) {
    for (at, address) in addresses.into_iter().enumerate() {
        let ways = [("10.96.0.1", 443), ("198.51.100.10", 443), (world::NODE, 30_443)];
        for (place, from) in [
            (Place::Outside, world::OUTSIDE[1]),
            (Place::Pod(0), world::PODS[0]),
            (Place::Node, world::NODE),
        ] {
            for (vip, port) in ways {
                let to = SocketAddr::new(both(vip)[at], port);
                let ending = ask(network, place, both(from)[at], to);
                let Ending::Answered(Answer { who, port, .. }) = ending else {
                    panic!("{to} from {place:?}: {ending:?}");
                };
                assert_eq!((who, port), (address, 6443), "{to} from {place:?}");
            }
        }
    }
}

fn ask(network: &Network, place: Place, from: IpAddr, to: SocketAddr) -> Ending {
    network
        .place(place)
        .run(|| network.knock(Protocol::Tcp, from, to, PATIENCE))
}

#[test]
fn an_endpoint_in_the_nodes_own_network_is_reached_from_everywhere() {
    let addresses = both(world::NODE);
    let network = node_with_endpoint(addresses, true);
    for address in addresses {
        support::talk::serve(&network.host, SocketAddr::new(address, 6443));
    }
    reaches(&network, addresses);
}

#[test]
fn an_endpoint_in_another_nodes_network_is_reached_from_everywhere() {
    let addresses = both(world::OUTSIDE[0]);
    let network = node_with_endpoint(addresses, false);
    for address in addresses {
        support::talk::serve(network.place(Place::Outside), SocketAddr::new(address, 6443));
    }
    reaches(&network, addresses);
}

#![allow(clippy::unwrap_used, reason = "a test ends by failing")]

#[path = "fake.rs"]
mod fake;

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::model::{
    Common, Context, DetectLocal, Endpoint, EndpointPort, EndpointSlice, Family, Ingress, NodeFacts,
    NodePortAddresses, Packet, Protocol, Service, ServiceName, ServicePort, Settings, TrafficPolicy, Verdict,
    Weight, Weights, compile,
};
use fake::Kernel;

const STYLE: Style = Style {
    family: Family::V4,
    random_fully: true,
};
const NODE: &str = "192.168.0.1";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Addresses that share buckets, nibbles, or nothing.
fn vip(at: usize) -> IpAddr {
    ip([
        "10.96.0.5",
        "10.96.0.21",
        "10.96.1.5",
        "10.96.0.6",
        "10.96.255.0",
        "10.96.0.255",
    ][at])
}

const SERVICES: usize = 6;

#[derive(Clone, Debug)]
enum Op {
    Set {
        at: usize,
        endpoints: u8,
        node_port: bool,
        external: bool,
        two_ports: bool,
        more: More,
    },
    Remove(usize),
    DetectLocal(Vec<&'static str>),
}

/// What a Service may ask for beyond addresses and ports.
#[derive(Clone, Copy, Debug, Default)]
struct More {
    policies: [TrafficPolicy; 2],
    affinity: bool,
    load_balancer: bool,
    /// Nobody in particular, other ranges than those of any packet, some packets', some packets' and the node's.
    sources: u8,
    direct_access: bool,
    /// Of the endpoints, where slices say them.
    weights: Option<[u8; 3]>,
}

fn more() -> impl Strategy<Value = More> {
    let policy = || prop::sample::select(TrafficPolicy::ALL.to_vec());
    let policies = [policy(), policy()];
    (
        policies,
        any::<bool>(),
        any::<bool>(),
        0_u8..4,
        prop::bool::weighted(0.1),
        prop::sample::select(vec![
            None,
            Some([1, 1, 1]),
            Some([9, 1, 1]),
            Some([1, 2, 3]),
            Some([0, 4, 4]),
            Some([0, 0, 2]),
            Some([100, 99, 1]),
        ]),
    )
        .prop_map(
            |(policies, affinity, load_balancer, sources, direct_access, weights)| More {
                policies,
                affinity,
                load_balancer,
                sources,
                direct_access,
                weights,
            },
        )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..SERVICES, 0_u8..8, any::<bool>(), any::<bool>(), any::<bool>(), more()).prop_map(
            |(at, endpoints, node_port, external, two_ports, more)|
            Op::Set { at, endpoints, node_port, external, two_ports, more }
        ),
        2 => (0..SERVICES).prop_map(Op::Remove),
        1 => prop::sample::subsequence(vec!["10.244.1.0/24", "10.0.0.0/8", "0.0.0.0/0"], 0..3).prop_map(Op::DetectLocal),
    ]
}

fn context(ranges: &[&str]) -> Context {
    Context {
        settings: Settings {
            node_port_addresses: vec![NodePortAddresses::Primary],
            detect_local: DetectLocal::ClusterCidr(
                ranges.iter().map(|range| range.parse().unwrap()).collect(),
            ),
            accept_invalid: ranges.len() == 1,
            ..Settings::default()
        },
        node: NodeFacts {
            internal_ips: vec![ip(NODE)],
            ..NodeFacts::default()
        },
        service_cidrs: vec!["10.96.0.0/17".parse().unwrap()],
    }
}

fn perform(op: &Op, table: &mut ForwardingTable, diff: &mut Diff) {
    match op {
        Op::Remove(at) => table.remove(&ServiceName::new("default", &format!("s{at}")), diff),
        Op::DetectLocal(ranges) => table.set_context(context(ranges), diff),
        Op::Set {
            at,
            endpoints,
            node_port,
            external,
            two_ports,
            more,
        } => {
            let number = u16::try_from(*at).unwrap();
            let port = |name: &str, protocol, port| ServicePort {
                name: name.into(),
                protocol,
                port,
                node_port: node_port.then_some(30_000 + number * 100 + port),
            };
            let mut ports = vec![port("a", Protocol::Tcp, 80)];
            if *two_ports {
                ports.push(port("b", Protocol::Udp, 53));
            }
            let service = Service {
                name: ServiceName::new("default", &format!("s{at}")),
                created: 0,
                cluster_ips: vec![vip(*at)],
                external_ips: external.then(|| ip("198.51.100.5")).into_iter().collect(),
                load_balancer_ips: more
                    .load_balancer
                    .then(|| ip("198.51.100.21"))
                    .into_iter()
                    .collect(),
                source_ranges: match more.sources {
                    0 => None,
                    1 => Some(vec!["203.0.113.0/24".parse().unwrap()]),
                    2 => Some(vec!["192.0.2.0/24".parse().unwrap()]),
                    _ => Some(vec![
                        "192.168.0.0/24".parse().unwrap(),
                        "10.244.2.0/24".parse().unwrap(),
                    ]),
                },
                internal_policy: more.policies[0],
                external_policy: more.policies[1],
                affinity: more.affinity.then_some(60),
                direct_access: more.direct_access,
                weights: Weights::default(),
                scheduler: None,
                ports,
                health_check_port: None,
            };
            let slice = EndpointSlice {
                family: Family::V4,
                ports: service
                    .ports
                    .iter()
                    .map(|port| EndpointPort {
                        name: std::sync::Arc::clone(&port.name),
                        protocol: port.protocol,
                        port: 8080,
                    })
                    .collect(),
                endpoints: (0..3)
                    .filter(|bit| endpoints & (1 << bit) != 0)
                    .map(|bit| Endpoint {
                        address: ip(["10.244.1.5", "10.244.2.1", "10.244.3.1"][bit]),
                        ready: true,
                        serving: true,
                        terminating: false,
                        for_nodes: None,
                        unplaced: false,
                        common: more.weights.map(|weights| {
                            let weight = Weight::Given(Some(weights[bit]));
                            std::sync::Arc::new(Common {
                                weight,
                                ..Common::default()
                            })
                        }),
                        local: bit == 0,
                    })
                    .collect(),
            };
            table.set(compile(&service, [&slice], table.context()), diff);
        }
    }
}

/// Packets to everything that any Service of these tests may have, and to what none has.
fn packets() -> Vec<Packet> {
    let mut packets = Vec::new();
    let mut to = |destination: IpAddr, protocol, port| {
        for source in ["10.244.1.5", "10.244.2.1", "192.0.2.1", NODE] {
            let ingress = if source == NODE {
                Ingress::Host
            } else {
                Ingress::Interface("eth0".to_owned())
            };
            packets.push(Packet {
                source: ip(source),
                destination,
                protocol,
                port,
                ingress,
            });
        }
    };
    for (protocol, port) in [(Protocol::Tcp, 80), (Protocol::Udp, 53), (Protocol::Udp, 80)] {
        (0..SERVICES).for_each(|at| to(vip(at), protocol, port));
        to(ip("198.51.100.5"), protocol, port);
        to(ip("198.51.100.21"), protocol, port);
        to(ip("10.96.7.7"), protocol, port);
        for number in 0..6 {
            to(ip(NODE), protocol, 30_000 + number * 100 + port);
            to(vip(0), protocol, 30_000 + number * 100 + port);
        }
    }
    packets
}

fn sorted(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Balance(mut targets) => {
            targets.sort_unstable();
            Verdict::Balance(targets)
        }
        other => other,
    }
}

/// Sends a plan to the kernel. After each of its transactions every packet meets what `before` or `after` says, or is
/// held back, where there is a `before`; after the last, what `after` says.
fn send(
    kernel: &mut Kernel,
    (plan, order): (Plan, FilterOrder),
    before: Option<&ForwardingTable>,
    after: &ForwardingTable,
) {
    let Some((_, input)) = plan.input(order).unwrap() else {
        return;
    };
    let input = input.pieces().concat();
    let states = kernel.restore(&input);
    if let Some(before) = before {
        for (state, packet) in states
            .iter()
            .flat_map(|state| packets().into_iter().map(move |p| (state, p)))
        {
            let found = sorted(state.walk(&packet));
            let (old, new) = (sorted(before.trace(&packet)), sorted(after.trace(&packet)));
            // nat and filter change one after the other: where a Service comes or goes, a packet may be refused or
            // dropped for that moment, but never passed on, and never where it was and is forwarded.
            let forwarded = |verdict: &Verdict| matches!(verdict, Verdict::Balance(_));
            let for_a_moment =
                matches!(found, Verdict::Reject | Verdict::Drop) && !(forwarded(&old) && forwarded(&new));
            assert!(
                found == old || found == new || for_a_moment,
                "{packet:?}: {found:?}, neither {old:?} nor {new:?}\n{input}"
            );
        }
    }
    for packet in packets() {
        assert_eq!(
            sorted(kernel.walk(&packet)),
            sorted(after.trace(&packet)),
            "{packet:?}\n{input}"
        );
    }
}

fn synced(table: &ForwardingTable) -> (Kernel, State) {
    let mut kernel = Kernel::new();
    let (state, plan, order) = State::sync(table, kernel.saved(), STYLE);
    if let Some((_, input)) = plan.input(order).unwrap() {
        kernel.restore(&input.pieces().concat());
    }
    (kernel, state)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Changes in any portions end where writing the whole table ends, and no packet meets anything half done.
    #[test]
    fn changes_in_any_split_give_what_a_sync_gives(
        portions in prop::collection::vec(prop::collection::vec(op(), 1..5), 1..8),
    ) {
        let mut table = ForwardingTable::default();
        table.set_context(context(&["10.244.1.0/24"]), &mut Diff::default());
        let (mut kernel, mut state) = synced(&table);
        for portion in portions {
            let before = table.clone();
            let mut diff = Diff::default();
            portion.iter().for_each(|op| perform(op, &mut table, &mut diff));
            // When settings change as well, a packet may meet the old Service and the new setting: the model has no
            // answer to compare that with.
            let yardstick = Some(&before).filter(|_| !diff.context);
            send(&mut kernel, state.change(&table, &diff, STYLE), yardstick, &table);
            let (fresh, anew) = synced(&table);
            prop_assert_eq!(&kernel, &fresh);
            prop_assert_eq!(state.rules, anew.rules, "counted as they change");
        }
        // And a sync finds nothing to do.
        let (_, plan, order) = State::sync(&table, kernel.saved(), STYLE);
        prop_assert!(plan.input(order).unwrap().is_none());
    }

    /// From whatever the kernel holds of ours, a sync gets to the table, without a packet of a Service that stays
    /// meeting anything else.
    #[test]
    fn a_sync_repairs_anything(
        old in prop::collection::vec(op(), 0..12),
        new in prop::collection::vec(op(), 0..12),
        flushed in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        unhooked in any::<bool>(),
    ) {
        let mut table = ForwardingTable::default();
        table.set_context(context(&["10.244.1.0/24"]), &mut Diff::default());
        old.iter().filter(|op| !matches!(op, Op::DetectLocal(_))).for_each(|op| perform(op, &mut table, &mut Diff::default()));
        let (mut kernel, _) = synced(&table);
        let before = table.clone();
        new.iter().filter(|op| !matches!(op, Op::DetectLocal(_))).for_each(|op| perform(op, &mut table, &mut Diff::default()));

        let undamaged = flushed.is_empty() && !unhooked;
        for index in flushed {
            let chains = &mut kernel.0[index.index(2)];
            let at = index.index(chains.len());
            chains.values_mut().nth(at).unwrap().clear();
        }
        if unhooked {
            kernel.0[0].get_mut("OUTPUT").unwrap().clear();
            kernel.0[1].get_mut("FORWARD").unwrap().push("-j PM-SERVICES".to_owned());
            kernel.0[1].insert("PM-OLD".to_owned(), vec!["-j PM-SERVICES".to_owned()]);
        }
        let (_, plan, order) = State::sync(&table, kernel.saved(), STYLE);
        if undamaged {
            send(&mut kernel, (plan, order), Some(&before), &table);
        } else if let Some((_, input)) = plan.input(order).unwrap() {
            kernel.restore(&input.pieces().concat());
        }
        prop_assert_eq!(&kernel, &synced(&table).0);
    }

    /// Teardown leaves the one rule.
    #[test]
    fn teardown_leaves_one_rule(ops in prop::collection::vec(op(), 0..12)) {
        let mut table = ForwardingTable::default();
        ops.iter().for_each(|op| perform(op, &mut table, &mut Diff::default()));
        let (mut kernel, _) = synced(&table);
        for _ in 0..2 {
            let (plan, order) = teardown(&kernel.saved());
            kernel.restore(&plan.input(order).unwrap().unwrap().1.pieces().concat());
            let mut clean = Kernel::new();
            clean.0[1].get_mut("FORWARD").unwrap().push(GRACE.to_owned());
            prop_assert_eq!(&kernel, &clean);
        }
        // Nothing of ours, nothing to do.
        prop_assert!(teardown(&Kernel::new().saved()).0.input(FilterOrder::Last).unwrap().is_none());
    }
}

/// One endpoint more rewrites the pool's chain, and nothing else.
#[test]
fn a_changed_endpoint_is_one_chain() {
    let set = |endpoints| Op::Set {
        at: 0,
        endpoints,
        node_port: true,
        external: true,
        two_ports: false,
        more: More::default(),
    };
    let mut table = ForwardingTable::default();
    table.set_context(context(&["10.244.1.0/24"]), &mut Diff::default());
    perform(&set(0b010), &mut table, &mut Diff::default());
    let (_, mut state) = synced(&table);
    let mut diff = Diff::default();
    perform(&set(0b110), &mut table, &mut diff);
    let (plan, order) = state.change(&table, &diff, STYLE);
    let (report, input) = plan.input(order).unwrap().unwrap();
    let input = input.pieces().concat();
    let chain = input
        .lines()
        .nth(1)
        .unwrap()
        .trim_start_matches(':')
        .split(' ')
        .next()
        .unwrap();
    assert_eq!(
        input,
        format!(
            "*nat\n:{chain} - [0:0]\n\
             -A {chain} -p tcp -m statistic --mode random --probability 0.50000000000 -j DNAT --to-destination 10.244.2.1:8080\n\
             -A {chain} -p tcp -j DNAT --to-destination 10.244.3.1:8080\nCOMMIT\n"
        )
    );
    assert_eq!(report.objects, 3);
    let [nat, filter] = state.count(&plan);
    assert_eq!((nat.written, filter.written), (2, 0));
    assert_eq!(nat.total + filter.total, synced(&table).1.rules.iter().sum());
}

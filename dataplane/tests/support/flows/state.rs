//! The objects as they are at one moment of a file, and the table that they give.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use pointsman_dataplane::model::{
    self, Common, Context, DetectLocal, Diff, Endpoint, EndpointPort, EndpointSlice, ForwardingTable,
    IpvsSettings, NodeFacts, NodePortAddresses, Protocol, Scheduler, ServiceName, ServicePort, Settings,
    Target, Verdict, Weight, Weights, compile,
};

use super::families::Families;
use super::file::{self, FlowFile, Service, Slice, Step};
use super::words::{EndpointWords, Expect, From, Masqueraded, Source};
use super::world;

/// The objects, and the table that follows them.
pub struct State {
    pub families: Families,
    pub table: ForwardingTable,
    /// What changed since a backend last saw the table.
    pub diff: Diff,
    node: file::Node,
    settings: file::Settings,
    services: BTreeMap<String, Service>,
    slices: BTreeMap<String, Slice>,
}

/// What is expected now.
pub struct Moment {
    pub flows: Vec<Flow>,
    /// What the table says beside packets, and is wrong.
    pub wrong: Vec<String>,
}

/// One packet and what becomes of it.
#[derive(Clone, Debug)]
pub struct Flow {
    pub source: Source,
    pub to: SocketAddr,
    pub protocol: Protocol,
    pub expect: Verdict,
    pub sticky: Option<String>,
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Source { place, from } = &self.source;
        match from {
            From::One(address) => write!(f, "{} from {address}", self.protocol)?,
            From::Crowd(range) => write!(f, "{} from each of {range}", self.protocol)?,
        }
        let interface = world::interface(*place);
        write!(
            f,
            " ({}) to {}",
            interface.as_deref().unwrap_or("the node"),
            self.to
        )
    }
}

/// What becomes of a packet, as files say it.
pub fn said(verdict: &Verdict) -> String {
    let target = |it: &Target| {
        let hidden = if it.masqueraded { " masqueraded" } else { "" };
        match it.share {
            1 => format!("{}{hidden}", it.address),
            share => format!("{}*{share}{hidden}", it.address),
        }
    };
    match verdict {
        Verdict::Balance(targets) => targets.iter().map(target).collect::<Vec<_>>().join(", "),
        Verdict::Reject => "REJECT".to_owned(),
        Verdict::Drop => "DROP".to_owned(),
        Verdict::Pass => "PASS".to_owned(),
    }
}

impl State {
    pub fn new(families: Families) -> Self {
        Self {
            families,
            table: ForwardingTable::default(),
            diff: Diff::default(),
            node: file::Node::default(),
            settings: file::Settings::default(),
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
        }
    }

    /// Goes back to a file's own objects.
    pub fn begin(&mut self, file: &FlowFile) {
        self.node = file.node.clone();
        self.settings = file.settings.clone();
        self.services = file.services.clone();
        self.slices = file.slices.clone();
    }

    /// Takes all Services out.
    pub fn clear(&mut self) {
        let all: Vec<ServiceName> = self.table.services().cloned().collect();
        for name in all {
            self.table.remove(&name, &mut self.diff);
        }
    }

    /// Changes objects as a step says, and the table with them.
    pub fn take(&mut self, step: &Step) -> Result<Moment, String> {
        if let Some(node) = &step.node {
            self.node = node.clone();
        }
        if let Some(settings) = &step.settings {
            self.settings = settings.clone();
        }
        put_all(&mut self.services, &step.services);
        put_all(&mut self.slices, &step.slices);
        let problems = self.settle()?;
        let mut wrong = self.check(step)?;
        if problems.len() != step.problems.len() {
            let count = step.problems.len();
            wrong.push(format!("problems: expected {count}, found {problems:?}"));
        }
        let unheard = |piece: &&String| !problems.iter().any(|problem| problem.contains(*piece));
        let missing = step.problems.iter().filter(unheard);
        wrong.extend(missing.map(|piece| format!("no problem says {piece:?}: {problems:?}")));
        let mut flows = Vec::new();
        for packets in &step.packets {
            for source in &packets.from.0 {
                for to in &packets.to.0 {
                    flows.push(self.flow(packets, *source, *to)?);
                }
            }
        }
        Ok(Moment { flows, wrong })
    }

    /// Makes the table what the objects say. Gives the problems.
    fn settle(&mut self) -> Result<Vec<String>, String> {
        let context = self.context()?;
        self.table.set_context(context.clone(), &mut self.diff);
        let known: BTreeSet<ServiceName> = self.table.services().cloned().collect();
        let now: BTreeSet<ServiceName> = self.services.keys().map(|name| service_name(name)).collect();
        for gone in known.difference(&now) {
            self.table.remove(gone, &mut self.diff);
        }
        for (name, slice) in &self.slices {
            if !self.services.contains_key(&slice.service) {
                return Err(format!("slice {name}: there is no Service {}", slice.service));
            }
        }
        let mut problems = Vec::new();
        for (name, service) in &self.services {
            let slices: Vec<EndpointSlice> = self
                .slices
                .values()
                .filter(|slice| slice.service == *name)
                .map(|slice| self.slice(slice))
                .collect::<Result<_, _>>()?;
            let compiled = compile(&self.service(name, service)?, &slices, &context);
            problems.extend(compiled.problems.iter().map(ToString::to_string));
            self.table.set(compiled, &mut self.diff);
        }
        Ok(problems)
    }

    fn context(&self) -> Result<Context, String> {
        let families = self.families;
        let both = |texts: &[&str]| texts.iter().flat_map(|text| world::both(text)).collect();
        let ranges = |own: &Option<Vec<ipnet::IpNet>>, usual: &str| match own {
            Some(ranges) => all(ranges, |range| families.net(*range)),
            None => {
                let usual: ipnet::IpNet = usual.parse().unwrap();
                Ok(vec![usual, Families::Swapped.net(usual)?])
            }
        };
        let settings = &self.settings;
        let detect_local = match &settings.detect_local {
            None => DetectLocal::NodeCidr,
            Some(file::DetectLocal::ClusterCidrs(ranges)) => {
                DetectLocal::ClusterCidr(all(ranges, |range| families.net(*range))?)
            }
            Some(file::DetectLocal::BridgeInterface(name)) => {
                DetectLocal::BridgeInterface(name.as_str().into())
            }
            Some(file::DetectLocal::InterfaceNamePrefix(prefix)) => {
                DetectLocal::InterfaceNamePrefix(prefix.as_str().into())
            }
        };
        let node_port_addresses = match &settings.node_port_addresses {
            None => vec![NodePortAddresses::Primary],
            Some(chosen) => all(chosen, |choice| {
                Ok(match choice {
                    file::NodePortAddresses::Primary => NodePortAddresses::Primary,
                    file::NodePortAddresses::All => NodePortAddresses::All,
                    file::NodePortAddresses::Within(range) => {
                        NodePortAddresses::Within(families.net(*range)?)
                    }
                })
            })?,
        };
        let mut interface_addresses: Vec<_> = world::node_addresses().flat_map(world::both).collect();
        interface_addresses.sort_unstable();
        Ok(Context {
            settings: Settings {
                exclude_cidrs: all(&settings.exclude_cidrs, |range| families.net(*range))?,
                detect_local,
                masquerade_all: settings.masquerade_all,
                node_port_addresses,
                accept_invalid: false,
                reset_removed: false,
                // Nothing that is gone is in the way of the next case.
                ipvs: IpvsSettings {
                    graceful: Some(0),
                    ..IpvsSettings::default()
                },
            },
            node: NodeFacts {
                internal_ips: match &self.node.internal_ips {
                    Some(addresses) => all(addresses, |address| families.ip(*address))?,
                    None => both(&[world::NODE]),
                },
                pod_cidrs: ranges(&self.node.pod_cidrs, world::POD_RANGE)?,
                interface_addresses,
                zone: Some(self.node.zone.as_deref().unwrap_or(world::ZONE).into()),
            },
            service_cidrs: {
                let mut ranges = ranges(&self.node.service_cidrs, world::SERVICE_RANGE)?;
                ranges.sort_unstable();
                ranges
            },
        })
    }

    fn service(&self, name: &str, written: &Service) -> Result<model::Service, String> {
        let families = self.families;
        let ips = |list: &[std::net::IpAddr]| all(list, |address| families.ip(*address));
        let port = |port: &file::ServicePort| ServicePort {
            name: port.name.as_str().into(),
            protocol: port.protocol.model(),
            port: port.port,
            node_port: port.node_port,
        };
        let mut weights = Weights::default();
        for (workload, weight) in &written.weights {
            weights.add(workload, *weight);
        }
        Ok(model::Service {
            name: service_name(name),
            created: written.created,
            cluster_ips: ips(&written.cluster_ips)?,
            external_ips: ips(&written.external_ips)?,
            load_balancer_ips: ips(&written.load_balancer_ips)?,
            ports: written.ports.iter().map(port).collect(),
            internal_policy: written.internal_traffic_policy.model(),
            external_policy: written.external_traffic_policy.model(),
            affinity: written.affinity_seconds,
            source_ranges: match &written.load_balancer_source_ranges {
                Some(ranges) => Some(all(ranges, |range| families.net(*range))?),
                None => None,
            },
            health_check_port: written.health_check_node_port,
            direct_access: written.direct_access,
            weights,
            scheduler: match &written.scheduler {
                Some(scheduler) => {
                    let flags = written.scheduler_flags.iter().map(String::as_str);
                    let bad = |error| format!("Service {name}: {error}");
                    Some(Scheduler::parse(scheduler, flags).map_err(bad)?)
                }
                None if written.scheduler_flags.is_empty() => None,
                None => return Err(format!("Service {name}: schedulerFlags without scheduler")),
            },
        })
    }

    fn slice(&self, written: &Slice) -> Result<EndpointSlice, String> {
        let endpoint = |it: &EndpointWords| {
            let local = world::endpoint_is_local(it.address)
                .ok_or_else(|| format!("endpoint {} is not in the test's network", it.address))?;
            let zones = |zones: &Vec<String>| zones.iter().map(|zone| Box::from(zone.as_str())).collect();
            Ok(Endpoint {
                address: self.families.ip(it.address)?,
                ready: it.ready,
                serving: it.serving,
                terminating: it.terminating,
                local: local && !it.unplaced,
                unplaced: it.unplaced,
                for_nodes: it
                    .nodes
                    .as_ref()
                    .map(|nodes| nodes.iter().any(|node| node == world::NAME)),
                common: Some(Arc::new(Common {
                    for_zones: it.zones.as_ref().map(zones),
                    weight: match (written.weight, &it.workload) {
                        (Some(weight), _) => Weight::Given(Some(weight)),
                        (None, Some(workload)) => Weight::Workload(workload.as_str().into()),
                        (None, None) => Weight::USUAL,
                    },
                })),
            })
        };
        let port = |port: &file::EndpointPort| EndpointPort {
            name: port.name.as_str().into(),
            protocol: port.protocol.model(),
            port: port.port,
        };
        Ok(EndpointSlice {
            family: self.families.family(written.address_type.model()),
            ports: written.ports.iter().map(port).collect(),
            endpoints: all(&written.endpoints, endpoint)?,
        })
    }

    fn flow(&self, packets: &file::Packets, source: Source, to: SocketAddr) -> Result<Flow, String> {
        let from = match source.from {
            From::One(address) => From::One(self.families.ip(address)?),
            From::Crowd(range) => From::Crowd(self.families.net(range)?),
        };
        // The words for places stand for addresses of the family that the packet is addressed to.
        let same = |from: From| match from {
            From::One(address) => address.is_ipv4(),
            From::Crowd(range) => range.addr().is_ipv4(),
        };
        let to = self.families.socket(to)?;
        let from = match from {
            From::One(address) if same(from) != to.is_ipv4() => From::One(Families::Swapped.ip(address)?),
            From::Crowd(range) if same(from) != to.is_ipv4() => From::Crowd(Families::Swapped.net(range)?),
            from => from,
        };
        let expect = match &packets.expect {
            Expect::Reject => Verdict::Reject,
            Expect::Drop => Verdict::Drop,
            Expect::Pass => Verdict::Pass,
            Expect::Targets(targets) => {
                let hidden = |written: &SocketAddr| match &packets.masqueraded {
                    Masqueraded::None => false,
                    Masqueraded::All => true,
                    Masqueraded::These(these) => these.contains(written),
                };
                let mut found = all(targets, |(written, share)| {
                    Ok(Target {
                        share: *share,
                        address: self.families.socket(*written)?.into(),
                        masqueraded: hidden(written),
                    })
                })?;
                found.sort_unstable();
                Verdict::Balance(found)
            }
        };
        Ok(Flow {
            source: Source {
                place: source.place,
                from,
            },
            to,
            protocol: packets.protocol.model(),
            expect,
            sticky: packets.sticky.clone(),
        })
    }

    /// What a step expects of the table beside packets.
    fn check(&self, step: &Step) -> Result<Vec<String>, String> {
        let mut wrong = Vec::new();
        if let Some(expected) = &step.health_checks {
            let mut expected: Vec<_> = expected
                .iter()
                .map(|it| {
                    let family = self.families.family(it.family.model());
                    (it.service.clone(), family, it.port, it.local_endpoints)
                })
                .collect();
            expected.sort_unstable();
            let mut found: Vec<_> = self
                .table
                .health_checks()
                .map(|(name, family, check)| {
                    (name.name.to_string(), family, check.port, check.local_endpoints)
                })
                .collect();
            found.sort_unstable();
            if expected != found {
                wrong.push(format!("health checks: expected {expected:?}, found {found:?}"));
            }
        }
        if let Some(expected) = step.without_local {
            let family = self.families.family(model::Family::V4);
            let count = |side| self.table.without_local(family, side);
            let expected = (expected.internal, expected.external);
            let found = (
                count(model::TrafficSide::Internal),
                count(model::TrafficSide::External),
            );
            if expected != found {
                wrong.push(format!(
                    "ports without local endpoints: expected {expected:?}, found {found:?}"
                ));
            }
        }
        if let Some(expected) = step.direct_access {
            let found = self.table.direct_access_count();
            if expected != found {
                wrong.push(format!(
                    "Services with direct access: expected {expected}, found {found}"
                ));
            }
        }
        Ok(wrong)
    }
}

fn service_name(name: &str) -> ServiceName {
    ServiceName::new("default", name)
}

fn put_all<T: Clone>(have: &mut BTreeMap<String, T>, changes: &BTreeMap<String, Option<T>>) {
    for (name, change) in changes {
        match change {
            Some(object) => have.insert(name.clone(), object.clone()),
            None => have.remove(name),
        };
    }
}

fn all<T, U>(list: &[T], convert: impl Fn(&T) -> Result<U, String>) -> Result<Vec<U>, String> {
    list.iter().map(convert).collect()
}

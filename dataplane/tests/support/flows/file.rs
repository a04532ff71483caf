//! The schema of the files. `tests/flows/README.md` explains it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use pointsman_dataplane::model::{self, TrafficPolicy};
use serde::Deserialize;

use super::words::{EndpointWords, Expect, Masqueraded, Sockets, Sources};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowFile {
    /// What the file pins down.
    pub about: String,
    /// How many packets all cases have together: none is lost by a slip of the pen.
    pub count: usize,
    #[serde(default)]
    pub node: Node,
    #[serde(default)]
    pub settings: Settings,
    #[serde(default)]
    pub services: BTreeMap<String, Service>,
    #[serde(default)]
    pub slices: BTreeMap<String, Slice>,
    pub cases: Vec<Step>,
}

/// A case, or a step of one: what is different now, and what is expected then.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Step {
    pub name: String,
    pub node: Option<Node>,
    pub settings: Option<Settings>,
    /// Null takes one out.
    #[serde(default)]
    pub services: BTreeMap<String, Option<Service>>,
    #[serde(default)]
    pub slices: BTreeMap<String, Option<Slice>>,
    #[serde(default)]
    pub packets: Vec<Packets>,
    /// All that load balancers are told.
    pub health_checks: Option<Vec<HealthCheck>>,
    /// How many Service ports have endpoints, but none here, in the first family.
    pub without_local: Option<WithoutLocal>,
    /// How many Services ask for direct access.
    pub direct_access: Option<usize>,
    /// A piece of each problem that is reported, in any order: none, where it is not given.
    #[serde(default)]
    pub problems: Vec<String>,
    #[serde(default)]
    pub then: Vec<Step>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    #[serde(rename = "internalIPs")]
    pub internal_ips: Option<Vec<IpAddr>>,
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Option<Vec<IpNet>>,
    pub zone: Option<String>,
    #[serde(rename = "serviceCIDRs")]
    pub service_cidrs: Option<Vec<IpNet>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    #[serde(rename = "excludeCIDRs", default)]
    pub exclude_cidrs: Vec<IpNet>,
    /// By the node's podCIDRs, where it is not given.
    #[serde(rename = "detectLocal")]
    pub detect_local: Option<DetectLocal>,
    #[serde(rename = "masqueradeAll", default)]
    pub masquerade_all: bool,
    /// Primary, where it is not given.
    #[serde(rename = "nodePortAddresses")]
    pub node_port_addresses: Option<Vec<NodePortAddresses>>,
}

#[derive(Clone, Debug, Deserialize)]
pub enum DetectLocal {
    #[serde(rename = "clusterCIDRs")]
    ClusterCidrs(Vec<IpNet>),
    #[serde(rename = "bridgeInterface")]
    BridgeInterface(String),
    #[serde(rename = "interfaceNamePrefix")]
    InterfaceNamePrefix(String),
}

/// `Primary`, `All` or a range.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
pub enum NodePortAddresses {
    Primary,
    All,
    Within(IpNet),
}

impl TryFrom<String> for NodePortAddresses {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "Primary" => Ok(Self::Primary),
            "All" => Ok(Self::All),
            range => range
                .parse()
                .map(Self::Within)
                .map_err(|_| format!("nodePortAddresses: {text:?} is none of Primary, All, a range")),
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Service {
    #[serde(default)]
    pub created: i64,
    #[serde(rename = "clusterIPs", default)]
    pub cluster_ips: Vec<IpAddr>,
    #[serde(rename = "externalIPs", default)]
    pub external_ips: Vec<IpAddr>,
    #[serde(rename = "loadBalancerIPs", default)]
    pub load_balancer_ips: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
    #[serde(default)]
    pub internal_traffic_policy: Policy,
    #[serde(default)]
    pub external_traffic_policy: Policy,
    pub affinity_seconds: Option<u32>,
    pub load_balancer_source_ranges: Option<Vec<IpNet>>,
    pub health_check_node_port: Option<u16>,
    #[serde(default)]
    pub direct_access: bool,
    /// Of workloads.
    #[serde(default)]
    pub weights: BTreeMap<String, u8>,
    /// Of mode IPVS; the policy's, where it is not given.
    pub scheduler: Option<String>,
    #[serde(default)]
    pub scheduler_flags: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ServicePort {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Slice {
    /// The Service that it belongs to.
    pub service: String,
    #[serde(default)]
    pub address_type: Family,
    pub ports: Vec<EndpointPort>,
    pub endpoints: Vec<EndpointWords>,
    pub weight: Option<u8>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointPort {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub protocol: Protocol,
    pub port: u16,
}

/// One packet from each source to each destination.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packets {
    pub from: Sources,
    pub to: Sockets,
    #[serde(default)]
    pub protocol: Protocol,
    pub expect: Expect,
    #[serde(default)]
    pub masqueraded: Masqueraded,
    /// All packets of a case with the same word here get the same endpoint, each time.
    pub sticky: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HealthCheck {
    pub service: String,
    #[serde(default)]
    pub family: Family,
    pub port: u16,
    pub local_endpoints: usize,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WithoutLocal {
    pub internal: usize,
    pub external: usize,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub enum Policy {
    #[default]
    Cluster,
    Local,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub enum Protocol {
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    #[serde(rename = "UDP")]
    Udp,
    #[serde(rename = "SCTP")]
    Sctp,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub enum Family {
    #[default]
    #[serde(rename = "IPv4")]
    V4,
    #[serde(rename = "IPv6")]
    V6,
}

impl Policy {
    pub fn model(self) -> TrafficPolicy {
        match self {
            Self::Cluster => TrafficPolicy::Cluster,
            Self::Local => TrafficPolicy::Local,
        }
    }
}

impl Protocol {
    pub fn model(self) -> model::Protocol {
        match self {
            Self::Tcp => model::Protocol::Tcp,
            Self::Udp => model::Protocol::Udp,
            Self::Sctp => model::Protocol::Sctp,
        }
    }
}

impl Family {
    pub fn model(self) -> model::Family {
        match self {
            Self::V4 => model::Family::V4,
            Self::V6 => model::Family::V6,
        }
    }
}

/// Reads a file's text.
pub fn read(name: &str, text: &str) -> Result<FlowFile, String> {
    let file: FlowFile = serde_saphyr::from_str(text).map_err(|error| format!("{name}.yaml: {error}"))?;
    for case in &file.cases {
        for step in &case.then {
            if !step.then.is_empty() {
                return Err(format!(
                    "{name}.yaml: {}, then {}: a step has no steps of its own",
                    case.name, step.name
                ));
            }
        }
    }
    Ok(file)
}

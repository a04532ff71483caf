//! A policy's values with every default filled in: what an agent is told.

use std::fmt;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// How a node's kernel is made to forward Service traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// The agent picks the best mode that its kernel has, and says which and why.
    #[default]
    Auto,
    /// Maps in an nf_tables table of its own.
    NFTables,
    /// IPVS for balancing, and an nf_tables table of its own for what IPVS does not do.
    IPVS,
    /// Rules in the nat and filter tables of iptables, by either of its variants.
    IPTables,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "Auto",
            Self::NFTables => "NFTables",
            Self::IPVS => "IPVS",
            Self::IPTables => "IPTables",
        })
    }
}

/// How the agent knows that a packet comes from a pod of its own node.
///
/// Such packets keep their source address on the way to a ClusterIP; all others are masqueraded, because the
/// answer has to come back through this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum DetectLocalMode {
    /// The source address is in one of `clusterCIDRs`.
    ClusterCIDR,
    /// The source address is in one of the Node's `spec.podCIDRs`.
    #[default]
    NodeCIDR,
    /// The packet came in through `bridgeInterface`.
    BridgeInterface,
    /// The packet came in through an interface whose name begins with `interfaceNamePrefix`.
    InterfaceNamePrefix,
}

/// How pod traffic is told from other traffic. What a mode needs must be there, and nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.mode == 'ClusterCIDR' ? has(self.clusterCIDRs) && self.clusterCIDRs.size() > 0 : !has(self.clusterCIDRs) || self.clusterCIDRs.size() == 0")
        .message("detectLocal.clusterCIDRs goes with mode ClusterCIDR, which needs at least one"),
    validation = Rule::new("(self.mode == 'BridgeInterface') == has(self.bridgeInterface)")
        .message("detectLocal.bridgeInterface goes with mode BridgeInterface, which needs it"),
    validation = Rule::new("(self.mode == 'InterfaceNamePrefix') == has(self.interfaceNamePrefix)")
        .message("detectLocal.interfaceNamePrefix goes with mode InterfaceNamePrefix, which needs it")
)]
pub struct DetectLocal {
    /// Which of the ways to use. Default NodeCIDR.
    #[serde(default)]
    pub mode: DetectLocalMode,
    /// The address ranges of all pods of the cluster, for mode ClusterCIDR.
    #[serde(default, rename = "clusterCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 43)))]
    #[x_kube(validation = Rule::new("self.all(cidr, isCIDR(cidr))").message("every entry of detectLocal.clusterCIDRs must be a CIDR such as 10.244.0.0/16 or fd00:10::/56"))]
    pub cluster_cidrs: Vec<String>,
    /// The name of the bridge that the node's pods are attached to, for mode BridgeInterface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 15),
        regex(pattern = r"^[A-Za-z0-9._@][A-Za-z0-9._@-]*$")
    )]
    pub bridge_interface: Option<String>,
    /// What the names of all pod interfaces begin with, for mode InterfaceNamePrefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 14),
        regex(pattern = r"^[A-Za-z0-9._@][A-Za-z0-9._@-]*$")
    )]
    pub interface_name_prefix: Option<String>,
}

/// Connection tracking of the node. What is not set is left as the node has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.min) || has(self.maxPerCore)")
        .message("conntrack.min is the lower bound of maxPerCore times the cores: set conntrack.maxPerCore as well")
)]
pub struct Conntrack {
    /// Upper limit of tracked connections for each CPU core: nf_conntrack_max becomes this times the cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16_777_216))]
    pub max_per_core: Option<i32>,
    /// Lower bound of nf_conntrack_max on nodes with few cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_073_741_824))]
    pub min: Option<i32>,
    /// How long an idle established TCP connection is remembered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_147_483))]
    pub tcp_established_timeout_seconds: Option<i32>,
    /// How long a TCP connection in CLOSE_WAIT is remembered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_147_483))]
    pub tcp_close_wait_timeout_seconds: Option<i32>,
    /// Whether packets outside of the TCP window are accepted rather than marked invalid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_be_liberal: Option<bool>,
    /// How long a UDP flow with packets in one direction only is remembered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_147_483))]
    pub udp_timeout_seconds: Option<i32>,
    /// How long a UDP flow with packets in both directions is remembered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_147_483))]
    pub udp_stream_timeout_seconds: Option<i32>,
    /// Whether TCP connections through a Service are reset when their endpoint is gone: when no EndpointSlice names it
    /// any more, in whatever condition. Otherwise they go on, and a client that waits for an endpoint that is no more
    /// waits for its own timeouts. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_removed_endpoints: Option<bool>,
}

/// The schedulers of IPVS, by the kernel's names.
pub const SCHEDULERS: [&str; 14] = [
    "rr", "wrr", "lc", "wlc", "fo", "ovf", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "twos",
];

/// What mode IPVS is told, its scheduler apart. Nothing of it has an effect in other modes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ipvs {
    /// Flags of the schedulers sh and mh: `Fallback` gives clients of an endpoint that gets no new connections another one
    /// instead of refusing them, `Port` makes a client's port count as well as its address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub scheduler_flags: Vec<SchedulerFlag>,
    /// Whether the node answers ARP for the addresses only that the asked interface has, and so for no Service's.
    /// Load balancers that announce Service addresses by ARP need it.
    #[serde(default, rename = "strictARP")]
    pub strict_arp: bool,
    /// How long IPVS remembers an idle TCP connection. Absent: as the kernel has it, 900 unless somebody changed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_147_483))]
    pub tcp_timeout_seconds: Option<i32>,
    /// How long IPVS remembers a TCP connection after a FIN. Absent: as the kernel has it, 120 unless somebody changed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_147_483))]
    pub tcp_fin_timeout_seconds: Option<i32>,
    /// How long IPVS remembers an idle UDP flow. Absent: as the kernel has it, 300 unless somebody changed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_147_483))]
    pub udp_timeout_seconds: Option<i32>,
    /// How long an endpoint that is gone or terminates, and still has connections, is kept for them. Absent: until its
    /// last connection ended. 0: not at all, and its connections end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_147_483))]
    pub graceful_seconds: Option<i32>,
}

/// A flag of the schedulers sh and mh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum SchedulerFlag {
    /// An endpoint that gets no new connections is passed over, instead of its clients being refused.
    Fallback,
    /// A client's port counts as well as its address.
    Port,
}

impl SchedulerFlag {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fallback => "Fallback",
            Self::Port => "Port",
        }
    }
}

/// Names as a CEL list literal.
pub(crate) fn cel_list(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("'{name}'")).collect();
    format!("[{}]", quoted.join(","))
}

/// Everything that an agent needs to know of a policy, nothing left to a default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// The mode as the policy has it; which one `Auto` became is in the NodeProxy's status.
    #[schemars(with = "String")]
    pub mode: Mode,
    /// The scheduler of mode IPVS, which is wrr where the policy names none. In mode Auto absent where the policy names none.
    // Absent fields stay away, so that settings that say nothing of them have the revision that they always had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<String>,
    /// What mode IPVS is told besides.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ipvs: Ipvs,
    /// Service addresses in these ranges are left alone.
    #[serde(rename = "excludeCIDRs")]
    pub exclude_cidrs: Vec<String>,
    /// How pod traffic is told from other traffic.
    pub detect_local: DetectLocal,
    /// Whether pods' traffic to ClusterIPs is masqueraded as well.
    pub masquerade_all: bool,
    /// On which of the node's addresses NodePorts answer: `Primary`, `All`, or CIDRs.
    pub node_port_addresses: Vec<String>,
    /// Changes are gathered for at least this long between two writes to the kernel, in milliseconds.
    pub min_sync_period_milliseconds: i32,
    /// How often everything in the kernel is read back and compared, in seconds.
    pub sync_period_seconds: i32,
    /// Connection tracking.
    pub conntrack: Conntrack,
    /// Kernel parameters by name.
    pub sysctls: BTreeMap<String, String>,
    /// How much the agent logs, on kube-proxy's scale: 0 and 1 little, 4 and more to find a fault.
    pub log_verbosity: i32,
}

fn is_default(ipvs: &Ipvs) -> bool {
    *ipvs == Ipvs::default()
}

impl Settings {
    /// A short name for exactly these values: the same values have the same revision on every machine.
    #[must_use]
    pub fn revision(&self) -> String {
        // serde_json writes struct fields in their order and BTreeMaps sorted, so the text is canonical.
        let text = serde_json::to_vec(self).unwrap_or_default();
        Sha256::digest(&text)
            .iter()
            .take(5)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

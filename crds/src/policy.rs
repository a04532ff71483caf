//! `ProxyPolicy`: how a pool of nodes forwards Service traffic.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::settings::{Conntrack, DetectLocal, Ipvs, Mode, SCHEDULERS, Settings, cel_list};
use crate::sysctl;

/// How the nodes that `nodeSelector` selects forward Service traffic.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "pointsman.dev",
    version = "v1alpha1",
    kind = "ProxyPolicy",
    plural = "proxypolicies",
    shortname = "ppol",
    status = "ProxyPolicyStatus",
    derive = "PartialEq",
    doc = "How a pool of nodes forwards Service traffic.",
    printcolumn(
        name = "Mode",
        type_ = "string",
        json_path = ".status.mode",
        description = "The mode that the nodes run; what Auto became"
    ),
    printcolumn(
        name = "Scheduler",
        type_ = "string",
        json_path = ".spec.scheduler",
        description = "The scheduler that mode IPVS is to use; wrr where none is named"
    ),
    printcolumn(
        name = "Revision",
        type_ = "string",
        json_path = ".status.revision",
        description = "Short name of the settings that the nodes are to have"
    ),
    printcolumn(
        name = "Nodes",
        type_ = "integer",
        json_path = ".status.nodes.matched",
        description = "Nodes that follow this policy"
    ),
    printcolumn(
        name = "Updated",
        type_ = "integer",
        json_path = ".status.nodes.updated",
        description = "Nodes that run this revision"
    ),
    printcolumn(
        name = "Ready",
        type_ = "integer",
        json_path = ".status.nodes.ready",
        description = "Nodes that run this revision and are healthy"
    ),
    printcolumn(
        name = "Failed",
        type_ = "integer",
        json_path = ".status.nodes.failed",
        description = "Nodes that could not apply this revision or are not healthy"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Selected",
        type_ = "integer",
        json_path = ".status.nodes.selected",
        priority = 1,
        description = "Nodes that the selector matches, other policies' among them"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    cel,
    validation = Rule::new("!has(self.ipvs) || !has(self.ipvs.schedulerFlags) || self.ipvs.schedulerFlags.size() == 0 || (has(self.scheduler) && self.scheduler in ['sh', 'mh'])")
        .message("ipvs.schedulerFlags goes with scheduler sh or mh: no other scheduler has flags")
)]
pub struct ProxyPolicySpec {
    /// Which nodes follow this policy. Absent or empty: every node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,

    /// Of several policies that select a node the one with the highest priority wins; then the oldest; then
    /// the first by name.
    #[serde(default)]
    pub priority: i32,

    /// How the kernel is made to forward: `NFTables`, `IPVS`, `IPTables`, or `Auto`: IPVS where the policy names a scheduler and the
    /// node's kernel has it; otherwise NFTables where the kernel can; IPTables elsewhere.
    #[serde(default)]
    #[schemars(with = "String", length(max = 32))]
    #[x_kube(
        validation = Rule::new("self.lowerAscii() != 'userspace'")
            .message("mode userspace was removed from Kubernetes in 1.26 and does not exist here: use Auto, which picks the best mode of each node, NFTables, IPVS or IPTables"),
        validation = Rule::new("self in ['Auto', 'NFTables', 'IPVS', 'IPTables'] || self.lowerAscii() == 'userspace'")
            .message("mode must be Auto, NFTables, IPVS or IPTables, spelled so: no other mode exists in this version")
    )]
    pub mode: Mode,

    /// How mode IPVS spreads connections: `rr`, `wrr`, `lc`, `wlc`, `fo`, `ovf`, `lblc`, `lblcr`, `dh`, `sh`, `mh`, `sed`, `nq` or `twos`.
    /// Absent: `wrr`, which is round robin while nobody gives weights. A Service's annotation `pointsman.dev/scheduler` comes before it. In modes NFTables and IPTables it has no
    /// effect: connections are spread at random, by weight where weights are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    #[x_kube(
        validation = Rule::new(format!("self in {}", cel_list(&SCHEDULERS)))
        .message("scheduler must be one of rr, wrr, lc, wlc, fo, ovf, lblc, lblcr, dh, sh, mh, sed, nq, twos, spelled so: these are the kernel's schedulers of IPVS")
    )]
    pub scheduler: Option<String>,

    /// What mode IPVS is told besides. In other modes it has no effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipvs: Option<Ipvs>,

    /// Service addresses (ClusterIPs, external IPs, load balancer IPs) in these ranges are left alone.
    #[serde(default, rename = "excludeCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 43)))]
    #[x_kube(validation = Rule::new("self.all(cidr, isCIDR(cidr))").message("every entry of excludeCIDRs must be a CIDR such as 10.0.0.0/24 or fd00:1::/64"))]
    pub exclude_cidrs: Vec<String>,

    /// How pod traffic is told from other traffic. Absent: by the Node's podCIDRs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detect_local: Option<DetectLocal>,

    /// Whether pods' traffic to ClusterIPs is masqueraded as well.
    #[serde(default)]
    pub masquerade_all: bool,

    /// On which of the node's addresses NodePorts answer: `Primary` (the Node's InternalIPs), `All`, or CIDRs.
    /// Absent: `Primary`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 43)))]
    #[x_kube(validation = Rule::new("self.all(entry, entry == 'Primary' || entry == 'All' || isCIDR(entry))").message("every entry of nodePortAddresses must be Primary, All, or a CIDR such as 192.168.1.0/24"))]
    pub node_port_addresses: Vec<String>,

    /// Changes are gathered for at least this long between two writes to the kernel. 0: every change at once.
    #[serde(default)]
    #[schemars(range(min = 0, max = 60_000))]
    pub min_sync_period_milliseconds: i32,

    /// How often everything in the kernel is read back, compared and repaired. Default 30.
    #[serde(default = "default_sync_period_seconds")]
    #[schemars(range(min = 1, max = 3_600))]
    pub sync_period_seconds: i32,

    /// Connection tracking. What is not set is left as the node has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conntrack: Option<Conntrack>,

    /// Kernel parameters of the node, by their full name. Set, checked on every slow check, and put back when the
    /// policy no longer names them. Only the parameters on the allow-list of the documentation.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    // The API server's estimate of what a rule costs needs a bound on every value.
    #[schemars(extend("maxProperties" = 64, "additionalProperties" = {"type": "string", "maxLength": 64}))]
    #[x_kube(
        validation = Rule::new(format!("self.all(name, name in {})", cel_list(sysctl::ALLOWED)))
            .message("a name in sysctls is not on the allow-list: only parameters of connection tracking, IPVS, neighbour tables and forwarding can be set by a policy; docs/reference/proxypolicy.md lists them"),
        validation = Rule::new("self.all(name, self[name].matches('^[0-9]+([ \\t,-][0-9]+)*$'))")
            .message("values in sysctls are written as strings of numbers, for example \"86400\" or \"1024 65000\"")
    )]
    pub sysctls: BTreeMap<String, String>,

    /// How much the agents log, on kube-proxy's `--v` scale. Applied without a restart. Default 2.
    #[serde(default = "default_log_verbosity")]
    #[schemars(range(min = 0, max = 10))]
    pub log_verbosity: i32,
}

fn default_sync_period_seconds() -> i32 {
    30
}

fn default_log_verbosity() -> i32 {
    2
}

impl ProxyPolicySpec {
    /// The policy's values with every default filled in.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let node_port_addresses = if self.node_port_addresses.is_empty() {
            vec!["Primary".to_owned()]
        } else {
            self.node_port_addresses.clone()
        };
        Settings {
            mode: self.mode,
            scheduler: self.scheduler(),
            ipvs: self.ipvs.clone().unwrap_or_default(),
            exclude_cidrs: self.exclude_cidrs.clone(),
            detect_local: self.detect_local.clone().unwrap_or_default(),
            masquerade_all: self.masquerade_all,
            node_port_addresses,
            min_sync_period_milliseconds: self.min_sync_period_milliseconds,
            sync_period_seconds: self.sync_period_seconds,
            conntrack: self.conntrack.clone().unwrap_or_default(),
            sysctls: self.sysctls.clone(),
            log_verbosity: self.log_verbosity,
        }
    }

    fn scheduler(&self) -> Option<String> {
        let usual = (self.mode == Mode::IPVS).then(|| "wrr".to_owned());
        self.scheduler.clone().or(usual)
    }
}

/// What the operator knows of the policy's nodes. Nothing in it grows with their number.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProxyPolicyStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The mode that the policy's nodes run; `Mixed` when they differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Short name of the settings that the nodes are to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// How many nodes are where.
    #[serde(default)]
    pub nodes: NodeCounts,
    /// How many Services ask for direct access to their pods, as the policy's nodes report it. All nodes see the same
    /// Services, so that it is the largest number that one reports.
    #[serde(default)]
    pub direct_access: i32,
    /// Ready, Progressing, Degraded, Conflicted, SysctlsApplied.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// How many nodes are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeCounts {
    /// Nodes that the selector matches.
    pub selected: i32,
    /// Of those, the nodes that follow this policy.
    pub matched: i32,
    /// Of those that follow it, the nodes that run its revision.
    pub updated: i32,
    /// Of those that follow it, the nodes that run its revision and are healthy.
    pub ready: i32,
    /// Of those that follow it, the nodes that could not apply its revision or are not healthy.
    pub failed: i32,
    /// Nodes that the selector matches and that follow another policy.
    pub conflicted: i32,
}

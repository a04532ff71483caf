//! `NodeProxy`: what one node is to do, and what its agent reports.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::settings::Settings;

/// What one node is to do. Named after the node and owned by it; written by the operator only.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "pointsman.dev",
    version = "v1alpha1",
    kind = "NodeProxy",
    plural = "nodeproxies",
    shortname = "nprx",
    status = "NodeProxyStatus",
    derive = "PartialEq",
    doc = "What one node's proxy is to do, and what it reports. Made by the operator: change the ProxyPolicy, not this.",
    printcolumn(name = "Policy", type_ = "string", json_path = ".spec.policy"),
    printcolumn(
        name = "Mode",
        type_ = "string",
        json_path = ".status.mode",
        description = "The mode that the node runs"
    ),
    printcolumn(
        name = "Revision",
        type_ = "string",
        json_path = ".spec.revision",
        description = "Settings that the node is to have"
    ),
    printcolumn(
        name = "Applied",
        type_ = "string",
        json_path = ".status.appliedRevision",
        description = "Settings that the node has"
    ),
    printcolumn(
        name = "Healthy",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Healthy\")].status"
    ),
    printcolumn(name = "Services", type_ = "integer", json_path = ".status.services"),
    printcolumn(name = "Endpoints", type_ = "integer", json_path = ".status.endpoints"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Sysctls",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"SysctlsApplied\")].status",
        priority = 1
    ),
    printcolumn(
        name = "Drifted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Drifted\")].status",
        priority = 1
    ),
    printcolumn(
        name = "Direct",
        type_ = "integer",
        json_path = ".status.directAccess",
        description = "Services that ask for direct access to their pods",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Applied\")].message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct NodeProxySpec {
    /// The name of the ProxyPolicy that the settings come from.
    pub policy: String,
    /// Short name of `settings`.
    pub revision: String,
    /// The complete settings.
    // Atomic: the operator's apply replaces the whole, so that what somebody else added to a list or map in it goes.
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    pub settings: Settings,
}

/// What the node's agent reports; written by that agent only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeProxyStatus {
    /// The generation of the spec that the agent has seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The revision that the kernel holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_revision: Option<String>,
    /// The mode that the node runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Why it runs this mode, when the policy left the choice to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode_reason: Option<String>,
    /// How many Services the node forwards.
    #[serde(default)]
    pub services: i32,
    /// How many endpoints those have, all of the cluster's.
    #[serde(default)]
    pub endpoints: i32,
    /// How many Services ask for direct access to their pods, so that the node refuses their addresses.
    #[serde(default)]
    pub direct_access: i32,
    /// Digest of the forwarding table: nodes with the same digest forward in the same way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// Release of the kernel, as `uname -r` prints it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_release: Option<String>,
    /// Applied, Healthy, Drifted, LeftoverRules, SysctlsApplied, InputsValid.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

//! The own Node.

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Deserialize;

use super::{AUTOSCALER_TAINT, ZONE_LABEL, address, label, list, metadata};
use crate::source::NodeState;

/// What is read of the own Node.
#[derive(Resource, Clone, Debug, Deserialize)]
#[resource(inherit = "k8s_openapi::api::core::v1::Node")]
pub(in crate::source) struct SlimNode {
    #[serde(deserialize_with = "metadata")]
    pub(in crate::source) metadata: ObjectMeta,
    #[serde(default)]
    spec: SlimNodeSpec,
    #[serde(default)]
    status: SlimNodeStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct SlimNodeSpec {
    #[serde(default, rename = "podCIDRs", deserialize_with = "list")]
    pod_cidrs: Vec<String>,
    #[serde(default, rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(default, deserialize_with = "list")]
    taints: Vec<SlimTaint>,
}

#[derive(Clone, Debug, Deserialize)]
struct SlimTaint {
    #[serde(default)]
    key: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct SlimNodeStatus {
    #[serde(default, deserialize_with = "list")]
    addresses: Vec<SlimNodeAddress>,
}

#[derive(Clone, Debug, Deserialize)]
struct SlimNodeAddress {
    #[serde(rename = "type")]
    type_: String,
    address: String,
}

impl SlimNode {
    pub(in crate::source) fn parse(self) -> NodeState {
        let spec = self.spec;
        let ranges = if spec.pod_cidrs.is_empty() {
            spec.pod_cidr.into_iter().collect()
        } else {
            spec.pod_cidrs
        };
        let addresses = self
            .status
            .addresses
            .into_iter()
            .filter(|address| address.type_ == "InternalIP");
        NodeState {
            zone: label(&self.metadata, ZONE_LABEL)
                .filter(|zone| !zone.is_empty())
                .map(Into::into),
            internal_ips: addresses.filter_map(|entry| address(&entry.address)).collect(),
            pod_cidrs: ranges
                .iter()
                .filter_map(|range| range.parse::<IpNet>().ok())
                .map(|r| r.trunc())
                .collect(),
            eligible: self.metadata.deletion_timestamp.is_none()
                && spec.taints.iter().all(|taint| taint.key != AUTOSCALER_TAINT),
        }
    }
}

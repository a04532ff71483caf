//! EndpointSlices.

use std::{sync::Arc, time::SystemTime};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use pointsman_dataplane::model::{
    Common, Endpoint, EndpointPort, EndpointSlice, Family, ServiceName, Weight,
};
use serde::Deserialize;

use super::{
    HEADLESS_LABEL, SERVICE_NAME_LABEL, TRIGGER_ANNOTATION, address, annotation, label, list, metadata, name,
    port, protocol, weights,
};
use crate::source::{Parsed, SliceName};

/// What is read of an EndpointSlice.
#[derive(Resource, Clone, Debug, Deserialize)]
#[resource(inherit = "k8s_openapi::api::discovery::v1::EndpointSlice")]
#[serde(rename_all = "camelCase")]
pub(in crate::source) struct SlimSlice {
    #[serde(deserialize_with = "metadata")]
    pub(in crate::source) metadata: ObjectMeta,
    #[serde(default)]
    address_type: String,
    #[serde(default, deserialize_with = "list")]
    ports: Vec<SlimSlicePort>,
    #[serde(default, deserialize_with = "list")]
    endpoints: Vec<SlimEndpoint>,
}

#[derive(Clone, Debug, Deserialize)]
struct SlimSlicePort {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimEndpoint {
    #[serde(default, deserialize_with = "list")]
    addresses: Vec<String>,
    #[serde(default)]
    conditions: SlimConditions,
    node_name: Option<String>,
    #[serde(default)]
    hints: Option<SlimHints>,
    target_ref: Option<SlimTarget>,
}

/// What the endpoint is an address of.
#[derive(Clone, Debug, Deserialize)]
struct SlimTarget {
    kind: Option<String>,
    name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimHints {
    #[serde(default, deserialize_with = "list")]
    for_zones: Vec<SlimHint>,
    #[serde(default, deserialize_with = "list")]
    for_nodes: Vec<SlimHint>,
}

#[derive(Clone, Debug, Deserialize)]
struct SlimHint {
    name: String,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct SlimConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

impl SlimSlice {
    pub(in crate::source) fn name(&self) -> SliceName {
        name(&self.metadata)
    }

    /// When what it tells of happened, where its controller says so.
    pub(in crate::source) fn triggered(&self) -> Option<SystemTime> {
        let time: Timestamp = annotation(&self.metadata, TRIGGER_ANNOTATION)?.parse().ok()?;
        Some(time.into())
    }

    /// What the model is to know, with the Service that it belongs to; `node` is this node's name.
    pub(in crate::source) fn parse(self, node: &str) -> Parsed<(ServiceName, EndpointSlice)> {
        let slice_name = name(&self.metadata);
        let family = match self.address_type.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            _ => return Parsed::gone(),
        };
        let service = label(&self.metadata, SERVICE_NAME_LABEL).filter(|service| !service.is_empty());
        let Some(service) = service.filter(|_| label(&self.metadata, HEADLESS_LABEL).is_none()) else {
            return Parsed::gone();
        };
        let mut problems = Vec::new();
        let mut ports = Vec::with_capacity(self.ports.len());
        // A port without a number stands for all ports, which no proxy can forward.
        for entry in self.ports.into_iter().filter(|entry| entry.port.is_some()) {
            let number = entry.port.unwrap_or_default();
            match (protocol(entry.protocol.as_deref()), port(number)) {
                (Some(protocol), Some(port)) => {
                    ports.push(EndpointPort { name: entry.name.unwrap_or_default().into(), protocol, port });
                }
                _ => problems.push(format!(
                    "EndpointSlice {slice_name}: port {number} with protocol {} is left out: ports are 1 to 65535, \
                     protocols TCP, UDP, SCTP",
                    entry.protocol.unwrap_or_default()
                )),
            }
        }
        let weight = annotation(&self.metadata, weights::SLICE_ANNOTATION).map(|text| {
            weights::of_slice(text).unwrap_or_else(|problem| {
                problems.push(format!("EndpointSlice {slice_name}: {problem}"));
                1
            })
        });
        let mut commons = Commons::default();
        let mut endpoints = Vec::with_capacity(self.endpoints.len());
        for entry in self.endpoints {
            // All addresses of an endpoint are the same endpoint; like kube-proxy, the first one is used.
            let Some(text) = entry.addresses.first() else {
                continue;
            };
            let Some(address) = address(text) else {
                problems.push(format!(
                    "EndpointSlice {slice_name}: endpoint {text:?} is no IP address: it is left out; mend the slice"
                ));
                continue;
            };
            let hints = entry.hints.unwrap_or_default();
            let for_nodes = hints.for_nodes.iter().any(|hint| hint.name == node);
            endpoints.push(Endpoint {
                address,
                ready: entry.conditions.ready.unwrap_or(true),
                serving: entry.conditions.serving.unwrap_or(true),
                terminating: entry.conditions.terminating.unwrap_or(false),
                local: entry.node_name.as_deref() == Some(node),
                unplaced: entry.node_name.is_none(),
                for_nodes: (!hints.for_nodes.is_empty()).then_some(for_nodes),
                common: commons.of(
                    &hints.for_zones,
                    weight,
                    entry.target_ref.as_ref().and_then(SlimTarget::pod),
                ),
            });
        }
        let service = ServiceName {
            namespace: Arc::clone(&slice_name.namespace),
            name: service.into(),
        };
        Parsed {
            object: Some((
                service,
                EndpointSlice {
                    family,
                    ports,
                    endpoints,
                },
            )),
            problems,
        }
    }
}

impl SlimTarget {
    fn pod(&self) -> Option<&str> {
        self.name
            .as_deref()
            .filter(|_| self.kind.as_deref() == Some("Pod"))
    }
}

/// What the endpoints of a slice have in common: mostly a few different things, each of many endpoints.
#[derive(Default)]
struct Commons(Vec<Arc<Common>>);

impl Commons {
    /// What an endpoint has that is hinted for these zones, in a slice of this weight, of this pod.
    fn of(&mut self, zones: &[SlimHint], weight: Option<u8>, pod: Option<&str>) -> Option<Arc<Common>> {
        let workload = pod.filter(|_| weight.is_none()).map(weights::workload);
        if zones.is_empty() && weight.is_none() && workload.is_none() {
            return None;
        }
        let names = zones.iter().map(|zone| zone.name.as_str());
        let is_same = |common: &Common| {
            let known = common.for_zones.iter().flatten().map(|zone| &**zone);
            let weighs_same = match (&common.weight, workload) {
                (Weight::Workload(known), Some(workload)) => **known == *workload,
                (Weight::Given(known), None) => *known == weight,
                _ => false,
            };
            weighs_same && known.eq(names.clone())
        };
        // The last ones are the likeliest: a slice of very many workloads costs no search of them all.
        let known = self.0.iter().rev().take(16).find(|known| is_same(known));
        Some(match known {
            Some(known) => Arc::clone(known),
            None => {
                let new = Arc::new(Common {
                    for_zones: (!zones.is_empty()).then(|| names.map(Box::from).collect()),
                    weight: workload.map_or(Weight::Given(weight), |workload| {
                        Weight::Workload(workload.into())
                    }),
                });
                self.0.push(Arc::clone(&new));
                new
            }
        })
    }
}

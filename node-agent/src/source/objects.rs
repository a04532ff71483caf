//! The few fields that a proxy reads of Kubernetes' objects, and what it makes of them.
//!
//! Whole objects are several times as large, most of it managed fields, and the agent holds none. Unknown fields
//! are skipped while parsing. Numbers and addresses are read leniently here and judged afterwards, so that one
//! bad value costs its object, never the watch.

use std::{net::IpAddr, net::Ipv4Addr, sync::Arc};

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use pointsman_dataplane::model::{
    Endpoint, EndpointPort, EndpointSlice, Family, Protocol, Service, ServiceName, ServicePort,
};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

use super::{NodeState, Parsed, SliceName};

/// The label of a Service that another proxy is to serve.
pub(super) const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// The label of a Service or slice that no proxy is to serve.
pub(super) const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
const AUTOSCALER_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// Reads metadata without its managed fields, owner references and annotations.
fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Slim {
        name: Option<String>,
        namespace: Option<String>,
        resource_version: Option<String>,
        creation_timestamp: Option<Time>,
        deletion_timestamp: Option<Time>,
        labels: Option<BTreeMap<String, String>>,
    }
    let slim = Slim::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: slim.name,
        namespace: slim.namespace,
        resource_version: slim.resource_version,
        creation_timestamp: slim.creation_timestamp,
        deletion_timestamp: slim.deletion_timestamp,
        labels: slim.labels,
        ..ObjectMeta::default()
    })
}

/// A list that the API may leave out or write as null.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}

fn label<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(name).map(String::as_str)
}

fn name(metadata: &ObjectMeta) -> ServiceName {
    ServiceName::new(
        metadata.namespace.as_deref().unwrap_or("default"),
        metadata.name.as_deref().unwrap_or_default(),
    )
}

/// An IP address as Kubernetes reads it: IPv4 with leading zeros is decimal (CVE-2021-29923).
pub(super) fn address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let octets: Vec<u8> = text
        .split('.')
        .map(|part| {
            part.bytes()
                .all(|byte| byte.is_ascii_digit())
                .then(|| part.parse().ok())
                .flatten()
        })
        .collect::<Option<_>>()?;
    let octets: [u8; 4] = octets.try_into().ok()?;
    Some(IpAddr::V4(Ipv4Addr::from(octets)))
}

fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

fn port(number: i64) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

/// What is read of a Service.
#[derive(Resource, Clone, Debug, Deserialize)]
#[resource(inherit = "k8s_openapi::api::core::v1::Service")]
pub(super) struct SlimService {
    #[serde(deserialize_with = "metadata")]
    pub(super) metadata: ObjectMeta,
    #[serde(default)]
    spec: SlimServiceSpec,
    #[serde(default)]
    status: SlimServiceStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimServiceSpec {
    #[serde(rename = "type")]
    type_: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(default, rename = "clusterIPs", deserialize_with = "list")]
    cluster_ips: Vec<String>,
    #[serde(default, rename = "externalIPs", deserialize_with = "list")]
    external_ips: Vec<String>,
    #[serde(default, deserialize_with = "list")]
    ports: Vec<SlimServicePort>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimServicePort {
    name: Option<String>,
    protocol: Option<String>,
    port: i64,
    node_port: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimServiceStatus {
    #[serde(default)]
    load_balancer: SlimLoadBalancer,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct SlimLoadBalancer {
    #[serde(default, deserialize_with = "list")]
    ingress: Vec<SlimIngress>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimIngress {
    ip: Option<String>,
    ip_mode: Option<String>,
}

impl SlimService {
    pub(super) fn name(&self) -> ServiceName {
        name(&self.metadata)
    }

    /// What the model is to know; none for a Service that no proxy serves, or that another one does.
    pub(super) fn parse(self) -> Parsed<Service> {
        let spec = self.spec;
        let none_of_ours = label(&self.metadata, PROXY_NAME_LABEL).is_some()
            || label(&self.metadata, HEADLESS_LABEL).is_some()
            || spec.type_.as_deref() == Some("ExternalName")
            || spec.cluster_ip.as_deref() == Some("None");
        if none_of_ours {
            return Parsed::gone();
        }
        let name = name(&self.metadata);
        let mut problems = Vec::new();
        let cluster_ips = if spec.cluster_ips.is_empty() {
            spec.cluster_ip.into_iter().collect()
        } else {
            spec.cluster_ips
        };
        let mut addresses = |texts: Vec<String>, field: &str| -> Vec<IpAddr> {
            let texts = texts.into_iter().filter(|text| !text.is_empty());
            texts
                .filter_map(|text| {
                    let parsed = address(&text);
                    if parsed.is_none() {
                        problems.push(format!(
                            "Service {name}: {field} has {text:?}, which is no IP address: it is left out; mend the field"
                        ));
                    }
                    parsed
                })
                .collect()
        };
        let cluster_ips = addresses(cluster_ips, "spec.clusterIPs");
        let external_ips = addresses(spec.external_ips, "spec.externalIPs");
        let ingress = self.status.load_balancer.ingress.into_iter();
        // ipMode Proxy: the balancer itself terminates the address, and traffic to it must leave the node (KEP-1860).
        let ingress = ingress.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
        let load_balancer_ips = addresses(
            ingress.filter_map(|ingress| ingress.ip).collect(),
            "status.loadBalancer.ingress",
        );
        let mut ports = Vec::new();
        for entry in spec.ports {
            match entry.parse() {
                Some(port) => ports.push(port),
                None => problems.push(format!(
                    "Service {name}: port {:?} ({}, protocol {}) is left out: ports are 1 to 65535, protocols TCP, UDP, SCTP",
                    entry.name.unwrap_or_default(),
                    entry.port,
                    entry.protocol.unwrap_or_default(),
                )),
            }
        }
        let created = self
            .metadata
            .creation_timestamp
            .map_or(0, |time| time.0.as_second());
        let service = Service {
            name,
            created,
            cluster_ips,
            external_ips,
            load_balancer_ips,
            ports,
        };
        // Without a ClusterIP it is not allocated yet, or headless.
        let object = (!service.cluster_ips.is_empty()).then_some(service);
        Parsed { object, problems }
    }
}

impl SlimServicePort {
    fn parse(&self) -> Option<ServicePort> {
        let node_port = match self.node_port {
            None | Some(0) => None,
            Some(number) => Some(port(number)?),
        };
        Some(ServicePort {
            name: self.name.as_deref().unwrap_or_default().into(),
            protocol: protocol(self.protocol.as_deref())?,
            port: port(self.port)?,
            node_port,
        })
    }
}

/// What is read of an EndpointSlice.
#[derive(Resource, Clone, Debug, Deserialize)]
#[resource(inherit = "k8s_openapi::api::discovery::v1::EndpointSlice")]
#[serde(rename_all = "camelCase")]
pub(super) struct SlimSlice {
    #[serde(deserialize_with = "metadata")]
    pub(super) metadata: ObjectMeta,
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
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct SlimConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

impl SlimSlice {
    pub(super) fn name(&self) -> SliceName {
        name(&self.metadata)
    }

    /// What the model is to know, with the Service that it belongs to; `node` is this node's name.
    pub(super) fn parse(self, node: &str) -> Parsed<(ServiceName, EndpointSlice)> {
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
        let mut ports = Vec::new();
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
            let ready = entry.conditions.ready.unwrap_or(true);
            endpoints.push(Endpoint {
                address,
                ready,
                serving: entry.conditions.serving.unwrap_or(ready),
                terminating: entry.conditions.terminating.unwrap_or(false),
                local: entry.node_name.as_deref() == Some(node),
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

/// What is read of the own Node.
#[derive(Resource, Clone, Debug, Deserialize)]
#[resource(inherit = "k8s_openapi::api::core::v1::Node")]
pub(super) struct SlimNode {
    #[serde(deserialize_with = "metadata")]
    pub(super) metadata: ObjectMeta,
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
    pub(super) fn parse(self) -> NodeState {
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

#[cfg(test)]
mod tests;

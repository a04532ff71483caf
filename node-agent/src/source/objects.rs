//! The few fields that a proxy reads of Kubernetes' objects, and what it makes of them.
//!
//! Whole objects are several times as large, most of it managed fields, and the agent holds none. Unknown fields
//! are skipped while parsing. Numbers and addresses are read leniently here and judged afterwards, so that one
//! bad value costs its object, never the watch.

mod node;
mod scheduler;
mod service;
mod service_cidr;
mod slice;
mod weights;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use pointsman_dataplane::model::{Protocol, ServiceName};
use serde::{Deserialize, Deserializer};

pub(super) use node::SlimNode;
pub(super) use service::SlimService;
pub(super) use service_cidr::SlimServiceCidr;
pub(super) use slice::SlimSlice;

/// The label of a Service that another proxy is to serve.
pub(super) const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// The label of a slice that no proxy is to use. On a Service it means nothing: there `clusterIP: None` does.
pub(super) const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// The annotation of a Service whose clients go to its pods directly.
const DIRECT_ACCESS_ANNOTATION: &str = "networking.alpha.kubernetes.io/direct-access";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
const AUTOSCALER_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// The annotation of a slice that says when what it tells of happened (KEP: network programming latency SLI).
const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// The annotations that are read.
const ANNOTATIONS: [&str; 6] = [
    DIRECT_ACCESS_ANNOTATION,
    TRIGGER_ANNOTATION,
    scheduler::ANNOTATION,
    scheduler::FLAGS_ANNOTATION,
    weights::SERVICE_ANNOTATION,
    weights::SLICE_ANNOTATION,
];

/// Reads metadata without its managed fields, owner references and the annotations that mean nothing here.
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
        annotations: Option<BTreeMap<String, String>>,
    }
    let slim = Slim::deserialize(deserializer)?;
    let annotations = slim.annotations.map(|mut annotations| {
        annotations.retain(|name, _| ANNOTATIONS.contains(&name.as_str()));
        annotations
    });
    Ok(ObjectMeta {
        name: slim.name,
        namespace: slim.namespace,
        resource_version: slim.resource_version,
        creation_timestamp: slim.creation_timestamp,
        deletion_timestamp: slim.deletion_timestamp,
        labels: slim.labels,
        annotations,
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

fn annotation<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(name).map(String::as_str)
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

/// A CIDR, its address read as [`address`] reads one and its host bits cleared.
pub(super) fn range(text: &str) -> Option<IpNet> {
    let (network, length) = text.split_once('/')?;
    let plain = length.bytes().all(|byte| byte.is_ascii_digit());
    let length = length.parse().ok().filter(|_| plain)?;
    IpNet::new(address(network)?, length)
        .ok()
        .map(|range| range.trunc())
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

#[cfg(test)]
mod tests;

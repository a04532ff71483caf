//! Services.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use pointsman_dataplane::model::{Service, ServiceName, ServicePort, TrafficPolicy};
use serde::Deserialize;

use super::{
    DIRECT_ACCESS_ANNOTATION, PROXY_NAME_LABEL, address, annotation, label, list, metadata, name, port,
    protocol, range, scheduler, weights,
};
use crate::source::Parsed;

/// What is read of a Service.
#[derive(Resource, Clone, Debug, Deserialize)]
#[resource(inherit = "k8s_openapi::api::core::v1::Service")]
pub(in crate::source) struct SlimService {
    #[serde(deserialize_with = "metadata")]
    pub(in crate::source) metadata: ObjectMeta,
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
    session_affinity: Option<String>,
    #[serde(default)]
    session_affinity_config: Option<SlimAffinityConfig>,
    internal_traffic_policy: Option<String>,
    external_traffic_policy: Option<String>,
    #[serde(default, deserialize_with = "list")]
    load_balancer_source_ranges: Vec<String>,
    health_check_node_port: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct SlimAffinityConfig {
    #[serde(rename = "clientIP")]
    client_ip: Option<SlimClientIp>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimClientIp {
    timeout_seconds: Option<i64>,
}

/// `sessionAffinityConfig.clientIP.timeoutSeconds` where it is not set (`DefaultClientIPServiceAffinitySeconds`).
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

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
    pub(in crate::source) fn name(&self) -> ServiceName {
        name(&self.metadata)
    }

    /// What the model is to know; none for a Service that no proxy serves, or that another one does.
    pub(in crate::source) fn parse(self) -> Parsed<Service> {
        let spec = self.spec;
        let none_of_ours = label(&self.metadata, PROXY_NAME_LABEL).is_some()
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
            let mut addresses: Vec<_> = texts
                .filter_map(|text| {
                    let parsed = address(&text);
                    if parsed.is_none() {
                        problems.push(format!(
                            "Service {name}: {field} has {text:?}, which is no IP address: it is left out; mend the field"
                        ));
                    }
                    parsed
                })
                .collect();
            addresses.shrink_to_fit();
            addresses
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
        let mut ports = Vec::with_capacity(spec.ports.len());
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
        let type_ = spec.type_.as_deref().unwrap_or("ClusterIP");
        let policy = |text: Option<String>| match text.as_deref() {
            Some("Local") => TrafficPolicy::Local,
            _ => TrafficPolicy::Cluster,
        };
        // A policy of a Service that nobody outside can reach means nothing (`ExternalPolicyLocal`).
        let is_external = matches!(type_, "LoadBalancer" | "NodePort") || !external_ips.is_empty();
        let external_policy = policy(spec.external_traffic_policy.filter(|_| is_external));
        let health_check_port = spec
            .health_check_node_port
            .filter(|_| type_ == "LoadBalancer" && external_policy == TrafficPolicy::Local)
            .and_then(port);
        let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
            spec.session_affinity_config
                .and_then(|config| config.client_ip?.timeout_seconds)
                .and_then(|seconds| u32::try_from(seconds).ok())
                .filter(|seconds| (1..=86_400).contains(seconds))
                .unwrap_or(DEFAULT_AFFINITY_SECONDS)
        });
        let restricted = !spec.load_balancer_source_ranges.is_empty();
        let ranges: Vec<IpNet> = spec
            .load_balancer_source_ranges
            .into_iter()
            .filter_map(|text| {
                let parsed = range(text.trim());
                if parsed.is_none() {
                    problems.push(format!(
                        "Service {name}: spec.loadBalancerSourceRanges has {text:?}, which is no CIDR: it lets nobody in; \
                         mend the field"
                    ));
                }
                parsed
            })
            .collect();
        let direct_access = annotation(&self.metadata, DIRECT_ACCESS_ANNOTATION) == Some("true");
        let weights = annotation(&self.metadata, weights::SERVICE_ANNOTATION).map(weights::of_service);
        let (weights, problem) = weights.unwrap_or_default();
        problems.extend(problem.map(|problem| format!("Service {name}: {problem}")));
        let (scheduler, problem) = scheduler::of_service(
            annotation(&self.metadata, scheduler::ANNOTATION),
            annotation(&self.metadata, scheduler::FLAGS_ANNOTATION),
        );
        problems.extend(problem.map(|problem| format!("Service {name}: {problem}")));
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
            internal_policy: policy(spec.internal_traffic_policy),
            external_policy,
            affinity,
            source_ranges: restricted.then_some(ranges),
            health_check_port,
            direct_access,
            weights,
            scheduler,
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

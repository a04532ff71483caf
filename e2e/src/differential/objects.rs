//! A world's objects, as the API server takes them.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::world::{
    Endpoint, Family, HEADLESS, Kind, Port, RANGES, SERVICE_PREFIX, Service, Slice, World, ZONES, external,
    vip,
};

impl Service {
    /// As the API server takes it, without its status.
    #[must_use]
    pub fn object(&self, slot: u8) -> Value {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": Self::name(slot), "namespace": "default"},
            "spec": self.spec(slot),
        });
        if let Some(label) = self.label {
            object["metadata"]["labels"][label] = "other".into();
        }
        object
    }

    fn spec(&self, slot: u8) -> Value {
        if self.kind == Kind::ExternalName {
            return json!({"type": "ExternalName", "externalName": "example.com"});
        }
        let ports: Vec<Value> = self.ports.iter().map(|port| self.port(port)).collect();
        let families: Vec<_> = self.families.iter().map(|family| family.name()).collect();
        let policy = if families.len() > 1 {
            "RequireDualStack"
        } else {
            "SingleStack"
        };
        let mut spec = json!({
            "type": match self.kind {
                Kind::NodePort => "NodePort",
                Kind::LoadBalancer => "LoadBalancer",
                _ => "ClusterIP",
            },
            "ports": ports,
            "ipFamilies": families,
            "ipFamilyPolicy": policy,
            "internalTrafficPolicy": if self.internal_local { "Local" } else { "Cluster" },
            "publishNotReadyAddresses": self.publish_not_ready,
        });
        if self.kind == Kind::Headless {
            spec["clusterIP"] = "None".into();
            spec["clusterIPs"] = json!(["None"]);
            return spec;
        }
        let vips: Vec<IpAddr> = self
            .families
            .iter()
            .map(|&family| vip(family, self.vip))
            .collect();
        spec["clusterIP"] = json!(vips.first());
        spec["clusterIPs"] = json!(vips);
        let both = |number: &u8| Family::ALL.map(|family| external(family, *number));
        spec["externalIPs"] = json!(self.external.iter().flat_map(both).collect::<Vec<_>>());
        if let Some(timeout) = self.affinity {
            spec["sessionAffinity"] = "ClientIP".into();
            spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": timeout}});
        }
        if self.has_external_policy() {
            spec["externalTrafficPolicy"] = if self.external_local { "Local" } else { "Cluster" }.into();
        }
        if self.kind == Kind::LoadBalancer {
            spec["allocateLoadBalancerNodePorts"] = false.into();
            let ranges: Vec<_> = self
                .ranges
                .iter()
                .filter_map(|&range| RANGES.get(range))
                .collect();
            spec["loadBalancerSourceRanges"] = json!(ranges);
            if self.external_local {
                spec["healthCheckNodePort"] = (31100 + u16::from(slot)).into();
            }
        }
        spec
    }

    fn port(&self, port: &Port) -> Value {
        let mut object = json!({"protocol": port.protocol.name(), "port": port.port});
        if !port.name.is_empty() {
            object["name"] = port.name.into();
        }
        if let Some(number) = self.node_port(port) {
            object["nodePort"] = number.into();
        }
        object
    }

    /// `status.loadBalancer`, for a Service that can have one.
    #[must_use]
    pub fn status(&self) -> Option<Value> {
        (self.kind == Kind::LoadBalancer).then(|| {
            let entries = self.ingress.iter().flat_map(|&(number, mode)| {
                Family::ALL.map(|family| {
                    let mut entry = json!({"ip": external(family, number)});
                    if let Some(mode) = mode {
                        entry["ipMode"] = mode.into();
                    }
                    entry
                })
            });
            json!({"status": {"loadBalancer": {"ingress": entries.collect::<Vec<_>>()}}})
        })
    }
}

impl Slice {
    /// Its name.
    #[must_use]
    pub fn name(slot: u8, number: u8) -> String {
        format!("{SERVICE_PREFIX}{slot}-{number}")
    }

    /// As the API server takes it.
    #[must_use]
    pub fn object(&self, slot: u8, number: u8) -> Value {
        let ports: Vec<_> = self
            .ports
            .iter()
            .map(|(name, protocol, port)| json!({"name": name, "protocol": protocol.name(), "port": port}))
            .collect();
        let endpoints: Vec<_> = self.endpoints.iter().map(|it| it.object(self.family)).collect();
        let mut object = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": Self::name(slot, number), "namespace": "default",
                "labels": {
                    "kubernetes.io/service-name": Service::name(slot),
                    "endpointslice.kubernetes.io/managed-by": "differential.pointsman.dev",
                },
            },
            "addressType": self.family.name(), "ports": ports, "endpoints": endpoints,
        });
        if self.headless {
            object["metadata"]["labels"][HEADLESS] = "".into();
        }
        object
    }
}

impl Endpoint {
    fn object(&self, family: Family) -> Value {
        let mut object = json!({"addresses": [self.place.address(family)], "conditions": {}});
        if self.named {
            object["nodeName"] = self.place.node().into();
        }
        for (name, value) in [
            ("ready", self.ready),
            ("serving", self.serving),
            ("terminating", self.terminating),
        ] {
            if let Some(value) = value {
                object["conditions"][name] = value.into();
            }
        }
        if !self.zones.is_empty() {
            let zones = self.zones.iter().map(|&zone| json!({"name": ZONES.get(zone)}));
            object["hints"]["forZones"] = zones.collect();
        }
        if !self.nodes.is_empty() {
            let nodes = self
                .nodes
                .iter()
                .map(|node| json!({"name": format!("node-{node}")}));
            object["hints"]["forNodes"] = nodes.collect();
        }
        object
    }
}

impl World {
    /// Every object, as a person reads them: one YAML document each.
    ///
    /// # Errors
    /// When an object cannot be written as YAML.
    pub fn yaml(&self) -> anyhow::Result<String> {
        let mut text = format!("# the node's zone: {}\n", ZONES.get(self.zone).unwrap_or(&"none"));
        let services = self.services.iter().map(|(&slot, service)| {
            let mut object = service.object(slot);
            if let Some(status) = service.status() {
                object["status"] = status["status"].clone();
            }
            object
        });
        let slices = self
            .slices
            .iter()
            .map(|(&(slot, number), slice)| slice.object(slot, number));
        for object in services.chain(slices) {
            text.push_str("---\n");
            text.push_str(&serde_saphyr::to_string(&object)?);
        }
        Ok(text)
    }
}

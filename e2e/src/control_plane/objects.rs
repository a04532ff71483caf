//! Objects that a kubelet would make: Nodes, and Pods that are running.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::json;

use super::Access;
use crate::{NodeNet, Pod};

impl Access {
    /// Makes the Node object of a node: ready, with its addresses and pod ranges, in the zone `zone-a`. Returns
    /// its uid.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn create_node(&self, node: &NodeNet) -> Result<String> {
        self.create_node_with(node, &[])
    }

    /// [`Access::create_node`] with more labels, or another `topology.kubernetes.io/zone`.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn create_node_with(&self, node: &NodeNet, labels: &[(&str, &str)]) -> Result<String> {
        let (name, addresses, pods) = (node.name(), node.addresses(), node.pod_range());
        let mut all = BTreeMap::from([
            ("kubernetes.io/hostname", name),
            ("kubernetes.io/os", "linux"),
            ("topology.kubernetes.io/zone", "zone-a"),
        ]);
        all.extend(labels.iter().copied());
        let object = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": all},
            "spec": {"podCIDR": pods.v4, "podCIDRs": [pods.v4.to_string(), pods.v6.to_string()]},
            "status": {
                "addresses": [
                    {"type": "InternalIP", "address": addresses.v4},
                    {"type": "InternalIP", "address": addresses.v6},
                    {"type": "Hostname", "address": name},
                ],
                "capacity": {"pods": "250", "cpu": "2", "memory": "4Gi"},
                "allocatable": {"pods": "250", "cpu": "2", "memory": "4Gi"},
                "conditions": [{
                    "type": "Ready", "status": "True", "reason": "E2E", "message": "made by the e2e harness",
                }],
            },
        });
        let uid = self.create(&object, "jsonpath={.metadata.uid}");
        uid.with_context(|| format!("making the Node object of {name}"))
    }

    /// Makes the Pod object of a pod in the namespace `default`, running and ready, so that the slice controller
    /// takes it into the Services whose selector its labels satisfy. Returns its uid.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn create_pod(&self, pod: &Pod, labels: &[(&str, &str)]) -> Result<String> {
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        let object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": pod.name(), "namespace": "default", "labels": labels},
            "spec": {
                "nodeName": pod.node(),
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "server", "image": "a-namespace-of-the-e2e-harness"}],
            },
        });
        let context = || format!("making the Pod object of {}", pod.name());
        let uid = self
            .create(&object, "jsonpath={.metadata.uid}")
            .with_context(context)?;
        // The server drops the status of a new Pod; it is a kubelet's to write.
        let addresses = pod.addresses();
        let status = json!({"status": {
            "phase": "Running",
            "podIP": addresses.v4,
            "podIPs": [{"ip": addresses.v4}, {"ip": addresses.v6}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }});
        let patch = status.to_string();
        self.kubectl(&[
            "patch",
            "pod",
            pod.name(),
            "--subresource=status",
            "--type=merge",
            "--patch",
            &patch,
        ])
        .with_context(context)?;
        Ok(uid)
    }

    fn create(&self, object: &serde_json::Value, output: &str) -> Result<String> {
        self.kubectl_with(
            &["create", "-f", "-", "--validate=false", "-o", output],
            &object.to_string(),
        )
    }
}

//! Manifests for `pointsman-agent --manifests`: objects by builders, in files that change in one step.
//!
//! The files are YAML of which every object is a line of JSON, so that a text that a test writes by hand and what
//! is built here can stand in the same folder.

use std::{
    fmt::Write as _,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{NodeNet, WorkDir, traffic::Protocol};

/// A folder of manifests, removed when dropped.
#[derive(Debug)]
pub struct Manifests {
    folder: WorkDir,
}

impl Manifests {
    /// An empty folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Result<Self> {
        let folder = WorkDir::new("manifests")?;
        Ok(Self { folder })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Puts these objects, and nothing else, into a file. Whoever reads sees all of them or what was there before.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put<O: Into<Value>>(&self, file: &str, objects: impl IntoIterator<Item = O>) -> Result<()> {
        let mut text = String::new();
        for object in objects {
            writeln!(text, "---\n{}", object.into())?;
        }
        self.put_text(file, &text)
    }

    /// Puts a text into a file, in one step.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_text(&self, file: &str, text: &str) -> Result<()> {
        // Not the name of a manifest, so that the agent does not look at it.
        let new = self.folder.write(&format!(".{file}.new"), text)?;
        let target = self.file(file);
        fs::rename(new, &target).with_context(|| format!("moving a manifest to {}", target.display()))
    }

    /// Removes a file.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove(&self, file: &str) -> Result<()> {
        let target = self.file(file);
        fs::remove_file(&target).with_context(|| format!("removing {}", target.display()))
    }

    fn file(&self, file: &str) -> PathBuf {
        self.folder.file(file)
    }
}

/// A Service.
#[derive(Clone, Debug)]
pub struct Service(Value);

impl Service {
    /// A Service of the namespace default, without addresses or ports.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
            "spec": {"type": "ClusterIP", "clusterIPs": [], "externalIPs": [], "ports": []},
            "status": {"loadBalancer": {"ingress": []}},
        }))
    }

    /// Adds a ClusterIP.
    #[must_use]
    pub fn cluster_ip(mut self, address: impl Into<IpAddr>) -> Self {
        push(&mut self.0["spec"]["clusterIPs"], address.into().to_string());
        self.0["spec"]["clusterIP"] = self.0["spec"]["clusterIPs"][0].clone();
        self
    }

    /// Adds a port; its name joins it to the ports of slices.
    #[must_use]
    pub fn port(mut self, name: &str, protocol: Protocol, port: u16) -> Self {
        push(
            &mut self.0["spec"]["ports"],
            json!({"name": name, "protocol": word(protocol), "port": port}),
        );
        self
    }

    /// Gives the port that was added last a node port.
    #[must_use]
    pub fn node_port(mut self, number: u16) -> Self {
        self.0["spec"]["type"] = "NodePort".into();
        if let Some(last) = self.0["spec"]["ports"]
            .as_array_mut()
            .and_then(|ports| ports.last_mut())
        {
            last["nodePort"] = number.into();
        }
        self
    }

    /// Adds an external IP.
    #[must_use]
    pub fn external_ip(mut self, address: impl Into<IpAddr>) -> Self {
        push(&mut self.0["spec"]["externalIPs"], address.into().to_string());
        self
    }

    /// Adds a load balancer's address, with an `ipMode` if there is one.
    #[must_use]
    pub fn load_balancer_ip(mut self, address: impl Into<IpAddr>, mode: Option<&str>) -> Self {
        let ingress = &mut self.0["status"]["loadBalancer"]["ingress"];
        push(ingress, json!({"ip": address.into().to_string(), "ipMode": mode}));
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.0["metadata"]["labels"][name] = value.into();
        self
    }

    /// Sets any other field of the spec, also to what no API server would take.
    #[must_use]
    pub fn set(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.0["spec"][field] = value.into();
        self
    }
}

/// An EndpointSlice.
#[derive(Clone, Debug)]
pub struct Slice(Value);

impl Slice {
    /// A slice of a Service for addresses of one family, without any.
    #[must_use]
    pub fn v4(service: &str) -> Self {
        Self::new(service, "IPv4")
    }

    /// [`Slice::v4`] for IPv6.
    #[must_use]
    pub fn v6(service: &str) -> Self {
        Self::new(service, "IPv6")
    }

    fn new(service: &str, family: &str) -> Self {
        let name = format!("{service}-{}", family.to_lowercase());
        Self(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
            "ports": [], "endpoints": [],
        }))
    }

    /// Adds a port: the Service port's name, and the number that the endpoints listen on.
    #[must_use]
    pub fn port(mut self, name: &str, protocol: Protocol, port: u16) -> Self {
        push(
            &mut self.0["ports"],
            json!({"name": name, "protocol": word(protocol), "port": port}),
        );
        self
    }

    /// Adds a ready endpoint: its address, which may be nonsense, and the node that it is on.
    #[must_use]
    pub fn endpoint(mut self, address: impl ToString, node: &str) -> Self {
        let conditions = json!({"ready": true, "serving": true, "terminating": false});
        let endpoint =
            json!({"addresses": [address.to_string()], "nodeName": node, "conditions": conditions});
        push(&mut self.0["endpoints"], endpoint);
        self
    }
}

/// A Node.
#[derive(Clone, Debug)]
pub struct Node(Value);

impl Node {
    /// The Node of a node of the fabric, with its addresses and pod ranges.
    #[must_use]
    pub fn of(node: &NodeNet) -> Self {
        let ranges = [node.pod_range().v4.to_string(), node.pod_range().v6.to_string()];
        let empty = Self(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name()},
            "spec": {"podCIDR": ranges[0], "podCIDRs": ranges, "taints": []}, "status": {"addresses": []},
        }));
        empty
            .internal_ip(node.addresses().v4)
            .internal_ip(node.addresses().v6)
    }

    /// Adds an InternalIP.
    #[must_use]
    pub fn internal_ip(mut self, address: impl Into<IpAddr>) -> Self {
        let address = json!({"type": "InternalIP", "address": address.into().to_string()});
        push(&mut self.0["status"]["addresses"], address);
        self
    }

    /// Adds a taint.
    #[must_use]
    pub fn taint(mut self, key: &str) -> Self {
        push(
            &mut self.0["spec"]["taints"],
            json!({"key": key, "effect": "NoSchedule"}),
        );
        self
    }
}

/// A ProxyPolicy.
#[derive(Clone, Debug)]
pub struct Policy(Value);

impl Policy {
    /// A policy that leaves everything to its default.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(json!({
            "apiVersion": "pointsman.dev/v1alpha1", "kind": "ProxyPolicy", "metadata": {"name": name}, "spec": {},
        }))
    }

    /// Sets a field of the spec, also to what no API server would take.
    #[must_use]
    pub fn set(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.0["spec"][field] = value.into();
        self
    }
}

impl From<Service> for Value {
    fn from(object: Service) -> Self {
        object.0
    }
}

impl From<Slice> for Value {
    fn from(object: Slice) -> Self {
        object.0
    }
}

impl From<Node> for Value {
    fn from(object: Node) -> Self {
        object.0
    }
}

impl From<Policy> for Value {
    fn from(object: Policy) -> Self {
        object.0
    }
}

fn push(list: &mut Value, entry: impl Into<Value>) {
    if let Some(list) = list.as_array_mut() {
        list.push(entry.into());
    }
}

fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    }
}

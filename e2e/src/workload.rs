//! The Service `web` of examples/web-service.yaml and the pods behind it.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    Access, NodeNet, Pod,
    traffic::{Protocol, Server, serve},
};

/// The port of the Service.
pub const PORT: u16 = 80;
/// The port of its pods.
pub const TARGET_PORT: u16 = 8080;
/// Its port on every node.
pub const NODE_PORT: u16 = 30080;

/// The path of a file in `examples/`.
#[must_use]
pub fn example(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(file)
}

/// The content of a file in `examples/`.
///
/// # Errors
/// When it is not there.
pub fn read_example(file: &str) -> Result<String> {
    let path = example(file);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// A pod of the Service: it answers on TCP and UDP, IPv4 and IPv6, with its name.
#[derive(Debug)]
pub struct WebPod {
    _servers: Vec<Server>,
    pod: Pod,
}

impl WebPod {
    /// Starts one; its Pod object, ready, is there when this returns.
    ///
    /// # Errors
    /// When the pod cannot be made or the API server refuses it.
    pub fn start(control_plane: &Access, node: &NodeNet, name: &str) -> Result<Self> {
        let pod = Self::unannounced(node, name)?;
        control_plane.create_pod(&pod.pod, &[("app", "web")])?;
        Ok(pod)
    }

    /// One that listens and has no Pod object, so that no Service has it.
    ///
    /// # Errors
    /// When the pod cannot be made.
    pub fn unannounced(node: &NodeNet, name: &str) -> Result<Self> {
        let pod = node.add_pod(name)?;
        let mut servers = Vec::new();
        for address in pod.addresses().both(TARGET_PORT) {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                servers.push(serve(pod.namespace(), protocol, address, name)?);
            }
        }
        Ok(Self {
            _servers: servers,
            pod,
        })
    }

    /// The pod.
    #[must_use]
    pub fn pod(&self) -> &Pod {
        &self.pod
    }
}

/// Makes the Service and returns its ClusterIPs with their port, IPv4 first.
///
/// # Errors
/// When the API server refuses it.
pub fn create_service(control_plane: &Access) -> Result<[SocketAddr; 2]> {
    control_plane.apply(&read_example("web-service.yaml")?)?;
    cluster_ips(control_plane, "web")
}

/// The ClusterIPs of a Service in the namespace `default`, IPv4 first, with the port 80.
///
/// # Errors
/// When it does not have one of each family.
pub fn cluster_ips(control_plane: &Access, service: &str) -> Result<[SocketAddr; 2]> {
    let addresses = control_plane.kubectl(&[
        "get",
        "service",
        service,
        "--namespace",
        "default",
        "-o",
        "jsonpath={.spec.clusterIPs[*]}",
    ])?;
    let mut addresses: Vec<IpAddr> = addresses
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    addresses.sort();
    match addresses.as_slice() {
        [v4, v6] => Ok([(*v4, PORT).into(), (*v6, PORT).into()]),
        other => anyhow::bail!("the Service {service} has the addresses {other:?}, not one of each family"),
    }
}

//! client ── node ── servers, and a pod of the node's own.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pointsman_dataplane::backend::{Backend, Observed, Report};
use pointsman_dataplane::iptables::{Iptables, Programs, Variant};
use pointsman_dataplane::ipvs::Ipvs;
use pointsman_dataplane::model::{
    Context, DetectLocal, Diff, Endpoint, EndpointPort, EndpointSlice, Family, ForwardingTable, NodeFacts,
    NodePortAddresses, Protocol, Service, ServiceName, ServicePort, Settings, compile,
};
use pointsman_dataplane::nftables::Nftables;

use super::ipvs::PARAMETERS;
use super::namespace::Namespace;
use super::talk::serve;

pub const PORT: u16 = 80;
pub const TARGET: u16 = 8080;
pub const NODE_PORT: u16 = 30080;

/// The addresses of one family.
pub struct Addresses {
    pub client: IpAddr,
    pub node: IpAddr,
    pub node_to_servers: IpAddr,
    pub pod_gateway: IpAddr,
    pub pod: IpAddr,
    pub servers: [IpAddr; 3],
    pub vip: IpAddr,
    pub external: IpAddr,
    pub balanced: IpAddr,
    prefix: u8,
}

impl Addresses {
    fn of(family: Family) -> Self {
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        match family {
            Family::V4 => Self {
                client: ip("192.0.2.2"),
                node: ip("192.0.2.1"),
                node_to_servers: ip("10.244.2.1"),
                pod_gateway: ip("10.244.1.1"),
                pod: ip("10.244.1.5"),
                servers: ["10.244.2.11", "10.244.2.12", "10.244.2.13"].map(ip),
                vip: ip("10.96.0.10"),
                external: ip("198.51.100.7"),
                balanced: ip("203.0.113.9"),
                prefix: 24,
            },
            Family::V6 => Self {
                client: ip("2001:db8:1::2"),
                node: ip("2001:db8:1::1"),
                node_to_servers: ip("fd00:2::1"),
                pod_gateway: ip("fd00:1::1"),
                pod: ip("fd00:1::5"),
                servers: ["fd00:2::11", "fd00:2::12", "fd00:2::13"].map(ip),
                vip: ip("fd00:96::10"),
                external: ip("2001:db8:2::7"),
                balanced: ip("2001:db8:3::9"),
                prefix: 64,
            },
        }
    }
}

/// What programs a node's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Iptables(Variant),
    Nftables,
    Ipvs,
}

impl Mode {
    fn backend(self, family: Family, folder: &Path) -> Box<dyn Backend> {
        match self {
            Self::Iptables(variant) => Box::new(iptables(variant, family, folder)),
            Self::Nftables => Box::new(Nftables::new(family)),
            Self::Ipvs => Box::new(Ipvs::new(family)),
        }
    }
}

/// A node with its backend and table.
pub struct Node {
    pub family: Family,
    pub mode: Mode,
    pub client: Namespace,
    pub host: Namespace,
    pub pod: Namespace,
    pub servers: Namespace,
    pub at: Addresses,
    pub table: ForwardingTable,
    pub backend: Box<dyn Backend>,
    pub diff: Diff,
    _folder: tempfile::TempDir,
}

impl Node {
    pub fn new(mode: Mode, family: Family) -> Self {
        let [client, host, pod, servers] = [(); 4].map(|()| Namespace::new());
        host.become_router();
        if mode == Mode::Ipvs {
            for (name, value) in PARAMETERS {
                host.sysctl(name, value);
            }
        }
        for (name, other) in [("client0", &client), ("pod0", &pod), ("servers0", &servers)] {
            host.join(name, other, "eth0");
        }
        let at = Addresses::of(family);
        // Without duplicate address detection an IPv6 address can be used at once.
        let prefix = match family {
            Family::V4 => at.prefix.to_string(),
            Family::V6 => format!("{} nodad", at.prefix),
        };
        host.ip(&format!(
            "addr add {}/{prefix} dev client0\naddr add {}/{prefix} dev pod0\naddr add {}/{prefix} dev servers0\n",
            at.node, at.pod_gateway, at.node_to_servers
        ));
        for (namespace, address, gateway) in [
            (&client, at.client, at.node),
            (&pod, at.pod, at.pod_gateway),
            (&servers, at.servers[0], at.node_to_servers),
        ] {
            namespace.ip(&format!(
                "addr add {address}/{prefix} dev eth0\nroute add default via {gateway} dev eth0\n"
            ));
        }
        for server in &at.servers[1..] {
            servers.ip(&format!("addr add {server}/{prefix} dev eth0\n"));
        }
        // The host routes Service addresses somewhere before they are translated: a node has a default route.
        host.ip(&format!("route add default via {} dev client0\n", at.client));
        for server in at.servers {
            serve(&servers, SocketAddr::new(server, TARGET));
        }
        serve(&pod, SocketAddr::new(at.pod, TARGET));

        let folder = tempfile::tempdir().unwrap();
        let backend = mode.backend(family, folder.path());
        let mut node = Self {
            family,
            mode,
            client,
            host,
            pod,
            servers,
            at,
            table: ForwardingTable::default(),
            backend,
            diff: Diff::default(),
            _folder: folder,
        };
        node.detect(DetectLocal::NodeCidr);
        node
    }

    /// A second backend on the same node, as after a restart of the agent.
    pub fn restart(&mut self) {
        self.backend = self.mode.backend(self.family, self._folder.path());
    }

    /// An iptables backend on the same node.
    pub fn iptables(&self) -> Iptables {
        iptables(self.variant(), self.family, self._folder.path())
    }

    fn variant(&self) -> Variant {
        match self.mode {
            Mode::Iptables(variant) => variant,
            other => panic!("there is no iptables in mode {other:?}"),
        }
    }

    /// The node's facts, with this way to recognise pods.
    pub fn context(&self, detect_local: DetectLocal) -> Context {
        let range = match self.family {
            Family::V4 => "10.244.1.0/24",
            Family::V6 => "fd00:1::/64",
        };
        Context {
            settings: Settings {
                detect_local,
                node_port_addresses: vec![NodePortAddresses::Primary],
                ..Settings::default()
            },
            node: NodeFacts {
                internal_ips: vec![self.at.node],
                pod_cidrs: vec![range.parse().unwrap()],
                interface_addresses: vec![self.at.node, self.at.pod_gateway, self.at.node_to_servers],
                zone: None,
            },
            service_cidrs: Vec::new(),
        }
    }

    pub fn detect(&mut self, detect_local: DetectLocal) {
        let context = self.context(detect_local);
        self.table.set_context(context, &mut self.diff);
    }

    /// A Service with all kinds of addresses, on TCP and UDP.
    pub fn service(&self, name: &str) -> Service {
        let port = |name: &str, protocol| ServicePort {
            name: name.into(),
            protocol,
            port: PORT,
            node_port: Some(NODE_PORT),
        };
        Service {
            name: ServiceName::new("default", name),
            created: 0,
            cluster_ips: vec![self.at.vip],
            external_ips: vec![self.at.external],
            load_balancer_ips: vec![self.at.balanced],
            ports: vec![port("stream", Protocol::Tcp), port("datagram", Protocol::Udp)],
            ..Service::default()
        }
    }

    /// Notes a Service with these endpoints in the table; those of the pod's address are local.
    pub fn set(&mut self, service: &Service, endpoints: &[IpAddr]) {
        let endpoints = endpoints.iter().map(|address| self.endpoint(*address)).collect();
        self.set_endpoints(service, endpoints);
    }

    /// An endpoint that is ready.
    pub fn endpoint(&self, address: IpAddr) -> Endpoint {
        Endpoint {
            address,
            ready: true,
            serving: true,
            terminating: false,
            local: address == self.at.pod,
            for_nodes: None,
            unplaced: false,
            common: None,
        }
    }

    /// The same with endpoints of which more is said.
    pub fn set_endpoints(&mut self, service: &Service, endpoints: Vec<Endpoint>) {
        let slice = EndpointSlice {
            family: self.family,
            ports: service
                .ports
                .iter()
                .map(|port| EndpointPort {
                    name: Arc::clone(&port.name),
                    protocol: port.protocol,
                    port: TARGET,
                })
                .collect(),
            endpoints,
        };
        let compiled = compile(service, [&slice], self.table.context());
        assert!(compiled.problems.is_empty(), "{:?}", compiled.problems);
        self.table.set(compiled, &mut self.diff);
    }

    /// Sets the all-kinds Service and applies.
    pub fn serve(&mut self, endpoints: &[IpAddr]) {
        let service = self.service("web");
        self.set(&service, endpoints);
        self.apply();
    }

    pub fn apply(&mut self) -> Report {
        let diff = std::mem::take(&mut self.diff);
        let host = self.host.clone();
        host.run(|| self.backend.apply(&self.table, &diff)).unwrap()
    }

    pub fn sync(&mut self) -> Report {
        self.diff = Diff::default();
        let host = self.host.clone();
        host.run(|| self.backend.sync(&self.table)).unwrap()
    }

    pub fn observe(&mut self) -> Observed {
        let host = self.host.clone();
        host.run(|| self.backend.observe()).unwrap()
    }

    pub fn teardown(&mut self) {
        let host = self.host.clone();
        host.run(|| self.backend.teardown(None)).unwrap();
    }

    /// What iptables-save prints of a table, without its comments.
    pub fn save(&self, table: &str) -> String {
        let text = self.host.program(&[&self.program("save"), "-t", table], "");
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .fold(String::new(), |all, line| {
                // Counters of policies change by themselves.
                all + line.split(" [").next().unwrap_or_default() + "\n"
            })
    }

    /// Sends input to iptables-restore, as somebody else.
    pub fn restore(&self, input: &str) {
        self.host
            .program(&[&self.program("restore"), "--noflush", "--wait", "10"], input);
    }

    /// The same with input that ends before its time.
    pub fn restore_half(&self, input: &str) {
        let words = [&self.program("restore"), "--noflush", "--wait", "10"];
        assert!(!self.host.try_program(&words, input).0);
    }

    fn program(&self, verb: &str) -> String {
        let programs = Programs::find(self.family, Some(self.variant()));
        let path = if verb == "save" {
            programs.save
        } else {
            programs.restore
        };
        path.to_str().unwrap().to_owned()
    }

    pub fn vip(&self) -> SocketAddr {
        SocketAddr::new(self.at.vip, PORT)
    }
}

fn iptables(variant: Variant, family: Family, folder: &Path) -> Iptables {
    let iptables = Iptables::new(family, programs(variant, family, folder.join("lock"))).unwrap();
    assert_eq!(iptables.variant(), variant);
    iptables
}

/// The programs of one variant, with a lock of the test's own.
pub fn programs(variant: Variant, family: Family, lock: PathBuf) -> Programs {
    Programs {
        lock_file: Some(lock),
        ..Programs::find(family, Some(variant))
    }
}

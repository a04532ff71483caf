//! One node under test with everything around it: pods on it and elsewhere, an outside host, and an agent that is
//! fed by manifests.

#![allow(dead_code, reason = "every test file uses a part of it")]
#![allow(clippy::print_stdout, reason = "shown with tests that fail")]

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use pointsman_e2e::{
    Agent, ExternalHost, Fabric, IptablesVariant, Manifests, NodeNet, Pod,
    agent::Source,
    manifests::{Node, Policy, Service, Slice},
    rules::{self, Family},
    traffic::{Client, Flood, Outcome, Protocol, Server, serve},
};
use serde_json::Value;

/// Longer than anything takes that works, also on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(30);
pub const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// The file of the policy, that of the Node, and that of the Service [`web`].
pub const POLICY: &str = "policy.yaml";
pub const NODE: &str = "node.yaml";
pub const WEB: &str = "web.yaml";

/// The ports of [`web`], and what its pods listen on.
pub const TCP_PORT: u16 = 80;
pub const UDP_PORT: u16 = 53;
pub const TCP_TARGET: u16 = 8080;
pub const UDP_TARGET: u16 = 5353;
pub const TCP_NODE_PORT: u16 = 30080;
pub const UDP_NODE_PORT: u16 = 30053;

/// Makes a test of each function for each variant of iptables.
#[macro_export]
macro_rules! in_both_variants {
    ($($name:ident)*) => {
        mod legacy {
            $(#[test] fn $name() -> anyhow::Result<()> { super::$name(pointsman_e2e::IptablesVariant::Legacy) })*
        }
        mod nf_tables {
            $(#[test] fn $name() -> anyhow::Result<()> { super::$name(pointsman_e2e::IptablesVariant::Nft) })*
        }
    };
}

/// Makes a test of each function for the mode that agents run by themselves, and for each variant of iptables.
#[macro_export]
macro_rules! in_every_mode {
    ($($name:ident)*) => {
        mod nftables {
            $(#[test] fn $name() -> anyhow::Result<()> { super::$name(super::support::Forwarding::Default) })*
        }
        mod legacy {
            $(#[test] fn $name() -> anyhow::Result<()> { super::$name(pointsman_e2e::IptablesVariant::Legacy.into()) })*
        }
        mod nf_tables {
            $(#[test] fn $name() -> anyhow::Result<()> { super::$name(pointsman_e2e::IptablesVariant::Nft.into()) })*
        }
    };
}

/// What the policy of a [`Site`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// Nothing: `Auto`, which is NFTables on this machine's kernel.
    Default,
    /// Mode IPTables with this variant.
    Iptables(IptablesVariant),
}

impl From<IptablesVariant> for Forwarding {
    fn from(variant: IptablesVariant) -> Self {
        Self::Iptables(variant)
    }
}

/// The addresses of a Service, one of each family; `number` tells Services and kinds of addresses apart.
pub fn vips(number: u16) -> [IpAddr; 2] {
    let [high, low] = number.to_be_bytes();
    [
        IpAddr::from([10, 96, high, low]),
        IpAddr::from([0xfd00, 0x10, 0x96, 0, 0, 0, 0, number]),
    ]
}

pub const CLUSTER_IP: u16 = 0x0101;
pub const EXTERNAL_IP: u16 = 0x0201;
pub const BALANCER_IP: u16 = 0x0301;

/// [`web`]'s ClusterIPs with its port of a protocol.
pub fn cluster_ips(protocol: Protocol) -> [SocketAddr; 2] {
    at(CLUSTER_IP, protocol)
}

/// The address of a kind with [`web`]'s port of a protocol, in both families.
pub fn at(kind: u16, protocol: Protocol) -> [SocketAddr; 2] {
    let port = if protocol == Protocol::Tcp {
        TCP_PORT
    } else {
        UDP_PORT
    };
    vips(kind).map(|address| (address, port).into())
}

pub fn node_port(protocol: Protocol) -> u16 {
    if protocol == Protocol::Tcp {
        TCP_NODE_PORT
    } else {
        UDP_NODE_PORT
    }
}

/// The Service that most tests are about: dual-stack, TCP and UDP, with every kind of address.
pub fn web() -> Service {
    let mut service = Service::new("web");
    for (cluster, external, balancer) in
        [0, 1].map(|at| (vips(CLUSTER_IP)[at], vips(EXTERNAL_IP)[at], vips(BALANCER_IP)[at]))
    {
        service = service
            .cluster_ip(cluster)
            .external_ip(external)
            .load_balancer_ip(balancer, None);
    }
    let service = service
        .port("http", Protocol::Tcp, TCP_PORT)
        .node_port(TCP_NODE_PORT);
    service
        .port("dns", Protocol::Udp, UDP_PORT)
        .node_port(UDP_NODE_PORT)
}

/// The slices of [`web`], or of a Service with its ports, with these pods.
pub fn slices(service: &str, pods: &[&Pod]) -> [Slice; 2] {
    let ports = |slice: Slice| {
        let slice = slice.port("http", Protocol::Tcp, TCP_TARGET);
        slice.port("dns", Protocol::Udp, UDP_TARGET)
    };
    let (mut v4, mut v6) = (ports(Slice::v4(service)), ports(Slice::v6(service)));
    for pod in pods {
        v4 = v4.endpoint(pod.addresses().v4, pod.node());
        v6 = v6.endpoint(pod.addresses().v6, pod.node());
    }
    [v4, v6]
}

/// A Service and its slices, for [`Manifests::put`].
pub fn with_pods(service: Service, name: &str, pods: &[&Pod]) -> Vec<Value> {
    let slices = slices(name, pods).into_iter().map(Value::from);
    [service.into()].into_iter().chain(slices).collect()
}

/// Serves as an endpoint of [`web`]: every protocol, every family, under the pod's name.
pub fn serve_web(pod: &Pod) -> Result<Vec<Server>> {
    let mut servers = Vec::new();
    for (protocol, port) in [(Protocol::Tcp, TCP_TARGET), (Protocol::Udp, UDP_TARGET)] {
        for at in pod.addresses().both(port) {
            servers.push(serve(pod.namespace(), protocol, at, pod.name())?);
        }
    }
    Ok(servers)
}

/// The node under test and what is around it. The agent is not started yet.
pub struct Site {
    pub forwarding: Forwarding,
    pub manifests: Manifests,
    /// A pod on the node.
    pub client: Pod,
    /// Endpoints of [`web`]: the first is on the node, the second elsewhere.
    pub pods: [Pod; 2],
    pub servers: Vec<Server>,
    /// A host that has routes to all Service addresses by way of the node.
    pub outside: ExternalHost,
    pub node: NodeNet,
    pub away: NodeNet,
    pub fabric: Fabric,
}

impl Site {
    /// The manifests have a policy that checks every second, the Node, and [`web`] with both pods.
    pub fn new(forwarding: impl Into<Forwarding>) -> Result<Self> {
        let forwarding = forwarding.into();
        let fabric = Fabric::new()?;
        let mut node = fabric.node("node-1")?;
        if let Forwarding::Iptables(variant) = forwarding {
            node = node.with_iptables(variant)?;
        }
        let away = fabric.node("node-2")?;
        let client = node.add_pod("client")?;
        let pods = [node.add_pod("web-1")?, away.add_pod("web-2")?];
        let mut servers = serve_web(&pods[0])?;
        servers.extend(serve_web(&pods[1])?);
        let outside = fabric.external("outside")?;
        for range in ["10.96.0.0/16", "fd00:10:96::/64"] {
            outside.route_via(range.parse::<IpNet>()?, &node)?;
        }
        let manifests = Manifests::new()?;
        manifests.put(NODE, [Node::of(&node)])?;
        let site = Self {
            forwarding,
            manifests,
            client,
            pods,
            servers,
            outside,
            node,
            away,
            fabric,
        };
        site.set_policy(site.policy())?;
        site.set_endpoints(&[&site.pods[0], &site.pods[1]])?;
        Ok(site)
    }

    /// The policy that the manifests begin with.
    pub fn policy(&self) -> Policy {
        let policy = Policy::new("everywhere").set("syncPeriodSeconds", 1);
        match self.forwarding {
            Forwarding::Default => policy,
            Forwarding::Iptables(_) => policy.set("mode", "IPTables"),
        }
    }

    pub fn set_policy(&self, policy: Policy) -> Result<()> {
        self.manifests.put(POLICY, [policy])
    }

    /// Gives [`web`] these endpoints.
    pub fn set_endpoints(&self, pods: &[&Pod]) -> Result<()> {
        self.manifests.put(WEB, with_pods(web(), "web", pods))
    }

    pub fn start(&self) -> Result<Agent> {
        let agent = self.launch(&[])?;
        agent.wait_until_healthy(LIMIT)?;
        Ok(agent)
    }

    /// Starts an agent without waiting for anything.
    pub fn launch(&self, flags: &[&str]) -> Result<Agent> {
        Agent::start_with(&self.node, Source::Manifests(self.manifests.path()), flags)
    }

    pub fn pod_client(&self) -> Client {
        Client::of(self.client.namespace())
    }

    pub fn node_client(&self) -> Client {
        Client::of(self.node.namespace())
    }

    pub fn outside_client(&self) -> Client {
        Client::of(self.outside.namespace())
    }

    /// The rules of both families.
    pub fn rules(&self) -> Result<[String; 2]> {
        Ok([
            rules::rules(&self.node, Family::V4)?,
            rules::rules(&self.node, Family::V6)?,
        ])
    }

    /// How many connections and datagrams the servers have answered.
    pub fn answered(&self) -> u64 {
        self.servers.iter().map(Server::answered).sum()
    }
}

impl Drop for Site {
    /// What the agents said is shown with a test that failed, and with no other: cargo keeps it back.
    fn drop(&mut self) {
        let log = fs::read_to_string(self.node.folder().file("pointsman-agent.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        println!("---- the end of the agents' log:");
        for line in &lines[lines.len().saturating_sub(60)..] {
            println!("{line}");
        }
    }
}

/// Calls `check` until it holds, and once more says what is wrong when it never does. Returns the time it took.
pub fn eventually(what: &str, mut check: impl FnMut() -> Result<()>) -> Result<Duration> {
    let started = Instant::now();
    loop {
        match check() {
            Ok(()) => return Ok(started.elapsed()),
            Err(error) if started.elapsed() > LIMIT => {
                return Err(error).with_context(|| format!("not after {LIMIT:?}: {what}"));
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Floods through [`web`] from a pod and from outside, in both families and protocols.
pub fn floods(site: &Site) -> Vec<Flood> {
    let mut floods = Vec::new();
    for protocol in BOTH {
        for vip in cluster_ips(protocol) {
            floods.push(site.pod_client().flood(protocol, vip));
        }
        floods.push(
            site.outside_client()
                .flood(protocol, site.node.addresses().at_v4(node_port(protocol))),
        );
    }
    floods
}

/// Ends floods: every attempt was answered, and the servers say the same.
pub fn without_loss(site: &Site, floods: Vec<Flood>, answered_before: u64) -> Result<u64> {
    let mut asked = 0;
    for flood in floods {
        flood.wait_for(20, LIMIT)?;
        asked += flood.stop_without_loss()?.ok();
    }
    eventually("both ends count the same", || {
        let answered = site.answered() as i64 - answered_before as i64;
        ensure!(
            answered == asked as i64,
            "{asked} were asked, {answered} answered"
        );
        Ok(())
    })?;
    Ok(asked)
}

/// Waits until a row of connections is answered by exactly these servers, all of them and no other one.
pub fn expect_answers(client: &Client, protocol: Protocol, target: SocketAddr, by: &[&str]) -> Result<()> {
    eventually("answers by exactly the endpoints", || {
        let tally = client
            .clone()
            .timeout(Duration::from_millis(200))
            .many(protocol, target, 20)?;
        let right = tally.lost() == 0 && tally.answerers() == by;
        ensure!(
            right,
            "{protocol:?} from {client:?} to {target}: {tally}, and it should be {by:?}"
        );
        Ok(())
    })?;
    Ok(())
}

/// Demands an outcome that is no answer.
pub fn expect(client: &Client, protocol: Protocol, target: SocketAddr, wanted: &Outcome) -> Result<()> {
    let outcome = client
        .clone()
        .timeout(Duration::from_millis(900))
        .ask(protocol, target);
    ensure!(
        outcome == *wanted,
        "{protocol:?} {target}: {outcome} instead of {wanted}"
    );
    Ok(())
}

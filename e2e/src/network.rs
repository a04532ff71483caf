//! The fabric: one bridge in a namespace of its own ("the wire") that the control plane, the nodes and the
//! hosts outside of the cluster hang on, dual-stack.
//!
//! | who | addresses |
//! |---|---|
//! | the wire's gateway, which knows no way out | 192.168.77.1, fd00:77::1 |
//! | the control plane | 192.168.77.2, fd00:77::2 |
//! | who talks to the control plane from within the test kernel | 192.168.77.3, fd00:77::3 |
//! | node number N (from 1), its pods | 192.168.77.(10+N), 10.244.N.0/24, fd00:10:244:N::/64 |
//! | outside hosts | 192.168.77.200 and up |

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Mutex,
};

use anyhow::{Context, Result, ensure};
use ipnet::{Ipv4Net, Ipv6Net};

use crate::{
    carrier,
    external::ExternalHost,
    ip,
    netns::{Netns, WeakNetns},
    nft,
    node::{NodeNet, PodRange},
    requirements, sysctl,
};

/// The addresses of one host or pod, one of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// Both families with a port, IPv4 first.
    #[must_use]
    pub fn both(&self, port: u16) -> [SocketAddr; 2] {
        [self.at_v4(port), self.at_v6(port)]
    }

    /// The IPv4 address with a port.
    #[must_use]
    pub fn at_v4(&self, port: u16) -> SocketAddr {
        (IpAddr::from(self.v4), port).into()
    }

    /// The IPv6 address with a port.
    #[must_use]
    pub fn at_v6(&self, port: u16) -> SocketAddr {
        (IpAddr::from(self.v6), port).into()
    }
}

/// All pods' addresses, as `--cluster-cidr` and `detectLocal` take them.
pub const CLUSTER_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];

/// The interface on the wire, the same in every namespace.
pub const WIRE_INTERFACE: &str = "eth0";

const BRIDGE: &str = "wire";
const GATEWAY: u8 = 1;
const CONTROL_PLANE: u8 = 2;
const VISITOR: u8 = 3;
const FIRST_NODE: u8 = 11;
const FIRST_EXTERNAL: u8 = 200;

/// The gateway says of every packet sent through it that there is no way. A rule, because what the kernel says
/// for want of a route it says five times and then once a second (ip_error).
const NO_WAY_OUT: &str = "table inet gateway {
    chain prerouting {
        type filter hook prerouting priority 0;
        meta pkttype host fib daddr type != local reject with icmpx type no-route
    }
}";

/// A dual-stack network of namespaces. Hosts leave when they are dropped.
#[derive(Debug)]
pub struct Fabric {
    wire: Netns,
    members: Mutex<Members>,
}

#[derive(Debug, Default)]
struct Members {
    nodes: Vec<(WeakNetns, PodRange, Addresses)>,
    externals: Vec<WeakNetns>,
}

impl Members {
    /// The next node's number and place.
    fn next_node(&self) -> Result<(u8, u8)> {
        let number = u8::try_from(self.nodes.len() + 1).context("too many nodes")?;
        let place = FIRST_NODE - 1 + number;
        ensure!(
            place < FIRST_EXTERNAL,
            "the wire has room for {} nodes",
            FIRST_EXTERNAL - FIRST_NODE
        );
        Ok((number, place))
    }

    /// The `ip` commands that lead to all nodes' pods.
    fn ways(&self) -> Vec<String> {
        let ways = self.nodes.iter();
        ways.flat_map(|(_, pods, via)| pods.routes_via(*via)).collect()
    }
}

impl Fabric {
    /// Makes the wire. Any number of fabrics can exist at a time; they do not see each other.
    ///
    /// # Errors
    /// When not root or when a program is missing: says what to do.
    pub fn new() -> Result<Self> {
        let fabric = Self::without_gateway()?;
        let Addresses { v4, v6 } = on_wire(GATEWAY);
        ip::batch(
            &fabric.wire,
            [
                format!("addr add {v4}/24 dev {BRIDGE}"),
                format!("addr add {v6}/64 dev {BRIDGE} nodad"),
            ],
        )?;
        nft::run(&fabric.wire, NO_WAY_OUT)?;
        Ok(fabric)
    }

    /// A wire for what is to be joined with a fabric in the test kernel, which has the gateway.
    ///
    /// # Errors
    /// As [`Fabric::new`].
    pub fn without_gateway() -> Result<Self> {
        requirements::check()?;
        let wire = Netns::new("the wire")?;
        sysctl::write(&wire, sysctl::HOST)?;
        sysctl::write_where_known(&wire, sysctl::PLAIN_BRIDGE)?;
        ip::batch(
            &wire,
            [
                // No snooping: IPv6 asks for neighbours by multicast, which has to reach every port.
                format!("link add {BRIDGE} type bridge mcast_snooping 0"),
                format!("link set {BRIDGE} up"),
            ],
        )?;
        Ok(Self {
            wire,
            members: Mutex::default(),
        })
    }

    /// Adds a node with the next number. Every node gets routes to every other node's pods.
    ///
    /// # Errors
    /// When a namespace or a link cannot be made, or at the 189th node.
    pub fn node(&self, name: &str) -> Result<NodeNet> {
        let mut members = self.members()?;
        let (number, place) = members.next_node()?;
        let namespace = Netns::new(name)?;
        sysctl::write(&namespace, sysctl::ROUTER)?;
        let addresses = self.join(&namespace, place)?;
        let pods = PodRange::of(number);
        ip::batch(&namespace, members.ways())?;
        self.lead_to(&members, pods, addresses)?;
        members.nodes.push((namespace.downgrade(), pods, addresses));
        NodeNet::new(name, namespace, addresses, pods)
    }

    /// Tells everybody the way to a new node's pods.
    fn lead_to(&self, members: &Members, pods: PodRange, addresses: Addresses) -> Result<()> {
        for other in members.nodes.iter().filter_map(|(other, ..)| other.upgrade()) {
            ip::batch(&other, pods.routes_via(addresses))?;
        }
        // So that the gateway's "unreachable" finds its way back to a pod.
        ip::batch(&self.wire, pods.routes_via(addresses))?;
        for external in members.externals.iter().filter_map(WeakNetns::upgrade) {
            ip::batch(&external, pods.routes_via(addresses))?;
        }
        Ok(())
    }

    /// Adds a host outside of the cluster. It knows the way to pods (so that a pod's own source address can be
    /// told from a masqueraded one) but not to any VIP: see [`ExternalHost::route_via`].
    ///
    /// # Errors
    /// When a namespace or a link cannot be made.
    pub fn external(&self, name: &str) -> Result<ExternalHost> {
        let mut members = self.members()?;
        let count = u8::try_from(members.externals.len()).context("too many outside hosts")?;
        let place = FIRST_EXTERNAL.checked_add(count).filter(|place| *place < u8::MAX);
        let namespace = Netns::new(name)?;
        let addresses = self.join(
            &namespace,
            place.context("no room for another outside host on the wire")?,
        )?;
        ip::batch(&namespace, members.ways())?;
        members.externals.push(namespace.downgrade());
        Ok(ExternalHost::new(namespace, addresses))
    }

    /// Makes the control plane's namespace. One per fabric.
    pub(crate) fn control_plane_host(&self) -> Result<(Netns, Addresses)> {
        let namespace = Netns::new("the control plane")?;
        let addresses = self.join(&namespace, CONTROL_PLANE)?;
        Ok((namespace, addresses))
    }

    /// Makes a namespace for clients of a control plane that is elsewhere on the wire. One per fabric.
    pub(crate) fn visitor(&self) -> Result<Netns> {
        let namespace = Netns::new("clients of the control plane")?;
        self.join(&namespace, VISITOR)?;
        Ok(namespace)
    }

    /// Makes an interface of this process' own namespace part of the wire: what is behind it is on the wire as well.
    pub(crate) fn extend(&self, interface: &str) -> Result<()> {
        let output = std::process::Command::new("ip")
            .args(["link", "set", interface, "netns"])
            .arg(self.wire.path())
            .env("PATH", requirements::search_path())
            .output()
            .context("starting `ip`")?;
        ensure!(
            output.status.success(),
            "moving {interface} to the wire: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        ip::batch(&self.wire, [format!("link set {interface} master {BRIDGE} up")])
    }

    /// Makes a tap device that is part of the wire, for the card of a machine.
    pub(crate) fn tap(&self, name: &str) -> Result<Tap> {
        ip::batch(
            &self.wire,
            [
                format!("tuntap add dev {name} mode tap"),
                format!("link set {name} master {BRIDGE} up"),
            ],
        )?;
        Ok(Tap {
            wire: self.wire.clone(),
            name: name.to_owned(),
        })
    }

    /// The bridge's namespace, to look at (`tcpdump`) or to attach something else to (a tap device).
    #[must_use]
    pub fn wire(&self) -> &Netns {
        &self.wire
    }

    fn members(&self) -> Result<std::sync::MutexGuard<'_, Members>> {
        self.members
            .lock()
            .map_err(|_| anyhow::anyhow!("adding to the fabric panicked before"))
    }

    /// Connects a namespace to the wire at a place, which is its last address byte.
    fn join(&self, namespace: &Netns, place: u8) -> Result<Addresses> {
        sysctl::write(namespace, sysctl::HOST)?;
        let peer = namespace.path();
        let peer = peer.display();
        ip::batch(
            &self.wire,
            [
                format!("link add port{place} type veth peer name {WIRE_INTERFACE} netns {peer}"),
                format!("link set port{place} master {BRIDGE} up"),
            ],
        )
        .with_context(|| format!("connecting {} to the wire", namespace.name()))?;
        let addresses @ Addresses { v4, v6 } = on_wire(place);
        let [out_v4, out_v6] = ways_out();
        ip::batch(
            namespace,
            [
                format!("link set {WIRE_INTERFACE} up"),
                format!("addr add {v4}/24 dev {WIRE_INTERFACE}"),
                format!("addr add {v6}/64 dev {WIRE_INTERFACE} nodad"),
                out_v4,
                out_v6,
            ],
        )?;
        carrier::wait(&self.wire, &format!("port{place}"))?;
        carrier::wait(namespace, WIRE_INTERFACE)?;
        carrier::wait_for_neighbours(namespace, WIRE_INTERFACE, v6)?;
        Ok(addresses)
    }
}

/// A tap device on the wire; removed when dropped.
#[derive(Debug)]
pub(crate) struct Tap {
    wire: Netns,
    name: String,
}

impl Drop for Tap {
    fn drop(&mut self) {
        // It goes with its namespace at the latest.
        let _ = ip::batch(&self.wire, [format!("link delete {}", self.name)]);
    }
}

/// The `ip` commands for a host's default routes. A local client's packet to a VIP is routed before its address is
/// translated: without any route connect() fails at once.
fn ways_out() -> [String; 2] {
    let gateway = on_wire(GATEWAY);
    [
        format!("route add default via {}", gateway.v4),
        format!("route add ::/0 via {}", gateway.v6),
    ]
}

fn on_wire(place: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(192, 168, 77, place),
        v6: Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, u16::from(place)),
    }
}

/// The whole wire, IPv4.
#[must_use]
pub fn wire_v4() -> Ipv4Net {
    Ipv4Net::new_assert(on_wire(0).v4, 24)
}

/// The whole wire, IPv6.
#[must_use]
pub fn wire_v6() -> Ipv6Net {
    Ipv6Net::new_assert(on_wire(0).v6, 64)
}

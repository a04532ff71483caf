//! A pod: a namespace behind a node, connected as the CNI plugin `ptp` does it: a veth pair, a host route to
//! the pod's address, and a gateway that is the node itself.

use std::net::SocketAddr;

use anyhow::{Context, Result};

use crate::{Netns, NodeNet, carrier, ip, network::Addresses, sysctl};

/// The beginning of the node-side names of pod interfaces, for `detectLocal: InterfaceNamePrefix`.
pub const INTERFACE_PREFIX: &str = "veth";

/// A pod's network. It is cut off when dropped.
#[derive(Debug)]
pub struct Pod {
    name: String,
    node: String,
    namespace: Netns,
    addresses: Addresses,
}

impl Pod {
    pub(crate) fn attach(node: &NodeNet, name: &str, place: u8) -> Result<Self> {
        let namespace = Netns::new(name)?;
        sysctl::write(&namespace, sysctl::HOST)?;
        let addresses = node.pod_range().place(place);
        let gateway = node.pod_range().place(1);
        let link = format!("{INTERFACE_PREFIX}{place}");
        ip::batch(
            node.namespace(),
            [
                format!(
                    "link add {link} type veth peer name eth0 netns {}",
                    namespace.path().display()
                ),
                format!("link set {link} up"),
                // The same address on every pod's link: a neighbour question from the pod is answered there.
                format!("addr add {}/32 dev {link}", gateway.v4),
                format!("addr add {}/128 dev {link} nodad", gateway.v6),
                format!("route add {}/32 dev {link} src {}", addresses.v4, gateway.v4),
                format!("route add {}/128 dev {link}", addresses.v6),
            ],
        )
        .with_context(|| format!("connecting the pod {name} to {}", node.name()))?;
        ip::batch(
            &namespace,
            [
                "link set eth0 up".to_owned(),
                format!("addr add {}/32 dev eth0", addresses.v4),
                format!("addr add {}/128 dev eth0 nodad", addresses.v6),
                format!("route add {} dev eth0 scope link", gateway.v4),
                format!("route add default via {}", gateway.v4),
                format!("route add {} dev eth0", gateway.v6),
                format!("route add ::/0 via {} dev eth0", gateway.v6),
            ],
        )?;
        carrier::wait(node.namespace(), &link)?;
        carrier::wait(&namespace, "eth0")?;
        carrier::wait_for_neighbours(node.namespace(), &link, gateway.v6)?;
        carrier::wait_for_neighbours(&namespace, "eth0", addresses.v6)?;
        Ok(Self {
            name: name.to_owned(),
            node: node.name().to_owned(),
            namespace,
            addresses,
        })
    }

    /// The pod's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of the node that it is on.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The pod's namespace.
    #[must_use]
    pub fn namespace(&self) -> &Netns {
        &self.namespace
    }

    /// The pod's addresses.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The pod's IPv4 address with a port.
    #[must_use]
    pub fn at_v4(&self, port: u16) -> SocketAddr {
        self.addresses.at_v4(port)
    }

    /// The pod's IPv6 address with a port.
    #[must_use]
    pub fn at_v6(&self, port: u16) -> SocketAddr {
        self.addresses.at_v6(port)
    }
}

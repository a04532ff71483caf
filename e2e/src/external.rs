//! A host on the wire that is not part of the cluster: the client behind a load balancer, the server that
//! pods talk to.

use anyhow::{Context, Result};
use ipnet::IpNet;

use crate::{Netns, NodeNet, ip, network::Addresses};

/// A host outside of the cluster. It leaves the wire when dropped.
#[derive(Debug)]
pub struct ExternalHost {
    namespace: Netns,
    addresses: Addresses,
}

impl ExternalHost {
    pub(crate) fn new(namespace: Netns, addresses: Addresses) -> Self {
        Self { namespace, addresses }
    }

    /// Sends what goes to `destination` (a VIP or a range of them) to a node, as a router in front of the
    /// cluster would; a later call for the same destination moves it.
    ///
    /// # Errors
    /// When `ip` refuses the route.
    pub fn route_via(&self, destination: impl Into<IpNet>, node: &NodeNet) -> Result<()> {
        let destination = destination.into();
        let route = match destination {
            IpNet::V4(range) => format!("route replace {range} via {}", node.addresses().v4),
            IpNet::V6(range) => format!("route replace {range} via {}", node.addresses().v6),
        };
        ip::batch(&self.namespace, [route])
            .with_context(|| format!("leading {destination} to {}", node.name()))
    }

    /// The host's namespace.
    #[must_use]
    pub fn namespace(&self) -> &Netns {
        &self.namespace
    }

    /// The host's addresses.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }
}

//! A node: a namespace on the wire that forwards for its pods, with its own iptables.

use std::{
    ffi::OsString,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    process::Command,
    sync::atomic::{AtomicU8, Ordering},
};

use anyhow::Result;
use ipnet::{Ipv4Net, Ipv6Net};

use crate::{
    IptablesVariant, Netns, Pod, WorkDir,
    network::{Addresses, WIRE_INTERFACE},
    requirements,
};

/// The addresses that a node gives to its pods.
#[derive(Clone, Copy, Debug)]
pub struct PodRange {
    /// 10.244.N.0/24.
    pub v4: Ipv4Net,
    /// fd00:10:244:N::/64.
    pub v6: Ipv6Net,
}

impl PodRange {
    pub(crate) fn of(number: u8) -> Self {
        let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, u16::from(number), 0, 0, 0, 0);
        Self {
            v4: Ipv4Net::new_assert(Ipv4Addr::new(10, 244, number, 0), 24),
            v6: Ipv6Net::new_assert(v6, 64),
        }
    }

    /// The `ip` commands that lead to this range through its node.
    pub(crate) fn routes_via(&self, node: Addresses) -> [String; 2] {
        [
            format!("route add {} via {}", self.v4, node.v4),
            format!("route add {} via {}", self.v6, node.v6),
        ]
    }

    /// The address at a place in the range; 1 is the gateway.
    pub(crate) fn place(&self, place: u8) -> Addresses {
        let [a, b, c, _] = self.v4.addr().octets();
        let mut v6 = self.v6.addr().segments();
        v6[7] = u16::from(place);
        Addresses {
            v4: Ipv4Addr::new(a, b, c, place),
            v6: v6.into(),
        }
    }
}

/// A node's network. It leaves the wire, and its pods lose their way, when dropped.
#[derive(Debug)]
pub struct NodeNet {
    name: String,
    namespace: Netns,
    addresses: Addresses,
    pods: PodRange,
    next_place: AtomicU8,
    folder: WorkDir,
}

impl NodeNet {
    pub(crate) fn new(name: &str, namespace: Netns, addresses: Addresses, pods: PodRange) -> Result<Self> {
        let folder = WorkDir::new(name)?;
        IptablesVariant::default().link_into(&folder.file("bin"))?;
        // 0 is the range itself and 1 the gateway.
        let next_place = AtomicU8::new(2);
        Ok(Self {
            name: name.to_owned(),
            namespace,
            addresses,
            pods,
            next_place,
            folder,
        })
    }

    /// The same node with the given iptables. To be called before anything wrote rules.
    ///
    /// # Errors
    /// When the package iptables is missing.
    pub fn with_iptables(self, variant: IptablesVariant) -> Result<Self> {
        variant.link_into(&self.folder.file("bin"))?;
        Ok(self)
    }

    /// Adds a pod to this node.
    ///
    /// # Errors
    /// When the namespace or the link cannot be made, or at the 254th pod.
    pub fn add_pod(&self, name: &str) -> Result<Pod> {
        let place = self
            .next_place
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |place| place.checked_add(1))
            .map_err(|_| anyhow::anyhow!("the pod range {} of {} is full", self.pods.v4, self.name))?;
        Pod::attach(self, name, place)
    }

    /// A command as a process of this node has it: in its namespace, with its iptables first in PATH and a lock
    /// of its own instead of the machine's /run/xtables.lock. See [`Netns::command`] for how long it lives.
    #[must_use]
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = self.namespace.command(program);
        command.env("PATH", self.path_variable());
        command.env("XTABLES_LOCKFILE", self.folder.file("xtables.lock"));
        command
    }

    /// PATH for programs of this node.
    fn path_variable(&self) -> OsString {
        let mut path = self.folder.file("bin").into_os_string();
        path.push(":");
        path.push(requirements::search_path());
        path
    }

    /// The node's name, which is also its Node object's.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node's namespace.
    #[must_use]
    pub fn namespace(&self) -> &Netns {
        &self.namespace
    }

    /// The node's own addresses, on the wire.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The addresses of its pods.
    #[must_use]
    pub fn pod_range(&self) -> PodRange {
        self.pods
    }

    /// The interface that the node's addresses are on.
    #[must_use]
    pub fn interface(&self) -> &'static str {
        WIRE_INTERFACE
    }

    /// Where the node's files are: state, logs and configuration of what runs on it.
    #[must_use]
    pub fn folder(&self) -> &WorkDir {
        &self.folder
    }
}

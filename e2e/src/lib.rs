//! The e2e harness: everything that Pointsman is tested and measured against, made on one machine.
//!
//! - [`Toolchain`] builds the real programs (kube-apiserver, etcd, kube-proxy, ...) from their Go modules.
//! - [`Fabric`] is the network: nodes, pods and outside hosts are network namespaces on one wire.
//! - [`ControlPlane`] is a real etcd, kube-apiserver and kube-controller-manager in a namespace of their own.
//! - [`traffic`] holds the servers and clients that say whether packets go where they should.
//! - [`Agent`] and [`Operator`] are Pointsman's programs; [`Installation`] is its charts, with programs that use
//!   the chart's service accounts; [`Cluster`] is all of it on some nodes, with a Service.
//! - [`inside`] is all of it in the test kernel, which has IPVS, with the control plane outside.
//! - [`Peer`] is kube-proxy, the program that Pointsman is compared with; [`differential`] does that with random
//!   clusters.
//!
//! Nothing outlives the test process, however it ends: namespaces have no names and vanish with the last
//! process in them, and every child dies with its parent (see [`mod@process`]).
//!
//! ```no_run
//! use pointsman_e2e::{ControlPlane, Fabric, Options, Toolchain, traffic::{self, Client, Protocol}};
//!
//! # fn main() -> anyhow::Result<()> {
//! let fabric = Fabric::new()?;
//! let node = fabric.node("node-1")?;
//! let pod = node.add_pod("web")?;
//! let control_plane = ControlPlane::start(&Toolchain::locate()?, &fabric, Options::default())?;
//! control_plane.create_node(&node)?;
//! let server = traffic::serve(pod.namespace(), Protocol::Tcp, pod.at_v4(80), "web")?;
//! let outcome = Client::of(node.namespace()).tcp(server.address());
//! # Ok(()) }
//! ```

pub mod agent;
pub mod bench;
pub mod binaries;
mod carrier;
pub mod certificates;
pub mod cluster;
pub mod control_plane;
pub mod differential;
pub mod external;
pub mod http;
pub mod inside;
pub mod installation;
pub mod ip;
pub mod iptables;
pub mod manifests;
pub mod netns;
pub mod network;
pub mod nft;
pub mod node;
pub mod observe;
pub mod operator;
pub mod peer;
pub mod pod;
pub mod process;
pub mod relay;
pub mod requirements;
pub mod rules;
pub mod sysctl;
pub mod toolchain;
pub mod traffic;
pub mod workdir;
pub mod workload;

pub use agent::Agent;
pub use cluster::Cluster;
pub use control_plane::{Access, ControlPlane, Options};
pub use external::ExternalHost;
pub use installation::Installation;
pub use iptables::IptablesVariant;
pub use manifests::Manifests;
pub use netns::Netns;
pub use network::Fabric;
pub use node::NodeNet;
pub use operator::Operator;
pub use peer::{Peer, PeerMode, PeerOptions};
pub use pod::Pod;
pub use process::Process;
pub use toolchain::{Program, Toolchain};
pub use workdir::WorkDir;

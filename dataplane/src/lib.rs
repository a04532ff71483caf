//! What a node forwards, and how its kernel is made to do it.
//!
//! [`model`] turns Services, endpoints and facts about the node into a [`model::ForwardingTable`]: pure values,
//! no I/O. A [`backend::Backend`] makes a kernel do what the table says. Nothing here knows the API server.

pub mod backend;
pub mod conntrack;
pub mod iptables;
pub mod ipvs;
pub mod leftover;
pub mod model;
pub mod netlink;
pub mod nftables;
pub mod sysctl;

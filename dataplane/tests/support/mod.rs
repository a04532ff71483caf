//! A node with real packets: namespaces without names, real sockets, the model's own tables.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by failing"
)]
#![allow(dead_code, reason = "each test file uses its part")]

pub mod cost;
pub mod crowd;
pub mod flows;
pub mod ipvs;
pub mod namespace;
pub mod network;
pub mod node;
pub mod sctp;
pub mod talk;
pub mod virtual_server;

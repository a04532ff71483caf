//! The operator of Pointsman: decides each node's policy, writes what the node is to do (NodeProxy), and gathers
//! what the nodes report into ProxyPolicy.status.
//!
//! Decisions are pure functions over what the watches have shown:
//! [`assignment`] (which policy a node follows), [`node_proxy`] (what to write for a node), [`report`] (where a node
//! is), [`status`] and [`explain`] (what a policy says of itself), [`pass`] (all of it, for the whole fleet),
//! [`lease`] (who leads).
//! Around them: [`watch`] and [`fleet`] bring the facts in, [`controller`] decides when, [`write`](mod@write) brings
//! the answers out, [`elector`] holds the Lease, [`server`] tells how it goes.

pub mod announce;
pub mod args;
pub mod assignment;
pub mod controller;
pub mod debounce;
pub mod drift;
pub mod elector;
pub mod explain;
pub mod fleet;
pub mod health;
pub mod lease;
pub mod logging;
pub mod metrics;
pub mod mirror;
pub mod node_proxy;
pub mod pass;
pub mod report;
pub mod retry;
pub mod run;
pub mod selector;
pub mod server;
pub mod status;
pub mod watch;
pub mod write;

//! Connection tracking: its limits, and entries that stand in the way of packets.
//!
//! The kernel asks the rules once for each connection, and remembers. UDP has no connections, so what it remembers is a
//! client's address and port, for as long as packets come: a client that goes on sending to a Service meets the
//! endpoint of its first packet, or none, whatever the rules say now. Hence entries that the rules would not make any
//! more are deleted after they changed (`stale` says which), and the next packet meets the rules.
//!
//! | Room | |
//! |---|---|
//! | `entry`, `request`, `ctnetlink` | what is said to the kernel, and the conversation |
//! | `stale` | which entries are stale |
//! | `changes` | which frontends a change of the table is about |
//! | `queue` | what waits for its rules, and for a walk |
//! | `walk`, `cleaner` | one walk; the thread that walks |
//! | `limits` | the kernel parameters |
//!
//! Upstream's reconciler (kube-proxy 1.36, `pkg/proxy/conntrack/cleanup.go`) is the model. What is different:
//!
//! - It leaves Services without endpoints and deleted ones alone (kubernetes/kubernetes#139628, #141371).
//! - It keeps what leads to an endpoint that serves, whatever traffic policy and hints say. Here an entry is stale when
//!   no new one would lead there; only an endpoint that terminates keeps what it has for as long as it serves
//!   ([`crate::model::Pool::draining`]).
//! - It lists all entries in the middle of a sync. Here a walk is made when something may have become stale, on a
//!   thread of its own.
//! - ClusterIPs of Services that were deleted while no agent ran are told by their range.
//! - TCP connections can be reset ([`crate::model::Settings::reset_removed`]).

mod changes;
mod cleaner;
mod ctnetlink;
mod entry;
mod limits;
mod queue;
mod request;
mod stale;
mod walk;

pub use cleaner::{Cleaner, Worker};
pub use ctnetlink::{Ctnetlink, DELETED_AT_ONCE, Deleted, Progress};
pub use entry::{Entry, Tuple};
pub use limits::{Limits, cores, merge};
pub use request::Filter;
pub use stale::{Allowed, Rest, Review};
pub use walk::{Cleaned, clean};

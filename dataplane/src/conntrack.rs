//! Connection tracking: its limits, and entries that stand in the way of packets.

mod ctnetlink;
mod entry;
mod limits;
mod request;

pub use ctnetlink::{Ctnetlink, DELETED_AT_ONCE, Deleted, Progress};
pub use entry::{Entry, Tuple};
pub use limits::{Limits, cores, merge};
pub use request::Filter;

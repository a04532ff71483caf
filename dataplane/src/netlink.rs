//! Netlink: what the kernel tells of itself, as bytes, and what they mean.

pub mod message;
pub mod ruleset;

//! Netlink: what is said to the kernel and what it answers, as bytes, and what they mean. The codecs are pure;
//! [`socket`] does the talking.

pub mod attribute;
pub mod expression;
pub mod nftables;
pub mod ruleset;
pub mod socket;

//! Netlink: what is said to the kernel and what it answers, as bytes, and what they mean. The codecs are pure;
//! `conversation` does the talking: [`socket`] with nf_tables, [`ipvs::Ipvs`] with IPVS,
//! [`route::Rtnetlink`] with rtnetlink.

pub mod attribute;
mod conversation;
pub mod expression;
pub mod generic;
pub mod ipvs;
pub mod nftables;
pub mod route;
pub mod ruleset;
pub mod socket;

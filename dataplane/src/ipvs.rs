//! Mode IPVS.

pub mod parameters;

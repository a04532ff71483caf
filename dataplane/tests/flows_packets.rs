//! The flow tables (`tests/flows`) in packets: the files' objects through a backend into a node's kernel, and the files'
//! packets from where they say. In both families. Needs root, iptables and iproute2; without them it fails and says what
//! to do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by failing"
)]

mod support;

use std::path::Path;

use pointsman_dataplane::backend::Backend;
use pointsman_dataplane::iptables::{Iptables, Variant};
use pointsman_dataplane::model::Family;
use pointsman_dataplane::nftables::Nftables;

use support::flows::families::Families;
use support::flows::packets::{Mode, all_files};
use support::node::programs;

/// All files with each of these, as written and with families swapped.
macro_rules! on_every_backend {
    ($($name:ident: $make:expr;)*) => { $(
        mod $name {
            const MODE: super::Mode = super::Mode { make: $make, parameters: &[], is_ipvs: false };
            #[test] fn as_written() { super::all_files(MODE, super::Families::Written); }
            #[test] fn families_swapped() { super::all_files(MODE, super::Families::Swapped); }
        }
    )* };
}

on_every_backend! {
    iptables_legacy: |family, folder| super::iptables(super::Variant::Legacy, family, folder);
    iptables_nft: |family, folder| super::iptables(super::Variant::Nft, family, folder);
    nftables: |family, _folder| Box::new(super::Nftables::new(family));
}

fn iptables(variant: Variant, family: Family, folder: &Path) -> Box<dyn Backend> {
    Box::new(Iptables::new(family, programs(variant, family, folder.join("lock"))).unwrap())
}

//! What a change costs when there is much, in a namespace of the test's own. A hundred Services here;
//! `POINTSMAN_SCALE=10000 cargo test --release -p pointsman-dataplane --test scale -- --nocapture` prints the
//! figures for more.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by failing"
)]
mod support;

use pointsman_dataplane::backend::Backend;
use pointsman_dataplane::iptables::{Iptables, Programs, Variant};
use pointsman_dataplane::model::Family;
use pointsman_dataplane::nftables::Nftables;

use support::cost::cost;

fn iptables(variant: Variant) {
    let folder = tempfile::tempdir().unwrap();
    let programs = Programs {
        lock_file: Some(folder.path().join("lock")),
        ..Programs::find(Family::V4, Some(variant))
    };
    let make = || Box::new(Iptables::new(Family::V4, programs).unwrap()) as Box<dyn Backend>;
    cost(&format!("iptables, {variant}"), make);
}

#[test]
fn iptables_legacy() {
    iptables(Variant::Legacy);
}

#[test]
fn iptables_nft() {
    iptables(Variant::Nft);
}

#[test]
fn nftables() {
    cost("nftables", || Box::new(Nftables::new(Family::V4)));
}

//! What a change costs in mode IPVS when there is much, in the test kernel. A hundred Services here;
//! `POINTSMAN_SCALE=10000 cargo test --release -p pointsman-dataplane --test ipvs_scale -- --nocapture` prints the
//! figures for more.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by failing"
)]

mod support;

use pointsman_dataplane::ipvs::Ipvs;
use pointsman_dataplane::model::Family;

use support::cost::cost;

pointsman_test_kernel::run_inside!();

#[test]
fn ipvs() {
    cost("ipvs", || Box::new(Ipvs::new(Family::V4)));
}

//! The flow tables (`tests/flows`) in packets, by the IPVS backend, in the test kernel. Needs the packages of e2e/packages.sh;
//! without them it fails and says what to do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by failing"
)]

mod support;

use pointsman_dataplane::ipvs::Ipvs;

use support::flows::families::Families;
use support::flows::packets::{Mode, all_files};
use support::ipvs::PARAMETERS;

pointsman_test_kernel::run_inside!();

const MODE: Mode = Mode {
    make: |family, _folder| Box::new(Ipvs::new(family)),
    parameters: &PARAMETERS,
    is_ipvs: true,
};

#[test]
fn as_written() {
    all_files(MODE, Families::Written);
}

#[test]
fn families_swapped() {
    all_files(MODE, Families::Swapped);
}

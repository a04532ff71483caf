//! A Linux kernel to test on: IPVS with every scheduler, nf_tables, iptables, ipset, SCTP, in a program that boots in half
//! a second and needs no privilege (user-mode Linux, built from Debian's source package).
//!
//! - [`program`] builds the kernel, once, into `<target>/e2e/bin`.
//! - [`Kernel`] boots it on the machine's own file system and runs programs in it.
//! - [`run_inside!`](crate::run_inside) moves a whole test binary into it.
//!
//! The guest sees the machine's files read-only at their own paths, and the workspace, the target folder and what
//! [`Options::shared`] names also for writing. /tmp, /run and /dev are its own.
//!
//! ```no_run
//! use std::process::Command;
//! use pointsman_test_kernel::{Kernel, Options};
//!
//! # fn main() -> anyhow::Result<()> {
//! let kernel = Kernel::boot(&Options::default())?;
//! let said = kernel.output(Command::new("ipvsadm").arg("-Sn"))?;
//! assert!(said.status.success());
//! # Ok(()) }
//! ```

pub mod cache;
pub mod cargo;
pub mod child;
mod frame;
mod furniture;
pub mod guest;
mod kernel;
mod link;
mod machine;
pub mod program;
pub mod within;

pub use kernel::{GuestProcess, Kernel};
pub use link::Streams;
pub use machine::Options;

/// Set for everything that runs in the guest.
pub const INSIDE: &str = "POINTSMAN_TEST_KERNEL";

//! End-to-end tests in the test kernel: the nodes and everything around them are namespaces of a kernel that has IPVS.
//!
//! The control plane stays outside, where it is quick: the kernel's network card makes both wires one. A test binary with
//! [`run_inside_with_control_plane!`](crate::run_inside_with_control_plane) in it runs there, by the program `inside`.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! // A file in `tests/` begins with `pointsman_e2e::run_inside_with_control_plane!();`, and its tests with:
//! let (fabric, access) = pointsman_e2e::inside::join()?;
//! let node = fabric.node("node-1")?;
//! access.create_node(&node)?;
//! # Ok(()) }
//! ```

use std::{
    env,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use pointsman_test_kernel::{GuestProcess, Kernel, Options, Streams};

use crate::{Access, ControlPlane, Fabric, Program, Toolchain, binaries, control_plane::Paths, network::Tap};

/// Makes this test binary run in the test kernel, with a control plane outside that [`inside::join`](crate::inside::join) leads to:
/// one line at the top of a file in `tests/`. Without a control plane it is `pointsman_test_kernel::run_inside!`.
#[macro_export]
macro_rules! run_inside_with_control_plane {
    () => {
        pointsman_test_kernel::run_inside!(by env!("CARGO_BIN_EXE_inside"));
    };
}

/// The file that says where the control plane is.
const OUTSIDE: &str = "POINTSMAN_E2E_OUTSIDE";
/// The tap device on the wire outside, and the network card that the guest sees it as.
const TAP: &str = "guest";
const CARD: &str = "vec0";

/// A booted test kernel on the wire of a control plane. It ends when dropped.
#[derive(Debug)]
pub struct Guest {
    // The kernel goes before its card.
    kernel: Kernel,
    _tap: Tap,
    outside: PathBuf,
}

impl Guest {
    /// Boots one. The fabric is [`Fabric::without_gateway`] and has the control plane, and one guest at a time.
    ///
    /// # Errors
    /// When a program cannot be built, or the kernel does not boot.
    pub fn boot(fabric: &Fabric, control_plane: &ControlPlane, options: &Options) -> Result<Self> {
        build()?;
        let tap = fabric.tap(TAP)?;
        let mut options = Options {
            taps: vec![TAP.to_owned()],
            namespace: Some(fabric.wire().handle()),
            ..options.clone()
        };
        options.shared.push(control_plane.folder().path().to_owned());
        let outside = control_plane
            .folder()
            .write("outside.json", serde_json::to_vec(control_plane.paths())?)?;
        let kernel = Kernel::boot(&options)?;
        Ok(Self {
            kernel,
            _tap: tap,
            outside,
        })
    }

    /// Starts a program in it, which can [`join`] the fabric.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn spawn(&self, mut command: Command, streams: Streams) -> Result<GuestProcess> {
        command.env(OUTSIDE, &self.outside);
        self.kernel.spawn(&command, streams)
    }
}

/// Builds what the guest is too slow to build itself.
///
/// # Errors
/// When something does not compile.
pub fn build() -> Result<()> {
    binaries::find(binaries::Binary::Agent)?;
    let toolchain = Toolchain::locate()?;
    toolchain.program(Program::KubeProxy)?;
    toolchain.program(Program::Kubectl)?;
    Ok(())
}

/// In the guest: a fabric whose wire is also the control plane's, and the way to that. Once in a guest.
///
/// # Errors
/// When this process was not started by [`Guest::spawn`].
pub fn join() -> Result<(Fabric, Access)> {
    let file = env::var_os(OUTSIDE).with_context(|| {
        format!("{OUTSIDE} is not set: this runs in a test kernel only, with a control plane outside of it")
    })?;
    let file = File::open(&file).with_context(|| format!("opening {}", Path::new(&file).display()))?;
    let paths: Paths = serde_json::from_reader(file).context("reading where the control plane is")?;
    let fabric = Fabric::new()?;
    fabric.extend(CARD)?;
    let namespace = fabric.visitor()?;
    Ok((fabric, Access::new(namespace, paths)))
}

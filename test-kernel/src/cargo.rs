//! Cargo, run by a test: for programs that cargo does not build for the test itself.

use std::{env, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

/// The folder of the workspace.
pub const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Builds the programs of these packages of the workspace from the present sources.
///
/// # Errors
/// When they do not compile.
pub fn build(target: &Path, release: bool, packages: &[&str]) -> Result<()> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(WORKSPACE);
    command.args(["build", "--quiet"]);
    for package in packages {
        command.args(["--package", package]);
    }
    command.arg("--target-dir").arg(target);
    // What cargo tells the test that it runs. Build scripts read the same names: ring's would see a change here,
    // and its change back outside, and be built anew each time with all that depends on it.
    let told = [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "CARGO_CRATE_",
        "CARGO_PRIMARY_",
    ];
    for (name, _) in env::vars_os() {
        let is_told = |name: &str| told.iter().any(|prefix| name.starts_with(prefix));
        if name.to_str().is_some_and(is_told) {
            command.env_remove(name);
        }
    }
    if release {
        command.arg("--release");
    }
    let names = packages.join(", ");
    let status = command
        .status()
        .with_context(|| format!("running cargo to build {names}"))?;
    ensure!(status.success(), "{names} cannot be built; see above");
    Ok(())
}

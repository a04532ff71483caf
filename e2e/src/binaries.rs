//! Pointsman's own programs, built in the profile that the caller was built in.

use std::{
    env,
    path::PathBuf,
    process::Command,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};

use crate::toolchain::target_directory;

/// A program of this workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// pointsman-agent.
    Agent,
    /// pointsman-operator.
    Operator,
}

impl Binary {
    fn name(self) -> &'static str {
        match self {
            Self::Agent => "pointsman-agent",
            Self::Operator => "pointsman-operator",
        }
    }
}

/// Whether this process has built them already.
static BUILT: Mutex<bool> = Mutex::new(false);

/// Where the program is, built from the present sources: a test never runs yesterday's agent.
///
/// # Errors
/// When it does not compile.
pub fn find(binary: Binary) -> Result<PathBuf> {
    let target = target_directory()?;
    let executable = env::current_exe().context("finding out which program this is")?;
    let release = executable.starts_with(target.join("release"));
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if !*built {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        command.args([
            "build",
            "--quiet",
            "--package",
            "pointsman-agent",
            "--package",
            "pointsman-operator",
        ]);
        command.arg("--target-dir").arg(&target);
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
        let status = command
            .status()
            .context("running cargo to build pointsman's programs")?;
        ensure!(status.success(), "pointsman's programs do not build; see above");
        *built = true;
    }
    let path = target
        .join(if release { "release" } else { "debug" })
        .join(binary.name());
    ensure!(
        path.is_file(),
        "cargo built no {}: is --target-dir set elsewhere?",
        path.display()
    );
    Ok(path)
}

//! Pointsman's own programs, built in the profile that the caller was built in.

use std::{
    env,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};

use pointsman_test_kernel::{cargo, within};

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

/// Where the program is, built from the present sources: a test never runs yesterday's agent. In the test kernel it is
/// what was built before the kernel was booted ([`crate::inside`]).
///
/// # Errors
/// When it does not compile.
pub fn find(binary: Binary) -> Result<PathBuf> {
    let target = target_directory()?;
    let executable = env::current_exe().context("finding out which program this is")?;
    let release = executable.starts_with(target.join("release"));
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    // In the test kernel it was built before.
    if !*built && !within::is_inside() {
        cargo::build(&target, release, &["pointsman-agent", "pointsman-operator"])?;
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

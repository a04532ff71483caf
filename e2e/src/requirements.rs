//! What this machine has to have before a test can say anything. Missing means failed, never skipped: a
//! skipped test looks like a passed one.

use std::{env, ffi::OsString, path::PathBuf};

use anyhow::{Result, bail};
use nix::unistd::geteuid;

/// Programs that the harness calls by name, all from the packages of e2e/packages.sh.
const PROGRAMS: &[&str] = &[
    "ip",
    "nft",
    "xtables-legacy-multi",
    "xtables-nft-multi",
    "conntrack",
];

/// Checks for root and for the programs that come with packages.
///
/// # Errors
/// Says everything that is missing, and what to do about it.
pub fn check() -> Result<()> {
    if !geteuid().is_root() {
        bail!("the e2e tests make network namespaces and need root: run them with sudo -E, or as root");
    }
    let missing: Vec<_> = PROGRAMS
        .iter()
        .copied()
        .filter(|program| find(program).is_none())
        .collect();
    if !missing.is_empty() {
        bail!("not found: {}; run e2e/packages.sh", missing.join(", "));
    }
    Ok(())
}

/// Finds a program in the [`search_path`].
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    env::split_paths(&search_path())
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// PATH, and behind it the folders of root's programs, which a user's PATH (kept by `sudo -E`) may lack.
#[must_use]
pub fn search_path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin");
    path
}

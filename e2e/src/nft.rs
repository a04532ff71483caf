//! nft: rules of the harness's own in namespaces that are not under test, and what others see of those that are.

use std::{io::Write as _, process::Stdio};

use anyhow::{Context, Result, ensure};

use crate::Netns;

/// Runs nft commands in a namespace, all or none of them.
///
/// # Errors
/// With what nft said, and the commands.
pub fn run(namespace: &Netns, commands: &str) -> Result<()> {
    let mut child = namespace
        .command("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting nft; run e2e/packages.sh")?;
    if let Some(mut stdin) = child.stdin.take() {
        // When nft stops early this is a broken pipe; its own words, below, say more.
        let _ = stdin.write_all(commands.as_bytes());
    }
    let output = child.wait_with_output().context("waiting for nft")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "nft in the namespace of {}: {}\n{commands}",
        namespace.name(),
        said.trim()
    );
    Ok(())
}

/// What nft lists of a namespace: "ruleset", "tables".
///
/// # Errors
/// With what nft said.
pub fn list(namespace: &Netns, what: &str) -> Result<String> {
    let output = namespace
        .command("nft")
        .args(["list", what])
        .output()
        .context("starting nft; run e2e/packages.sh")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "nft list {what} in the namespace of {}: {}",
        namespace.name(),
        said.trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

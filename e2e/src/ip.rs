//! `ip -batch`: many links, addresses and routes for the price of one process.

use std::{fmt::Write as _, io::Write as _, process::Stdio};

use anyhow::{Context, Result, bail};

use crate::netns::Netns;

/// Runs `ip` commands (without the word `ip`) inside a namespace; stops at the first that fails.
///
/// # Errors
/// With what `ip` said, and the commands, when one of them fails.
pub fn batch<C: AsRef<str>>(namespace: &Netns, commands: impl IntoIterator<Item = C>) -> Result<()> {
    let mut script = String::new();
    for command in commands {
        writeln!(script, "{}", command.as_ref())?;
    }
    let mut child = namespace
        .command("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting `ip`; is the package iproute2 installed? run e2e/packages.sh")?;
    if let Some(mut stdin) = child.stdin.take() {
        // When ip stops early this is a broken pipe; its own words, below, say more.
        let _ = stdin.write_all(script.as_bytes());
    }
    let output = child.wait_with_output().context("waiting for `ip`")?;
    if !output.status.success() {
        bail!(
            "`ip -batch` in the namespace of {} failed: {}\nthe commands were:\n{script}",
            namespace.name(),
            String::from_utf8_lossy(&output.stderr).trim(),
        );
    }
    Ok(())
}

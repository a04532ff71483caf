//! What the figures were measured on.

use std::{fs, process::Command, thread};

use anyhow::{Context as _, Result};
use k8s_openapi::jiff::{Timestamp, Unit};
use serde::Serialize;

/// A machine at a time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// Processors that this process may use.
    pub cpus: usize,
    /// The processor's name.
    pub cpu_model: String,
    /// The kernel's release.
    pub kernel: String,
    /// MiB of memory.
    pub memory_mb: u64,
    /// What `iptables --version` says.
    pub iptables: String,
    /// When the bench began, in UTC.
    pub date: String,
    /// Pointsman's commit, with `-dirty` when the sources differ from it.
    pub commit: String,
}

impl Machine {
    /// Describes this machine.
    ///
    /// # Errors
    /// When /proc is not there.
    pub fn describe() -> Result<Self> {
        let cpus = thread::available_parallelism().context("counting processors")?;
        let now = Timestamp::now()
            .round(Unit::Second)
            .context("reading the clock")?;
        Ok(Self {
            cpus: cpus.get(),
            cpu_model: field("/proc/cpuinfo", "model name")?,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            memory_mb: kibibytes(&field("/proc/meminfo", "MemTotal")?) / 1024,
            iptables: said("iptables", &["--version"]),
            date: now.to_string(),
            commit: said("git", &["describe", "--always", "--dirty", "--abbrev=12"]),
        })
    }
}

/// How many processes wanted to run in the last minute, on average: above the bench's own, others disturbed it.
#[must_use]
pub fn load_average() -> Option<f64> {
    read("/proc/loadavg")
        .ok()?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {path}"))
}

fn field(path: &str, name: &str) -> Result<String> {
    let text = read(path)?;
    let value = text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    });
    // Not every architecture names its processor.
    Ok(value.unwrap_or_default())
}

fn kibibytes(value: &str) -> u64 {
    let number = value.split_whitespace().next();
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// The first line that a program prints; empty when it fails.
fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .env("PATH", crate::requirements::search_path())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default()
        .lines()
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_be_described() -> Result<()> {
        let machine = Machine::describe()?;
        assert!(machine.cpus > 0 && machine.memory_mb > 0 && !machine.kernel.is_empty());
        assert!(machine.date.ends_with('Z'), "{}", machine.date);
        assert!(load_average().is_some());
        Ok(())
    }
}

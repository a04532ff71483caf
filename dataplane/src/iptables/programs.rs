//! The programs: where they are, what they are, and how they are called.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::names::Table;
use super::run::run;
use crate::backend::Error;
use crate::model::Family;

/// Which part of the kernel an iptables program talks to. The two do not see each other's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// `ip_tables`: a table is one array, copied to the kernel and back for every change, under a file lock.
    Legacy,
    /// `nf_tables`: rules are single objects; the kernel says when somebody changes them (`NFNLGRP_NFTABLES`).
    Nft,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Legacy => "legacy",
            Self::Nft => "nf_tables",
        })
    }
}

/// A version of iptables, as `iptables --version` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(
    /// Major.
    pub u16,
    /// Minor.
    pub u16,
    /// Patch.
    pub u16,
);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// The programs that one backend uses, and how long it waits for them.
///
/// They inherit the environment, so that `XTABLES_LOCKFILE` means what it means to iptables, and the network namespace
/// of the thread that calls the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    /// `iptables-restore` or one of its kind.
    pub restore: PathBuf,
    /// `iptables-save` of the same kind.
    pub save: PathBuf,
    /// The file that the legacy variant locks, where it is neither iptables' own nor that of the environment: for
    /// nodes that are only namespaces and share the file system.
    pub lock_file: Option<PathBuf>,
    /// How long to wait for the xtables lock, which other programs may hold (whole seconds).
    pub lock_wait: Duration,
    /// After how long a program that does not end is stopped.
    pub time_limit: Duration,
}

impl Programs {
    /// The programs of a family. With a variant, those that have it in their name (`iptables-nft-restore`); without
    /// one, what the host calls `iptables-restore`. They are looked for in PATH, then where distributions have them,
    /// since a service's PATH often lacks the sbin directories.
    #[must_use]
    pub fn find(family: Family, variant: Option<Variant>) -> Self {
        let stem = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let infix = match variant {
            None => "",
            Some(Variant::Legacy) => "-legacy",
            Some(Variant::Nft) => "-nft",
        };
        Self {
            restore: locate(&format!("{stem}{infix}-restore")),
            save: locate(&format!("{stem}{infix}-save")),
            lock_file: None,
            lock_wait: Duration::from_secs(10),
            time_limit: Duration::from_secs(120),
        }
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if let Some(file) = &self.lock_file {
            command.env("XTABLES_LOCKFILE", file);
        }
        command
    }

    /// Asks the program what it is.
    pub(super) fn identify(&self) -> Result<(Variant, Version), Error> {
        let mut text = String::new();
        let mut command = self.command(&self.restore);
        command.arg("--version");
        run(command, &self.restore, self.time_limit, &[], |line| {
            text.push_str(line);
        })?;
        parse_version(&text).ok_or_else(|| Error::Failed {
            program: format!("{} --version", self.restore.display()),
            status: "it ended well".to_owned(),
            stderr: format!(
                "{text:?} is not the version of an iptables: point to a restore program of iptables 1.6.2 or later"
            ),
        })
    }

    /// Sends rules to the kernel, leaving everything that they do not name.
    pub(super) fn restore(&self, input: &[&str]) -> Result<(), Error> {
        let mut command = self.command(&self.restore);
        command
            .arg("--noflush")
            .arg("--wait")
            .arg(self.lock_wait.as_secs().max(1).to_string());
        run(command, &self.restore, self.time_limit, input, |_| ())
    }

    /// Reads a table line by line.
    pub(super) fn save(&self, table: Table, counters: bool, line: impl FnMut(&str)) -> Result<(), Error> {
        let mut command = self.command(&self.save);
        command.args(["-t", table.as_str()]);
        if counters {
            command.arg("-c");
        }
        run(command, &self.save, self.time_limit, &[], line)
    }
}

fn locate(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| PathBuf::from(program))
}

/// `iptables-restore v1.8.9 (nf_tables)`; versions before 1.8 had no variants and say none.
fn parse_version(text: &str) -> Option<(Variant, Version)> {
    let (_, rest) = text.split_once(" v")?;
    let (number, rest) = rest.split_once(' ').unwrap_or((rest.trim_end(), ""));
    let mut parts = number.trim_end().split('.').map(|part| part.parse().ok());
    let version = Version(
        parts.next()??,
        parts.next()??,
        parts.next().flatten().unwrap_or(0),
    );
    let variant = if rest.contains("nf_tables") {
        Variant::Nft
    } else {
        Variant::Legacy
    };
    Some((variant, version))
}

#[cfg(test)]
mod tests;

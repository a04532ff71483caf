//! Running iptables-restore and iptables-save: which programs, how long, and what their failures mean.

use std::{
    fmt,
    io::{self, BufRead as _, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use super::names::Table;
use crate::backend::Error;
use crate::netlink::ruleset;
use crate::model::Family;

const PACKAGE: &str = "iptables";

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
    pub(super) fn save(&self, table: Table, line: impl FnMut(&str)) -> Result<(), Error> {
        let mut command = self.command(&self.save);
        command.args(["-t", table.as_str()]);
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

/// Runs a program to its end: gives it `input`, hands its output on line by line, keeps what it says of errors.
fn run(
    mut command: Command,
    program: &Path,
    time_limit: Duration,
    input: &[&str],
    mut line: impl FnMut(&str),
) -> Result<(), Error> {
    let name = program.display().to_string();
    let mut child = command
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| Error::MissingProgram {
            program: name.clone(),
            package: PACKAGE,
            source,
        })?;
    // Before it has its input, so before it can change anything.
    ruleset::note_ours(child.id());
    let io_error = |source| Error::Io {
        what: format!("talking to {name}"),
        source,
    };
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (end, ended) = mpsc::channel::<()>();
    let (read, said, timed_out) = thread::scope(|scope| {
        // A program that fails early closes its end; what it says tells more than the broken pipe.
        scope.spawn(move || stdin.map(|pipe| write_all(pipe, input)));
        let said = scope.spawn(move || stderr.map(read_some).unwrap_or_default());
        let child = &mut child;
        let limit = scope.spawn(move || stop_after(child, time_limit, &ended));
        let read = stdout.map_or(Ok(()), |pipe| read_lines(pipe, &mut line));
        let said = said.join().unwrap_or_default();
        // Both outputs are closed, so it ends: only then the time limit is lifted.
        drop(end);
        (read, said, limit.join().unwrap_or(false))
    });
    let status = child.wait().map_err(io_error)?;
    if timed_out {
        return Err(Error::TimedOut {
            program: name,
            seconds: time_limit.as_secs(),
        });
    }
    if !status.success() {
        return Err(failure(name, status, said));
    }
    read.map_err(io_error)
}

/// Kills the program if it has not ended in time. Says whether it did.
fn stop_after(child: &mut Child, limit: Duration, ended: &mpsc::Receiver<()>) -> bool {
    match ended.recv_timeout(limit) {
        Err(mpsc::RecvTimeoutError::Timeout) => child.kill().is_ok(),
        _ => false,
    }
}

fn write_all(pipe: impl Write, pieces: &[&str]) -> io::Result<()> {
    let mut pipe = BufWriter::with_capacity(1 << 16, pipe);
    for piece in pieces {
        pipe.write_all(piece.as_bytes())?;
    }
    pipe.flush()
}

fn read_lines(pipe: impl Read, line: &mut impl FnMut(&str)) -> io::Result<()> {
    let mut pipe = BufReader::with_capacity(1 << 16, pipe);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        if pipe.read_until(b'\n', &mut bytes)? == 0 {
            return Ok(());
        }
        // Somebody else's comment need not be UTF-8.
        line(String::from_utf8_lossy(&bytes).trim_end_matches('\n'));
    }
}

/// What a program says of errors: the beginning, since that has the reason, but read to the end so that it does not
/// block.
fn read_some(mut pipe: impl Read) -> String {
    let mut text = Vec::new();
    // An error of reading ends the text; the exit status decides.
    let _ = pipe.by_ref().take(4096).read_to_end(&mut text);
    let _ = io::copy(&mut pipe, &mut io::sink());
    String::from_utf8_lossy(&text).trim().to_owned()
}

/// What iptables says when the kernel has no such table, match or target, or not this family.
const MISSING: [(&str, &str); 7] = [
    ("Table does not exist", "table"),
    ("can't initialize", "table"),
    ("Can't initialize", "table"),
    ("Address family not supported", "address family"),
    ("Protocol not supported", "nf_tables"),
    ("Could not fetch rule set generation id: Invalid", "nf_tables"),
    ("missing kernel module", "match or target"),
];

fn failure(program: String, status: ExitStatus, stderr: String) -> Error {
    // Without root the same words appear.
    let forbidden = stderr.contains("Permission denied") || stderr.contains("Operation not permitted");
    if !forbidden && let Some((_, what)) = MISSING.iter().find(|(words, _)| stderr.contains(words)) {
        return Error::MissingKernelFeature {
            what: format!("{what} that {program} needs"),
            hint: format!(
                "it said {stderr:?}; load ip_tables or ip6_tables, iptable_nat and iptable_filter (legacy) or nf_tables \
                 and nft_compat, or switch off what the node has not: IPv6 with ipv6.disable=1 has no ip6tables"
            ),
        };
    }
    Error::Failed {
        program,
        status: status.to_string(),
        stderr,
    }
}

#[cfg(test)]
mod tests;

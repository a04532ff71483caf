//! Running a program: its input and output, how long, and what its failures mean.

use std::{
    io::{self, BufRead as _, BufReader, BufWriter, Read, Write},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use crate::backend::Error;
use crate::netlink::ruleset;

const PACKAGE: &str = "iptables";

/// Runs a program to its end: gives it `input`, hands its output on line by line, keeps what it says of errors.
pub(super) fn run(
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

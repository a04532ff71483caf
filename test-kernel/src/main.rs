//! `test-kernel`: boots the test kernel and runs a command or a shell in it. In the guest it is the first process.

use std::{
    env,
    ffi::OsString,
    io::{self, IsTerminal as _, Read as _},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
};

use anyhow::{Context, Result};
use clap::Parser;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use pointsman_test_kernel::{GuestProcess, Kernel, Options, Streams, cache, cargo, guest};

/// Boots a Linux kernel with IPVS as a program and runs a command in it.
///
/// The command sees the machine's files. It can write to the workspace, the target folder and what --share names;
/// /tmp, /run and the network are the guest's own. It ends with the command's own exit code.
#[derive(Parser)]
#[command(
    name = "test-kernel",
    version,
    after_help = "Examples:\n  \
        test-kernel                                     a shell\n  \
        test-kernel ipvsadm -Ln                         one program\n  \
        test-kernel --console -- sh -c 'dmesg | tail'   with what the kernel says while it boots\n\n\
        To run a test in it: cargo test -p pointsman-dataplane --test ipvs_kernel"
)]
struct Arguments {
    /// The guest's memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(64..=262_144))]
    memory: u32,
    /// A folder that the command may write to as well (can be given several times)
    #[arg(long = "share", value_name = "FOLDER")]
    shared: Vec<PathBuf>,
    /// Build the programs of this package of the workspace first, in the profile of the command where that is one of the
    /// workspace's too (can be given several times)
    #[arg(long = "build", value_name = "PACKAGE")]
    packages: Vec<String>,
    /// Show what the kernel says, on stderr
    #[arg(long)]
    console: bool,
    /// What to run, with its arguments; a shell when there is none
    #[arg(trailing_var_arg = true)]
    command: Vec<OsString>,
}

fn main() -> ExitCode {
    if guest::is_first_process() {
        guest::run();
        return ExitCode::FAILURE;
    }
    match run(Arguments::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<u8> {
    let folder = env::current_dir().context("asking for the current folder")?;
    let mut shared = arguments.shared;
    // All other folders are to be seen; the guest's /tmp is its own.
    if folder.starts_with("/tmp") && folder != Path::new("/tmp") {
        shared.push(folder);
    }
    if !arguments.packages.is_empty() {
        let target = cache::target_directory()?;
        let program = arguments.command.first().map(Path::new);
        let release = program.is_some_and(|program| program.starts_with(target.join("release")));
        let packages: Vec<&str> = arguments.packages.iter().map(String::as_str).collect();
        cargo::build(&target, release, &packages)?;
    }
    let kernel = Kernel::boot(&Options {
        memory_mib: arguments.memory,
        shared,
        console: arguments.console,
        ..Options::default()
    })?;
    let shell = arguments.command.is_empty();
    let mut words = arguments.command.into_iter();
    let mut command = Command::new(words.next().unwrap_or_else(|| "/bin/bash".into()));
    command.args(words).envs(env::vars_os());
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin");
    command.env("PATH", path);
    let on_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let status = if shell && on_terminal {
        let _raw = Raw::enter()?;
        let (rows, columns) = size();
        let process = kernel.spawn_on_terminal(&command, rows, columns)?;
        feed(process)?.wait()?
    } else {
        let process = kernel.spawn(&command, Streams::Inherit)?;
        if io::stdin().is_terminal() {
            // Nobody types for a test.
            process.write(b"")?;
            process.wait()?
        } else {
            feed(process)?.wait()?
        }
    };
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}

/// Gives the process what comes on stdin, until one of both ends.
fn feed(process: GuestProcess) -> Result<std::sync::Arc<GuestProcess>> {
    let process = std::sync::Arc::new(process);
    let weak = std::sync::Arc::downgrade(&process);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let length = io::stdin().read(&mut buffer).unwrap_or(0);
            let Some(process) = weak.upgrade() else { return };
            if process.write(&buffer[..length]).is_err() || length == 0 {
                return;
            }
        }
    });
    Ok(process)
}

/// The terminal's rows and columns, which stty knows.
fn size() -> (u16, u16) {
    let said = Command::new("stty")
        .arg("size")
        .stdin(std::process::Stdio::inherit())
        .output();
    let said = said.map(|said| String::from_utf8_lossy(&said.stdout).into_owned());
    let said = said.unwrap_or_default();
    let mut numbers = said.split_whitespace().filter_map(|number| number.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(rows @ 1..), Some(columns @ 1..)) => (rows, columns),
        _ => (24, 80),
    }
}

/// Our terminal, carrying every key as it is, until dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> Result<Self> {
        let before = tcgetattr(io::stdin()).context("reading the terminal's settings")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw).context("setting the terminal")?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

//! `inside`: boots the test kernel and runs a program of e2e in it, on the wire of a control plane when that is wanted.

use std::{
    ffi::OsString,
    os::unix::process::ExitStatusExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use clap::Parser;
use pointsman_e2e::{
    ControlPlane, Fabric, Options, Toolchain,
    inside::{self, Guest},
};
use pointsman_test_kernel::{Kernel, Options as KernelOptions, Streams};

const EXAMPLES: &str = "\
Examples:
  inside target/debug/deps/harness-0123456789abcdef pods_on_different_nodes
  inside --control-plane -- target/debug/deps/kernel-0123456789abcdef --nocapture";

/// Boots the test kernel and runs a test binary in it, after building the agent and kube-proxy. Needs root.
#[derive(Debug, Parser)]
#[command(name = "inside", after_help = EXAMPLES)]
struct Arguments {
    /// Starts a control plane outside, on the wire of the test kernel.
    #[arg(long)]
    control_plane: bool,

    /// The guest's memory in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    memory: u32,

    /// What to run, with its arguments.
    #[arg(trailing_var_arg = true, required = true)]
    command: Vec<OsString>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let options = KernelOptions {
        memory_mib: arguments.memory,
        ..KernelOptions::default()
    };
    let mut words = arguments.command.into_iter();
    let mut command = Command::new(words.next().context("no command")?);
    command.args(words).envs(std::env::vars_os());
    let status = if arguments.control_plane {
        let fabric = Fabric::without_gateway()?;
        let control_plane = ControlPlane::start(&Toolchain::locate()?, &fabric, Options::default())?;
        let guest = Guest::boot(&fabric, &control_plane, &options)?;
        let process = guest.spawn(command, Streams::Inherit)?;
        process.write(b"")?;
        process.wait()?
    } else {
        inside::build()?;
        let kernel = Kernel::boot(&options)?;
        let process = kernel.spawn(&command, Streams::Inherit)?;
        process.write(b"")?;
        process.wait()?
    };
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    Ok(code
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}

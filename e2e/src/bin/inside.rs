//! `inside`: boots the test kernel on the wire of a control plane and runs a program of e2e in it.

use std::{
    ffi::OsString,
    os::unix::process::ExitStatusExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use clap::Parser;
use pointsman_e2e::{ControlPlane, Fabric, Options, Toolchain, inside::Guest};
use pointsman_test_kernel::{Options as KernelOptions, Streams};

/// Starts a control plane, boots the test kernel on its wire, and runs a test binary in that, after building the agent and
/// kube-proxy. Needs root.
#[derive(Debug, Parser)]
#[command(
    name = "inside",
    after_help = "Example:\n  inside -- target/debug/deps/kernel-0123456789abcdef --nocapture"
)]
struct Arguments {
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
    let fabric = Fabric::without_gateway()?;
    let control_plane = ControlPlane::start(&Toolchain::locate()?, &fabric, Options::default())?;
    let guest = Guest::boot(&fabric, &control_plane, &options)?;
    let process = guest.spawn(command, Streams::Inherit)?;
    process.write(b"")?;
    let status = process.wait()?;
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    Ok(code
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}

//! Shows what Pointsman does, on a real control plane with three nodes, with a running commentary. Every step is
//! checked: the exit status is 0 only if all of them held.

mod commentary;
mod keep;
mod stage;
mod steps;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use pointsman_e2e::{
    ControlPlane, Fabric, Options, Program, Toolchain,
    binaries::{self, Binary},
};

use commentary::Commentary;
use stage::Stage;

/// Shows what Pointsman does, on a real Kubernetes control plane with three nodes. Needs root; `make demo` installs
/// and builds what it needs.
#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Args {
    /// Leave everything running at the end, until Ctrl-C, and print how to use kubectl on it.
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut tell = Commentary::new();
    match demo(&mut tell, args.keep) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell.failed(&error);
            ExitCode::FAILURE
        }
    }
}

fn demo(tell: &mut Commentary, keep: bool) -> Result<()> {
    tell.title(
        "Pointsman runs the service proxies of a Kubernetes cluster as one fleet. This demo shows it on a real API\n\
         server, with three nodes (network namespaces, each with its own kernel tables) and real packets.",
    )?;
    let toolchain = prepare(tell)?;

    tell.step(
        "A cluster without a service proxy",
        "etcd, kube-apiserver and kube-controller-manager; three nodes with a pod each; a Service `web` for the pods.",
    )?;
    let fabric = Fabric::new()?;
    let control_plane = ControlPlane::start(&toolchain, &fabric, Options::default())?;
    tell.done("the control plane is ready")?;
    let mut stage = Stage::set_up(tell, &toolchain, &fabric, &control_plane)?;
    let outcome = steps::play(tell, &mut stage);
    if outcome.is_err() {
        // The folders that they are in go when this returns.
        match stage.save_logs() {
            Ok(folder) => tell.logs_are_in(folder),
            Err(error) => tell.say(&format!("the logs could not be saved: {error:#}"))?,
        }
        return outcome;
    }
    tell.finished()?;
    if keep {
        keep::until_interrupted(tell, &stage)?;
    }
    Ok(())
}

/// Builds what is not built yet; the first time takes minutes, and each program says so itself.
fn prepare(tell: &mut Commentary) -> Result<Toolchain> {
    let toolchain = Toolchain::locate()?;
    for program in Program::ALL {
        // The peer is for the benches.
        if program != Program::KubeProxy {
            toolchain.program(program)?;
        }
    }
    tell.say(
        "building Pointsman's agent and operator from this source (the first time takes a few minutes) ...",
    )?;
    binaries::find(Binary::Agent).context("building the agent")?;
    tell.done("everything is built")?;
    Ok(toolchain)
}

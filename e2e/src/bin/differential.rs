//! `make differential`: random clusters for Pointsman's agent and kube-proxy, until they differ or all steps are done.

use std::{
    io::{Write as _, stdout},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use pointsman_e2e::{
    ControlPlane, Fabric, IptablesVariant, PeerMode, Toolchain,
    bench::interrupt,
    differential::{Plan, Setup, arena, run},
    inside::Guest,
};
use pointsman_test_kernel::{Options as KernelOptions, Streams, within};

const EXAMPLES: &str = "\
Examples:
  make differential
  make differential SEED=7 STEPS=2000
  make differential SEED=1,2,3,4,5 STEPS=400 VARIANT=legacy GO_ON=true
  make differential MODE=nftables PEER_MODE=nftables
  make differential MODE=ipvs PEER_MODE=ipvs STEPS=100";

/// Gives random clusters to Pointsman's agent and to kube-proxy, sends both the same packets, and demands the same
/// outcomes. Ends with 1 at a difference that differential/intended.rs does not list. Needs root.
#[derive(Debug, Parser)]
#[command(name = "differential", after_help = EXAMPLES)]
struct Args {
    /// What decides everything that is random; each seed has a fresh control plane.
    #[arg(long, env = "SEED", value_name = "N,...", value_delimiter = ',', default_values_t = [1])]
    seed: Vec<u64>,

    /// How many steps with each seed.
    #[arg(long, env = "STEPS", value_name = "N", default_value_t = 400)]
    steps: u64,

    /// The mode of Pointsman.
    #[arg(long, env = "MODE", value_enum, default_value_t = Mode::Nftables)]
    mode: Mode,

    /// The mode of kube-proxy.
    #[arg(long, env = "PEER_MODE", value_enum, default_value_t = Mode::Nftables)]
    peer_mode: Mode,

    /// Which iptables the nodes have.
    #[arg(long, env = "VARIANT", value_enum, default_value_t = Variant::Nft)]
    variant: Variant,

    /// Goes on after a difference, to find more.
    #[arg(long, env = "GO_ON")]
    go_on: bool,

    /// How long a difference is made smaller.
    #[arg(long, env = "SHRINK_SECONDS", value_name = "S", default_value_t = 180)]
    shrink_seconds: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    /// iptables.
    Iptables,
    /// nftables.
    Nftables,
    /// ipvs. Both sides are then in the test kernel, with the control plane outside.
    Ipvs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Variant {
    /// The kernel's ip_tables.
    Legacy,
    /// iptables on nf_tables.
    Nft,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    interrupt::listen()?;
    let modes = [args.mode, args.peer_mode].map(|mode| match mode {
        Mode::Iptables => PeerMode::Iptables,
        Mode::Nftables => PeerMode::Nftables,
        Mode::Ipvs => PeerMode::Ipvs,
    });
    if modes.contains(&PeerMode::Ipvs) && !within::is_inside() {
        let mut all_agree = true;
        for &seed in &args.seed {
            all_agree &= in_test_kernel(&args, seed)?;
            if !all_agree && !args.go_on {
                break;
            }
        }
        return Ok(if all_agree {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    let variant = match args.variant {
        Variant::Legacy => IptablesVariant::Legacy,
        Variant::Nft => IptablesVariant::Nft,
    };
    let began = Instant::now();
    let progress = |line: &str| eprintln!("[{:>6.1} s] {line}", began.elapsed().as_secs_f64());
    let mut unexplained = 0;
    for seed in args.seed {
        let plan = Plan {
            seed,
            steps: args.steps,
            limit: Duration::MAX,
            setup: Setup::of(seed, modes, variant),
            go_on: args.go_on,
            shrink_limit: Duration::from_secs(args.shrink_seconds),
        };
        let report = run(&plan, &progress)?;
        writeln!(stdout(), "seed {seed}: {report}")?;
        unexplained += report.found.len();
        if unexplained > 0 && !args.go_on {
            break;
        }
    }
    Ok(if unexplained == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs this program with one seed in the test kernel, beside a fresh control plane. Says whether both sides agreed.
fn in_test_kernel(args: &Args, seed: u64) -> Result<bool> {
    let fabric = Fabric::without_gateway()?;
    let control_plane = ControlPlane::start(&Toolchain::locate()?, &fabric, arena::options())?;
    let options = KernelOptions {
        memory_mib: 3072,
        ..KernelOptions::default()
    };
    let guest = Guest::boot(&fabric, &control_plane, &options)?;
    let mut command = Command::new(std::env::current_exe().context("asking which program this is")?);
    let word = |value: Option<clap::builder::PossibleValue>| {
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    };
    for (name, value) in [
        ("--seed", seed.to_string()),
        ("--steps", args.steps.to_string()),
        ("--mode", word(args.mode.to_possible_value())),
        ("--peer-mode", word(args.peer_mode.to_possible_value())),
        ("--variant", word(args.variant.to_possible_value())),
        ("--shrink-seconds", args.shrink_seconds.to_string()),
    ] {
        command.arg(name).arg(value);
    }
    if args.go_on {
        command.arg("--go-on");
    }
    let process = guest.spawn(command, Streams::Inherit)?;
    process.write(b"")?;
    loop {
        interrupt::check()?;
        if let Some(status) = process.wait_for(Duration::from_millis(500))? {
            return Ok(status.success());
        }
    }
}

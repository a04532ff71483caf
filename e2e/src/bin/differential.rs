//! `make differential`: random clusters for Pointsman's agent and kube-proxy, until they differ or all steps are done.

use std::{
    io::{Write as _, stdout},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::{Parser, ValueEnum};
use pointsman_e2e::{
    IptablesVariant, PeerMode,
    bench::interrupt,
    differential::{Plan, Setup, run},
};

const EXAMPLES: &str = "\
Examples:
  make differential
  make differential SEED=7 STEPS=2000
  make differential SEED=1,2,3,4,5 STEPS=400 VARIANT=legacy GO_ON=true
  make differential MODE=nftables PEER_MODE=nftables";

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
    });
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

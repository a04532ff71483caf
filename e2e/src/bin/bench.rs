//! `make bench`: measures Pointsman's agent beside kube-proxy and writes `target/bench/<bench>.json`.

use std::{
    io::{Write as _, stdout},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use pointsman_e2e::{
    IptablesVariant,
    bench::{self, Contest, Plan, size, table, targets},
    toolchain::target_directory,
};

const EXAMPLES: &str = "\
Examples:
  make bench
  make bench SIZES=\"1000x10 5000x10\"
  make bench SIZES=1000x10 VARIANT=nft
  make bench BENCH=nftables SIZES=\"100x10 1000x10 10000x10\"
  make bench SIZES=1000x10 VARIANT=legacy,nft CHANGES=100
  make bench BENCH=ipvs SIZES=1000x10 ALONE=";

/// Measures Pointsman's agent beside kube-proxy on this machine: same API server, same objects, same observer. Needs
/// root.
#[derive(Debug, Parser)]
#[command(name = "bench", after_help = EXAMPLES)]
struct Args {
    /// Which mode is measured.
    #[arg(long, value_enum, default_value_t = Bench::Iptables)]
    bench: Bench,

    /// Numbers of Services and of endpoints each.
    #[arg(long, value_name = "NxM ...", default_value = "100x10 1000x10")]
    sizes: String,

    /// In modes NFTables and IPVS, sizes for ours alone, read from files. Default: 50000x5 in mode NFTables, 100000x1 in mode
    /// IPVS.
    #[arg(long, env = "ALONE", value_name = "NxM ...")]
    alone: Option<String>,

    /// Which iptables the nodes have. With nft and 10,000 Services kube-proxy needs minutes for its first sync.
    #[arg(long, env = "VARIANT", value_enum, value_delimiter = ',', default_values_t = [Variant::Legacy])]
    variant: Vec<Variant>,

    /// How many changes are timed on each side. Default: 50, in mode IPVS 200.
    #[arg(long, env = "CHANGES", value_name = "N")]
    changes: Option<usize>,

    /// kube-proxy's minSyncPeriod. Its own default is 1000, which is also what it takes 0 for; 1 is where its changes
    /// arrive soonest.
    #[arg(long, env = "PEER_MIN_SYNC_PERIOD_MS", value_name = "MS", default_value_t = 1)]
    peer_min_sync_period_ms: u64,

    /// Where the file goes. Default: target/bench.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Bench {
    /// Both in iptables mode.
    Iptables,
    /// Both in nftables mode; VARIANT means nothing.
    Nftables,
    /// Both in ipvs mode, in the test kernel; VARIANT means nothing.
    Ipvs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Variant {
    /// The kernel's ip_tables.
    Legacy,
    /// iptables on nf_tables.
    Nft,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let folder = match args.output {
        Some(folder) => folder,
        None => target_directory()?.join("bench"),
    };
    let of_variant = |variant: &Variant| {
        Contest::iptables(match variant {
            Variant::Legacy => IptablesVariant::Legacy,
            Variant::Nft => IptablesVariant::Nft,
        })
    };
    let (name, contests, changes, alone): (_, Vec<Contest>, _, _) = match args.bench {
        Bench::Iptables => ("iptables", args.variant.iter().map(of_variant).collect(), 50, ""),
        Bench::Nftables => ("nftables", vec![Contest::nftables()], 50, "50000x5"),
        Bench::Ipvs => ("ipvs", vec![Contest::ipvs()], 200, "100000x1"),
    };
    let alone = match args.bench {
        Bench::Iptables => "",
        _ => args.alone.as_deref().unwrap_or(alone).trim(),
    };
    let contests = contests.into_iter().map(|contest| Contest {
        peer_min_sync_period: Duration::from_millis(args.peer_min_sync_period_ms),
        ..contest
    });
    let plan = Plan {
        alone: match alone {
            "" => Vec::new(),
            alone => size::parse_list(alone).context("--alone")?,
        },
        bench: name.to_owned(),
        sizes: size::parse_list(&args.sizes).context("--sizes")?,
        contests: contests.collect(),
        changes: args.changes.unwrap_or(changes),
    };
    let began = Instant::now();
    let progress = |line: &str| eprintln!("[{:>6.1} s] {line}", began.elapsed().as_secs_f64());
    if matches!(args.bench, Bench::Ipvs) {
        let file = bench::ipvs::run(&plan, &folder, &progress, |run| {
            writeln!(stdout(), "\n{}", run.table()).context("writing the table")
        })?;
        for alone in &file.alone {
            writeln!(stdout(), "{}\n", alone.line())?;
        }
        writeln!(stdout(), "{}\n", file.verdicts())?;
        writeln!(stdout(), "{}", folder.join("ipvs.json").display())?;
        return Ok(());
    }
    let file = bench::run(&plan, &folder, &progress, |run| {
        writeln!(stdout(), "\n{}", table::render(run)).context("writing the table")
    })?;
    for alone in &file.alone {
        writeln!(stdout(), "{}\n", table::render_alone(alone))?;
    }
    if !file.targets.is_empty() {
        writeln!(stdout(), "{}\n", targets::render(&file.targets))?;
    }
    writeln!(stdout(), "{}", folder.join(format!("{name}.json")).display())?;
    Ok(())
}

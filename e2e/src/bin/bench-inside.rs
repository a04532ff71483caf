//! The part of `make bench BENCH=ipvs` that runs in the test kernel, started by it.

use std::{fs, path::PathBuf, time::Instant};

use anyhow::{Context as _, Result};
use clap::Parser;
use pointsman_e2e::bench::ipvs::inside;

/// Carries out an order of the bench in the test kernel. Not for people: run `make bench BENCH=ipvs`.
#[derive(Debug, Parser)]
struct Arguments {
    /// What is to be done, as JSON.
    order: PathBuf,
    /// Where the result goes, as JSON.
    result: PathBuf,
}

fn main() -> Result<()> {
    let Arguments { order, result } = Arguments::parse();
    let order = fs::read(&order).with_context(|| format!("reading {}", order.display()))?;
    let order = serde_json::from_slice(&order).context("reading an order of the bench")?;
    let began = Instant::now();
    let progress = |line: &str| eprintln!("  [{:>6.1} s] {line}", began.elapsed().as_secs_f64());
    let found = inside::carry_out(order, &progress)?;
    fs::write(&result, serde_json::to_vec(&found)?).with_context(|| format!("writing {}", result.display()))
}

//! `pointsman-agent`: see `--help`.

use std::process::ExitCode;

use clap::Parser as _;
use pointsman_agent::{args::Args, logging, run};

fn main() -> ExitCode {
    let args = Args::parse();
    let log_level = logging::begin(args.verbosity, args.log_format);
    match run::run(args, log_level) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pointsman-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

//! `pointsman-operator`: reads the arguments and runs the library.

use std::process::ExitCode;

use clap::Parser as _;
use pointsman_operator::{args::Args, logging, run::run};
use tracing::error;

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    logging::start(args.verbosity, args.log_format);
    match run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error}");
            ExitCode::FAILURE
        }
    }
}

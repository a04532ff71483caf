//! Log lines go to stderr; `--verbosity` says which.

use std::io;

use tracing_subscriber::EnvFilter;

use crate::args::LogFormat;

/// Begins to log.
pub fn start(verbosity: u8, format: LogFormat) {
    let lines = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_env_filter(EnvFilter::new(filter(verbosity)));
    match format {
        LogFormat::Text => lines.with_ansi(false).with_target(false).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
}

/// kube repeats what this program reports itself, so it is silent until the libraries are asked for.
fn filter(verbosity: u8) -> &'static str {
    match verbosity {
        0..=1 => "warn,kube_runtime=error,kube_client=error",
        2..=3 => {
            "warn,kube_runtime=error,kube_client=error,pointsman_operator=info,pointsman_api_client=info"
        }
        4..=5 => {
            "warn,kube_runtime=error,kube_client=error,pointsman_operator=debug,pointsman_api_client=debug"
        }
        6..=7 => "debug,h2=info,hyper_util=info",
        _ => "trace",
    }
}

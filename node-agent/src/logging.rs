//! Logs to stderr, with a level that can change while the agent runs.

use std::{
    io::IsTerminal as _,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
};

use clap::ValueEnum;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, fmt, reload};

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Changes how much is logged.
#[derive(Clone)]
pub struct LogLevel {
    reload: Arc<dyn Fn(Targets) + Send + Sync>,
    verbosity: Arc<AtomicI32>,
}

impl LogLevel {
    /// Logs as much as this verbosity asks for from now on.
    pub fn set(&self, verbosity: i32) {
        self.verbosity.store(verbosity, Ordering::Relaxed);
        (self.reload)(filter(verbosity));
    }

    /// How much is logged, on kube-proxy's scale.
    #[must_use]
    pub fn verbosity(&self) -> i32 {
        self.verbosity.load(Ordering::Relaxed)
    }

    fn new(verbosity: i32, reload: impl Fn(Targets) + Send + Sync + 'static) -> Self {
        Self {
            reload: Arc::new(reload),
            verbosity: Arc::new(verbosity.into()),
        }
    }

    /// A level that nothing listens to, for tests.
    #[must_use]
    pub fn unused() -> Self {
        Self::new(2, |_| {})
    }
}

/// kube-proxy's scale (klog): 0 warnings, 1 to 3 what changes, 4 and 5 every step, from 6 on what libraries say too.
fn filter(verbosity: i32) -> Targets {
    let (own, others) = match verbosity {
        ..=0 => (LevelFilter::WARN, LevelFilter::WARN),
        1..=3 => (LevelFilter::INFO, LevelFilter::WARN),
        4..=5 => (LevelFilter::DEBUG, LevelFilter::INFO),
        6..=7 => (LevelFilter::TRACE, LevelFilter::DEBUG),
        _ => (LevelFilter::TRACE, LevelFilter::TRACE),
    };
    [
        "pointsman_agent",
        "pointsman_api_client",
        "pointsman_crds",
        "pointsman_dataplane",
    ]
    .into_iter()
    .fold(Targets::new().with_default(others), |targets, own_crate| {
        targets.with_target(own_crate, own)
    })
}

/// Begins to log.
#[must_use]
pub fn begin(verbosity: i32, format: LogFormat) -> LogLevel {
    let (layer, handle) = reload::Layer::<Targets, Registry>::new(filter(verbosity));
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => tracing_subscriber::registry().with(layer).with(lines).init(),
        LogFormat::Json => tracing_subscriber::registry()
            .with(layer)
            .with(lines.json())
            .init(),
    }
    LogLevel::new(verbosity, move |targets| {
        // The handle outlives the process's only subscriber, so that this cannot fail.
        let _ = handle.reload(targets);
    })
}

//! Puts the parts together and stops them in order.

use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use pointsman_api_client::ConnectError;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::info;

use crate::announce::announce;
use crate::args::Args;
use crate::controller::Controller;
use crate::drift::announce_drifts;
use crate::elector::{Elector, Leading, Lost};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::server::{BindError, Server};
use crate::watch::watch_all;
use crate::write::Writer;

/// Events that may wait while the controller is busy; then the watches wait.
const QUEUE: usize = 1024;
/// "For ever", without overflow: for an operator that needs no Lease.
const EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no way to the API server.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Another replica leads.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// The HTTP server could not begin.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The HTTP server broke.
    #[error("serving /healthz and /metrics: {0}")]
    Serve(#[source] io::Error),
    /// Signals cannot be waited for.
    #[error("waiting for SIGTERM and SIGINT: {0}")]
    Signals(#[source] io::Error),
    /// A task ended that should run for ever.
    #[error("the {0} ended by itself, which is a bug; please report it with the log")]
    Ended(&'static str),
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When something that is needed is missing or lost. The process should end then, and be started anew.
pub async fn run(args: Args) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    let client = pointsman_api_client::connect(args.kubeconfig.as_deref()).await?;
    let namespace = args
        .namespace
        .clone()
        .unwrap_or_else(|| client.default_namespace().to_owned());
    let identity = args.identity.clone().unwrap_or_else(name_of_this_process);
    info!(
        version = env!("CARGO_PKG_VERSION"),
        identity,
        namespace,
        leader_elect = args.leader_elect,
        "starting"
    );

    let health = Arc::new(Health::default());
    let metrics = Arc::new(Metrics::default());
    let server = Server::bind(args.bind_address, Arc::clone(&health), Arc::clone(&metrics)).await?;
    let (leading_sender, leading) = watch::channel::<Leading>(None);
    let (changes_sender, changes) = mpsc::channel(QUEUE);

    let (sightings, seen) = mpsc::channel(QUEUE);
    // Aborted when it is dropped: nothing outlives this function.
    let mut watches = JoinSet::new();
    watches.spawn(watch_all(
        client.clone(),
        changes_sender,
        Arc::clone(&health),
        Arc::clone(&metrics),
        sightings,
    ));
    watches.spawn(announce_drifts(
        client.clone(),
        identity.clone(),
        leading.clone(),
        seen,
    ));
    watches.spawn(announce(client.clone(), identity.clone(), leading.clone()));
    let writer = Writer::new(client.clone(), leading.clone(), Arc::clone(&metrics));
    let controller = Controller::new(changes, leading, writer, health, metrics);
    let mut elector = Elector::new(client, &namespace, identity);
    let lead = async {
        if args.leader_elect {
            elector.lead(&leading_sender).await
        } else {
            leading_sender.send_replace(Some(Instant::now() + EVER));
            std::future::pending().await
        }
    };

    let ended = tokio::select! {
        _ = terminate.recv() => { info!("stopping on SIGTERM"); Ok(()) }
        _ = interrupt.recv() => { info!("stopping on SIGINT"); Ok(()) }
        served = server.serve() => Err(served.map_or_else(RunError::Serve, |()| RunError::Ended("HTTP server"))),
        lost = lead => Err(lost.map_or_else(RunError::Lost, |()| RunError::Ended("leader election"))),
        () = controller.run() => Err(RunError::Ended("controller")),
        _ = watches.join_next() => Err(RunError::Ended("watching")),
    };
    // The controller has stopped, so the next leader may begin.
    elector.release().await;
    ended
}

/// The host's name with a random ending: two operators on one machine are two.
fn name_of_this_process() -> String {
    use std::hash::{BuildHasher as _, RandomState};
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() {
        "operator"
    } else {
        host.trim()
    };
    // The standard library seeds each RandomState from the operating system.
    let random = RandomState::new().hash_one(std::process::id());
    format!("{host}-{random:016x}")
}

//! The agent's two HTTP servers, with kube-proxy's paths: health for the outside (10256), and metrics, mode and
//! settings for the node itself (10249).

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use axum::extract::{ConnectInfo, State as Shared};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};

use crate::logging::LogLevel;
use crate::metrics::{self, Metrics};
use crate::state::{Outcome, State};

/// What the servers answer from.
#[derive(Clone)]
pub struct Sources {
    /// The engine's state.
    pub state: watch::Receiver<State>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// How much is logged.
    pub log_level: LogLevel,
}

/// For how long an address that is taken is tried again: an agent before this one may just be ending, and after
/// SIGKILL a child that it was about to start has its sockets for a moment (between fork and exec).
const TAKEN: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);
/// The largest that a policy may have (`logVerbosity`).
const MAX_VERBOSITY: i32 = 10;

/// Opens an address to listen on.
///
/// # Errors
/// When the address is taken for longer than two seconds or not the machine's.
pub async fn bind(flag: &str, address: SocketAddr) -> Result<TcpListener> {
    let deadline = Instant::now() + TAKEN;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(PAUSE).await;
            }
            bound => {
                return bound.with_context(|| {
                    format!("listening on {address} ({flag}): is another proxy of this node, kube-proxy for example, using it?")
                });
            }
        }
    }
}

/// Serves `/healthz` and `/livez`.
///
/// # Errors
/// When the listener breaks.
pub async fn serve_health(listener: TcpListener, sources: Sources) -> Result<()> {
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/livez", get(livez))
        .with_state(sources);
    axum::serve(listener, router).await.context("serving health")
}

/// Serves `/metrics`, `/proxyMode`, `/configz`, `/healthz` and `/debug/flags/v`.
///
/// # Errors
/// When the listener breaks.
pub async fn serve_metrics(listener: TcpListener, sources: Sources) -> Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/proxyMode", get(proxy_mode))
        .route("/configz", get(configz))
        .route("/healthz", get(healthz))
        .route("/debug/flags/v", get(verbosity).put(set_verbosity))
        .with_state(sources);
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).await.context("serving metrics")
}

/// Whether load balancers may send new connections to this node: it forwards, and it is there to stay. An agent
/// whose only policy cannot be used forwards nothing, but no restart would help it.
async fn healthz(Shared(sources): Shared<Sources>) -> Response {
    let (healthy, eligible, families) = {
        let state = sources.state.borrow();
        let idle_by_mistake = state.assignment.is_none() && state.rejected.is_some();
        let healthy = state.is_healthy(Instant::now()) && !idle_by_mistake;
        (healthy, state.node_eligible, families(&state))
    };
    answer(&sources, healthy, Some(eligible), families)
}

/// Whether the agent works, be the node about to go or not. One that waits for its first list does: the API server
/// is away, and an agent that is restarted over and over is back later than one that waits.
async fn livez(Shared(sources): Shared<Sources>) -> Response {
    let (healthy, families) = {
        let state = sources.state.borrow();
        (
            !state.listed || state.is_healthy(Instant::now()),
            families(&state),
        )
    };
    answer(&sources, healthy, None, families)
}

/// How each family goes, as kube-proxy tells it.
fn families(state: &State) -> serde_json::Map<String, Value> {
    let healthy = |outcome: &Outcome| matches!(outcome, Outcome::Applied | Outcome::Unneeded(_));
    let families = state.families.iter();
    families
        .map(|family| (family.family.to_string(), told(healthy(&family.outcome))))
        .collect()
}

/// What is healthy is up to date at any time.
fn told(healthy: bool) -> Value {
    let now = Timestamp::now().to_string();
    json!({"lastUpdated": if healthy { now } else { String::new() }, "healthy": healthy})
}

/// `eligible` is the part that only `/healthz` has.
fn answer(
    sources: &Sources,
    healthy: bool,
    eligible: Option<bool>,
    families: serde_json::Map<String, Value>,
) -> Response {
    let code = if healthy && eligible != Some(false) {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    sources.metrics.probed(eligible.is_none(), code.as_u16());
    let mut body = told(healthy);
    body["currentTime"] = Timestamp::now().to_string().into();
    body["status"] = families.into();
    if let Some(eligible) = eligible {
        body["nodeEligible"] = eligible.into();
    }
    (code, [("X-Content-Type-Options", "nosniff")], Json(body)).into_response()
}

async fn metrics(Shared(sources): Shared<Sources>) -> Response {
    let kind = [(header::CONTENT_TYPE, metrics::CONTENT_TYPE)];
    (kind, sources.metrics.text()).into_response()
}

/// The mode in lower case, as kube-proxy has it and its end-to-end tests expect it.
async fn proxy_mode(Shared(sources): Shared<Sources>) -> Response {
    let mode = sources
        .state
        .borrow()
        .mode
        .as_ref()
        .map(|(mode, _)| mode.to_string().to_lowercase());
    match mode {
        Some(mode) => mode.into_response(),
        None => (StatusCode::NOT_FOUND, "no ProxyPolicy selects this node\n").into_response(),
    }
}

/// How much is logged, in one number.
async fn verbosity(Shared(sources): Shared<Sources>) -> String {
    format!("{}\n", sources.log_level.verbosity())
}

/// Sets how much is logged, until a policy says something else. As kube-proxy's, but only from the node itself: the
/// server may listen on every address, and a log can be made to fill a disk.
async fn set_verbosity(
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Shared(sources): Shared<Sources>,
    body: String,
) -> (StatusCode, String) {
    if !from.ip().to_canonical().is_loopback() {
        let why = "the verbosity can be set from the node itself only: ask by its loopback address\n";
        return (StatusCode::FORBIDDEN, why.to_owned());
    }
    match body.trim().parse() {
        Ok(verbosity) if (0..=MAX_VERBOSITY).contains(&verbosity) => {
            sources.log_level.set(verbosity);
            tracing::info!(verbosity, "told by /debug/flags/v how much to log");
            (StatusCode::OK, format!("logging with verbosity {verbosity}\n"))
        }
        _ => (
            StatusCode::BAD_REQUEST,
            format!(
                "{:?} is no verbosity: send a number from 0 to {MAX_VERBOSITY}\n",
                body.trim()
            ),
        ),
    }
}

async fn configz(Shared(sources): Shared<Sources>) -> Response {
    let (assignment, rejected) = {
        let state = sources.state.borrow();
        (state.assignment.clone(), state.rejected.clone())
    };
    let mut body = match assignment {
        Some(assignment) => json!({
            "policy": assignment.policy,
            "revision": assignment.revision,
            "settings": assignment.settings,
        }),
        None => json!({}),
    };
    if let Some(why) = rejected {
        body["rejected"] = why.into();
    }
    Json(json!({"pointsman.dev": body})).into_response()
}

#[cfg(test)]
mod tests;

//! The agent's two HTTP servers, with kube-proxy's paths: health for the outside (10256), and metrics, mode and
//! settings for the node itself (10249).

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio::{net::TcpListener, sync::watch};

use crate::metrics::Metrics;
use crate::state::State;

/// What the servers answer from.
#[derive(Clone)]
pub struct Sources {
    /// The engine's state.
    pub state: watch::Receiver<State>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

/// For how long an address that is taken is tried again: an agent before this one may just be ending, and after
/// SIGKILL a child that it was about to start has its sockets for a moment (between fork and exec).
const TAKEN: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

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

/// Serves `/metrics`, `/proxyMode`, `/configz` and `/healthz`.
///
/// # Errors
/// When the listener breaks.
pub async fn serve_metrics(listener: TcpListener, sources: Sources) -> Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/proxyMode", get(proxy_mode))
        .route("/configz", get(configz))
        .route("/healthz", get(healthz))
        .with_state(sources);
    axum::serve(listener, router).await.context("serving metrics")
}

/// Whether load balancers may send new connections to this node: it forwards, and it is there to stay. An agent
/// whose only policy cannot be used forwards nothing, but no restart would help it.
async fn healthz(Shared(sources): Shared<Sources>) -> Response {
    let (healthy, eligible) = {
        let state = sources.state.borrow();
        let idle_by_mistake = state.assignment.is_none() && state.rejected.is_some();
        (
            state.is_healthy(Instant::now()) && !idle_by_mistake,
            state.node_eligible,
        )
    };
    answer(&sources, false, healthy, eligible)
}

/// Whether the agent works, be the node about to go or not. One that waits for its first list does: the API server
/// is away, and an agent that is restarted over and over is back later than one that waits.
async fn livez(Shared(sources): Shared<Sources>) -> Response {
    let healthy = {
        let state = sources.state.borrow();
        !state.listed || state.is_healthy(Instant::now())
    };
    answer(&sources, true, healthy, true)
}

fn answer(sources: &Sources, livez: bool, healthy: bool, eligible: bool) -> Response {
    let code = if healthy && eligible {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    sources.metrics.probed(livez, code.as_u16());
    let now = Timestamp::now();
    let body = json!({
        "lastUpdated": if healthy { now.to_string() } else { String::new() },
        "currentTime": now.to_string(),
        "nodeEligible": eligible,
    });
    (code, Json(body)).into_response()
}

async fn metrics(Shared(sources): Shared<Sources>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], sources.metrics.text()).into_response()
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

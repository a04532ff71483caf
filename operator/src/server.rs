//! `/healthz`, `/readyz` and `/metrics`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::health::{Answer, Health};
use crate::metrics::Metrics;

/// What prometheus-client writes.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The server, listening.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    router: Router,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
#[error("listening on {address} for /healthz and /metrics: {source}; choose another with --bind-address")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

impl Server {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the address is taken or not this machine's.
    pub async fn bind(
        address: SocketAddr,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, BindError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| BindError { address, source })?;
        Ok(Self {
            listener,
            router: router(health, metrics),
        })
    }

    /// Answers until the process ends.
    ///
    /// # Errors
    /// When the socket breaks.
    pub async fn serve(self) -> io::Result<()> {
        axum::serve(self.listener, self.router).await
    }
}

fn router(health: Arc<Health>, metrics: Arc<Metrics>) -> Router {
    let probes = Router::new()
        .route(
            "/healthz",
            get(|State(health): State<Arc<Health>>| async move { answer(health.alive()) }),
        )
        .route(
            "/readyz",
            get(|State(health): State<Arc<Health>>| async move { answer(health.ready()) }),
        )
        .with_state(health);
    let page = get(|State(metrics): State<Arc<Metrics>>| async move {
        ([(header::CONTENT_TYPE, OPEN_METRICS)], metrics.text())
    });
    probes.merge(Router::new().route("/metrics", page).with_state(metrics))
}

fn answer(answer: Answer) -> impl IntoResponse {
    let status = if answer.good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, answer.text)
}

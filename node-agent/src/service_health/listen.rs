//! The servers' sockets: they appear, move and go as Services do.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::{HealthChecks, answer};
use crate::source::Event;
use crate::state::State;

/// How often a port that is taken is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// What one server answers from.
#[derive(Clone)]
struct Server {
    socket: SocketAddr,
    checks: watch::Receiver<HealthChecks>,
    state: watch::Receiver<State>,
}

/// A port that could not be opened.
struct Failure {
    why: String,
    kind: io::ErrorKind,
    /// A port is often free again in a moment, because an agent before this one ends: the first failure is not told.
    tries: u32,
}

/// Keeps a server at every health-check port, for as long as the engine runs. What cannot be served is told to it.
pub async fn serve(
    mut checks: watch::Receiver<HealthChecks>,
    state: watch::Receiver<State>,
    events: mpsc::Sender<Event>,
) {
    let mut open: HashMap<SocketAddr, JoinHandle<()>> = HashMap::new();
    let mut failures: BTreeMap<SocketAddr, Failure> = BTreeMap::new();
    let mut told = Vec::new();
    loop {
        let (wanted, clashes) = {
            let checks = checks.borrow_and_update();
            (checks.sockets(), checks.clashes.clone())
        };
        failures.retain(|socket, _| wanted.contains(socket));
        for (socket, server) in open.extract_if(|socket, _| !wanted.contains(socket)) {
            server.abort();
            // Only then its port is free.
            let _ = server.await;
            tracing::debug!(%socket, "no longer answering health checks");
        }
        for &socket in wanted
            .iter()
            .filter(|socket| !open.contains_key(socket))
            .collect::<Vec<_>>()
        {
            match listen(socket) {
                Ok(listener) => {
                    if failures.remove(&socket).is_some_and(|failure| failure.tries > 1) {
                        tracing::info!(%socket, "answering health checks at last");
                    }
                    let server = Server {
                        socket,
                        checks: checks.clone(),
                        state: state.clone(),
                    };
                    open.insert(socket, tokio::spawn(run(listener, server)));
                }
                Err(error) => note(&mut failures, socket, &error),
            }
        }
        let unserved = unserved(&checks.borrow(), &failures, clashes);
        if unserved != told {
            told.clone_from(&unserved);
            if events.send(Event::Unserved(unserved)).await.is_err() {
                return;
            }
        }
        let changed = if failures.is_empty() {
            checks.changed().await
        } else {
            tokio::time::timeout(RETRY, checks.changed())
                .await
                .unwrap_or(Ok(()))
        };
        if changed.is_err() {
            return;
        }
    }
}

fn note(failures: &mut BTreeMap<SocketAddr, Failure>, socket: SocketAddr, error: &io::Error) {
    let why = error.to_string();
    let failure = failures.entry(socket).or_insert(Failure {
        why: String::new(),
        kind: error.kind(),
        tries: 0,
    });
    failure.tries = failure.tries.saturating_add(1);
    if failure.tries == 2 || (failure.tries > 2 && failure.why != why) {
        tracing::warn!(%socket, error = why, "health checks cannot be answered there: trying on");
    }
    failure.why = why;
    failure.kind = error.kind();
}

/// What is wrong, each with its Service and what to do.
fn unserved(
    checks: &HealthChecks,
    failures: &BTreeMap<SocketAddr, Failure>,
    clashes: Vec<String>,
) -> Vec<String> {
    let failed = failures.iter().filter(|(_, failure)| failure.tries > 1);
    let failed = failed.filter_map(|(socket, Failure { why, kind, .. })| {
        let service = &checks.at(*socket)?.service;
        let advice = match kind {
            io::ErrorKind::AddrInUse => {
                "end what has the port, or give the Service another spec.healthCheckNodePort"
            }
            io::ErrorKind::AddrNotAvailable => {
                "is this an address of the node? See nodePortAddresses of the policy"
            }
            _ => "see the agent's log",
        };
        Some(format!(
            "Service {service}: its health checks at {socket} are not answered: {why}: {advice}"
        ))
    });
    failed.chain(clashes).collect()
}

/// IPv6 apart from IPv4, so that both can have the port.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn run(listener: TcpListener, server: Server) {
    let socket = server.socket;
    tracing::debug!(%socket, "answering health checks");
    let router = Router::new().fallback(health).with_state(server);
    // It never ends by itself: failures to accept are waited out.
    let _ = axum::serve(listener, router).await;
}

async fn health(Shared(server): Shared<Server>) -> Response {
    let healthy = server.state.borrow().is_healthy(Instant::now());
    match server.checks.borrow().at(server.socket) {
        Some(check) => answer(check, healthy),
        // The Service is gone, and this connection is older than that.
        None => (StatusCode::SERVICE_UNAVAILABLE, [(header::CONNECTION, "close")]).into_response(),
    }
}

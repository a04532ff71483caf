use std::net::SocketAddr;

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde_json::json;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::timeout;

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

/// An API server of some version.
#[derive(Clone, Copy)]
enum Server {
    /// It has ServiceCIDRs.
    New,
    /// It has only the older resources of their group.
    Old,
    /// It does not say what it has, and lets nobody list ServiceCIDRs.
    Strict,
}

async fn answer(State(server): State<Server>, uri: Uri) -> Response {
    let resource = |name: &str| json!({"name": name, "singularName": "", "namespaced": false, "kind": "K", "verbs": ["list"]});
    let resources = |names: &[&str]| {
        let resources: Vec<_> = names.iter().map(|name| resource(name)).collect();
        Json(json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "networking.k8s.io/v1", "resources": resources
        }))
        .into_response()
    };
    let watches = uri.query().is_some_and(|query| query.contains("watch=true"));
    match (server, uri.path()) {
        (Server::New, "/apis/networking.k8s.io/v1") => resources(&["ingresses", "servicecidrs"]),
        (Server::Old, "/apis/networking.k8s.io/v1") => resources(&["ingresses", "networkpolicies"]),
        // A watch that tells nothing, for long enough.
        (Server::New, "/apis/networking.k8s.io/v1/servicecidrs") if watches => {
            tokio::time::sleep(2 * LIMIT).await;
            StatusCode::OK.into_response()
        }
        (Server::New, "/apis/networking.k8s.io/v1/servicecidrs") => Json(json!({
            "kind": "ServiceCIDRList", "apiVersion": "networking.k8s.io/v1", "metadata": {"resourceVersion": "7"},
            "items": [{"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}}]
        }))
        .into_response(),
        _ => {
            let refusal = json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden", "message": "no"
            });
            (StatusCode::FORBIDDEN, Json(refusal)).into_response()
        }
    }
}

/// The events of ServiceCIDRs with this server, and how often its watch failed.
async fn events(server: Server) -> (Receiver<Event>, Arc<Metrics>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let router = Router::new().fallback(answer).with_state(server);
    tokio::spawn(async { axum::serve(listener, router).await });
    let config = kube::Config::new(format!("http://{address}").parse().unwrap());
    let client = Client::try_from(config).unwrap();
    let metrics = Arc::new(Metrics::default());
    let troubles = Troubles {
        said: Mutex::default(),
        metrics: Arc::clone(&metrics),
    };
    let (sender, receiver) = channel(10);
    tokio::spawn(async move { service_cidrs(client, ListStrategy::ListWatch, sender, &troubles).await });
    (receiver, metrics)
}

async fn next(events: &mut Receiver<Event>) -> Event {
    timeout(LIMIT, events.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn service_cidrs_are_listed_where_the_server_has_them() {
    let (mut events, _) = events(Server::New).await;
    assert_eq!(next(&mut events).await, Event::ListBegins(Kind::ServiceCidrs));
    assert!(matches!(next(&mut events).await, Event::ServiceCidr(name, parsed)
            if name == "kubernetes" && parsed.object == Some(vec!["10.96.0.0/16".parse().unwrap()])),);
    assert_eq!(next(&mut events).await, Event::ListEnds(Kind::ServiceCidrs));
}

#[tokio::test]
async fn a_server_without_service_cidrs_is_no_failure_and_is_not_asked_all_the_time() {
    let (mut events, metrics) = events(Server::Old).await;
    assert_eq!(next(&mut events).await, Event::Unavailable(Kind::ServiceCidrs));
    // Longer than the first pause of a watch that fails.
    let more = timeout(Duration::from_millis(1200), events.recv()).await;
    assert!(more.is_err(), "{more:?}");
    assert!(
        !metrics.text().contains("watch_failures_total{"),
        "{}",
        metrics.text()
    );
}

#[tokio::test]
async fn a_server_that_refuses_is_not_waited_for_and_is_a_failure() {
    let (mut events, metrics) = events(Server::Strict).await;
    let unavailable = async { while next(&mut events).await != Event::Unavailable(Kind::ServiceCidrs) {} };
    timeout(LIMIT, unavailable).await.unwrap();
    let name = "pointsman_agent_watch_failures_total{kind=\"ServiceCIDR\"} ";
    assert!(metrics.text().contains(name), "{}", metrics.text());
}

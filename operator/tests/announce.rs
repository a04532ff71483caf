//! Events about Services that ask for direct access, against an API server that is a function.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use pointsman_operator::announce::{Announcer, Seen};
use pointsman_operator::elector::Leading;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

/// What the API server holds and how it is to behave.
struct Server {
    spec: Value,
    annotations: Value,
    /// The answer to a new Event.
    create: u16,
    events: Vec<Value>,
}

struct Site {
    server: Arc<Mutex<Server>>,
    announcer: Announcer,
    leading: watch::Sender<Leading>,
}

fn site(spec: Value) -> Site {
    let server = Arc::new(Mutex::new(Server {
        spec,
        annotations: json!({"networking.alpha.kubernetes.io/direct-access": "true"}),
        create: 201,
        events: Vec::new(),
    }));
    let held = Arc::clone(&server);
    let service = tower::service_fn(move |request: Request<Body>| {
        let held = Arc::clone(&held);
        async move {
            let (head, body) = request.into_parts();
            let body: Value =
                serde_json::from_slice(&body.collect_bytes().await.unwrap()).unwrap_or_default();
            let mut server = held.lock().unwrap();
            let (code, object) = match (&head.method, head.uri.path()) {
                (&Method::GET, "/api/v1/namespaces/shop/services/web") => {
                    let metadata =
                        json!({"name": "web", "namespace": "shop", "annotations": server.annotations});
                    (
                        200,
                        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": server.spec}),
                    )
                }
                (&Method::POST, "/apis/events.k8s.io/v1/namespaces/shop/events") => {
                    if server.create == 201 {
                        server.events.push(body.clone());
                    }
                    (server.create, body)
                }
                // No other request is due: the test sees that its Event is not there.
                _ => (405, Value::Null),
            };
            let refused = json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": "R", "message": "no"
            });
            let answer = if code < 300 { object } else { refused };
            let body = Body::from(serde_json::to_vec(&answer).unwrap());
            Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap())
        }
    });
    let (leading, leads) = watch::channel(Some(Instant::now() + Duration::from_secs(60)));
    let announcer = Announcer::new(Client::new(service, "default"), "operator-1".to_owned(), leads);
    Site {
        server,
        announcer,
        leading,
    }
}

fn balanced() -> Value {
    json!({"clusterIP": "10.96.0.1", "type": "ClusterIP"})
}

fn seen(asks: Option<(&str, &str)>) -> Seen {
    Seen {
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        asks: asks.map(|(uid, version)| (uid.to_owned(), version.to_owned())),
    }
}

impl Site {
    async fn see(&mut self, asks: Option<(&str, &str)>) -> usize {
        self.announcer.take_in(seen(asks)).await;
        self.server.lock().unwrap().events.len()
    }
}

#[tokio::test]
async fn a_service_that_begins_to_ask_is_told_of_once() {
    let mut site = site(balanced());
    assert_eq!(site.see(None).await, 0);
    assert_eq!(site.see(Some(("u1", "7"))).await, 1);
    assert_eq!(
        site.see(Some(("u1", "8"))).await,
        1,
        "something else of it changed"
    );
    let event = site.server.lock().unwrap().events[0].clone();
    assert_eq!(
        (
            &event["reason"],
            &event["type"],
            &event["regarding"]["uid"],
            &event["regarding"]["kind"]
        ),
        (
            &"DirectAccess".into(),
            &"Warning".into(),
            &"u1".into(),
            &"Service".into()
        )
    );
    assert!(event["note"].as_str().unwrap().contains("refuse"), "{event}");
    for needed in ["eventTime", "action", "reportingController", "reportingInstance"] {
        assert!(
            event[needed].is_string(),
            "the API server demands {needed}: {event}"
        );
    }
    // It stops and asks again, and another Service of this name comes.
    assert_eq!(site.see(None).await, 1);
    assert_eq!(site.see(Some(("u1", "9"))).await, 2);
    assert_eq!(site.see(Some(("u2", "10"))).await, 3);
    let events = site.server.lock().unwrap().events.clone();
    assert_ne!(events[0]["metadata"]["name"], events[1]["metadata"]["name"]);
}

#[tokio::test]
async fn an_operator_that_starts_anew_writes_the_same_event() {
    let (mut first, mut second) = (site(balanced()), site(balanced()));
    first.see(Some(("u1", "7"))).await;
    second.see(Some(("u1", "7"))).await;
    let name = |site: &Site| site.server.lock().unwrap().events[0]["metadata"]["name"].clone();
    assert_eq!(name(&first), name(&second));
    let mut third = site(balanced());
    third.server.lock().unwrap().create = 409;
    third.see(Some(("u1", "7"))).await;
    assert!(!third.announcer.has_postponed(), "it is there already");
}

#[tokio::test]
async fn services_without_an_address_are_not_told_of() {
    for spec in [
        json!({"clusterIP": "None"}),
        json!({"clusterIP": ""}),
        json!({"type": "ExternalName", "externalName": "example.org"}),
        json!({}),
    ] {
        let mut site = site(spec.clone());
        assert_eq!(site.see(Some(("u1", "7"))).await, 0, "{spec}");
    }
    let mut changed = site(balanced());
    changed.server.lock().unwrap().annotations =
        json!({"networking.alpha.kubernetes.io/direct-access": "false"});
    assert_eq!(changed.see(Some(("u1", "7"))).await, 0, "it has changed its mind");
}

#[tokio::test]
async fn only_the_leader_tells_and_what_fails_is_tried_again() {
    let mut standby = site(balanced());
    standby.leading.send_replace(None);
    assert_eq!(standby.see(Some(("u1", "7"))).await, 0);

    let mut site = site(balanced());
    site.server.lock().unwrap().create = 500;
    assert_eq!(site.see(Some(("u1", "7"))).await, 0);
    assert!(site.announcer.has_postponed());
    site.server.lock().unwrap().create = 201;
    site.announcer.retry().await;
    assert!(!site.announcer.has_postponed());
    assert_eq!(site.server.lock().unwrap().events.len(), 1);
    // What is no longer asked for is not tried again either.
    site.server.lock().unwrap().create = 403;
    site.see(Some(("u2", "8"))).await;
    site.see(None).await;
    assert!(!site.announcer.has_postponed());
}

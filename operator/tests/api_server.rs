//! What goes over the wire, against an API server that is a function: deletions that wait when in doubt, and the
//! life of the Lease.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use pointsman_operator::elector::{Elector, Leading, Lost};
use pointsman_operator::fleet::Version;
use pointsman_operator::metrics::Metrics;
use pointsman_operator::pass::{Because, Write};
use pointsman_operator::write::{Outcome, Writer};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

/// An API server: `answer` gets the method, the path and the body, and gives the status and the object.
fn api_server(answer: impl Fn(&Method, &str, Value) -> (u16, Value) + Send + Sync + 'static) -> Client {
    let answer = Arc::new(answer);
    let service = tower::service_fn(move |request: Request<Body>| {
        let answer = Arc::clone(&answer);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap();
            let body = serde_json::from_slice(&body).unwrap_or_default();
            let (code, object) = answer(&head.method, head.uri.path(), body);
            let text = if code < 300 { object } else { refusal(code) };
            let body = Body::from(serde_json::to_vec(&text).unwrap());
            Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap())
        }
    });
    Client::new(service, "default")
}

fn refusal(code: u16) -> Value {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        _ => "ServiceUnavailable",
    };
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": "no"})
}

fn delete(node: &str, because: Because) -> Write {
    Write::Delete {
        node: node.to_owned(),
        uid: "u".to_owned(),
        because,
    }
}

/// Whether each of the deletions was done or put off, and what was asked.
async fn deletions(
    policy_generation: i64,
    writes: Vec<Write>,
    leading: Leading,
) -> (Vec<String>, Vec<String>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let client = api_server(move |method, path, _| {
        let resource = path.rsplit('/').next().unwrap();
        log.lock().unwrap().push(format!("{method} {resource}"));
        let metadata = json!({"name": "p", "uid": "u", "generation": policy_generation});
        match (method, path) {
            (_, "/api/v1/nodes/there") => (
                200,
                json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "there"}}),
            ),
            (_, "/api/v1/nodes/gone") => (404, Value::Null),
            (&Method::GET, _) => (200, json!({"metadata": {}, "items": [{"metadata": metadata}]})),
            _ => (200, json!({"kind": "Status", "status": "Success"})),
        }
    });
    let (_keep, leading) = watch::channel(leading);
    let basis = [(
        "p".to_owned(),
        Version {
            uid: Some("u".to_owned()),
            generation: Some(1),
        },
    )]
    .into();
    let results = Writer::new(client, leading, Arc::new(Metrics::default()))
        .write(writes, basis)
        .await;
    let mut outcomes: Vec<String> = results
        .iter()
        .map(|(write, outcome)| {
            let outcome = match outcome {
                Outcome::Done => "done",
                Outcome::Gone => "gone",
                Outcome::Postponed(_) => "postponed",
                Outcome::Failed(error) => error,
                Outcome::NotLeading => "not leading",
            };
            format!("{} {outcome}", write.target().1)
        })
        .collect();
    outcomes.sort();
    let asked = asked.lock().unwrap().clone();
    (outcomes, asked)
}

fn for_long() -> Leading {
    Some(Instant::now() + Duration::from_secs(60))
}

#[tokio::test]
async fn nothing_is_deleted_because_of_a_watch_that_lags_behind() {
    let writes = vec![delete("there", Because::NoNode), delete("gone", Because::NoNode)];
    let (outcomes, _) = deletions(1, writes, for_long()).await;
    assert_eq!(outcomes, ["gone done", "there postponed"]);

    let writes = vec![delete("n1", Because::NoPolicy), delete("n2", Because::NoPolicy)];
    let (outcomes, asked) = deletions(1, writes.clone(), for_long()).await;
    assert_eq!(outcomes, ["n1 done", "n2 done"]);
    let lists = asked
        .iter()
        .filter(|request| *request == "GET proxypolicies")
        .count();
    assert_eq!(lists, 1, "the policies are read once for all deletions of a pass");

    let (outcomes, asked) = deletions(2, writes, for_long()).await;
    assert_eq!(outcomes, ["n1 postponed", "n2 postponed"]);
    assert_eq!(asked, ["GET proxypolicies"]);
}

#[tokio::test]
async fn nothing_is_written_by_a_replica_that_does_not_lead() {
    for leading in [None, Some(Instant::now())] {
        let (outcomes, asked) = deletions(1, vec![delete("gone", Because::NoNode)], leading).await;
        assert_eq!(
            (outcomes, asked),
            (vec!["gone not leading".to_owned()], Vec::new())
        );
    }
}

/// The Lease as the API server keeps it, with optimistic locking; `None` while the server is away.
#[derive(Clone, Default)]
struct Store(Arc<Mutex<(bool, Option<Value>, u64)>>);

impl Store {
    fn client(&self) -> Client {
        let store = self.clone();
        api_server(move |method, _, body| {
            let mut kept = store.0.lock().unwrap();
            let (away, lease, version) = &mut *kept;
            match (*away, method, lease.clone()) {
                (true, ..) => (503, Value::Null),
                (_, &Method::GET, None) => (404, Value::Null),
                (_, &Method::GET, Some(lease)) => (200, lease),
                (_, &Method::POST, Some(_)) => (409, Value::Null),
                (_, _, Some(lease))
                    if lease["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] =>
                {
                    (409, Value::Null)
                }
                _ => {
                    *version += 1;
                    let mut body = body;
                    body["metadata"]["resourceVersion"] = version.to_string().into();
                    *lease = Some(body.clone());
                    (200, body)
                }
            }
        })
    }

    fn away(&self, away: bool) {
        self.0.lock().unwrap().0 = away;
    }

    fn holder(&self) -> String {
        let kept = self.0.lock().unwrap();
        kept.1
            .as_ref()
            .map(|lease| lease["spec"]["holderIdentity"].as_str().unwrap().to_owned())
            .unwrap_or_default()
    }
}

/// A candidate at work: what it says about leading, and its task.
fn candidate(
    store: &Store,
    name: &str,
) -> (watch::Receiver<Leading>, tokio::task::JoinHandle<(Elector, Lost)>) {
    let mut elector = Elector::new(store.client(), "default", name.to_owned());
    let (sender, receiver) = watch::channel(None);
    let task = tokio::spawn(async move {
        let lost = elector.lead(&sender).await.unwrap_err();
        (elector, lost)
    });
    (receiver, task)
}

#[tokio::test(start_paused = true)]
async fn the_lease_goes_on_when_its_holder_is_silent_and_not_before() {
    let store = Store::default();
    let (first, first_task) = candidate(&store, "first");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (second, _second_task) = candidate(&store, "second");
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(first.borrow().is_some() && second.borrow().is_none());
    assert_eq!(store.holder(), "first");

    first_task.abort();
    let killed = Instant::now();
    while second.borrow().is_none() {
        assert_eq!(store.holder(), "first");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let waited = killed.elapsed();
    assert!(
        waited >= Duration::from_secs(10) && waited <= Duration::from_secs(18),
        "{waited:?}"
    );
    assert_eq!(store.holder(), "second");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_renew_stops_before_the_lease_is_over() {
    let store = Store::default();
    let (leading, task) = candidate(&store, "first");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(leading.borrow().is_some());
    store.away(true);
    let gone = Instant::now();
    let (_, lost) = task.await.unwrap();
    assert!(matches!(lost, Lost::NotRenewed(_)), "{lost}");
    assert!(gone.elapsed() <= Duration::from_secs(10), "{:?}", gone.elapsed());
    assert!(leading.borrow().unwrap() <= Instant::now());
}

#[tokio::test(start_paused = true)]
async fn a_leader_survives_an_api_server_that_is_away_for_a_moment() {
    let store = Store::default();
    let (leading, task) = candidate(&store, "first");
    tokio::time::sleep(Duration::from_secs(1)).await;
    store.away(true);
    tokio::time::sleep(Duration::from_secs(6)).await;
    store.away(false);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!task.is_finished() && leading.borrow().unwrap() > Instant::now());
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_given_back_is_free_at_once() {
    let store = Store::default();
    let mut elector = Elector::new(store.client(), "default", "first".to_owned());
    let (sender, receiver) = watch::channel(None);
    let led = tokio::time::timeout(Duration::from_secs(1), elector.lead(&sender)).await;
    assert!(led.is_err() && receiver.borrow().is_some());
    elector.release().await;
    assert_eq!(store.holder(), "");
    let (second, _task) = candidate(&store, "second");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(second.borrow().is_some());
}

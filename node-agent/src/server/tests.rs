use std::time::Duration;

use super::*;
use crate::source::Assignment;
use crate::state::FamilyState;
use pointsman_crds::{Mode, ProxyPolicySpec};
use pointsman_dataplane::model::Family;

fn programmed() -> State {
    let settings = serde_json::from_str::<ProxyPolicySpec>("{}").unwrap().settings();
    let assignment = Assignment {
        policy: "p".into(),
        revision: "r".into(),
        generation: None,
        settings,
    };
    State {
        assignment: Some(Arc::new(assignment)),
        listed: true,
        mode: Some((Mode::IPTables, None)),
        applied_revision: Some("r".into()),
        node_eligible: true,
        ..State::default()
    }
}

fn sources(state: State) -> Sources {
    Sources {
        state: watch::channel(state).1,
        metrics: Arc::new(Metrics::default()),
        log_level: LogLevel::unused(),
    }
}

async fn codes(state: State) -> (u16, u16) {
    let sources = sources(state);
    let healthz = healthz(Shared(sources.clone())).await.status().as_u16();
    (healthz, livez(Shared(sources)).await.status().as_u16())
}

#[tokio::test]
async fn health_follows_the_kernel_and_the_node() {
    assert_eq!(codes(programmed()).await, (200, 200));
    assert_eq!(
        codes(State::default()).await,
        (503, 200),
        "nothing is listed yet, and a restart would not help"
    );
    assert_eq!(
        codes(State {
            node_eligible: false,
            ..programmed()
        })
        .await,
        (503, 200),
        "the node is on its way out"
    );
    assert_eq!(
        codes(State {
            applied_revision: None,
            ..programmed()
        })
        .await,
        (503, 503)
    );
    let past = Instant::now() - Duration::from_secs(60);
    let stuck = State {
        pending_since: Some(past),
        pending_limit: Duration::from_secs(1),
        ..programmed()
    };
    assert_eq!(codes(stuck).await, (503, 503));
    let idle = State {
        listed: true,
        node_eligible: true,
        ..State::default()
    };
    assert_eq!(codes(idle).await, (200, 200), "no policy selects the node");
}

#[tokio::test]
async fn the_servers_answer_on_kube_proxys_paths() {
    let listener = bind("--metrics-bind-address", "127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve_metrics(listener, sources(programmed())));
    let ask = async |method: &str, path: &str, body: &str| -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let get = async |path: &str| ask("GET", path, "").await;
    assert!(get("/proxyMode").await.ends_with("iptables"));
    assert!(get("/configz").await.contains("\"revision\":\"r\""));
    let metrics = get("/metrics").await;
    for text in [
        "content-type: text/plain; version=0.0.4",
        "# TYPE kubeproxy_sync_proxy_rules_service_changes_total counter\n",
        "# TYPE kubeproxy_sync_proxy_rules_service_changes_pending gauge\n",
    ] {
        assert!(metrics.contains(text), "{text} is not in {metrics}");
    }
    assert!(get("/debug/flags/v").await.ends_with("\r\n\r\n2\n"));
    assert!(ask("PUT", "/debug/flags/v", "5").await.contains("200 OK"));
    assert!(get("/debug/flags/v").await.ends_with("\r\n\r\n5\n"));
    for nonsense in ["", "-1", "11", "loud", "99999999999"] {
        let answer = ask("PUT", "/debug/flags/v", nonsense).await;
        assert!(answer.contains("400 Bad Request"), "{nonsense}: {answer}");
    }
    assert!(get("/debug/flags/v").await.ends_with("\r\n\r\n5\n"));
    let taken = bind("--metrics-bind-address", address).await.unwrap_err();
    assert!(format!("{taken:#}").contains("--metrics-bind-address"));
}

#[tokio::test]
async fn the_body_says_how_each_family_goes() {
    let state = State {
        families: vec![
            FamilyState {
                family: Family::V4,
                outcome: Outcome::Applied,
            },
            FamilyState {
                family: Family::V6,
                outcome: Outcome::Failed("busy".into()),
            },
        ],
        applied_revision: None,
        ..programmed()
    };
    let body = async |response: Response| -> Value {
        let bytes = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        serde_json::from_slice(&bytes).unwrap()
    };
    let sources = sources(state);
    let healthz = body(healthz(Shared(sources.clone())).await).await;
    assert_eq!(
        (&healthz["healthy"], &healthz["nodeEligible"]),
        (&json!(false), &json!(true))
    );
    assert_eq!(
        (
            &healthz["status"]["IPv4"]["healthy"],
            &healthz["status"]["IPv6"]["healthy"]
        ),
        (&json!(true), &json!(false))
    );
    let livez = body(livez(Shared(sources)).await).await;
    assert!(
        livez.get("nodeEligible").is_none() && livez["currentTime"].is_string(),
        "{livez}"
    );
}

#[tokio::test]
async fn only_the_node_itself_sets_the_verbosity() {
    let sources = sources(programmed());
    let put = async |from: &str| {
        let from = ConnectInfo(from.parse().unwrap());
        let (code, _) = set_verbosity(from, Shared(sources.clone()), "7".to_owned()).await;
        (code.as_u16(), sources.log_level.verbosity())
    };
    assert_eq!(put("192.168.0.9:4000").await, (403, 2));
    assert_eq!(put("[fd00::1]:4000").await, (403, 2));
    assert_eq!(put("[::1]:4000").await, (200, 7));
    assert_eq!(put("127.0.0.1:4000").await, (200, 7));
    // What an IPv6 socket calls an IPv4 address.
    assert_eq!(put("[::ffff:127.0.0.1]:4000").await, (200, 7));
}

use std::time::Duration;

use super::*;
use crate::source::Assignment;
use pointsman_crds::{Mode, ProxyPolicySpec};

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
    let get = async |path: &str| -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(get("/proxyMode").await.ends_with("iptables"));
    assert!(get("/configz").await.contains("\"revision\":\"r\""));
    assert!(
        get("/metrics")
            .await
            .contains("kubeproxy_sync_proxy_rules_last_timestamp_seconds")
    );
    let taken = bind("--metrics-bind-address", address).await.unwrap_err();
    assert!(format!("{taken:#}").contains("--metrics-bind-address"));
}

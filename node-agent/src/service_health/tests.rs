use std::sync::Arc;
use std::time::Duration;

use pointsman_crds::{Mode, ProxyPolicySpec};
use pointsman_dataplane::model::{
    Compiled, Context, Diff, HealthCheck, NodeFacts, NodePortAddresses, Settings,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::*;
use crate::source::{Assignment, Event};
use crate::state::State;

const LIMIT: Duration = Duration::from_secs(20);

fn context(choice: NodePortAddresses) -> Context {
    Context {
        settings: Settings {
            node_port_addresses: vec![choice],
            ..Settings::default()
        },
        node: NodeFacts {
            internal_ips: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            ..NodeFacts::default()
        },
        ..Context::default()
    }
}

/// A table of Services with these names, ports and numbers of local endpoints in IPv4.
fn table(services: &[(&str, u16, usize)]) -> ForwardingTable {
    let (mut table, mut diff) = (ForwardingTable::default(), Diff::default());
    table.set_context(context(NodePortAddresses::Primary), &mut diff);
    for &(name, port, local_endpoints) in services {
        let check = HealthCheck {
            port,
            local_endpoints,
        };
        let compiled = Compiled {
            health_checks: vec![(Family::V4, check)],
            ..Compiled::nothing(ServiceName::new("shop", name))
        };
        table.set(compiled, &mut diff);
    }
    table
}

fn sockets(checks: &HealthChecks) -> Vec<String> {
    checks.sockets().iter().map(ToString::to_string).collect()
}

#[test]
fn servers_listen_where_node_ports_answer() {
    let mut table = table(&[("web", 31000, 1), ("api", 31001, 0)]);
    assert_eq!(
        sockets(&HealthChecks::of(&table)),
        ["127.0.0.1:31000", "127.0.0.1:31001"]
    );
    table.set_context(context(NodePortAddresses::All), &mut Diff::default());
    assert_eq!(
        sockets(&HealthChecks::of(&table)),
        ["0.0.0.0:31000", "0.0.0.0:31001"]
    );
    let range = "192.168.0.0/16".parse().unwrap();
    table.set_context(context(NodePortAddresses::Within(range)), &mut Diff::default());
    assert!(sockets(&HealthChecks::of(&table)).is_empty());
}

#[test]
fn a_port_that_two_services_claim_is_served_for_one_and_said_of_the_other() {
    let checks = HealthChecks::of(&table(&[("web", 31000, 1), ("api", 31000, 0)]));
    let check = checks.at("127.0.0.1:31000".parse().unwrap()).unwrap();
    assert_eq!(
        check.service.to_string(),
        "shop/api",
        "the same one on every node"
    );
    assert!(checks.clashes.len() == 1 && checks.clashes[0].contains("shop/web"));
}

#[test]
fn only_changes_of_health_checks_count_as_such() {
    let mut table = table(&[("web", 31000, 1)]);
    let version = table.health_checks_version();
    let mut diff = Diff::default();
    table.set(Compiled::nothing(ServiceName::new("shop", "other")), &mut diff);
    assert_eq!(table.health_checks_version(), version);
    table.remove(&ServiceName::new("shop", "web"), &mut diff);
    assert_ne!(table.health_checks_version(), version);
    assert_eq!(HealthChecks::of(&table), HealthChecks::default());
}

fn healthy() -> State {
    let settings = serde_json::from_str::<ProxyPolicySpec>("{}").unwrap().settings();
    State {
        assignment: Some(Arc::new(Assignment {
            policy: "p".into(),
            revision: "r".into(),
            generation: None,
            settings,
        })),
        listed: true,
        mode: Some((Mode::IPTables, None)),
        applied_revision: Some("r".into()),
        node_eligible: false,
        ..State::default()
    }
}

struct Servers {
    checks: watch::Sender<HealthChecks>,
    state: watch::Sender<State>,
    events: mpsc::Receiver<Event>,
}

impl Servers {
    fn start() -> Self {
        let (checks, checks_out) = watch::channel(HealthChecks::default());
        let (state, state_out) = watch::channel(healthy());
        let (events_in, events) = mpsc::channel(10);
        tokio::spawn(serve(checks_out, state_out, events_in));
        Self {
            checks,
            state,
            events,
        }
    }

    fn set(&self, services: &[(&str, u16, usize)]) {
        self.checks.send_replace(HealthChecks::of(&table(services)));
    }

    async fn unserved(&mut self) -> Vec<String> {
        match timeout(LIMIT, self.events.recv()).await.unwrap() {
            Some(Event::Unserved(problems)) => problems,
            other => panic!("{other:?}"),
        }
    }
}

/// A port that was free a moment ago.
async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

async fn ask(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"GET /any HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Asks until the answer has this, and returns it.
async fn until(port: u16, has: &str) -> String {
    let mut last = String::new();
    let asking = async {
        loop {
            last = ask(port).await.unwrap_or_else(|error| error.to_string());
            if last.contains(has) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if timeout(LIMIT, asking).await.is_err() {
        panic!("never had {has:?}: {last}");
    }
    last
}

#[tokio::test]
async fn the_answer_is_kube_proxys() {
    let servers = Servers::start();
    let port = free_port().await;
    servers.set(&[("web", port, 2)]);
    let answer = until(port, "200 OK").await.to_lowercase();
    for header in [
        "content-type: application/json",
        "x-content-type-options: nosniff",
        "x-load-balancing-endpoint-weight: 2",
    ] {
        assert!(answer.contains(header), "{header} is not in {answer}");
    }
    let body: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(
        body,
        json!({"service": {"namespace": "shop", "name": "web"}, "localendpoints": 2, "serviceproxyhealthy": true})
    );

    servers.set(&[("web", port, 0)]);
    let answer = until(port, "503 Service Unavailable").await;
    assert!(answer.contains("\"localEndpoints\":0") && answer.contains("\"serviceProxyHealthy\":true"));

    servers.set(&[("web", port, 1)]);
    until(port, "200 OK").await;
    servers.state.send_modify(|state| state.applied_revision = None);
    let answer = until(port, "503").await;
    assert!(answer.contains("\"localEndpoints\":1") && answer.contains("\"serviceProxyHealthy\":false"));
}

#[tokio::test]
async fn servers_come_move_and_go_with_their_services() {
    let servers = Servers::start();
    let (first, second) = (free_port().await, free_port().await);
    servers.set(&[("web", first, 1)]);
    until(first, "\"web\"").await;
    servers.set(&[("api", first, 1), ("web", second, 1)]);
    until(first, "\"api\"").await;
    until(second, "\"web\"").await;
    servers.set(&[("web", second, 1)]);
    until(first, "refused").await;
    servers.set(&[]);
    until(second, "refused").await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_said_and_served_when_it_is_free() {
    let mut servers = Servers::start();
    let squatter = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = squatter.local_addr().unwrap().port();
    let free = free_port().await;
    servers.set(&[("web", taken, 1), ("api", free, 1)]);
    let problems = servers.unserved().await;
    assert!(
        problems.len() == 1 && problems[0].contains("shop/web") && problems[0].contains(&taken.to_string()),
        "{problems:?}"
    );
    until(free, "\"api\"").await;
    drop(squatter);
    until(taken, "\"web\"").await;
    assert_eq!(servers.unserved().await, Vec::<String>::new());
}

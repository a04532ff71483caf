use std::sync::Mutex;

use pointsman_crds::ProxyPolicySpec;
use pointsman_dataplane::backend::{Error, Observed, Remaining, Report};
use pointsman_dataplane::leftover::{Leftover, Place};
use pointsman_dataplane::model::{
    Diff, Endpoint, EndpointPort, EndpointSlice, ForwardingTable, FrontendKey, Protocol, Service,
    ServiceName, ServicePort,
};
use pointsman_dataplane::netlink::ruleset::Touched;
use tokio::sync::mpsc::{Sender, channel};
use tokio::time::timeout;

use std::collections::BTreeMap;

use super::*;
use crate::source::{NodeState, Parsed};
use crate::state::Outcome;

mod ipvs;

/// What a kernel was told, and how it is to behave.
#[derive(Default)]
struct Held {
    calls: Vec<&'static str>,
    frontends: BTreeMap<FrontendKey, usize>,
    service_cidrs: Vec<ipnet::IpNet>,
    fail_apply: bool,
    fail_sync: bool,
    differs: bool,
    /// What a teardown leaves.
    connections: u64,
    tend_at: Option<Instant>,
    fail_tend: bool,
    lacking: Vec<String>,
}

/// A backend that keeps what it was told, to see what the engine does with backends.
struct Recorder {
    family: Family,
    kernel: Arc<Mutex<Held>>,
}

fn refused() -> Error {
    Error::Failed {
        program: "iptables-restore".into(),
        status: "exit status: 4".into(),
        stderr: "busy".into(),
    }
}

impl Recorder {
    fn hold(&self, table: &ForwardingTable) {
        let endpoints = |key: &FrontendKey| match &table.frontend(key).unwrap().action {
            pointsman_dataplane::model::Action::Balance { pool, .. } => {
                table.pool(pool).unwrap().endpoints.len()
            }
            _ => 0,
        };
        let own = table.frontends().filter(|(key, _)| key.family == self.family);
        let mut kernel = self.kernel.lock().unwrap();
        kernel.frontends = own.map(|(key, _)| (*key, endpoints(key))).collect();
        kernel.service_cidrs = table.context().service_cidrs.clone();
    }
}

impl Backend for Recorder {
    fn family(&self) -> Family {
        self.family
    }
    fn tables(&self) -> &'static [&'static str] {
        &["pointsman"]
    }
    fn apply(&mut self, table: &ForwardingTable, _: &Diff) -> Result<Report, Error> {
        self.kernel.lock().unwrap().calls.push("apply");
        if self.kernel.lock().unwrap().fail_apply {
            return Err(refused());
        }
        self.hold(table);
        Ok(Report::default())
    }
    fn sync(&mut self, table: &ForwardingTable) -> Result<Report, Error> {
        self.kernel.lock().unwrap().calls.push("sync");
        if self.kernel.lock().unwrap().fail_sync {
            return Err(refused());
        }
        self.hold(table);
        Ok(Report::default())
    }
    fn observe(&mut self) -> Result<Observed, Error> {
        let mut kernel = self.kernel.lock().unwrap();
        kernel.calls.push("observe");
        let differences = if std::mem::take(&mut kernel.differs) {
            vec!["a chain is gone".into()]
        } else {
            Vec::new()
        };
        Ok(Observed {
            differences,
            ..Observed::default()
        })
    }
    fn teardown(&mut self, _limit: Option<Duration>) -> Result<Remaining, Error> {
        let mut kernel = self.kernel.lock().unwrap();
        kernel.calls.push("teardown");
        kernel.frontends.clear();
        Ok(match kernel.connections {
            0 => Remaining::Nothing,
            some => Remaining::Connections(some),
        })
    }
    fn tend_at(&self) -> Option<Instant> {
        self.kernel.lock().unwrap().tend_at
    }
    fn tend(&mut self) -> Result<(), Error> {
        let mut kernel = self.kernel.lock().unwrap();
        kernel.calls.push("tend");
        kernel.tend_at = None;
        if kernel.fail_tend { Err(refused()) } else { Ok(()) }
    }
    fn lacking(&self) -> Vec<String> {
        self.kernel.lock().unwrap().lacking.clone()
    }
}

struct Agent {
    events: Sender<Event>,
    state: watch::Receiver<State>,
    checks: watch::Receiver<HealthChecks>,
    metrics: Arc<Metrics>,
    v4: Arc<Mutex<Held>>,
    v6: Arc<Mutex<Held>>,
    /// What backends of mode NFTables did, by family.
    nftables: Arc<Mutex<BTreeMap<Family, Arc<Mutex<Held>>>>>,
    /// The same of mode IPVS.
    ipvs: Arc<Mutex<BTreeMap<Family, Arc<Mutex<Held>>>>>,
    leftovers: Arc<Mutex<KubeProxys>>,
    _state_dir: tempfile::TempDir,
}

/// What a kube-proxy has in the kernel, and how often it was looked for.
#[derive(Default)]
struct KubeProxys {
    rules: Found,
    looks: usize,
}

impl KubeProxys {
    fn look(&mut self) -> Found {
        self.looks += 1;
        self.rules.clone()
    }
}

impl Agent {
    /// On a kernel that cannot do what mode NFTables needs.
    fn start() -> Self {
        Self::on(|_| Capability::Lacking("the kernel lacks it".into()))
    }

    fn on(probe: impl Fn(Family) -> Capability + Send + Sync + 'static) -> Self {
        let (v4, v6) = (Arc::<Mutex<Held>>::default(), Arc::<Mutex<Held>>::default());
        let kernels = [(Family::V4, Arc::clone(&v4)), (Family::V6, Arc::clone(&v6))];
        let others = Arc::<Mutex<BTreeMap<Family, Arc<Mutex<Held>>>>>::default();
        let nftables = Arc::clone(&others);
        let ipvs_of = Arc::<Mutex<BTreeMap<Family, Arc<Mutex<Held>>>>>::default();
        let ipvs = Arc::clone(&ipvs_of);
        let make: MakeBackend = Arc::new(move |mode, family| {
            let kernel = match mode {
                Mode::NFTables => Arc::clone(others.lock().unwrap().entry(family).or_default()),
                Mode::IPVS => Arc::clone(ipvs_of.lock().unwrap().entry(family).or_default()),
                _ => Arc::clone(&kernels.iter().find(|(of, _)| *of == family).unwrap().1),
            };
            Ok(Box::new(Recorder { family, kernel }))
        });
        let leftovers = Arc::<Mutex<KubeProxys>>::default();
        let looked_at = Arc::clone(&leftovers);
        let state_dir = tempfile::tempdir().unwrap();
        let (state_in, state) = watch::channel(State::default());
        let (checks_in, checks) = watch::channel(HealthChecks::default());
        let metrics = Arc::new(Metrics::default());
        // Not the machine's own: mode IPVS would set some.
        let parameters = Parameters::new(&state_dir.path().join("sys"), state_dir.path());
        let engine = Engine::new(
            Kernel {
                make_backend: make,
                probe: Arc::new(probe),
                probe_ipvs: Arc::new(|_, _| Capability::Lacking("the kernel lacks IPVS".into())),
                has_ipvs: Box::new(|| false),
                release: "6.1.0".into(),
                look_for_leftovers: Box::new(move |_| looked_at.lock().unwrap().look()),
            },
            parameters,
            Cleaner::new().0,
            LogLevel::unused(),
            Arc::clone(&metrics),
            state_in,
            checks_in,
        );
        let (events, receiver) = channel(100);
        tokio::spawn(engine.run(receiver));
        Self {
            events,
            state,
            checks,
            metrics,
            v4,
            v6,
            nftables,
            ipvs,
            leftovers,
            _state_dir: state_dir,
        }
    }

    async fn tell(&self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            self.events.send(event).await.unwrap();
        }
    }

    /// Lists everything, with one Service.
    async fn list(&self, assignment: Option<Arc<Assignment>>) {
        use Kind::{Assignment as Policy, Node, ServiceCidrs, Services, Slices};
        self.tell([Event::Unavailable(ServiceCidrs)]).await;
        self.tell([Services, Slices, Node, Policy].map(Event::ListBegins))
            .await;
        self.tell([
            web(1),
            endpoints(&[1]),
            Event::Node(Some(NodeState::default())),
            Event::Assignment(assignment),
        ])
        .await;
        self.tell([Services, Slices, Node, Policy].map(Event::ListEnds))
            .await;
    }

    async fn until(&mut self, what: &str, condition: impl Fn(&State) -> bool) -> State {
        let reached = timeout(
            Duration::from_secs(20),
            self.state.wait_for(|state| condition(state)),
        )
        .await;
        reached
            .unwrap_or_else(|_| panic!("never came to: {what}"))
            .unwrap()
            .clone()
    }
}

/// Somebody changed something in these IPv4 tables.
fn touched(tables: &[&str]) -> Event {
    let tables = tables.iter().map(|name| (2, (*name).to_owned()));
    Event::RulesTouched {
        by: Some("nft".into()),
        touched: Touched::Tables(tables.collect()),
    }
}

fn assignment(change: impl FnOnce(&mut ProxyPolicySpec)) -> Option<Arc<Assignment>> {
    let mut spec: ProxyPolicySpec = serde_json::from_str("{}").unwrap();
    change(&mut spec);
    let settings = spec.settings();
    let revision = settings.revision();
    Some(Arc::new(Assignment {
        policy: "p".into(),
        revision,
        generation: Some(1),
        settings,
    }))
}

fn web(last: u8) -> Event {
    let name = ServiceName::new("default", "web");
    let port = ServicePort {
        name: "".into(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
    };
    let service = Service {
        name: name.clone(),
        created: 0,
        cluster_ips: vec![[10, 96, 0, last].into()],
        ports: vec![port],
        ..Service::default()
    };
    Event::Service(
        name,
        Parsed {
            object: Some(service),
            problems: Vec::new(),
        },
    )
}

fn endpoints(lasts: &[u8]) -> Event {
    let endpoint = |last: &u8| Endpoint {
        address: [10, 0, 1, *last].into(),
        ready: true,
        serving: true,
        terminating: false,
        local: false,
        for_nodes: None,
        unplaced: false,
        common: None,
    };
    let slice = EndpointSlice {
        family: Family::V4,
        ports: vec![EndpointPort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        endpoints: lasts.iter().map(endpoint).collect(),
    };
    let owner = ServiceName::new("default", "web");
    let parsed = Parsed {
        object: Some((owner, slice)),
        problems: Vec::new(),
    };
    Event::Slice(ServiceName::new("default", "web-1"), parsed, None)
}

fn sizes(kernel: &Arc<Mutex<Held>>) -> Vec<usize> {
    kernel.lock().unwrap().frontends.values().copied().collect()
}

#[tokio::test]
async fn nothing_is_written_before_everything_is_listed() {
    let mut agent = Agent::start();
    agent.list(assignment(|_| {})).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(
        agent.v4.lock().unwrap().calls.is_empty(),
        "the node's addresses are not known yet"
    );
    agent.tell([Event::Addresses(Vec::new())]).await;
    let state = agent.until("programmed", State::is_programmed).await;
    assert_eq!(
        (state.services, state.endpoints, sizes(&agent.v4)),
        (1, 1, vec![1])
    );
    assert_eq!(state.mode.unwrap().0, Mode::IPTables);
}

#[tokio::test]
async fn an_edit_of_the_mode_takes_the_old_one_down_when_the_new_one_is_there() {
    let mut agent = Agent::start();
    agent.list(assignment(|_| {})).await;
    agent.tell([Event::Addresses(Vec::new())]).await;
    agent.until("programmed", State::is_programmed).await;
    agent.v4.lock().unwrap().calls.clear();
    let kernel = |agent: &Agent, family| Arc::clone(&agent.nftables.lock().unwrap()[&family]);
    let v4 = kernel(&agent, Family::V4);
    // What an agent before this one may have left in the other mode.
    assert_eq!(std::mem::take(&mut v4.lock().unwrap().calls), ["teardown"]);

    // One family cannot be written in the new mode: there the old one stays.
    v4.lock().unwrap().fail_sync = true;
    let edited = assignment(|spec| spec.mode = Mode::NFTables);
    agent.tell([Event::Assignment(edited)]).await;
    let state = agent
        .until("one family failed", |state| state.failures().count() == 1)
        .await;
    assert_eq!(state.mode.unwrap().0, Mode::NFTables);
    assert!(agent.v4.lock().unwrap().calls.is_empty(), "it still forwards");
    assert_eq!(sizes(&agent.v4), [1]);
    // And it follows changes as long as it has to.
    agent.tell([endpoints(&[1, 2, 3])]).await;
    agent.until("three endpoints", |state| state.endpoints == 3).await;
    let mut tries = 0;
    while sizes(&agent.v4) != [3] {
        tries += 1;
        assert!(tries < 100, "the old mode does not follow changes");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    agent.v4.lock().unwrap().calls.clear();
    v4.lock().unwrap().fail_sync = false;
    agent
        .until("both are there", |state| {
            state.failures().count() == 0 && state.pending_since.is_none()
        })
        .await;
    agent.tell([endpoints(&[1, 2])]).await;
    agent
        .until("a change", |state| {
            state.endpoints == 2 && state.pending_since.is_none()
        })
        .await;
    assert_eq!(agent.v4.lock().unwrap().calls, ["teardown"]);
    assert_eq!(v4.lock().unwrap().calls.last(), Some(&"apply"));
}

#[tokio::test]
async fn auto_asks_the_kernel_once_and_keeps_its_answer() {
    let asked = Arc::new(Mutex::new(0));
    let count = Arc::clone(&asked);
    let mut agent = Agent::on(move |_| {
        *count.lock().unwrap() += 1;
        Capability::Full
    });
    agent.list(assignment(|_| {})).await;
    agent.tell([Event::Addresses(Vec::new())]).await;
    let (mode, why) = agent
        .until("programmed", State::is_programmed)
        .await
        .mode
        .unwrap();
    assert_eq!(mode, Mode::NFTables);
    assert!(why.unwrap().starts_with("Auto chose NFTables"));
    let once = *asked.lock().unwrap();
    assert_eq!(once, families().len());
    // What an agent before this one may have left in mode IPTables goes.
    assert_eq!(agent.v4.lock().unwrap().calls, ["teardown"]);

    for mode in [Mode::IPTables, Mode::Auto] {
        agent
            .tell([Event::Assignment(assignment(|spec| spec.mode = mode))])
            .await;
        let wanted = if mode == Mode::Auto { Mode::NFTables } else { mode };
        agent
            .until("the other mode", |state| {
                state.mode.as_ref().is_some_and(|(runs, _)| *runs == wanted)
            })
            .await;
    }
    assert_eq!(*asked.lock().unwrap(), once, "asked again");
}

#[tokio::test]
async fn a_question_that_failed_is_asked_again_and_changes_no_mode_that_runs() {
    let busy = Arc::new(Mutex::new(true));
    let is_busy = Arc::clone(&busy);
    let mut agent = Agent::on(move |_| match *is_busy.lock().unwrap() {
        true => Capability::Undecided("Cannot allocate memory".into()),
        false => Capability::Full,
    });
    agent.list(assignment(|_| {})).await;
    agent.tell([Event::Addresses(Vec::new())]).await;
    let state = agent.until("programmed", State::is_programmed).await;
    let (mode, why) = state.mode.unwrap();
    assert_eq!(mode, Mode::NFTables);
    assert!(why.unwrap().contains("Cannot allocate memory"));
    *busy.lock().unwrap() = false;
    let decided = agent
        .until("an answer", |state| {
            let why = state.mode.as_ref().and_then(|(_, why)| why.as_deref());
            why.is_some_and(|why| why.starts_with("Auto chose NFTables"))
        })
        .await;
    assert!(decided.is_programmed());
    let v4 = Arc::clone(&agent.nftables.lock().unwrap()[&Family::V4]);
    assert_eq!(
        v4.lock()
            .unwrap()
            .calls
            .iter()
            .filter(|call| **call == "sync")
            .count(),
        1
    );
}

#[tokio::test]
async fn what_happens_in_tables_of_others_is_not_looked_at() {
    let mut agent = Agent::start();
    agent.list(assignment(|_| {})).await;
    agent.tell([Event::Addresses(Vec::new())]).await;
    agent.until("programmed", State::is_programmed).await;
    agent.v4.lock().unwrap().differs = true;
    agent.tell([touched(&["firewalld"])]).await;
    tokio::time::sleep(TOUCH_SETTLE * 3).await;
    assert!(!agent.v4.lock().unwrap().calls.contains(&"observe"));
    agent.tell([touched(&["firewalld", "pointsman"])]).await;
    agent.until("drift", |state| state.drift.is_some()).await;

    // Where the kernel lost count, anything may have happened.
    agent.v4.lock().unwrap().calls.clear();
    let lost = Event::RulesTouched {
        by: None,
        touched: Touched::Any,
    };
    agent.tell([lost]).await;
    for _ in 0..100 {
        if !agent.v4.lock().unwrap().calls.is_empty() {
            break;
        }
        tokio::time::sleep(TOUCH_SETTLE).await;
    }
    assert_eq!(agent.v4.lock().unwrap().calls, ["observe"]);
    let shown = agent.state.borrow().drift.is_some();
    assert!(shown, "others have not had the time to hear of it");
}

#[tokio::test]
async fn leftovers_of_a_kube_proxy_are_told_as_they_come_and_go() {
    let mut agent = Agent::start();
    agent.list(assignment(|_| {})).await;
    agent.tell([Event::Addresses(Vec::new())]).await;
    let state = agent.until("programmed", State::is_programmed).await;
    assert_eq!(
        (state.leftovers, agent.leftovers.lock().unwrap().looks),
        (None, 0)
    );
    let is = |wanted: Found| move |state: &State| state.leftovers.as_ref() == Some(&wanted);
    agent.until("a first look", is(Found::default())).await;

    let leftover = Leftover {
        family: Family::V4,
        place: Place::Table,
        before: Vec::new(),
        destinations: Vec::new(),
        more: 0,
        anywhere: Vec::new(),
    };
    let there = Found {
        rules: vec![leftover],
        unread: Vec::new(),
    };
    agent.leftovers.lock().unwrap().rules = there.clone();
    agent.tell([touched(&["firewalld", "kube-proxy"])]).await;
    agent.until("found", is(there)).await;
    let gauge = |value| format!("pointsman_agent_leftover_rules{{ip_family=\"IPv4\"}} {value}\n");
    assert!(agent.metrics.text().contains(&gauge(1)));

    // However often somebody changes them, they are looked at once in a while.
    let looks = agent.leftovers.lock().unwrap().looks;
    agent.leftovers.lock().unwrap().rules = Found::default();
    agent.tell((0..50).map(|_| touched(&["nat"]))).await;
    agent.until("gone", is(Found::default())).await;
    assert!(agent.leftovers.lock().unwrap().looks < looks + 10);
    assert!(agent.metrics.text().contains(&gauge(0)));
    assert!(
        !agent.v4.lock().unwrap().calls.contains(&"observe"),
        "ours were not touched"
    );

    agent.tell([Event::Assignment(None)]).await;
    agent
        .until("nothing to do", |state| state.leftovers.is_none())
        .await;
}

#[tokio::test]
async fn a_change_is_applied_and_not_synced() {
    let mut agent = Agent::start();
    agent.list(assignment(|_| {})).await;
    agent.tell([Event::Addresses(Vec::new())]).await;
    agent.until("programmed", State::is_programmed).await;
    agent.tell([endpoints(&[1, 2, 3])]).await;
    agent
        .until("three endpoints", |state| {
            state.endpoints == 3 && state.pending_since.is_none()
        })
        .await;
    assert_eq!(agent.v4.lock().unwrap().calls, ["sync", "apply"]);
    assert_eq!(sizes(&agent.v4), [3]);
}

#[tokio::test]
async fn a_failed_change_is_followed_by_a_full_sync() {
    let mut agent = Agent::start();
    agent.list(assignment(|_| {})).await;
    agent.tell([Event::Addresses(Vec::new())]).await;
    agent.until("programmed", State::is_programmed).await;
    agent.v4.lock().unwrap().fail_apply = true;
    agent.tell([endpoints(&[1, 2])]).await;
    agent
        .until("two endpoints", |state| {
            state.endpoints == 2 && state.pending_since.is_none()
        })
        .await;
    assert_eq!(agent.v4.lock().unwrap().calls, ["sync", "apply", "sync"]);
    assert_eq!(sizes(&agent.v4), [2]);
}

#[tokio::test]
async fn a_family_that_fails_is_tried_again_and_does_not_hold_the_other_up() {
    let mut agent = Agent::start();
    agent.v6.lock().unwrap().fail_sync = true;
    agent.list(assignment(|_| {})).await;
    agent.tell([Event::Addresses(Vec::new())]).await;
    let failed = |state: &State| {
        state
            .failures()
            .any(|(family, why)| family == Family::V6 && why.contains("busy"))
    };
    let state = agent.until("IPv6 failed", failed).await;
    assert_eq!(
        (state.families[0].outcome.clone(), sizes(&agent.v4)),
        (Outcome::Applied, vec![1])
    );
    assert_eq!(state.applied_revision, None);
    assert!(
        state.pending_since.is_some(),
        "health checks have to see for how long it fails"
    );
    agent.v6.lock().unwrap().fail_sync = false;
    agent
        .until("both applied", |state| {
            state.is_programmed() && state.pending_since.is_none()
        })
        .await;
}

#[tokio::test]
async fn drift_is_repaired_and_reported_until_the_next_clean_check() {
    let mut agent = Agent::start();
    agent.list(assignment(|spec| spec.sync_period_seconds = 1)).await;
    agent.tell([Event::Addresses(Vec::new())]).await;
    agent.until("programmed", State::is_programmed).await;
    agent.v4.lock().unwrap().differs = true;
    agent.tell([touched(&["pointsman"])]).await;
    let state = agent.until("drift", |state| state.drift.is_some()).await;
    let drift = state.drift.unwrap();
    assert!(
        drift.contains("a chain is gone") && drift.contains("\"nft\""),
        "{drift}"
    );
    assert_eq!(agent.v4.lock().unwrap().calls, ["sync", "observe", "sync"]);
    agent.until("no drift", |state| state.drift.is_none()).await;
}

#[tokio::test]
async fn without_a_policy_the_rules_go_and_with_one_they_come_back() {
    let mut agent = Agent::start();
    agent.list(assignment(|_| {})).await;
    agent.tell([Event::Addresses(Vec::new())]).await;
    agent.until("programmed", State::is_programmed).await;
    agent.tell([Event::Assignment(None)]).await;
    agent
        .until("nothing in force", |state| state.assignment.is_none())
        .await;
    assert_eq!(agent.v4.lock().unwrap().calls, ["sync", "teardown"]);
    agent.tell([Event::Assignment(assignment(|_| {}))]).await;
    agent.until("programmed again", State::is_programmed).await;
    assert_eq!(sizes(&agent.v4), [1]);
}

#[tokio::test]
async fn a_new_list_that_names_the_policy_again_takes_nothing_down() {
    let mut agent = Agent::start();
    agent.list(assignment(|_| {})).await;
    agent.tell([Event::Addresses(Vec::new())]).await;
    agent.until("programmed", State::is_programmed).await;
    agent.tell([Event::ListBegins(Kind::Assignment)]).await;
    agent.tell([touched(&["pointsman"])]).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    agent
        .tell([
            Event::Assignment(assignment(|_| {})),
            Event::ListEnds(Kind::Assignment),
            endpoints(&[1, 2]),
        ])
        .await;
    agent
        .until("two endpoints", |state| {
            state.endpoints == 2 && state.pending_since.is_none()
        })
        .await;
    assert!(!agent.v4.lock().unwrap().calls.contains(&"teardown"));
    agent
        .tell([
            Event::ListBegins(Kind::Assignment),
            Event::ListEnds(Kind::Assignment),
        ])
        .await;
    agent
        .until("nothing in force", |state| state.assignment.is_none())
        .await;
}

#[tokio::test]
async fn settings_that_cannot_be_used_leave_the_old_ones_in_force() {
    let mut agent = Agent::start();
    agent.list(assignment(|_| {})).await;
    agent.tell([Event::Addresses(Vec::new())]).await;
    let before = agent.until("programmed", State::is_programmed).await;
    agent
        .tell([Event::Assignment(assignment(|spec| {
            spec.exclude_cidrs = vec!["ten".into()]
        }))])
        .await;
    let state = agent.until("rejected", |state| state.rejected.is_some()).await;
    assert!(state.rejected.unwrap().contains("excludeCIDRs"));
    assert_eq!(state.applied_revision, before.applied_revision);
    agent
        .tell([Event::Assignment(assignment(|spec| spec.masquerade_all = true))])
        .await;
    agent
        .until("accepted", |state| {
            state.rejected.is_none() && state.applied_revision != before.applied_revision
        })
        .await;
}

#[tokio::test]
async fn changes_are_gathered_for_the_minimum_period() {
    let mut agent = Agent::start();
    agent
        .list(assignment(|spec| spec.min_sync_period_milliseconds = 400))
        .await;
    agent.tell([Event::Addresses(Vec::new())]).await;
    agent.until("programmed", State::is_programmed).await;
    for last in 2..6 {
        agent.tell([endpoints(&[1, last])]).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    agent
        .until("two endpoints", |state| {
            state.endpoints == 2 && state.pending_since.is_none()
        })
        .await;
    assert_eq!(agent.v4.lock().unwrap().calls, ["sync", "apply"]);
}

fn service_cidr(range: &str) -> Event {
    let parsed = Parsed {
        object: Some(vec![range.parse().unwrap()]),
        problems: Vec::new(),
    };
    Event::ServiceCidr("kubernetes".into(), parsed)
}

#[tokio::test]
async fn the_ranges_of_cluster_ips_follow_their_objects_and_compile_nothing_anew() {
    let mut agent = Agent::start();
    agent.list(assignment(|_| {})).await;
    agent.tell([Event::Addresses(Vec::new())]).await;
    agent.until("programmed", State::is_programmed).await;
    assert!(agent.v4.lock().unwrap().service_cidrs.is_empty());
    // They come late, from a server that was upgraded, and nobody has to wait for them.
    agent
        .tell([
            Event::ListBegins(Kind::ServiceCidrs),
            service_cidr("10.96.0.0/16"),
            Event::ListEnds(Kind::ServiceCidrs),
        ])
        .await;
    let has_ranges = async {
        while agent.v4.lock().unwrap().service_cidrs.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), has_ranges)
        .await
        .expect("the ranges never came to the kernel");
    assert_eq!(agent.v4.lock().unwrap().calls, ["sync", "apply"]);
    // The same again is no change; another list without it is one.
    agent.tell([service_cidr("10.96.0.0/16")]).await;
    agent
        .tell([
            Event::ListBegins(Kind::ServiceCidrs),
            Event::ListEnds(Kind::ServiceCidrs),
            endpoints(&[1, 2]),
        ])
        .await;
    agent.until("two endpoints", |state| state.endpoints == 2).await;
    assert!(agent.v4.lock().unwrap().service_cidrs.is_empty());
}

#[tokio::test]
async fn a_first_table_waits_for_service_cidrs_and_not_for_ever() {
    let mut agent = Agent::start();
    use Kind::{Assignment as Policy, Node, Services, Slices};
    agent
        .tell([Services, Slices, Node, Policy].map(Event::ListBegins))
        .await;
    agent
        .tell([web(1), endpoints(&[1]), Event::Assignment(assignment(|_| {}))])
        .await;
    agent
        .tell([Services, Slices, Node, Policy].map(Event::ListEnds))
        .await;
    agent.tell([Event::Addresses(Vec::new())]).await;
    agent.until("listed", |state| state.listed).await;
    assert!(
        agent.v4.lock().unwrap().calls.is_empty(),
        "the ranges are still to come"
    );
    agent.until("programmed without them", State::is_programmed).await;
    assert_eq!(sizes(&agent.v4), [1]);
}

#[tokio::test]
async fn health_checks_are_published_when_they_change_and_at_no_other_time() {
    let balanced = |name: &str, check: Option<u16>| {
        let Event::Service(_, mut parsed) = web(9) else {
            unreachable!()
        };
        let name = ServiceName::new("default", name);
        let service = parsed.object.as_mut().unwrap();
        service.name = name.clone();
        service.health_check_port = check;
        Event::Service(name, parsed)
    };
    let mut agent = Agent::start();
    agent.list(assignment(|_| {})).await;
    agent.tell([Event::Addresses(Vec::new())]).await;
    agent.until("programmed", State::is_programmed).await;
    agent.checks.borrow_and_update();
    agent.tell([balanced("plain", None)]).await;
    agent.until("two Services", |state| state.services == 2).await;
    assert!(!agent.checks.has_changed().unwrap(), "a Service without a port");
    agent.tell([balanced("checked", Some(31_000))]).await;
    agent.until("three Services", |state| state.services == 3).await;
    assert!(agent.checks.has_changed().unwrap());
    assert_ne!(*agent.checks.borrow_and_update(), HealthChecks::default());
    agent.tell([endpoints(&[1, 2])]).await;
    agent.until("two endpoints", |state| state.endpoints == 2).await;
    assert!(
        !agent.checks.has_changed().unwrap(),
        "endpoints of a Service without a port"
    );
    agent.tell([Event::Assignment(None)]).await;
    agent
        .until("nothing in force", |state| state.assignment.is_none())
        .await;
    assert_eq!(
        *agent.checks.borrow_and_update(),
        HealthChecks::default(),
        "what forwards nothing has no health checks to answer"
    );
}

#[tokio::test]
async fn health_checks_that_cannot_be_answered_are_among_the_problems() {
    let mut agent = Agent::start();
    agent.list(assignment(|_| {})).await;
    agent
        .tell([
            Event::Addresses(Vec::new()),
            Event::Unserved(vec!["port 31000 is taken".into()]),
        ])
        .await;
    let state = agent.until("a problem", |state| state.problems.0 == 1).await;
    assert_eq!(state.problems.1, ["port 31000 is taken"]);
    agent.tell([Event::Unserved(Vec::new())]).await;
    agent.until("no problem", |state| state.problems.0 == 0).await;
}

/// The value of a sample of the metrics.
fn sample(agent: &Agent, name: &str) -> Option<f64> {
    let text = agent.metrics.text();
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test]
async fn the_time_from_a_change_of_endpoints_to_the_kernel_is_counted_once() {
    let at = |event: Event, at: std::time::SystemTime| match event {
        Event::Slice(name, parsed, _) => Event::Slice(name, parsed, Some(at)),
        other => other,
    };
    let now = std::time::SystemTime::now;
    let count = "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"}";
    let mut agent = Agent::start();
    agent.tell([Event::ListBegins(Kind::Slices)]).await;
    agent.tell([at(endpoints(&[1, 2]), now())]).await;
    agent.list(assignment(|_| {})).await;
    agent.tell([Event::Addresses(Vec::new())]).await;
    agent.until("programmed", State::is_programmed).await;
    assert_eq!(
        sample(&agent, count),
        None,
        "the first list is older than the agent"
    );
    agent.v4.lock().unwrap().fail_apply = true;
    agent.v4.lock().unwrap().fail_sync = true;
    agent.tell([at(endpoints(&[1, 2, 3]), now())]).await;
    agent
        .until("IPv4 failed", |state| state.failures().next().is_some())
        .await;
    assert_eq!(sample(&agent, count), None, "the kernel does not have it yet");
    agent.v4.lock().unwrap().fail_sync = false;
    agent
        .until("IPv4 works", |state| {
            state.failures().next().is_none() && state.pending_since.is_none()
        })
        .await;
    assert_eq!(sample(&agent, count), Some(1.0));
    agent.tell([at(endpoints(&[1, 2, 3]), now())]).await;
    agent
        .tell([at(endpoints(&[1]), now() - Duration::from_secs(3600))])
        .await;
    agent.tell([endpoints(&[1, 2, 3, 4])]).await;
    agent
        .until("four endpoints", |state| {
            state.endpoints == 4 && state.pending_since.is_none()
        })
        .await;
    assert_eq!(
        sample(&agent, count),
        Some(1.0),
        "no change, one from before the agent, one without a time"
    );
    let changes = "kubeproxy_sync_proxy_rules_endpoint_changes";
    assert_eq!(sample(&agent, &format!("{changes}_pending")), Some(0.0));
    assert!(sample(&agent, &format!("{changes}_total")) >= Some(4.0));
}

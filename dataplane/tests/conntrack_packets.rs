//! Clients that go on sending while Services change, in namespaces of the test's own, in both families. Tests that are
//! named after an issue show what it is about (github.com/kubernetes/kubernetes/issues).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by failing"
)]

mod support;

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use pointsman_dataplane::conntrack::{Cleaner, Ctnetlink, Entry, Filter, Progress};
use pointsman_dataplane::iptables::Variant;
use pointsman_dataplane::model::{
    Endpoint, EndpointPort, EndpointSlice, Family, Protocol, Service, TrafficPolicy, Weight, compile,
};

use support::namespace::Namespace;
use support::node::{Mode, NODE_PORT, Node, PORT, TARGET};
use support::talk::{Connection, receive, serve};

/// Makes a test of each function, for each family.
macro_rules! in_both_families {
    ($($name:ident)*) => {
        mod v4 { $(#[test] fn $name() { super::$name(super::Site::new(super::Family::V4)); })* }
        mod v6 { $(#[test] fn $name() { super::$name(super::Site::new(super::Family::V6)); })* }
    };
}

in_both_families! {
    issue_48370_an_endpoint_is_replaced
    an_endpoint_that_terminates_keeps_its_flows_while_it_serves
    an_endpoint_with_weight_0_keeps_its_flows
    issue_105657_endpoints_get_ready
    issue_113250_the_endpoint_moves_to_another_node
    issue_122740_a_restart_keeps_what_is_good
    issue_139628_the_last_endpoint_goes
    issue_141371_the_service_is_deleted
    the_target_port_changes
    the_node_port_changes
    the_load_balancer_ip_goes
    node_ports_answer_on_another_address
    the_policy_leaves_the_endpoint_out
    clients_are_sent_to_the_pods_directly
    more_endpoints_disturb_nobody
    what_is_not_of_a_service_stays
    what_is_in_another_zone_stays
    rules_that_somebody_flushed_come_back
    tcp_goes_on_when_nobody_asks_for_resets
    tcp_is_reset_when_the_endpoint_is_gone_and_not_before
    tcp_is_reset_when_no_endpoint_is_left
}

const PATIENCE: Duration = Duration::from_secs(10);

/// A node with a cleaner, as the agent drives it.
struct Site {
    node: Node,
    cleaner: Cleaner,
    /// How many entries each walk deleted.
    walks: mpsc::Receiver<u64>,
}

/// Starts a cleaner's thread on the node.
fn cleaner(host: &Namespace) -> (Cleaner, mpsc::Receiver<u64>) {
    let (cleaner, worker) = Cleaner::new();
    let (walked, walks) = mpsc::channel();
    let host = host.clone();
    thread::spawn(move || {
        host.enter();
        worker.run(|cleaned| {
            // A test that is over listens no more.
            let _ = walked.send(cleaned.deleted.values().sum());
        });
    });
    (cleaner, walks)
}

impl Site {
    fn new(family: Family) -> Self {
        let node = Node::new(Mode::Iptables(Variant::Nft), family);
        let (cleaner, walks) = cleaner(&node.host);
        let mut site = Self { node, cleaner, walks };
        site.sync(&[]);
        site
    }

    fn endpoint(&self, address: IpAddr) -> Endpoint {
        Endpoint {
            address,
            ready: true,
            serving: true,
            terminating: false,
            local: address == self.node.at.pod,
            unplaced: false,
            for_nodes: None,
            common: None,
        }
    }

    /// Notes a Service in the table.
    fn set(&mut self, service: &Service, target: u16, endpoints: Vec<Endpoint>) {
        let ports = service.ports.iter().map(|port| EndpointPort {
            name: Arc::clone(&port.name),
            protocol: port.protocol,
            port: target,
        });
        let slice = EndpointSlice {
            family: self.node.family,
            ports: ports.collect(),
            endpoints,
        };
        let compiled = compile(service, [&slice], self.node.table.context());
        self.node.table.set(compiled, &mut self.node.diff);
    }

    /// Brings the kernel to the table, as the agent does after a change.
    fn apply(&mut self) {
        self.cleaner.changing(&self.node.table, &self.node.diff);
        self.node.apply();
        self.cleaner.written(self.node.family);
    }

    /// The same as it does when it begins.
    fn sync(&mut self, foreign: &[IpAddr]) {
        self.cleaner.changing(&self.node.table, &self.node.diff);
        self.node.sync();
        let foreign: HashSet<_> = foreign.iter().copied().collect();
        self.cleaner
            .written_all(&self.node.table, self.node.family, foreign);
        self.walked();
    }

    /// The Service `web` has these endpoints.
    fn serve(&mut self, service: &Service, addresses: &[IpAddr]) {
        let endpoints = addresses.iter().map(|address| self.endpoint(*address)).collect();
        self.set(service, TARGET, endpoints);
        self.apply();
    }

    fn web(&self) -> Service {
        self.node.service("web")
    }

    /// Waits for a walk, gives how many entries it deleted.
    fn walked(&self) -> u64 {
        self.walks
            .recv_timeout(PATIENCE)
            .expect("a walk over the entries")
    }

    /// Waits until no walk is under way any more: changes that come quickly are gathered, and not every one needs one.
    fn rest(&self) {
        while self.walks.recv_timeout(Duration::from_secs(1)).is_ok() {}
    }

    /// Waits until walks have deleted so many entries, gives how many they were.
    fn walked_until(&self, deleted: u64) -> u64 {
        let mut sum = 0;
        while sum < deleted {
            sum += self.walked();
        }
        sum
    }

    fn flow(&self, address: IpAddr, port: u16) -> Flow {
        Flow::begin(&self.node.client, SocketAddr::new(address, port))
    }

    fn entries(&self) -> Vec<Entry> {
        self.node.host.run(|| {
            let mut kernel = Ctnetlink::open().unwrap();
            let mut found = Vec::new();
            kernel.walk(&Filter::default()).unwrap();
            while kernel.receive(|entry| found.push(entry)).unwrap() == Progress::Goes {}
            found
        })
    }

    /// The entry of a flow.
    fn entry(&self, flow: &Flow) -> Option<Entry> {
        let of_flow = |entry: &Entry| {
            entry.original.source.port() == flow.port && entry.original.destination == flow.to.into()
        };
        self.entries().into_iter().find(of_flow)
    }
}

/// What a client hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    From(IpAddr),
    Refused,
    Nothing,
}

/// A client that never pauses, so that its entry never ends by itself.
struct Flow {
    to: SocketAddr,
    port: u16,
    heard: Arc<(Mutex<Vec<Heard>>, Condvar)>,
    over: Arc<AtomicBool>,
}

impl Flow {
    fn begin(from: &Namespace, to: SocketAddr) -> Self {
        let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
        let socket = from.run(|| UdpSocket::bind(any)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        socket.connect(to).unwrap();
        let flow = Self {
            to,
            port: socket.local_addr().unwrap().port(),
            heard: Arc::default(),
            over: Arc::default(),
        };
        let (heard, over) = (Arc::clone(&flow.heard), Arc::clone(&flow.over));
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while !over.load(Ordering::Relaxed) {
                let answer = socket.send(b"?").and_then(|_| receive(&socket, &mut buffer));
                let now = match answer {
                    Ok(length) => {
                        let text = std::str::from_utf8(&buffer[..length]).unwrap();
                        Heard::From(text.split(' ').next().unwrap().parse().unwrap())
                    }
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Heard::Refused,
                    Err(_) => Heard::Nothing,
                };
                heard.0.lock().unwrap().push(now);
                heard.1.notify_all();
                thread::sleep(Duration::from_millis(2));
            }
        });
        flow
    }

    /// Waits until what is heard from now on fits; fails when it does not.
    fn until(&self, what: &str, fits: impl Fn(Heard) -> bool) -> Heard {
        let begin = Instant::now();
        let mut heard = self.heard.0.lock().unwrap();
        // An answer may have been on its way.
        let mut seen = heard.len() + 1;
        loop {
            if let Some(now) = heard
                .get(seen..)
                .and_then(|new| new.iter().find(|now| fits(**now)))
            {
                return *now;
            }
            seen = seen.max(heard.len());
            let last = heard.iter().rev().take(5).collect::<Vec<_>>();
            let left = PATIENCE.checked_sub(begin.elapsed());
            let left = left.unwrap_or_else(|| panic!("{} never hears {what}; last {last:?}", self.to));
            heard = self.heard.1.wait_timeout(heard, left).unwrap().0;
        }
    }

    fn until_from(&self, who: IpAddr) {
        self.settles(Heard::From(who));
    }

    fn until_refused(&self) {
        self.until("a refusal", |heard| heard == Heard::Refused);
    }

    fn until_nothing(&self) {
        self.settles(Heard::Nothing);
    }

    /// Waits until anybody answers, and says who.
    fn anybody(&self) -> IpAddr {
        match self.until("an answer", |heard| matches!(heard, Heard::From(_))) {
            Heard::From(who) => who,
            _ => unreachable!(),
        }
    }

    /// Waits until nothing else than this is heard, five times in a row. Not the first time: on a busy machine an
    /// answer may come too late once.
    fn settles(&self, expected: Heard) {
        let begin = Instant::now();
        let mut heard = self.heard.0.lock().unwrap();
        // An answer may have been on its way.
        let first = heard.len() + 1;
        loop {
            let new = heard.get(first..).unwrap_or_default();
            if new.len() >= 5 && new.iter().rev().take(5).all(|now| *now == expected) {
                return;
            }
            let last = new.iter().rev().take(5).collect::<Vec<_>>();
            let left = PATIENCE.checked_sub(begin.elapsed());
            let left =
                left.unwrap_or_else(|| panic!("{} does not settle on {expected:?}; last {last:?}", self.to));
            heard = self.heard.1.wait_timeout(heard, left).unwrap().0;
        }
    }

    /// It goes on: five more answers, and none from anybody else. One that comes too late on a busy machine is no
    /// answer.
    fn goes_on(&self, expected: Heard) {
        let begin = Instant::now();
        let mut heard = self.heard.0.lock().unwrap();
        let first = heard.len() + 1;
        loop {
            let new = heard.get(first..).unwrap_or_default();
            let answers = new.iter().filter(|now| **now != Heard::Nothing);
            assert!(answers.clone().all(|now| *now == expected), "{new:?}");
            if answers.count() >= 5 {
                return;
            }
            let left = PATIENCE.checked_sub(begin.elapsed());
            let left = left.unwrap_or_else(|| panic!("{} hears {new:?}", self.to));
            heard = self.heard.1.wait_timeout(heard, left).unwrap().0;
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn issue_48370_an_endpoint_is_replaced(mut site: Site) {
    let (web, [first, second, _]) = (site.web(), site.node.at.servers);
    site.serve(&web, &[first]);
    let at = [
        (site.node.at.vip, PORT),
        (site.node.at.external, PORT),
        (site.node.at.balanced, PORT),
        (site.node.at.node, NODE_PORT),
    ];
    let flows = at.map(|(address, port)| site.flow(address, port));
    for flow in &flows {
        flow.until_from(first);
    }
    site.serve(&web, &[second]);
    for flow in &flows {
        flow.until_from(second);
    }
}

fn an_endpoint_that_terminates_keeps_its_flows_while_it_serves(mut site: Site) {
    let (web, [first, second, _]) = (site.web(), site.node.at.servers);
    site.serve(&web, &[first]);
    let flow = site.flow(site.node.at.vip, PORT);
    flow.until_from(first);
    let mut ending = site.endpoint(first);
    for serving in [true, false] {
        (ending.ready, ending.serving, ending.terminating) = (false, serving, true);
        site.set(&web, TARGET, vec![ending.clone(), site.endpoint(second)]);
        site.apply();
        if serving {
            let new = site.flow(site.node.at.vip, PORT);
            new.until_from(second);
            flow.goes_on(Heard::From(first));
        } else {
            flow.until_from(second);
        }
    }
}

fn an_endpoint_with_weight_0_keeps_its_flows(mut site: Site) {
    let (web, [first, second, _]) = (site.web(), site.node.at.servers);
    site.serve(&web, &[first]);
    let flow = site.flow(site.node.at.vip, PORT);
    flow.until_from(first);
    let weighing =
        |site: &Site, address, weight| site.endpoint(address).weighing(Weight::Given(Some(weight)));
    for weights in [[3, 1], [0, 1]] {
        let endpoints = [first, second].into_iter().zip(weights);
        let endpoints = endpoints.map(|(address, weight)| weighing(&site, address, weight));
        site.set(&web, TARGET, endpoints.collect());
        site.apply();
        flow.goes_on(Heard::From(first));
    }
    let new = site.flow(site.node.at.vip, PORT);
    new.until_from(second);
    flow.goes_on(Heard::From(first));
    // It is gone, and no longer at rest.
    site.set(&web, TARGET, vec![weighing(&site, second, 1)]);
    site.apply();
    flow.until_from(second);
}

fn issue_105657_endpoints_get_ready(mut site: Site) {
    let (web, [server, ..]) = (site.web(), site.node.at.servers);
    // The client is there before the Service: its datagrams go wherever the node's routes lead.
    let flow = site.flow(site.node.at.vip, PORT);
    flow.until_nothing();
    assert!(!site.entry(&flow).unwrap().is_translated());
    let mut unready = site.endpoint(server);
    (unready.ready, unready.serving) = (false, false);
    site.set(&web, TARGET, vec![unready]);
    site.apply();
    flow.until_refused();
    site.serve(&web, &[server]);
    flow.until_from(server);
}

fn issue_113250_the_endpoint_moves_to_another_node(mut site: Site) {
    let (mut web, [remote, ..], pod) = (site.web(), site.node.at.servers, site.node.at.pod);
    web.external_policy = TrafficPolicy::Local;
    site.serve(&web, &[pod, remote]);
    let flows = [
        site.flow(site.node.at.node, NODE_PORT),
        site.flow(site.node.at.balanced, PORT),
    ];
    for flow in &flows {
        flow.until_from(pod);
    }
    site.serve(&web, &[remote]);
    for flow in &flows {
        flow.until_nothing();
    }
    site.serve(&web, &[remote, pod]);
    for flow in &flows {
        flow.until_from(pod);
    }
}

fn issue_122740_a_restart_keeps_what_is_good(mut site: Site) {
    let (web, servers, vip) = (site.web(), site.node.at.servers, site.node.at.vip);
    let mut gone = site.node.service("gone");
    let second_vip = match vip {
        IpAddr::V4(_) => "10.96.0.20".parse().unwrap(),
        IpAddr::V6(_) => "fd00:96::20".parse().unwrap(),
    };
    gone.cluster_ips = vec![second_vip];
    gone.external_ips.clear();
    gone.load_balancer_ips.clear();
    gone.ports.iter_mut().for_each(|port| port.node_port = None);
    site.serve(&gone, &[servers[0]]);
    site.serve(&web, &servers);
    site.rest();
    // Clients of every server, so that there is one of that which goes.
    let mut flows: Vec<(Flow, IpAddr)> = Vec::new();
    while servers
        .iter()
        .any(|server| flows.iter().all(|(_, who)| who != server))
    {
        let flow = site.flow(vip, PORT);
        let who = flow.anybody();
        flows.push((flow, who));
    }
    let orphan = site.flow(second_vip, PORT);
    orphan.until_from(servers[0]);
    let direct = site.flow(servers[0], TARGET);
    direct.until_from(servers[0]);
    let ids = |site: &Site, flows: &[(Flow, IpAddr)]| -> Vec<_> {
        let of_flow =
            |(flow, who): &(Flow, IpAddr)| (site.entry(flow).map(|entry| (entry.id, entry.reply)), *who);
        flows.iter().map(of_flow).collect()
    };
    let before = ids(&site, &flows);

    // The agent comes back to a cluster in which one endpoint is gone, and one Service.
    let (cleaner, walks) = cleaner(&site.node.host);
    (site.cleaner, site.walks) = (cleaner, walks);
    site.node.table = Default::default();
    let mut context = site.node.context(Default::default());
    let range = if vip.is_ipv4() {
        "10.96.0.0/16"
    } else {
        "fd00:96::/112"
    };
    context.service_cidrs = vec![range.parse().unwrap()];
    site.node.table.set_context(context, &mut site.node.diff);
    let endpoints = servers[1..]
        .iter()
        .map(|address| site.endpoint(*address))
        .collect();
    site.set(&web, TARGET, endpoints);
    site.node.restart();
    let direct_id = site.entry(&direct).unwrap().id;
    site.sync(&[]);

    for (flow, who) in &flows {
        if *who == servers[0] {
            flow.until(
                "another server",
                |heard| matches!(heard, Heard::From(now) if now != servers[0]),
            );
        } else {
            flow.goes_on(Heard::From(*who));
        }
    }
    orphan.until_nothing();
    let after = ids(&site, &flows);
    for (before, after) in before.iter().zip(after) {
        assert_eq!(
            *before == after,
            before.1 != servers[0],
            "only what was stale is new"
        );
    }
    assert_eq!(site.entry(&direct).unwrap().id, direct_id);
}

fn issue_139628_the_last_endpoint_goes(mut site: Site) {
    let (web, [server, ..]) = (site.web(), site.node.at.servers);
    site.serve(&web, &[server]);
    let flows = [
        site.flow(site.node.at.vip, PORT),
        site.flow(site.node.at.balanced, PORT),
        site.flow(site.node.at.node, NODE_PORT),
    ];
    for flow in &flows {
        flow.until_from(server);
    }
    site.serve(&web, &[]);
    for flow in &flows {
        flow.until_refused();
    }
    site.serve(&web, &[server]);
    for flow in &flows {
        flow.until_from(server);
    }
}

fn issue_141371_the_service_is_deleted(mut site: Site) {
    let (web, [server, ..]) = (site.web(), site.node.at.servers);
    site.serve(&web, &[server]);
    let flows = [
        site.flow(site.node.at.vip, PORT),
        site.flow(site.node.at.external, PORT),
    ];
    let node_port = site.flow(site.node.at.node, NODE_PORT);
    for flow in flows.iter().chain([&node_port]) {
        flow.until_from(server);
    }
    site.node.table.remove(&web.name, &mut site.node.diff);
    site.apply();
    for flow in &flows {
        flow.until_nothing();
    }
    // Nobody listens there.
    node_port.until_refused();
}

fn the_target_port_changes(mut site: Site) {
    let (web, [server, ..]) = (site.web(), site.node.at.servers);
    serve(&site.node.servers, SocketAddr::new(server, TARGET + 1));
    site.serve(&web, &[server]);
    let flow = site.flow(site.node.at.vip, PORT);
    flow.until_from(server);
    assert_eq!(site.entry(&flow).unwrap().reply.source.port(), TARGET);
    let endpoints = vec![site.endpoint(server)];
    site.set(&web, TARGET + 1, endpoints);
    site.apply();
    assert_eq!(site.walked_until(1), 1);
    flow.until_from(server);
    assert_eq!(site.entry(&flow).unwrap().reply.source.port(), TARGET + 1);
}

fn the_node_port_changes(mut site: Site) {
    let (mut web, [server, ..]) = (site.web(), site.node.at.servers);
    site.serve(&web, &[server]);
    let (old, new) = (
        site.flow(site.node.at.node, NODE_PORT),
        site.flow(site.node.at.node, NODE_PORT + 1),
    );
    old.until_from(server);
    new.until_refused();
    let vip = site.flow(site.node.at.vip, PORT);
    vip.until_from(server);
    let id = site.entry(&vip).unwrap().id;
    web.ports
        .iter_mut()
        .for_each(|port| port.node_port = Some(NODE_PORT + 1));
    site.serve(&web, &[server]);
    old.until_refused();
    new.until_from(server);
    assert_eq!(
        site.entry(&vip).unwrap().id,
        id,
        "nothing changed for the ClusterIP"
    );
}

fn the_load_balancer_ip_goes(mut site: Site) {
    let (mut web, [server, ..]) = (site.web(), site.node.at.servers);
    site.serve(&web, &[server]);
    let (balanced, vip) = (
        site.flow(site.node.at.balanced, PORT),
        site.flow(site.node.at.vip, PORT),
    );
    balanced.until_from(server);
    vip.until_from(server);
    let id = site.entry(&vip).unwrap().id;
    web.load_balancer_ips.clear();
    site.serve(&web, &[server]);
    balanced.until_nothing();
    assert_eq!(site.entry(&vip).unwrap().id, id);
}

fn node_ports_answer_on_another_address(mut site: Site) {
    let (web, [server, ..]) = (site.web(), site.node.at.servers);
    site.serve(&web, &[server]);
    let (old, new) = (
        site.flow(site.node.at.node, NODE_PORT),
        site.flow(site.node.at.node_to_servers, NODE_PORT),
    );
    old.until_from(server);
    new.until_refused();
    let mut context = site.node.context(Default::default());
    context.node.internal_ips = vec![site.node.at.node_to_servers];
    site.node.table.set_context(context, &mut site.node.diff);
    site.serve(&web, &[server]);
    old.until_refused();
    new.until_from(server);
}

fn the_policy_leaves_the_endpoint_out(mut site: Site) {
    let (mut web, [remote, ..], pod) = (site.web(), site.node.at.servers, site.node.at.pod);
    site.serve(&web, &[remote]);
    let flow = site.flow(site.node.at.vip, PORT);
    flow.until_from(remote);
    web.internal_policy = TrafficPolicy::Local;
    site.serve(&web, &[remote, pod]);
    flow.until_from(pod);
    site.serve(&web, &[remote]);
    flow.until_nothing();
}

fn clients_are_sent_to_the_pods_directly(mut site: Site) {
    let (mut web, [server, ..]) = (site.web(), site.node.at.servers);
    site.serve(&web, &[server]);
    let flow = site.flow(site.node.at.vip, PORT);
    flow.until_from(server);
    web.direct_access = true;
    site.serve(&web, &[server]);
    flow.until_refused();
}

fn more_endpoints_disturb_nobody(mut site: Site) {
    let (web, servers) = (site.web(), site.node.at.servers);
    site.serve(&web, &servers[..1]);
    let flow = site.flow(site.node.at.vip, PORT);
    flow.until_from(servers[0]);
    site.rest();
    let id = site.entry(&flow).unwrap().id;
    site.serve(&web, &servers);
    // The next change that needs a walk looks at these frontends, too.
    let mut other = site.node.service("other");
    other.cluster_ips = site.web().load_balancer_ips;
    other.ports.iter_mut().for_each(|port| {
        port.node_port = None;
        port.port = 99;
    });
    (other.external_ips, other.load_balancer_ips) = (Vec::new(), Vec::new());
    site.serve(&other, &servers);
    assert_eq!(site.walked(), 0);
    flow.goes_on(Heard::From(servers[0]));
    assert_eq!(site.entry(&flow).unwrap().id, id);
    assert!(site.walks.try_recv().is_err(), "one walk, for the new frontend");
}

fn what_is_not_of_a_service_stays(mut site: Site) {
    let (web, [first, second, _]) = (site.web(), site.node.at.servers);
    site.serve(&web, &[first]);
    let direct = [site.flow(first, TARGET), site.flow(second, TARGET)];
    let elsewhere = site.flow(site.node.at.vip, PORT + 1);
    let flow = site.flow(site.node.at.vip, PORT);
    flow.until_from(first);
    direct[0].until_from(first);
    direct[1].until_from(second);
    elsewhere.until_refused();
    let before = direct.each_ref().map(|flow| site.entry(flow).unwrap().id);
    site.serve(&web, &[second]);
    flow.until_from(second);
    site.node.table.remove(&web.name, &mut site.node.diff);
    site.apply();
    flow.until_nothing();
    assert_eq!(before, direct.each_ref().map(|flow| site.entry(flow).unwrap().id));
}

fn what_is_in_another_zone_stays(mut site: Site) {
    let (web, [first, second, _]) = (site.web(), site.node.at.servers);
    site.serve(&web, &[first]);
    site.node
        .restore("*raw\n-A PREROUTING -p udp --dport 80 -j CT --zone 7\n-A PREROUTING -p udp --sport 8080 -j CT --zone 7\nCOMMIT\n");
    let (zoned, plain) = (
        site.flow(site.node.at.vip, PORT),
        site.flow(site.node.at.node, NODE_PORT),
    );
    zoned.until_from(first);
    // Its answers are looked for in the zone, and not found.
    plain.until_nothing();
    assert_eq!(site.entry(&zoned).unwrap().zone, 7);
    let id = site.entry(&zoned).unwrap().id;
    site.rest();
    site.serve(&web, &[second]);
    assert_eq!(site.walked_until(1), 1, "that of the default zone");
    zoned.goes_on(Heard::From(first));
    assert_eq!(site.entry(&zoned).unwrap().id, id);
}

fn rules_that_somebody_flushed_come_back(mut site: Site) {
    let (web, [server, ..]) = (site.web(), site.node.at.servers);
    site.serve(&web, &[server]);
    site.node.restore("*nat\n-F\n-X\nCOMMIT\n");
    let flow = site.flow(site.node.at.external, PORT);
    flow.until_nothing();
    site.rest();
    site.sync(&[]);
    flow.until_from(server);
}

fn tcp_goes_on_when_nobody_asks_for_resets(mut site: Site) {
    let (web, servers) = (site.web(), site.node.at.servers);
    site.serve(&web, &servers[..1]);
    let mut connection = Connection::open(&site.node.client, site.node.vip()).unwrap();
    let answer = connection.ask().unwrap();
    site.serve(&web, &servers[1..]);
    site.rest();
    assert_eq!(connection.ask().unwrap(), answer);
    site.serve(&web, &[]);
    site.rest();
    assert_eq!(connection.ask().unwrap(), answer);
}

/// Only TCP, with resets.
fn with_resets(site: &mut Site) -> Service {
    let mut context = site.node.context(Default::default());
    context.settings.reset_removed = true;
    site.node.table.set_context(context, &mut site.node.diff);
    let mut web = site.web();
    web.ports.truncate(1);
    assert_eq!(web.ports[0].protocol, Protocol::Tcp);
    web
}

fn tcp_is_reset_when_the_endpoint_is_gone_and_not_before(mut site: Site) {
    let web = with_resets(&mut site);
    let [first, second, _] = site.node.at.servers;
    site.serve(&web, &[first]);
    let at = [
        (site.node.at.vip, PORT),
        (site.node.at.balanced, PORT),
        (site.node.at.node, NODE_PORT),
    ];
    let mut connections = at.map(|(address, port)| {
        let mut connection = Connection::open(&site.node.client, SocketAddr::new(address, port)).unwrap();
        assert_eq!(connection.ask().unwrap().who, first);
        connection
    });
    let ended = |site: &Site, serving| {
        let mut ending = site.endpoint(first);
        (ending.ready, ending.serving, ending.terminating) = (false, serving, true);
        ending
    };
    for serving in [true, false] {
        let endpoints = vec![ended(&site, serving), site.endpoint(second)];
        site.set(&web, TARGET, endpoints);
        site.apply();
        for connection in &mut connections {
            assert_eq!(
                connection.ask().unwrap().who,
                first,
                "it terminates, and serves on"
            );
        }
    }
    site.rest();
    let mut stays = Connection::open(&site.node.client, site.node.vip()).unwrap();
    assert_eq!(stays.ask().unwrap().who, second);
    site.serve(&web, &[second]);
    assert_eq!(site.walked_until(3), 3);
    for connection in &mut connections {
        assert_eq!(
            connection.ask().unwrap_err().kind(),
            io::ErrorKind::ConnectionReset
        );
    }
    assert_eq!(stays.ask().unwrap().who, second);
}

fn tcp_is_reset_when_no_endpoint_is_left(mut site: Site) {
    let web = with_resets(&mut site);
    let [first, ..] = site.node.at.servers;
    site.serve(&web, &[first]);
    let mut connection = Connection::open(&site.node.client, site.node.vip()).unwrap();
    connection.ask().unwrap();
    site.rest();
    site.serve(&web, &[]);
    assert_eq!(site.walked_until(1), 1);
    assert_eq!(
        connection.ask().unwrap_err().kind(),
        io::ErrorKind::ConnectionReset
    );
}

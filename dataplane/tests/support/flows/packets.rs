//! The flow tables in packets: the files' objects through a backend into a node's kernel, and the files' packets from where
//! they say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::thread;
use std::time::Duration;

use pointsman_dataplane::backend::Backend;
use pointsman_dataplane::model::{Action, Destination, Family, ForwardingTable, Target, Verdict};

use super::super::network::Network;
use super::super::talk::Ending;
use super::families::Families;
use super::state::{Flow, Moment, State, said};
use super::words::From;
use super::world::{self, Place};
use super::{all, walk};

/// What programs the node.
#[derive(Clone, Copy)]
pub struct Mode {
    /// Makes the backend of one family; it may keep files in the folder.
    pub make: fn(Family, &Path) -> Box<dyn Backend>,
    /// Below /proc/sys/net: what it needs there.
    pub parameters: &'static [(&'static str, &'static str)],
    /// A Service's address is the node's own, so that a port of it that no Service has is refused; and clients are
    /// remembered for each address and port by itself.
    pub is_ipvs: bool,
}

/// A node whose kernel follows the table.
struct Node {
    network: Network,
    mode: Mode,
    folder: tempfile::TempDir,
    backends: Vec<Box<dyn Backend>>,
}

/// All files, with families as written or swapped.
pub fn all_files(mode: Mode, families: Families) {
    let mut node = Node {
        network: Network::new(),
        mode,
        folder: tempfile::tempdir().unwrap(),
        backends: Vec::new(),
    };
    for (name, value) in mode.parameters {
        node.network.host.sysctl(name, value);
    }
    let mut state = State::new(families);
    let mut wrong = node.restart(&state);
    for named in all() {
        let mut kept = Kept::new();
        wrong.extend(walk(&named, &mut state, |state, moment| {
            node.see(state, moment, &mut kept)
        }));
        // What the rules have become, change by change, is what they were meant to be.
        node.on_host(|backend| match backend.observe() {
            Ok(observed) if observed.is_clean() => (),
            Ok(observed) => wrong.push(format!(
                "{}.yaml ({families}), at its end: {observed}",
                named.name
            )),
            Err(error) => wrong.push(format!("{}.yaml ({families}), at its end: {error}", named.name)),
        });
        // No file finds what clients are remembered for another one's Services.
        state.clear();
        wrong.extend(node.apply(&mut state));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Who got the first packet of those that belong together by their word in `sticky`.
type Kept = BTreeMap<String, SocketAddr>;

/// For what is dropped. All other outcomes are waited for as long as it takes.
const DROPPED: Duration = Duration::from_millis(250);
const PATIENCE: Duration = Duration::from_secs(10);

/// How many addresses a crowd sends from.
const CROWD: usize = 200;

impl Node {
    fn on_host<T: Send>(&mut self, mut work: impl FnMut(&mut dyn Backend) -> T + Send) -> Vec<T> {
        let backends = &mut self.backends;
        self.network.host.run(|| {
            backends
                .iter_mut()
                .map(|backend| work(backend.as_mut()))
                .collect()
        })
    }

    /// New backends, which find what the old ones left, as after a restart of the agent. Gives errors.
    fn restart(&mut self, state: &State) -> Vec<String> {
        self.backends = Family::ALL
            .map(|family| (self.mode.make)(family, self.folder.path()))
            .into();
        let synced = self.on_host(|backend| backend.sync(&state.table));
        let failed = synced.into_iter().filter_map(Result::err);
        failed.map(|error| format!("cannot be synced: {error}")).collect()
    }

    /// Brings the kernel to the table. Gives errors.
    fn apply(&mut self, state: &mut State) -> Vec<String> {
        let diff = std::mem::take(&mut state.diff);
        let table = &state.table;
        let applied = self.on_host(|backend| backend.apply(table, &diff));
        let failed = applied.into_iter().filter_map(Result::err);
        failed
            .map(|error| format!("cannot be applied: {error}"))
            .collect()
    }

    /// What is expected of a flow in this mode.
    fn expected(&self, flow: Flow, table: &ForwardingTable) -> Flow {
        let is_owned = table.frontends().any(|(key, frontend)| {
            let balances = !matches!(frontend.action, Action::Reject | Action::Drop);
            key.destination == Destination::Address(flow.to.ip()) && balances
        });
        let is_the_nodes = world::place_of(flow.to.ip()) == Some(Place::Node);
        if !self.mode.is_ipvs {
            return flow;
        }
        let is_refused = is_owned && !is_the_nodes && flow.expect == Verdict::Pass;
        Flow {
            expect: if is_refused { Verdict::Reject } else { flow.expect },
            sticky: flow.sticky.map(|word| format!("{word} at {}", flow.to)),
            ..flow
        }
    }

    /// Sends a moment's packets. Gives those that ended otherwise than they should.
    fn see(&mut self, state: &mut State, moment: &Moment, kept: &mut Kept) -> Vec<String> {
        let mut wrong = moment.wrong.clone();
        wrong.extend(self.apply(state));
        let flows = moment.flows.iter().cloned();
        let flows: Vec<Flow> = flows.map(|flow| self.expected(flow, &state.table)).collect();
        let network = &self.network;
        for (key, pool) in state.table.pools() {
            for endpoint in &pool.endpoints {
                network.serve_endpoint(endpoint.address.into(), key.owner.protocol);
            }
        }
        for flow in &flows {
            if !matches!(flow.expect, Verdict::Balance(_)) {
                network.serve_untranslated(flow.to, flow.protocol);
            }
        }
        let mut borrowed = borrowed_addresses(&flows);
        borrowed.retain(|address| {
            let address = address.to_string();
            let words = ["ip", "route", "add", "local", &address, "dev", "lo"];
            let (added, _, why) = network.host.try_program(&words, "");
            // Where Services' addresses are the node's own, it can send from them already.
            assert!(
                added || (self.mode.is_ipvs && why.contains("File exists")),
                "{why}"
            );
            added
        });
        let (sticky, free): (Vec<&Flow>, Vec<&Flow>) = flows.iter().partition(|flow| flow.sticky.is_some());
        wrong.extend(send_free(&self.network, &free));
        if !sticky.is_empty() {
            wrong.extend(send_sticky(&self.network, &sticky, kept));
            // Clients stay where they are when everything is written again, and by another process.
            wrong.extend(self.restart(state));
            wrong.extend(send_sticky(&self.network, &sticky, kept));
        }
        for address in &borrowed {
            self.network.host.ip(&format!("route del local {address} dev lo"));
        }
        wrong
    }
}

/// All at once.
fn send_free(network: &Network, flows: &[&Flow]) -> Vec<String> {
    thread::scope(|scope| {
        let threads: Vec<_> = flows
            .iter()
            .map(|flow| scope.spawn(|| Probe::new(network, flow).free()))
            .collect();
        let ended = threads.into_iter().map(|thread| thread.join().unwrap());
        let ended = flows.iter().zip(ended);
        ended
            .filter_map(|(flow, found)| Some(said_of(flow, &found?)))
            .collect()
    })
}

/// One after the other: of two first packets at once each may get an endpoint of its own.
fn send_sticky(network: &Network, flows: &[&Flow], kept: &mut Kept) -> Vec<String> {
    let mut wrong = Vec::new();
    for flow in flows {
        let found = thread::scope(|scope| {
            let probe = || Probe::new(network, flow).sticky(kept);
            scope.spawn(probe).join().unwrap()
        });
        wrong.extend(found.map(|found| said_of(flow, &found)));
    }
    wrong
}

fn said_of(flow: &Flow, found: &str) -> String {
    format!("{flow}: expected {}, found {found}", said(&flow.expect))
}

/// Addresses that the node sends from for once, as it does where a load balancer IP is one of its own. By their routes
/// alone: an IPv6 address of an interface is usable only some time after it was added.
fn borrowed_addresses(flows: &[Flow]) -> BTreeSet<IpAddr> {
    flows
        .iter()
        .filter(|flow| flow.source.place == Place::Node)
        .filter_map(|flow| match flow.source.from {
            From::One(address) if world::place_of(address).is_none() => Some(address),
            _ => None,
        })
        .collect()
}

/// Sends one flow's packets, on a thread that is where they begin.
struct Probe<'a> {
    network: &'a Network,
    flow: &'a Flow,
    sent: usize,
}

impl<'a> Probe<'a> {
    fn new(network: &'a Network, flow: &'a Flow) -> Self {
        network.place(flow.source.place).enter();
        Self {
            network,
            flow,
            sent: 0,
        }
    }

    fn knock(&mut self, patience: Duration) -> (IpAddr, Ending) {
        let from = match self.flow.source.from {
            From::One(address) => address,
            From::Crowd(range) => range.hosts().nth(1 + self.sent % CROWD).unwrap(),
        };
        self.sent += 1;
        let ending = self
            .network
            .knock(self.flow.protocol, from, self.flow.to, patience);
        (from, ending)
    }

    /// Sends until what was expected is certain. Gives what was found, where it is something else.
    fn free(mut self) -> Option<String> {
        match &self.flow.expect {
            Verdict::Balance(targets) => self.all_of(targets),
            Verdict::Reject => self.three(PATIENCE, |_, ending| *ending == Ending::Refused),
            Verdict::Pass => {
                let to = self.flow.to;
                self.three(PATIENCE, |from, ending| match ending {
                    Ending::Answered(answer) => {
                        (answer.who, answer.port, answer.saw) == (to.ip(), to.port(), from)
                    }
                    _ => false,
                })
            }
            Verdict::Drop => {
                let (_, ending) = self.knock(DROPPED);
                (ending != Ending::Silence).then(|| self.tell(&ending))
            }
        }
    }

    fn three(&mut self, patience: Duration, right: impl Fn(IpAddr, &Ending) -> bool) -> Option<String> {
        (0..3).find_map(|_| {
            let (from, ending) = self.knock(patience);
            (!right(from, &ending)).then(|| self.tell(&ending))
        })
    }

    /// Until each of the targets was seen, and no other. Of `n` that are picked with the same chance one is missing
    /// after `t` tries with a probability below `n (1 - 1/n)^t`.
    fn all_of(&mut self, targets: &[Target]) -> Option<String> {
        if targets.iter().any(|target| target.share != 1) {
            return self.shares_of(targets);
        }
        let count = targets.len();
        let mut most = 4 * count + 4;
        while count > 1 && count as f64 * (1.0 - 1.0 / count as f64).powi(most as i32) > 1e-12 {
            most += 1;
        }
        let mut seen = BTreeSet::new();
        for at in 0..most {
            match self.target(targets) {
                Ok(target) => seen.insert(target),
                Err(found) => return Some(found),
            };
            if seen.len() == count && at >= 4 * count + 3 {
                return None;
            }
        }
        Some(format!("only {seen:?} in {most} tries"))
    }

    /// Each of the targets as often as its share says, and no other. Of `n` tries an endpoint gets `p n`, give or take
    /// `d n`, except with a probability below `2 exp(-2 n d^2)` (Hoeffding): here below 6 * 10^-10.
    fn shares_of(&mut self, targets: &[Target]) -> Option<String> {
        // With affinity only the first packet of each of a crowd is a choice.
        let tries = match self.flow.source.from {
            From::One(_) => 1000,
            From::Crowd(_) => CROWD,
        };
        let mut seen: BTreeMap<SocketAddr, usize> = BTreeMap::new();
        for _ in 0..tries {
            match self.target(targets) {
                Ok(target) => *seen.entry(target).or_default() += 1,
                Err(found) => return Some(found),
            }
        }
        let tries = tries as f64;
        let most = (11.0 / tries).sqrt();
        let sum: f64 = targets.iter().map(|target| f64::from(target.share)).sum();
        let wrong = targets.iter().any(|target| {
            let found = seen.get(&target.address.into()).copied().unwrap_or_default();
            (found as f64 / tries - f64::from(target.share) / sum).abs() > most
        });
        wrong.then(|| format!("{seen:?} of {tries}"))
    }

    /// The same one, eight times, and the one that others of its word got.
    fn sticky(mut self, kept: &mut Kept) -> Option<String> {
        let Verdict::Balance(targets) = &self.flow.expect else {
            return Some("a file that expects affinity of what no endpoint gets".to_owned());
        };
        let word = self.flow.sticky.clone().unwrap_or_default();
        for _ in 0..8 {
            match self.target(targets) {
                Err(found) => return Some(found),
                Ok(found) => {
                    let first = *kept.entry(word.clone()).or_insert(found);
                    if first != found {
                        return Some(format!("{found} after {first} for {word:?}"));
                    }
                }
            }
        }
        None
    }

    /// Who of the targets answers, seeing the source that it should.
    fn target(&mut self, targets: &[Target]) -> Result<SocketAddr, String> {
        let (from, ending) = self.knock(PATIENCE);
        let Ending::Answered(answer) = ending else {
            return Err(self.tell(&ending));
        };
        let who = SocketAddr::new(answer.who, answer.port);
        let right = targets
            .iter()
            .find(|target| SocketAddr::from(target.address) == who)
            .is_some_and(|target| {
                if target.masqueraded {
                    answer.saw != from && world::place_of(answer.saw) == Some(Place::Node)
                } else {
                    answer.saw == from
                }
            });
        if right { Ok(who) } else { Err(self.tell(&ending)) }
    }

    fn tell(&self, ending: &Ending) -> String {
        let found = match ending {
            Ending::Answered(answer) => {
                format!(
                    "{} that saw {}",
                    SocketAddr::new(answer.who, answer.port),
                    answer.saw
                )
            }
            Ending::Refused => "REJECT".to_owned(),
            Ending::Silence => "DROP".to_owned(),
            Ending::Failed(error) => error.clone(),
        };
        format!("{found} (try {})", self.sent)
    }
}

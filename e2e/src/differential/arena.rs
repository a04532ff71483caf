//! Both sides under one API server.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use pointsman_test_kernel::within;
use serde_json::{Value, json};

use super::{
    generate::Stage,
    marker::Mark,
    packets::{Question, Sender, claims},
    seen::{Seen, Sight},
    side::{Proxy, Side},
    store::Store,
    world::World,
};
use crate::{
    Access, Agent, ControlPlane, Fabric, IptablesVariant, Options, Peer, PeerMode, PeerOptions, Toolchain,
    agent::Source,
    control_plane::API_PORT,
    inside,
    network::{Addresses, CLUSTER_CIDRS},
    peer::SCHEDULER,
    pod::INTERFACE_PREFIX,
    relay::Relay,
};

/// How both sides are set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// The mode of Pointsman.
    pub ours: PeerMode,
    /// The mode of kube-proxy.
    pub peer: PeerMode,
    /// What iptables the nodes have.
    pub variant: IptablesVariant,
    /// `masqueradeAll` of both.
    pub masquerade_all: bool,
    /// `detectLocal` of both.
    pub detect: Detect,
}

/// How both sides know their pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detect {
    /// NodeCIDR.
    Node,
    /// ClusterCIDR.
    Cluster,
    /// InterfaceNamePrefix.
    Prefix,
}

impl Setup {
    /// What a seed means, with the modes of Pointsman and of kube-proxy: most have the defaults.
    #[must_use]
    pub fn of(seed: u64, [ours, peer]: [PeerMode; 2], variant: IptablesVariant) -> Self {
        Self {
            ours,
            peer,
            variant,
            masquerade_all: seed % 5 == 4,
            detect: match seed % 4 {
                2 => Detect::Cluster,
                3 => Detect::Prefix,
                _ => Detect::Node,
            },
        }
    }
}

/// How long a side may take to have what the API server has. It takes milliseconds on a quiet machine.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);
/// How long nothing comes before a packet counts as dropped: at first, and when it matters.
const SILENCE: Duration = Duration::from_millis(60);
const LONG_SILENCE: Duration = Duration::from_millis(400);
/// Longer than the short session affinity.
const FORGET: Duration = Duration::from_millis(1300);

/// Both sides, their proxies and what they are told.
#[derive(Debug)]
pub struct Arena {
    ours: (Proxy, Side),
    theirs: (Proxy, Side),
    /// The mode of kube-proxy.
    peer: PeerMode,
    store: Store,
    mark: Mark,
    /// Where the attempts of the crowd go on, so that each comes from an address that has not been used for long.
    next_attempt: usize,
    _relay: Relay,
    /// None in the test kernel: it is outside.
    _control_plane: Option<ControlPlane>,
}

/// What came of a row of questions.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Where both sides did not do the same.
    pub different: Vec<Answers>,
    /// How many questions had which outcome on both sides.
    pub agreed: BTreeMap<&'static str, u64>,
}

/// Both answers to a question.
#[derive(Clone, Debug)]
pub struct Answers {
    /// What was asked.
    pub question: Question,
    /// What Pointsman did.
    pub ours: Seen,
    /// What kube-proxy did.
    pub theirs: Seen,
}

impl Arena {
    /// Starts everything, with an empty world.
    ///
    /// # Errors
    /// When anything does not start.
    pub fn start(setup: Setup) -> Result<Self> {
        let toolchain = Toolchain::locate()?;
        let (fabric, access, control_plane) = if within::is_inside() {
            let (fabric, access) = inside::join()?;
            (fabric, access, None)
        } else {
            let fabric = Fabric::new()?;
            let control_plane = ControlPlane::start(&toolchain, &fabric, options())?;
            (fabric, Access::clone(&control_plane), Some(control_plane))
        };
        let theirs = Side::new(fabric, setup.variant)?;
        let ours = Side::new(Fabric::new()?, setup.variant)?;
        // The API server is on the one fabric; on the other its address leads to it, by a relay.
        let (namespace, addresses) = ours.fabric.control_plane_host()?;
        let at = Addresses::at_v4(&addresses, API_PORT);
        let relay = Relay::between(&namespace, at, access.namespace(), access.api_server())?;

        access.create_node(&ours.node)?;
        for crd in ["nodeproxies", "proxypolicies"] {
            let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../crds/yaml/pointsman.dev_");
            let file = format!("{file}{crd}.yaml");
            let yaml = std::fs::read_to_string(&file).with_context(|| format!("reading {file}"))?;
            access.apply(&yaml)?;
        }
        access.kubectl(&[
            "wait",
            "--for=condition=Established",
            "crd/nodeproxies.pointsman.dev",
            "--timeout=30s",
        ])?;
        access.apply(&node_proxy(setup).to_string())?;
        let mark = Mark::default();
        let store = Store::new(&access, mark)?;
        let peer = Peer::start(&toolchain, &access, &theirs.node, &peer_options(setup))?;
        let agent = Agent::start(&ours.node, Source::Kubeconfig(access.kubeconfig()))?;
        let arena = Self {
            ours: (Proxy::Ours(agent), ours),
            theirs: (Proxy::Theirs(peer), theirs),
            peer: setup.peer,
            store,
            mark,
            next_attempt: 0,
            _relay: relay,
            _control_plane: control_plane,
        };
        arena.settle(0)?;
        Ok(arena)
    }

    /// Writes stages, and waits until both sides have each that settles, and the last one.
    ///
    /// # Errors
    /// When the API server refuses an object, or a side does not follow.
    pub fn enact(&mut self, stages: &[Stage]) -> Result<()> {
        for (number, stage) in stages.iter().enumerate() {
            self.store.write(&stage.world)?;
            if stage.settle || number + 1 == stages.len() {
                self.mark(stage.world.zone)?;
                // In ipvs mode kube-proxy writes one Service after the other, the marker's in their midst. It has all of them
                // once it has begun again.
                if self.peer == PeerMode::Ipvs {
                    self.mark(stage.world.zone)?;
                }
            }
        }
        Ok(())
    }

    /// Takes everything away, so that what comes next has no past.
    ///
    /// # Errors
    /// As [`Arena::enact`].
    pub fn clear(&mut self) -> Result<()> {
        self.store.recover()?;
        let nothing = Stage {
            world: World::default(),
            settle: true,
        };
        self.enact(&[nothing])
    }

    fn mark(&mut self, zone: usize) -> Result<()> {
        self.mark = self.mark.next();
        self.store.mark(self.mark)?;
        self.settle(zone)
    }

    fn settle(&self, zone: usize) -> Result<()> {
        for (proxy, side) in [&self.ours, &self.theirs] {
            let deadline = Instant::now() + SETTLE_LIMIT;
            // A metric that is not served yet is one of a process that starts.
            while !(side.has_mark(self.mark, zone)? && proxy.is_idle().unwrap_or(false)) {
                let process = proxy.process();
                ensure!(
                    process.is_running() && Instant::now() < deadline,
                    "{} did not follow the API server; the end of its log:\n{}",
                    process.name(),
                    process.log_tail(30)
                );
                thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }

    /// Asks both sides. Answers that differ are asked again, more often and with more patience, before they are taken
    /// for different.
    ///
    /// # Errors
    /// When a namespace cannot be entered.
    pub fn compare(&mut self, world: &World, questions: &[Question]) -> Result<Comparison> {
        let mut open: Vec<Open> = questions.iter().filter_map(|it| Open::new(world, *it)).collect();
        let mut comparison = Comparison::default();
        for (attempts, silence, pause) in [
            (6, SILENCE, Duration::ZERO),
            (16, SILENCE, Duration::ZERO),
            (40, LONG_SILENCE, FORGET),
        ] {
            if open.is_empty() {
                break;
            }
            // Only who remembers has something to forget.
            if open.iter().any(|it| it.remembers) {
                thread::sleep(pause);
            }
            let asked: Vec<Question> = open.iter().map(|it| it.answers.question).collect();
            let (ours, theirs) = self.ask(&asked, attempts, silence)?;
            for (it, (ours, theirs)) in open.iter_mut().zip(ours.into_iter().zip(theirs)) {
                // What an impatient look missed must not count against a patient one; where all endpoints are looked
                // for, every answer counts.
                if it.sight == Sight::Sticky || !pause.is_zero() {
                    (it.answers.ours, it.answers.theirs) = (ours, theirs);
                } else {
                    it.answers.ours.extend(ours);
                    it.answers.theirs.extend(theirs);
                }
            }
            open.retain(|it| {
                let agree = it.answers.ours.agrees(&it.answers.theirs, it.sight);
                if agree {
                    *comparison.agreed.entry(it.answers.ours.kind()).or_default() += 1;
                }
                !agree
            });
        }
        comparison.different = open.into_iter().map(|it| it.answers).collect();
        Ok(comparison)
    }

    fn ask(
        &mut self,
        questions: &[Question],
        attempts: usize,
        silence: Duration,
    ) -> Result<(Vec<Seen>, Vec<Seen>)> {
        let numbers = self.next_attempt..self.next_attempt + attempts;
        self.next_attempt = numbers.end;
        let (ours, theirs) = (&self.ours.1, &self.theirs.1);
        thread::scope(|scope| {
            let asked = numbers.clone();
            let theirs = scope.spawn(move || theirs.ask(questions, asked, silence));
            let ours = ours.ask(questions, numbers, silence)?;
            let theirs = theirs.join().map_err(|_| anyhow!("asking panicked"))??;
            Ok((ours, theirs))
        })
    }
}

/// A question on which both sides do not agree yet.
struct Open {
    answers: Answers,
    sight: Sight,
    remembers: bool,
}

impl Open {
    /// None where both sides may differ in whatever way: a crowd of which each side remembers another part for hours,
    /// and, where each side remembers one endpoint, a sender that shares its host with some of them: unmasqueraded it
    /// hears nothing from these, because their answers do not pass the node.
    fn new(world: &World, question: Question) -> Option<Self> {
        let claims = claims(world, question.protocol, question.target);
        let affinities = claims
            .iter()
            .filter_map(|(slot, _)| world.services.get(slot)?.affinity);
        let affinity = affinities.max();
        let is_restricted = |(slot, _): &(u8, _)| {
            let service = world.services.get(slot);
            service.is_some_and(|service| !service.ranges.is_empty())
        };
        let sight = match (affinity, question.sender) {
            (None | Some(1), Sender::Crowd) if claims.iter().any(is_restricted) => Sight::Few,
            (None, _) | (Some(1), Sender::Crowd) => Sight::All,
            (Some(_), Sender::Crowd | Sender::Remote) => return None,
            (Some(_), _) => Sight::Sticky,
        };
        Some(Self {
            answers: Answers {
                question,
                ours: Seen::default(),
                theirs: Seen::default(),
            },
            sight,
            remembers: affinity.is_some(),
        })
    }
}

/// What is done here no controller may touch.
#[must_use]
pub fn options() -> Options {
    Options {
        controllers: vec!["serviceaccount-controller".to_owned()],
        ..Options::default()
    }
}

fn node_proxy(setup: Setup) -> Value {
    let detect = match setup.detect {
        Detect::Node => json!({"mode": "NodeCIDR"}),
        Detect::Cluster => json!({"mode": "ClusterCIDR", "clusterCIDRs": CLUSTER_CIDRS}),
        Detect::Prefix => json!({"mode": "InterfaceNamePrefix", "interfaceNamePrefix": INTERFACE_PREFIX}),
    };
    let mode = match setup.ours {
        PeerMode::Iptables => "IPTables",
        PeerMode::Nftables => "NFTables",
        PeerMode::Ipvs => "IPVS",
    };
    json!({
        "apiVersion": "pointsman.dev/v1alpha1", "kind": "NodeProxy",
        "metadata": {"name": super::world::NODE},
        "spec": {"policy": "differential", "revision": "one", "settings": {
            "mode": mode, "detectLocal": detect,
            "masqueradeAll": setup.masquerade_all, "nodePortAddresses": ["Primary"],
            "minSyncPeriodMilliseconds": 0, "syncPeriodSeconds": 30, "logVerbosity": 2,
            "excludeCIDRs": [], "conntrack": {}, "sysctls": {}, "scheduler": SCHEDULER,
            // As those of connection tracking (Side::new).
            "ipvs": {"tcpFinTimeoutSeconds": 1, "udpTimeoutSeconds": 5},
        }},
    })
}

fn peer_options(setup: Setup) -> PeerOptions {
    let (mode, local) = match setup.detect {
        Detect::Node => ("NodeCIDR", Value::Null),
        Detect::Cluster => ("ClusterCIDR", Value::Null),
        Detect::Prefix => (
            "InterfaceNamePrefix",
            json!({"interfaceNamePrefix": INTERFACE_PREFIX}),
        ),
    };
    let masquerade = json!({"masqueradeAll": setup.masquerade_all});
    PeerOptions {
        patch: json!({
            "detectLocalMode": mode, "detectLocal": local, "nodePortAddresses": ["primary"],
            "iptables": masquerade, "nftables": masquerade, "ipvs": {"tcpFinTimeout": "1s", "udpTimeout": "5s"},
        }),
        ..PeerOptions::new(setup.peer)
    }
}

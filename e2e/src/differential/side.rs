//! One side: a node with a proxy, everything around it, and a fabric of its own, so that both sides have the same
//! addresses.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use ipnet::IpNet;

use super::{
    marker::{self, Mark},
    packets::{CROWD, FIRST_OUTSIDE, Question, SECOND, Sender},
    seen::Seen,
    world::{Family, NODE, OTHER_NODE, Place, TARGETS, wire},
};
use crate::{
    Agent, ExternalHost, Fabric, IptablesVariant, Netns, NodeNet, Peer, Pod, Process, ip, sysctl,
    traffic::{Crowd, Outcome, Protocol, Shot, volley},
};

/// What programs a side's node.
#[derive(Debug)]
pub enum Proxy {
    /// Pointsman.
    Ours(Agent),
    /// Kube-proxy.
    Theirs(Peer),
}

/// A node and what is around it, without a proxy yet.
#[derive(Debug)]
pub struct Side {
    // Servers and pods go before what they are in.
    _servers: Vec<Crowd>,
    endpoints: [Pod; 2],
    pod: Pod,
    outside: ExternalHost,
    other: NodeNet,
    /// The node.
    pub node: NodeNet,
    /// The network.
    pub fabric: Fabric,
}

/// All addresses that Services may have, from outside.
const SERVICE_RANGES: [&str; 4] = [
    "10.96.0.0/16",
    "203.0.113.0/24",
    "fd00:10:96::/112",
    "2001:db8:113::/64",
];

impl Side {
    /// Makes everything on a fresh fabric.
    ///
    /// # Errors
    /// When a namespace, a link or a server cannot be made.
    pub fn new(fabric: Fabric, variant: IptablesVariant) -> Result<Self> {
        let node = fabric.node(NODE)?.with_iptables(variant)?;
        let other = fabric.node(OTHER_NODE)?;
        // In this order they get the addresses that `Place` says.
        let endpoints = [node.add_pod("endpoint-0")?, node.add_pod("endpoint-1")?];
        let pod = node.add_pod("client")?;
        let outside = fabric.external("outside")?;
        let side = Self {
            _servers: Vec::new(),
            endpoints,
            pod,
            outside,
            other,
            node,
            fabric,
        };
        side.add_addresses()?;
        side.add_routes()?;
        // Ports of senders come again. What went untranslated from one, refused by nobody, must be forgotten by then:
        // whatever follows from there goes the same way.
        let short = [
            ("net.netfilter.nf_conntrack_udp_timeout", "5"),
            ("net.netfilter.nf_conntrack_udp_timeout_stream", "5"),
            ("net.netfilter.nf_conntrack_tcp_timeout_syn_sent", "1"),
            ("net.netfilter.nf_conntrack_tcp_timeout_close", "1"),
        ];
        sysctl::write(side.node.namespace(), &short)?;
        let _servers = side.serve()?;
        Ok(Self { _servers, ..side })
    }

    fn add_addresses(&self) -> Result<()> {
        let address = |family, address, device: &str| {
            let (length, flags) = if family == Family::V4 {
                (32, "")
            } else {
                (128, " nodad")
            };
            format!("addr add {address}/{length} dev {device}{flags}")
        };
        let both = |place: &dyn Fn(Family) -> std::net::IpAddr, device: &str| {
            Family::ALL.map(|family| address(family, place(family), device))
        };
        ip::batch(
            self.node.namespace(),
            both(&|family| wire(family, SECOND), self.node.interface()),
        )?;
        let remote = [0, 1].map(|number| both(&move |family| Place::Remote(number).address(family), "lo"));
        ip::batch(self.other.namespace(), remote.as_flattened())?;
        let crowd = (1..CROWD).map(|number| {
            let place = move |family| wire(family, FIRST_OUTSIDE + number);
            both(&place, crate::network::WIRE_INTERFACE)
        });
        let crowd: Vec<_> = crowd.collect();
        ip::batch(self.outside.namespace(), crowd.as_flattened())
    }

    /// What goes to Services, and what comes back from the other node's pods, goes by way of the node under test.
    fn add_routes(&self) -> Result<()> {
        for range in SERVICE_RANGES {
            let range: IpNet = range.parse().context("a range of Services")?;
            self.outside.route_via(range, &self.node)?;
            let via = self.via(range);
            ip::batch(
                self.other.namespace(),
                [format!("route replace {range} via {via}")],
            )?;
        }
        for number in 0..CROWD {
            for family in Family::ALL {
                let host = wire(family, FIRST_OUTSIDE + number);
                let via = self.via(host.into());
                ip::batch(
                    self.other.namespace(),
                    [format!("route replace {host} via {via}")],
                )?;
            }
        }
        Ok(())
    }

    fn via(&self, range: IpNet) -> std::net::IpAddr {
        let addresses = self.node.addresses();
        match range {
            IpNet::V4(_) => addresses.v4.into(),
            IpNet::V6(_) => addresses.v6.into(),
        }
    }

    /// A server for every endpoint that a slice can name.
    fn serve(&self) -> Result<Vec<Crowd>> {
        let mut crowds = Vec::new();
        let hosts: [(&Netns, &[Place]); 4] = [
            (self.endpoints[0].namespace(), &[Place::Local(0)]),
            (self.endpoints[1].namespace(), &[Place::Local(1)]),
            (self.other.namespace(), &[Place::Remote(0), Place::Remote(1)]),
            (self.node.namespace(), &[Place::Host]),
        ];
        for (namespace, places) in hosts {
            let mut servers = Vec::new();
            for place in places {
                for family in Family::ALL {
                    let mut on = |protocol, ports: &[u16]| {
                        let at = |&port: &u16| (protocol, (place.address(family), port).into());
                        servers.extend(ports.iter().map(at));
                    };
                    on(Protocol::Tcp, &TARGETS);
                    on(Protocol::Udp, &TARGETS);
                    if marker::PLACES.contains(place) {
                        on(Protocol::Tcp, &marker::TARGETS);
                    }
                }
            }
            crowds.push(Crowd::start(namespace, servers)?);
        }
        Ok(crowds)
    }

    fn namespace(&self, sender: Sender) -> &Netns {
        match sender {
            Sender::Pod => self.pod.namespace(),
            Sender::Endpoint(number) => self.endpoints[usize::from(number.min(1))].namespace(),
            Sender::Node => self.node.namespace(),
            Sender::Remote => self.other.namespace(),
            Sender::Outside | Sender::Crowd => self.outside.namespace(),
        }
    }

    /// The address that a sender's packets leave with, where no choice of the kernel's is needed to know it.
    fn own_address(&self, sender: Sender, family: Family, attempt: usize) -> Option<std::net::IpAddr> {
        let own = |pod: &Pod| match family {
            Family::V4 => pod.addresses().v4.into(),
            Family::V6 => pod.addresses().v6.into(),
        };
        match sender {
            Sender::Pod => Some(own(&self.pod)),
            Sender::Endpoint(number) => Some(own(&self.endpoints[usize::from(number.min(1))])),
            other => other.source(family, attempt),
        }
    }

    /// Asks all questions, each as often as `attempts` has numbers, at once. What nobody answers is waited for as long
    /// as `silence`.
    ///
    /// # Errors
    /// When a namespace cannot be entered.
    pub fn ask(
        &self,
        questions: &[Question],
        attempts: std::ops::Range<usize>,
        silence: Duration,
    ) -> Result<Vec<Seen>> {
        let shot = |question: &Question, attempt| {
            let family = Family::of(question.target.ip());
            let protocol = question.protocol.traffic().unwrap_or(Protocol::Tcp);
            Shot {
                protocol,
                source: question.sender.source(family, attempt),
                target: question.target,
            }
        };
        let mut seen = vec![Seen::default(); questions.len()];
        let outcomes = thread::scope(|scope| -> Result<Vec<(usize, usize, Outcome)>> {
            let mut volleys = Vec::new();
            for sender in Sender::ALL {
                let mut plan = Vec::new();
                for attempt in attempts.clone() {
                    let own = questions.iter().enumerate().filter(|(_, it)| it.sender == sender);
                    plan.extend(own.map(|(number, question)| (number, attempt, shot(question, attempt))));
                }
                if plan.is_empty() {
                    continue;
                }
                let namespace = self.namespace(sender);
                volleys.push(scope.spawn(move || -> Result<_> {
                    let shots: Vec<Shot> = plan.iter().map(|(.., shot)| *shot).collect();
                    let outcomes = volley(namespace, &shots, silence)?;
                    let numbers = plan.into_iter().map(|(number, attempt, _)| (number, attempt));
                    Ok(numbers
                        .zip(outcomes)
                        .map(|((number, attempt), outcome)| (number, attempt, outcome))
                        .collect::<Vec<_>>())
                }));
            }
            let mut all = Vec::new();
            for volley in volleys {
                all.extend(volley.join().map_err(|_| anyhow!("a volley panicked"))??);
            }
            Ok(all)
        })?;
        for (number, attempt, outcome) in outcomes {
            let Question { sender, target, .. } = questions[number];
            let sent_from = self.own_address(sender, Family::of(target.ip()), attempt);
            seen[number].add(&outcome, sent_from);
        }
        Ok(seen)
    }

    /// Whether packets tell that the proxy has this mark, and the node in this zone, in both families.
    ///
    /// # Errors
    /// When a namespace cannot be entered.
    pub fn has_mark(&self, mark: Mark, zone: usize) -> Result<bool> {
        let shots = mark.targets().map(|target| Shot {
            protocol: Protocol::Tcp,
            source: None,
            target,
        });
        let outcomes = volley(self.pod.namespace(), &shots, Duration::from_millis(50))?;
        let told = |(family, outcome): (Family, &Outcome)| mark.is_told_by(family, zone, outcome);
        Ok(Family::ALL.into_iter().zip(&outcomes).all(told))
    }
}

impl Proxy {
    /// Whether it says itself that nothing is left to be written.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn is_idle(&self) -> Result<bool> {
        match self {
            // It writes the two tables of iptables one after the other; packets that one of them answers to tell
            // nothing of the other.
            Self::Ours(agent) => {
                let time = |which: &str| {
                    agent.metric(
                        &format!("kubeproxy_sync_proxy_rules_last_{which}timestamp_seconds"),
                        "",
                    )
                };
                Ok(time("")? >= time("queued_")?)
            }
            // It writes both in one go, the marker's table last; nf_tables takes all at once.
            Self::Theirs(_) => Ok(true),
        }
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> &Process {
        match self {
            Self::Ours(agent) => agent.process(),
            Self::Theirs(peer) => peer.process(),
        }
    }
}

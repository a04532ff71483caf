//! What is to be forwarded: the index of objects, the node's facts, and the table that they mean.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    time::SystemTime,
};

use ipnet::IpNet;
use pointsman_dataplane::conntrack::Cleaner;
use pointsman_dataplane::model::{
    Compiled, Context, Diff, Family, ForwardingTable, NodeFacts, Problem, ServiceName, Settings,
};

use super::service_cidrs::ServiceCidrs;
use super::triggers::Triggers;
use crate::index::{Changes, Index};
use crate::service_health::HealthChecks;
use crate::source::{Event, Kind, NodeState};

/// Takes events in as they come, and makes the table of them when it is asked to.
#[derive(Default)]
pub(super) struct Forwarding {
    index: Index,
    node: Option<NodeState>,
    addresses: Option<Vec<IpAddr>>,
    service_cidrs: ServiceCidrs,
    /// The ranges of those; the table has them after the next update.
    ranges: Vec<IpNet>,
    listed: HashSet<Kind>,
    table: ForwardingTable,
    /// Whether the table was compiled once, since it was made.
    is_made: bool,
    diff: Diff,
    /// Everything has to be compiled anew: settings or node facts changed.
    recompile: bool,
    triggers: Triggers,
    problems: BTreeMap<ServiceName, Vec<Problem>>,
    /// Health checks that cannot be answered.
    unserved: Vec<String>,
    /// What load balancers are told may be different from what was last published.
    checks_changed: bool,
}

impl Forwarding {
    /// Takes in what an event says of objects and addresses; other events mean nothing here.
    pub(super) fn take_in(&mut self, event: Event) {
        match event {
            Event::Service(service, parsed) => {
                tracing::debug!(%service, used = parsed.object.is_some(), "a Service changed");
                self.index.set_service(service, parsed);
            }
            Event::Slice(slice, parsed, triggered) => {
                tracing::debug!(%slice, used = parsed.object.is_some(), "an EndpointSlice changed");
                let family = parsed.object.as_ref().map(|(_, slice)| slice.family);
                let service = self.index.set_slice(slice, parsed);
                match (service, family, triggered) {
                    (Some(service), None, _) => self.triggers.forget(&service),
                    // What the first list tells of may be as old as it likes.
                    (Some(service), Some(family), Some(at)) if self.listed.contains(&Kind::Slices) => {
                        self.triggers.note(&service, family, at);
                    }
                    _ => {}
                }
            }
            Event::Node(node) => {
                tracing::debug!(there = node.is_some(), "the Node changed");
                // Without its Node the agent goes on with what it knew: a kubelet may register it anew.
                if let Some(node) = node {
                    self.recompile |= self.node.as_ref() != Some(&node);
                    self.node = Some(node);
                }
            }
            Event::Addresses(addresses) => {
                self.recompile |= self.addresses.as_ref() != Some(&addresses);
                self.addresses = Some(addresses);
            }
            Event::ServiceCidr(name, parsed) => {
                self.service_cidrs.set(name, parsed);
                self.ranges = self.service_cidrs.ranges();
            }
            Event::ListBegins(Kind::ServiceCidrs) => self.service_cidrs.list_begins(),
            Event::ListBegins(kind) => self.index.list_begins(kind),
            Event::ListEnds(Kind::ServiceCidrs) => {
                self.service_cidrs.list_ends();
                self.ranges = self.service_cidrs.ranges();
                self.listed.insert(Kind::ServiceCidrs);
            }
            Event::ListEnds(kind) => {
                self.index.list_ends(kind);
                self.listed.insert(kind);
            }
            Event::Unavailable(kind) => {
                self.listed.insert(kind);
            }
            Event::Unserved(problems) => self.unserved = problems,
            Event::Assignment(_)
            | Event::AssignmentUnusable(_)
            | Event::RulesTouched { .. }
            | Event::Stop => {}
        }
    }

    /// Whether everything that a first table needs has been listed: no part of it is ever shown to packets.
    pub(super) fn is_listed(&self) -> bool {
        self.addresses.is_some()
            && [Kind::Services, Kind::Slices, Kind::Node, Kind::Assignment]
                .iter()
                .all(|kind| self.listed.contains(kind))
    }

    /// Whether the ServiceCIDRs have been listed, or cannot be. A first table waits for them only for a while:
    /// without them it lacks nothing but the drop of ClusterIPs that no Service has.
    pub(super) fn knows_service_cidrs(&self) -> bool {
        self.listed.contains(&Kind::ServiceCidrs)
    }

    /// Whether something was taken in that is not in the table yet.
    pub(super) fn has_changes(&self) -> bool {
        self.recompile || self.index.has_changes() || self.ranges != self.table.context().service_cidrs
    }

    /// New settings; the table has them after the next update.
    pub(super) fn set_settings(&mut self, settings: Settings) {
        let context = Context {
            settings,
            ..self.table.context().clone()
        };
        self.table.set_context(context, &mut self.diff);
        self.recompile = true;
        self.checks_changed = true;
    }

    /// Forgets the table, not the objects: what is forwarded next is a new table.
    pub(super) fn clear(&mut self) {
        self.table = ForwardingTable::default();
        self.is_made = false;
        self.diff = Diff::default();
        self.problems.clear();
        self.triggers.clear();
        self.recompile = true;
        self.checks_changed = true;
    }

    /// Compiles what changed into the table.
    pub(super) fn update(&mut self) {
        let checks = self.table.health_checks_version();
        self.triggers.compiled();
        self.diff.all |= !std::mem::replace(&mut self.is_made, true);
        let mut context = Context {
            service_cidrs: self.ranges.clone(),
            ..self.table.context().clone()
        };
        if std::mem::take(&mut self.recompile) {
            // The addresses that NodePorts answer on may be others.
            self.checks_changed = true;
            let node = self.node.clone().unwrap_or_default();
            context.node = NodeFacts {
                internal_ips: node.internal_ips,
                pod_cidrs: node.pod_cidrs,
                interface_addresses: self.addresses.clone().unwrap_or_default(),
                zone: node.zone,
            };
            self.table.set_context(context.clone(), &mut self.diff);
            for compiled in self.index.compile_all(&context) {
                note(&mut self.problems, &compiled);
                self.table.set(compiled, &mut self.diff);
            }
        } else {
            // No Service means anything else for other ranges.
            self.table.set_context(context.clone(), &mut self.diff);
            for compiled in self.index.compile_changes(&context) {
                note(&mut self.problems, &compiled);
                self.table.set(compiled, &mut self.diff);
            }
        }
        self.checks_changed |= self.table.health_checks_version() != checks;
    }

    /// What load balancers are told, when it may be different from what this gave before.
    pub(super) fn take_health_checks(&mut self) -> Option<HealthChecks> {
        std::mem::take(&mut self.checks_changed).then(|| HealthChecks::of(&self.table))
    }

    /// The table as of the last update.
    pub(super) fn table(&self) -> &ForwardingTable {
        &self.table
    }

    /// Whether the table changed since the changes were last taken.
    pub(super) fn has_diff(&self) -> bool {
        !self.diff.is_empty()
    }

    /// What changed in the table since this was last asked.
    pub(super) fn take_diff(&mut self) -> Diff {
        std::mem::take(&mut self.diff)
    }

    /// Has all connection entries of a family compared with the table, which the kernel holds now.
    pub(super) fn compare_all(&self, cleaner: &Cleaner, family: Family) {
        cleaner.written_all(&self.table, family, self.index.foreign_endpoints().collect());
    }

    /// How many objects were different since the agent started.
    pub(super) fn changes(&self) -> Changes {
        self.index.changes
    }

    /// How many objects are different and not in the table yet.
    pub(super) fn pending(&self) -> Changes {
        self.index.pending
    }

    /// When the changes of endpoints happened that the kernel holds now, as it holds the table.
    pub(super) fn written(&mut self, family: Family) -> impl Iterator<Item = SystemTime> {
        self.triggers.written(family)
    }

    /// Nobody waits for the kernel.
    pub(super) fn forget_triggers(&mut self) {
        self.triggers.clear();
    }

    /// Whether the Node may get new connections from load balancers.
    pub(super) fn is_eligible(&self) -> bool {
        self.node.as_ref().is_none_or(|node| node.eligible)
    }

    /// How many objects could not be used in full, and the problems of the first few.
    pub(super) fn problems(&self, shown: usize) -> (usize, Vec<String>) {
        let parsed = || {
            let unserved = self.unserved.iter().map(String::as_str);
            let objects = self.index.problems().chain(self.service_cidrs.problems());
            objects.chain(unserved)
        };
        let count = parsed().count() + self.problems.values().map(Vec::len).sum::<usize>();
        let parsed = parsed().map(str::to_owned);
        let compiled = self.problems.values().flatten().map(ToString::to_string);
        (count, parsed.chain(compiled).take(shown).collect())
    }
}

/// Remembers what is wrong with a Service, and logs what is new of it.
fn note(known: &mut BTreeMap<ServiceName, Vec<Problem>>, compiled: &Compiled) {
    let Compiled {
        service, problems, ..
    } = compiled;
    if problems.is_empty() {
        known.remove(service);
    } else if known.get(service).is_none_or(|before| before != problems) {
        for problem in problems {
            tracing::warn!("{problem}");
        }
        known.insert(service.clone(), problems.clone());
    }
}

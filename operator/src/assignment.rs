//! Which policy each node follows. Pure.
//!
//! Of the policies that select a node the one with the highest priority wins; then the oldest; then the first by
//! name. The answer depends on the objects only, never on the order in which they became known, so that every
//! replica and every restart decides alike.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use pointsman_crds::ProxyPolicy;

use crate::selector::{NodeSelector, SelectorError};

/// What the assignment has to know of a node.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// The node's name.
    pub name: &'a str,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
    /// The policy that the node follows and that this operator cannot read, if that is so: such a node stays as
    /// it is until the policy can be read, because what the policy says of it is not known.
    pub held_by: Option<&'a str>,
}

/// Every node's policy and every policy's nodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assignment<'a> {
    /// The policy of every node that has one.
    pub winners: BTreeMap<&'a str, &'a str>,
    /// What became of every policy.
    pub shares: BTreeMap<&'a str, Share<'a>>,
}

/// What one policy got.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Share<'a> {
    /// Which nodes it asks for, or why that cannot be told.
    pub selector: Option<Result<NodeSelector, SelectorError>>,
    /// How many nodes it asks for.
    pub selected: usize,
    /// The nodes that follow it, by name.
    pub nodes: Vec<&'a str>,
    /// The policies that its other nodes follow.
    pub lost: BTreeMap<&'a str, Loss>,
}

/// Nodes that a policy asks for and that follow one certain other policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// How many.
    pub nodes: usize,
    /// Why the other one has them.
    pub why: Why,
}

/// Why another policy won.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its priority, this one, is higher.
    Priority(i32),
    /// Its priority, this one, is the same, and it is older.
    Age(i32),
    /// Its priority, this one, and its age are the same, and its name comes first.
    Name(i32),
    /// It had the nodes already, and cannot be read now.
    Unreadable,
}

/// Decides. Policies that are being deleted take no part: their share is empty and has no selector.
#[must_use]
pub fn assign<'a>(
    policies: impl IntoIterator<Item = &'a ProxyPolicy>,
    nodes: impl IntoIterator<Item = Node<'a>>,
) -> Assignment<'a> {
    let mut assignment = Assignment::default();
    let mut contenders = Vec::new();
    for policy in policies {
        let name = policy.metadata.name.as_deref().unwrap_or_default();
        let share = assignment.shares.entry(name).or_default();
        if policy.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let selector = NodeSelector::read(policy.spec.node_selector.as_ref());
        share.selector = Some(selector.clone());
        if let Ok(selector) = selector {
            contenders.push(Contender {
                name,
                rank: rank(policy),
                selector,
            });
        }
    }
    contenders.sort_by_key(|contender| (contender.rank, contender.name));

    for node in nodes {
        let mut selecting = contenders
            .iter()
            .filter(|contender| contender.selector.matches(node.labels));
        let winner = match node.held_by {
            Some(holder) => Err(holder),
            None => match selecting.next() {
                Some(winner) => Ok(winner),
                None => continue,
            },
        };
        if let Ok(winner) = winner {
            assignment.winners.insert(node.name, winner.name);
            let share = assignment.shares.entry(winner.name).or_default();
            share.selected += 1;
            share.nodes.push(node.name);
        }
        for loser in selecting {
            let share = assignment.shares.entry(loser.name).or_default();
            share.selected += 1;
            let (name, why) = match winner {
                Ok(winner) => (winner.name, winner.beats(loser)),
                Err(holder) => (holder, Why::Unreadable),
            };
            share.lost.entry(name).or_insert(Loss { nodes: 0, why }).nodes += 1;
        }
    }
    for share in assignment.shares.values_mut() {
        share.nodes.sort_unstable();
    }
    assignment
}

/// A policy that takes part.
struct Contender<'a> {
    name: &'a str,
    rank: Rank,
    selector: NodeSelector,
}

/// Sorts the winner first. A policy without a creation time, which the API server does not make, comes last.
type Rank = (Reverse<i32>, bool, Option<Timestamp>);

fn rank(policy: &ProxyPolicy) -> Rank {
    let created = policy.creation_timestamp().map(|time| time.0);
    (Reverse(policy.spec.priority), created.is_none(), created)
}

impl Contender<'_> {
    fn beats(&self, other: &Self) -> Why {
        let Reverse(priority) = self.rank.0;
        if self.rank.0 != other.rank.0 {
            Why::Priority(priority)
        } else if self.rank != other.rank {
            Why::Age(priority)
        } else {
            Why::Name(priority)
        }
    }
}

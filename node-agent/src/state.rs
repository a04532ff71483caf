//! What the engine tells the rest of the agent: one value, replaced as a whole.

use std::{sync::Arc, time::Instant};

use pointsman_crds::Mode;
use pointsman_dataplane::leftover::Found;
use pointsman_dataplane::model::Family;

use crate::source::Assignment;

/// What the node does and how it goes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// What the node is to do; none while no policy selects it.
    pub assignment: Option<Arc<Assignment>>,
    /// Why the newest assignment is not followed; the one before it stays in force.
    pub rejected: Option<String>,
    /// Whether everything that the agent needs to begin has been listed.
    pub listed: bool,
    /// The mode that runs and, when the agent chose it, why.
    pub mode: Option<(Mode, Option<String>)>,
    /// The revision that the kernel holds in every family.
    pub applied_revision: Option<String>,
    /// How each family goes.
    pub families: Vec<FamilyState>,
    /// What the kernel has not got, each with what is done instead and what to install.
    pub lacking: Vec<String>,
    /// Services in the table.
    pub services: usize,
    /// Endpoints in the table.
    pub endpoints: usize,
    /// Services in the table that ask for direct access.
    pub direct_access: usize,
    /// Digest of the table.
    pub digest: u128,
    /// What the last check of the kernel found changed by somebody else; repaired since.
    pub drift: Option<String>,
    /// What a kube-proxy has in the kernel beside ours; none before the first look.
    pub leftovers: Option<Found>,
    /// Kernel parameters that do not have their value, each with why and what to do.
    pub sysctl_failures: Vec<String>,
    /// How many objects could not be used in full, and the first few of their problems.
    pub problems: (usize, Vec<String>),
    /// Since when a change waits to be written to the kernel.
    pub pending_since: Option<Instant>,
    /// A change that waits longer than this is a fault.
    pub pending_limit: std::time::Duration,
    /// Whether the Node may get new connections from load balancers.
    pub node_eligible: bool,
}

/// How one family goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyState {
    /// The family.
    pub family: Family,
    /// How it goes.
    pub outcome: Outcome,
}

/// How programming a family went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was written yet.
    Pending,
    /// The kernel holds what was meant.
    Applied,
    /// It does not; the agent tries again.
    Failed(String),
    /// The kernel cannot forward this family, and no Service asks for it.
    Unneeded(String),
    /// It is taken down, and connections that began with it still need a part of it.
    Draining,
}

impl State {
    /// The families that failed, each with why.
    pub fn failures(&self) -> impl Iterator<Item = (Family, &str)> {
        self.families.iter().filter_map(|family| match &family.outcome {
            Outcome::Failed(why) => Some((family.family, why.as_str())),
            _ => None,
        })
    }

    /// Whether the first table is in the kernel.
    #[must_use]
    pub fn is_programmed(&self) -> bool {
        self.applied_revision.is_some()
    }

    /// Whether the node forwards as it should. An agent that has nothing to do, because no policy selects its node, is
    /// healthy; one that still waits for its first list, or whose changes do not get into the kernel, is not.
    #[must_use]
    pub fn is_healthy(&self, now: Instant) -> bool {
        self.listed && !self.is_stuck(now) && (self.assignment.is_none() || self.is_programmed())
    }

    /// Whether a change has waited too long for the kernel.
    #[must_use]
    pub fn is_stuck(&self, now: Instant) -> bool {
        self.pending_since
            .is_some_and(|since| now.duration_since(since) > self.pending_limit)
    }
}

//! What a policy's status says: counts, the mode, five conditions. Pure.
//!
//! Nothing in it grows with the number of nodes, and repeating the same facts gives the same status, so that
//! nothing is written without a change.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use pointsman_crds::conditions::{self, SYSCTLS_APPLIED};
use pointsman_crds::{Mode, NodeCounts, NodeProxySpec, ProxyPolicy, ProxyPolicyStatus};

use crate::assignment::Share;
use crate::explain;
use crate::fleet::KnownNodeProxy;
use crate::report::{Report, Running};

/// The facts that the conditions are made from.
#[derive(Debug)]
pub struct Facts<'a> {
    /// What the policy asks for and got.
    pub share: &'a Share<'a>,
    /// Whether it leaves the mode to the nodes.
    pub auto: bool,
    /// Short name of its settings.
    pub revision: &'a str,
    /// Its nodes by name, with where they are.
    pub reports: Vec<(&'a str, Report<'a>)>,
    /// The nodes where some kernel parameter does not have its value, with what they say of it.
    pub sysctl_failures: Vec<(&'a str, &'a str)>,
}

/// Works out the status of a policy whose nodes are to have `wanted`.
#[must_use]
pub fn status(
    policy: &ProxyPolicy,
    wanted: &NodeProxySpec,
    share: &Share<'_>,
    node_proxies: &BTreeMap<String, KnownNodeProxy>,
    now: Timestamp,
) -> ProxyPolicyStatus {
    let reports = share
        .nodes
        .iter()
        .map(|node| (*node, Report::read(wanted, node_proxies.get(*node))))
        .collect();
    let sysctl_failures = share
        .nodes
        .iter()
        .filter_map(|node| {
            let conditions = &node_proxies.get(*node)?.status.conditions;
            let condition = conditions::failure(conditions, SYSCTLS_APPLIED)?;
            Some((*node, condition.message.as_str()))
        })
        .collect();
    let facts = Facts {
        share,
        auto: policy.spec.mode == Mode::Auto,
        revision: &wanted.revision,
        reports,
        sysctl_failures,
    };
    let before = policy
        .status
        .as_ref()
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    let observed = [
        explain::ready(&facts),
        explain::progressing(&facts),
        explain::degraded(&facts),
        explain::conflicted(&facts),
        explain::sysctls_applied(&facts),
    ];
    ProxyPolicyStatus {
        observed_generation: policy.metadata.generation,
        mode: facts.mode(),
        revision: Some(wanted.revision.clone()),
        nodes: facts.counts(),
        direct_access: share
            .nodes
            .iter()
            .filter_map(|node| Some(node_proxies.get(*node)?.status.direct_access))
            .max()
            .unwrap_or(0),
        conditions: conditions::set(before, &observed, policy.metadata.generation, now),
    }
}

impl<'a> Facts<'a> {
    /// How many nodes are where.
    #[must_use]
    pub fn counts(&self) -> NodeCounts {
        let count =
            |is: fn(&Report<'_>) -> bool| self.reports.iter().filter(|(_, report)| is(report)).count();
        NodeCounts {
            selected: number(self.share.selected),
            matched: number(self.reports.len()),
            updated: number(count(|report| report.running().is_some())),
            ready: number(count(|report| matches!(report, Report::Ready(_)))),
            failed: number(count(|report| matches!(report, Report::Failed { .. }))),
            conflicted: number(self.share.selected.saturating_sub(self.reports.len())),
        }
    }

    /// What the nodes that run the revision say of their mode, with how many say it.
    #[must_use]
    pub fn modes(&self) -> BTreeMap<Running<'a>, usize> {
        let mut modes = BTreeMap::new();
        for running in self.reports.iter().filter_map(|(_, report)| report.running()) {
            *modes.entry(running).or_default() += 1;
        }
        modes
    }

    /// The mode that all nodes that run the revision have in common.
    #[must_use]
    pub fn mode(&self) -> Option<String> {
        let mut modes: Vec<&str> = self
            .modes()
            .into_keys()
            .filter_map(|running| running.mode)
            .collect();
        modes.dedup();
        match modes.as_slice() {
            [] => None,
            [mode] => Some((*mode).to_owned()),
            _ => Some("Mixed".to_owned()),
        }
    }
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

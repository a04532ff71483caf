//! The five conditions of a policy, in words: what is, and what to do about it. Pure.

use pointsman_crds::conditions::{CONFLICTED, DEGRADED, Observation, PROGRESSING, READY, SYSCTLS_APPLIED};

use crate::assignment::Why;
use crate::report::Report;
use crate::status::Facts;

/// How many nodes or policies a message names.
const NAMED: usize = 3;
/// How much of a node's own message, or of a selector, is repeated, in characters.
const QUOTED: usize = 240;

/// Ready: every node of the policy runs its revision and is healthy.
#[must_use]
pub fn ready(facts: &Facts<'_>) -> Observation {
    let no = |reason: &str, message: String| Observation::new(READY, false, reason, message);
    let selector = match &facts.share.selector {
        None => {
            return no(
                "BeingDeleted",
                "the policy is being deleted and has no nodes any more".to_owned(),
            );
        }
        Some(Err(error)) => {
            let message = format!("spec.nodeSelector selects no node because it cannot be read: {error}");
            return no("InvalidSelector", message);
        }
        Some(Ok(selector)) => selector,
    };
    let counts = facts.counts();
    let (selected, matched, ready) = (counts.selected, counts.matched, counts.ready);
    if selected == 0 && selector.selects_all() {
        return no(
            "NoNodesSelected",
            "the policy selects every node, and the cluster has none yet".to_owned(),
        );
    }
    if selected == 0 {
        let message = format!(
            "no node has the labels that spec.nodeSelector asks for ({}): change it, or label the nodes that are meant (kubectl get nodes --show-labels)",
            shortened(&selector.to_string())
        );
        return no("NoNodesSelected", message);
    }
    if matched == 0 {
        let message = format!(
            "{} selected, and all follow other policies: see the condition Conflicted",
            nodes(selected)
        );
        return no("NoNodesMatched", message);
    }
    if counts.failed > 0 {
        let message = format!(
            "{ready} of {} ready, {} failed: see the condition Degraded",
            nodes(matched),
            counts.failed
        );
        return no("NodesFailed", message);
    }
    if ready < matched {
        let message = format!(
            "{ready} of {} ready: see the condition Progressing",
            nodes(matched)
        );
        return no("NodesPending", message);
    }
    let message = format!("{ready} of {} ready{}", nodes(matched), chosen_mode(facts));
    Observation::new(READY, true, "AllNodesReady", message)
}

/// What Auto became and why.
fn chosen_mode(facts: &Facts<'_>) -> String {
    if !facts.auto {
        return String::new();
    }
    let modes = facts.modes();
    let several = modes.len() > 1;
    let mut chosen: Vec<String> = Vec::new();
    for (running, count) in modes.iter().take(NAMED) {
        let mode = running.mode.unwrap_or("an unnamed mode");
        let mut text = if several {
            format!("{mode} on {count}")
        } else {
            mode.to_owned()
        };
        if let Some(reason) = running.mode_reason {
            text.push_str(&format!(" ({})", shortened(reason)));
        }
        chosen.push(text);
    }
    if modes.len() > NAMED {
        chosen.push("others".to_owned());
    }
    format!("; mode Auto became {}", chosen.join(", "))
}

/// Progressing: some node is still on its way to the policy's revision.
#[must_use]
pub fn progressing(facts: &Facts<'_>) -> Observation {
    let of_state = |wanted: fn(&Report<'_>) -> bool| -> Vec<&str> {
        facts
            .reports
            .iter()
            .filter(|(_, report)| wanted(report))
            .map(|(node, _)| *node)
            .collect()
    };
    let silent = of_state(|report| *report == Report::Silent);
    let pending = of_state(|report| *report == Report::Pending);
    let unconfirmed = of_state(|report| matches!(report, Report::Updated(_)));
    let revision = facts.revision;

    let mut parts = Vec::new();
    if !pending.is_empty() {
        parts.push(format!("{} on the way to revision {revision}", some_of(&pending)));
    }
    if !unconfirmed.is_empty() {
        parts.push(format!("{} not confirmed as healthy yet", some_of(&unconfirmed)));
    }
    if !silent.is_empty() {
        parts.push(format!(
            "nothing heard from the agent of {}: see that its pod runs there",
            some_of(&silent)
        ));
    }
    let reason = match (pending.is_empty() && unconfirmed.is_empty(), silent.is_empty()) {
        (false, _) => "NodesUpdating",
        (true, false) => "AgentsSilent",
        (true, true) => {
            let (reason, message) = match facts.reports.as_slice() {
                [] => ("NoNodes", "no node follows this policy".to_owned()),
                _ => ("Settled", format!("no node is on the way to revision {revision}")),
            };
            return Observation::new(PROGRESSING, false, reason, message);
        }
    };
    let message = format!("of {}: {}", nodes(facts.counts().matched), parts.join("; "));
    Observation::new(PROGRESSING, true, reason, message)
}

/// Degraded: some node failed to apply the policy, or is not healthy.
#[must_use]
pub fn degraded(facts: &Facts<'_>) -> Observation {
    let failed: Vec<(&str, &str)> = facts
        .reports
        .iter()
        .filter_map(|(node, report)| match report {
            Report::Failed { message, .. } => Some((*node, *message)),
            _ => None,
        })
        .collect();
    if failed.is_empty() {
        return Observation::new(DEGRADED, false, "NoFailures", "no node reports a failure");
    }
    let matched = nodes(facts.counts().matched);
    let message = format!("{} of {matched} failed: {}", failed.len(), quoted(&failed));
    Observation::new(DEGRADED, true, "NodesFailed", message)
}

/// SysctlsApplied: every kernel parameter has its value on every node. Forwarding does not depend on it, so that
/// nodes are ready without.
#[must_use]
pub fn sysctls_applied(facts: &Facts<'_>) -> Observation {
    let failed = &facts.sysctl_failures;
    if failed.is_empty() {
        let message = "no node reports a kernel parameter that it could not set";
        return Observation::new(SYSCTLS_APPLIED, true, "NoFailures", message);
    }
    let matched = nodes(facts.counts().matched);
    let message = format!(
        "on {} of {matched} some kernel parameter does not have its value: {}",
        failed.len(),
        quoted(failed)
    );
    Observation::new(SYSCTLS_APPLIED, false, "NodesFailed", message)
}

/// Conflicted: some node that the policy selects follows another policy.
#[must_use]
pub fn conflicted(facts: &Facts<'_>) -> Observation {
    let share = facts.share;
    if share.lost.is_empty() {
        return Observation::new(
            CONFLICTED,
            false,
            "NoConflict",
            "every selected node follows this policy",
        );
    }
    let mut winners: Vec<_> = share.lost.iter().collect();
    winners.sort_by_key(|(name, loss)| (std::cmp::Reverse(loss.nodes), **name));
    let mut parts: Vec<String> = winners
        .iter()
        .take(NAMED)
        .map(|(name, loss)| {
            let why = match loss.why {
                Why::Priority(priority) => format!("priority {priority}"),
                Why::Age(priority) => format!("priority {priority} as well, but older"),
                Why::Name(priority) => {
                    format!("priority {priority} and age are the same, its name comes first")
                }
                Why::Unreadable => {
                    "which this version of the operator cannot read, so its nodes are left alone".to_owned()
                }
            };
            format!("{} policy {name} ({why})", follow(loss.nodes))
        })
        .collect();
    if winners.len() > NAMED {
        let others: usize = winners.iter().skip(NAMED).map(|(_, loss)| loss.nodes).sum();
        parts.push(format!(
            "{} {} other policies",
            follow(others),
            winners.len() - NAMED
        ));
    }
    let message = format!(
        "of {}: {}; where that is not meant, raise spec.priority here or narrow spec.nodeSelector there",
        selected(share.selected),
        parts.join(", ")
    );
    Observation::new(CONFLICTED, true, "OtherPolicyWins", message)
}

/// What the first few nodes say, each with its name.
fn quoted(said: &[(&str, &str)]) -> String {
    let mut quotes: Vec<String> = said
        .iter()
        .take(NAMED)
        .map(|(node, message)| format!("{node}: {}", shortened(message)))
        .collect();
    if said.len() > NAMED {
        quotes.push(format!(
            "and {} more (kubectl get nodeproxies)",
            said.len() - NAMED
        ));
    }
    quotes.join("; ")
}

fn nodes(count: i32) -> String {
    if count == 1 {
        "1 node".to_owned()
    } else {
        format!("{count} nodes")
    }
}

fn selected(count: usize) -> String {
    if count == 1 {
        "1 selected node".to_owned()
    } else {
        format!("{count} selected nodes")
    }
}

fn follow(count: usize) -> String {
    if count == 1 {
        "1 follows".to_owned()
    } else {
        format!("{count} follow")
    }
}

/// "n1", "n1, n2 and n3", "n1, n2, n3 and 7 more".
fn some_of(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] if names.len() <= NAMED => format!("{} and {last}", first.join(", ")),
        many => {
            let shown: Vec<&str> = many.iter().take(NAMED).copied().collect();
            format!("{} and {} more", shown.join(", "), many.len() - NAMED)
        }
    }
}

fn shortened(text: &str) -> String {
    let mut characters = text.chars();
    let mut short: String = characters.by_ref().take(QUOTED).collect();
    if characters.next().is_some() {
        short.push('…');
    }
    short
}

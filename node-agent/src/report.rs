//! The NodeProxy's status: what it says, and when it is written.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource as _};
use pointsman_api_client::chain;
use pointsman_crds::conditions::{
    self, APPLIED, DRIFTED, HEALTHY, INPUTS_VALID, KERNEL_COMPLETE, LEFTOVER_RULES, Observation,
    SYSCTLS_APPLIED,
};
use pointsman_crds::{Mode, NodeProxy, NodeProxyStatus};
use pointsman_dataplane::leftover::{Leftover, Place};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::metrics::Metrics;
use crate::state::{Outcome, State};

const FIELD_MANAGER: &str = "pointsman-agent";
/// What matters to a rollout is written at once, but for this much, so that one step is one write.
const SETTLE: Duration = Duration::from_millis(100);
/// Counts and digests change with every pod of the cluster, on all nodes at once. They wait for this long, so that
/// a large fleet does not flood the API server with them.
const COUNTS_PERIOD: Duration = Duration::from_secs(20);
const RETRY: Duration = Duration::from_secs(2);
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// Writes the status whenever it is different, for as long as the engine runs.
pub async fn follow(client: Client, node: String, mut state: watch::Receiver<State>, metrics: Arc<Metrics>) {
    let api: Api<NodeProxy> = Api::all(client);
    let mut written: Option<NodeProxyStatus> = None;
    let mut counts_at = Instant::now();
    loop {
        sleep(SETTLE).await;
        let current = state.borrow_and_update().clone();
        if current.assignment.is_none() {
            // The NodeProxy is gone, and its status with it.
            written = None;
            if state.changed().await.is_err() {
                return;
            }
            continue;
        }
        let before = written.clone().unwrap_or_default();
        let status = status(&current, &before.conditions, Timestamp::now());
        let urgent = written.is_none() || !differs_in_counts_only(&before, &status);
        if written.as_ref() == Some(&status) {
            if state.changed().await.is_err() {
                return;
            }
        } else if urgent || counts_at <= Instant::now() {
            let succeeded = write(&api, &node, &status).await;
            metrics.status_written(succeeded);
            if succeeded {
                written = Some(status);
                counts_at = Instant::now() + COUNTS_PERIOD;
            } else {
                sleep(RETRY).await;
            }
        } else {
            tokio::select! {
                () = sleep_until(counts_at) => {}
                changed = state.changed() => if changed.is_err() { return },
            }
        }
    }
}

async fn write(api: &Api<NodeProxy>, node: &str, status: &NodeProxyStatus) -> bool {
    let patch = json!({
        "apiVersion": NodeProxy::api_version(&()),
        "kind": NodeProxy::kind(&()),
        "metadata": {"name": node},
        "status": status,
    });
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let written = tokio::time::timeout(
        WRITE_LIMIT,
        api.patch_status(node, &parameters, &Patch::Apply(patch)),
    )
    .await;
    match written {
        Ok(Ok(_)) => return true,
        // It was deleted in between; the watch will say so.
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
            tracing::debug!("the NodeProxy is gone");
        }
        Ok(Err(error)) => tracing::warn!(
            error = chain(&error),
            "writing the NodeProxy's status failed: trying again"
        ),
        Err(_) => tracing::warn!(
            "writing the NodeProxy's status took longer than {} s: trying again",
            WRITE_LIMIT.as_secs()
        ),
    }
    false
}

fn differs_in_counts_only(before: &NodeProxyStatus, after: &NodeProxyStatus) -> bool {
    let without_counts = |status: &NodeProxyStatus| NodeProxyStatus {
        services: 0,
        endpoints: 0,
        direct_access: 0,
        digest: None,
        ..status.clone()
    };
    without_counts(before) == without_counts(after)
}

/// The status that a state means.
#[must_use]
pub fn status(state: &State, before: &[Condition], now: Timestamp) -> NodeProxyStatus {
    let generation = state
        .assignment
        .as_ref()
        .and_then(|assignment| assignment.generation);
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    NodeProxyStatus {
        observed_generation: generation,
        applied_revision: state.applied_revision.clone(),
        mode: state.mode.as_ref().map(|(mode, _)| mode.to_string()),
        mode_reason: state.mode.as_ref().and_then(|(_, reason)| reason.clone()),
        services: count(state.services),
        endpoints: count(state.endpoints),
        direct_access: count(state.direct_access),
        digest: state.is_programmed().then(|| format!("{:032x}", state.digest)),
        agent_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        kernel_release: kernel_release(),
        conditions: conditions::set(before, &observe(state), generation, now),
    }
}

/// The kernel's release, as `uname -r` prints it.
#[must_use]
pub fn kernel_release() -> Option<String> {
    let name = nix::sys::utsname::uname().ok()?;
    Some(name.release().to_str()?.to_owned())
}

fn observe(state: &State) -> Vec<Observation> {
    vec![
        applied(state),
        healthy(state),
        drifted(state),
        leftover(state),
        kernel(state),
        sysctls(state),
        inputs(state),
    ]
}

fn applied(state: &State) -> Observation {
    let wanted = state
        .assignment
        .as_ref()
        .map(|assignment| assignment.revision.as_str());
    let failures: Vec<String> = state
        .failures()
        .map(|(family, why)| format!("{family}: {why}"))
        .collect();
    if let Some(why) = &state.rejected {
        Observation::new(APPLIED, false, "InvalidSettings", why)
    } else if !failures.is_empty() {
        Observation::new(APPLIED, false, "KernelRefused", failures.join("; "))
    } else if state.applied_revision.as_deref() == wanted {
        let mode = state
            .mode
            .as_ref()
            .map(|(mode, _)| mode.to_string())
            .unwrap_or_default();
        let unneeded = state.families.iter().filter_map(|family| match &family.outcome {
            Outcome::Unneeded(why) => Some(format!(
                "; {} is left out, no Service needs it: {why}",
                family.family
            )),
            _ => None,
        });
        // Why the node does not run the mode that Auto prefers.
        let names_scheduler = |state: &State| {
            let assignment = state.assignment.as_ref();
            assignment.is_some_and(|assignment| assignment.settings.scheduler.is_some())
        };
        let why = state
            .mode
            .as_ref()
            .filter(|(mode, _)| *mode == Mode::IPTables || names_scheduler(state))
            .and_then(|(_, why)| why.as_ref())
            .map(|why| format!(" ({why})"))
            .unwrap_or_default();
        let message = format!("the kernel holds the settings, mode {mode}{why}");
        Observation::new(
            APPLIED,
            true,
            "Applied",
            unneeded.fold(message, |message, more| message + &more),
        )
    } else {
        Observation::unknown(
            APPLIED,
            "Applying",
            "the settings are being written to the kernel",
        )
    }
}

fn healthy(state: &State) -> Observation {
    if state.is_stuck(std::time::Instant::now()) {
        let limit = state.pending_limit.as_secs();
        let message = format!(
            "a change waits for the kernel for more than {limit} s: see the Applied condition and the agent's log"
        );
        return Observation::new(HEALTHY, false, "Stuck", message);
    }
    match state.failures().next() {
        Some((family, _)) => {
            let message = format!("{family} is not forwarded as it should be: see the Applied condition");
            Observation::new(HEALTHY, false, "KernelRefused", message)
        }
        None if state.is_programmed() => {
            Observation::new(HEALTHY, true, "Forwarding", "Service traffic is forwarded")
        }
        None => Observation::unknown(HEALTHY, "Starting", "nothing was written to the kernel yet"),
    }
}

fn drifted(state: &State) -> Observation {
    match &state.drift {
        Some(what) => {
            let message = format!("somebody else changed the agent's rules; they were repaired: {what}");
            Observation::new(DRIFTED, true, "Repaired", message)
        }
        None => Observation::new(DRIFTED, false, "AsMeant", "nobody else changed the agent's rules"),
    }
}

fn leftover(state: &State) -> Observation {
    let Some(found) = &state.leftovers else {
        return Observation::unknown(
            LEFTOVER_RULES,
            "Starting",
            "kube-proxy's rules were not looked for yet",
        );
    };
    let unread = found.unread.join("; ");
    if found.rules.is_empty() {
        return match unread.is_empty() {
            true => Observation::new(
                LEFTOVER_RULES,
                false,
                "NothingFound",
                "kube-proxy has no rules here",
            ),
            false => Observation::unknown(LEFTOVER_RULES, "NotRead", unread),
        };
    }
    let (reason, effect) = match found.rules.iter().any(Leftover::outranks) {
        true => (
            "KubeProxyDrops",
            ", and no rule of the agent's outranks what they drop or refuse as told",
        ),
        false => (
            "KubeProxyRules",
            ", and none was found that ends packets which the agent forwards",
        ),
    };
    let rules: Vec<String> = found.rules.iter().map(ToString::to_string).collect();
    let removals: BTreeSet<String> = found
        .rules
        .iter()
        .map(|leftover| format!("`{}`", leftover.removal()))
        .collect();
    let removals: Vec<String> = removals.into_iter().collect();
    let unread = match unread.is_empty() {
        true => unread,
        false => format!(" Not everything could be read: {unread}."),
    };
    // The kernel puts the newer of two chains with one priority in front (`nf_hook_entries_grow`).
    let runs_iptables = matches!(state.mode, Some((Mode::IPTables, _)));
    let has_table = found.rules.iter().any(|leftover| leftover.place == Place::Table);
    let first = match runs_iptables && has_table {
        true => {
            " In mode IPTables, a table of its that is newer than those of iptables translates before the agent's rules do."
        }
        false => "",
    };
    let message = format!(
        "kube-proxy has rules here: {}. They go on translating for Services that are gone{effect}.{first}{unread} If kube-proxy no longer \
         runs on this node, remove them: {}",
        rules.join("; "),
        removals.join(", ")
    );
    Observation::new(LEFTOVER_RULES, true, reason, message)
}

fn kernel(state: &State) -> Observation {
    if !state.lacking.is_empty() {
        return Observation::new(KERNEL_COMPLETE, false, "Missing", state.lacking.join("; "));
    }
    match state.is_programmed() {
        true => Observation::new(
            KERNEL_COMPLETE,
            true,
            "Complete",
            "the kernel has everything that the mode, the policy and Services ask for",
        ),
        false => Observation::unknown(
            KERNEL_COMPLETE,
            "Starting",
            "nothing was written to the kernel yet",
        ),
    }
}

fn sysctls(state: &State) -> Observation {
    if state.sysctl_failures.is_empty() {
        Observation::new(
            SYSCTLS_APPLIED,
            true,
            "Applied",
            "every kernel parameter has its value",
        )
    } else {
        Observation::new(
            SYSCTLS_APPLIED,
            false,
            "KernelRefused",
            state.sysctl_failures.join("; "),
        )
    }
}

fn inputs(state: &State) -> Observation {
    let (count, shown) = &state.problems;
    if *count == 0 {
        Observation::new(
            INPUTS_VALID,
            true,
            "Valid",
            "every Service and EndpointSlice is used in full",
        )
    } else {
        let more = if *count > shown.len() {
            format!("; and {} more", count - shown.len())
        } else {
            String::new()
        };
        Observation::new(
            INPUTS_VALID,
            false,
            "LeftOut",
            format!("{}{more}", shown.join("; ")),
        )
    }
}

#[cfg(test)]
mod tests;

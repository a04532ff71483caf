//! The condition types that both kinds use, and how a condition changes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// NodeProxy: the kernel holds what the spec's revision asks for.
pub const APPLIED: &str = "Applied";
/// NodeProxy: the node forwards Service traffic, and the last check of the kernel agreed with what was meant.
pub const HEALTHY: &str = "Healthy";
/// NodeProxy: somebody else changed the agent's rules since it last looked; they have been repaired or are being.
pub const DRIFTED: &str = "Drifted";
/// NodeProxy: a kube-proxy that runs or ran on the node has rules in its kernel. They are told, and never changed.
pub const LEFTOVER_RULES: &str = "LeftoverRules";
/// Both: every sysctl and conntrack setting has the value that the policy asks for.
pub const SYSCTLS_APPLIED: &str = "SysctlsApplied";
/// NodeProxy: the kernel has everything that the mode, the policy and Services ask for.
pub const KERNEL_COMPLETE: &str = "KernelComplete";
/// NodeProxy: every Service and EndpointSlice could be used in full.
pub const INPUTS_VALID: &str = "InputsValid";

/// ProxyPolicy: every node of the policy runs its revision and is healthy.
pub const READY: &str = "Ready";
/// ProxyPolicy: some node is still on its way to the policy's revision.
pub const PROGRESSING: &str = "Progressing";
/// ProxyPolicy: some node failed to apply the policy, or is not healthy.
pub const DEGRADED: &str = "Degraded";
/// ProxyPolicy: some node that the policy selects follows another policy.
pub const CONFLICTED: &str = "Conflicted";

/// What an observer says about one condition; [`set`] turns it into the API's form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// One of the constants of this module.
    pub type_: &'static str,
    /// `Some(true)` is "True", `Some(false)` is "False", `None` is "Unknown".
    pub status: Option<bool>,
    /// One CamelCase word for machines.
    pub reason: String,
    /// A sentence for people: what is, and what to do about it.
    pub message: String,
}

impl Observation {
    /// An observation whose status is known.
    pub fn new(type_: &'static str, status: bool, reason: &str, message: impl Into<String>) -> Self {
        Self {
            type_,
            status: Some(status),
            reason: reason.to_owned(),
            message: message.into(),
        }
    }

    /// An observation that cannot be made yet.
    pub fn unknown(type_: &'static str, reason: &str, message: impl Into<String>) -> Self {
        Self {
            type_,
            status: None,
            reason: reason.to_owned(),
            message: message.into(),
        }
    }
}

/// Brings `conditions` up to what was observed, in the order of the observations.
///
/// `lastTransitionTime` moves only when a status changes (API conventions), so that repeating the same
/// observation changes nothing and needs no write. Conditions that nobody observed are dropped.
pub fn set(
    conditions: &[Condition],
    observed: &[Observation],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    observed
        .iter()
        .map(|observation| {
            let status = match observation.status {
                Some(true) => "True",
                Some(false) => "False",
                None => "Unknown",
            };
            let since = conditions
                .iter()
                .find(|old| old.type_ == observation.type_ && old.status == status)
                .map_or(Time(now), |old| old.last_transition_time.clone());
            Condition {
                type_: observation.type_.to_owned(),
                status: status.to_owned(),
                reason: observation.reason.clone(),
                message: observation.message.clone(),
                observed_generation: generation,
                last_transition_time: since,
            }
        })
        .collect()
}

/// Whether the condition of this type is there and "True".
#[must_use]
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    conditions
        .iter()
        .any(|condition| condition.type_ == type_ && condition.status == "True")
}

/// The condition of this type, when it is there and "False".
#[must_use]
pub fn failure<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions
        .iter()
        .find(|condition| condition.type_ == type_ && condition.status == "False")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_transition_time_moves_with_the_status_only() {
        let first = set(
            &[],
            &[Observation::new(APPLIED, false, "Failed", "no")],
            Some(1),
            at(10),
        );
        let same = set(
            &first,
            &[Observation::new(APPLIED, false, "StillFailed", "no")],
            Some(2),
            at(20),
        );
        assert_eq!(same[0].last_transition_time, Time(at(10)));
        assert_eq!(
            (same[0].reason.as_str(), same[0].observed_generation),
            ("StillFailed", Some(2))
        );
        let changed = set(
            &same,
            &[Observation::new(APPLIED, true, "Applied", "yes")],
            Some(2),
            at(30),
        );
        assert_eq!(changed[0].last_transition_time, Time(at(30)));
    }
}

//! Where one node is on its way to a revision, as its NodeProxy tells it. Pure.

use pointsman_crds::NodeProxySpec;
use pointsman_crds::conditions::{APPLIED, HEALTHY, failure, is_true};

use crate::fleet::KnownNodeProxy;

/// Where a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report<'a> {
    /// Its agent has never reported.
    Silent,
    /// It does not run the revision yet.
    Pending,
    /// It runs the revision, and has not said that it is healthy.
    Updated(Running<'a>),
    /// It runs the revision and is healthy.
    Ready(Running<'a>),
    /// It could not apply the revision, or is not healthy.
    Failed {
        /// What it said about that.
        message: &'a str,
        /// What it runs, if that is the revision.
        running: Option<Running<'a>>,
    },
}

/// What a node that runs the revision says of its mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Running<'a> {
    /// The mode.
    pub mode: Option<&'a str>,
    /// Why this one.
    pub mode_reason: Option<&'a str>,
}

impl<'a> Report<'a> {
    /// Reads the report of a node that is to do what `wanted` says.
    ///
    /// What an agent said of an older spec says nothing of this one, except that it is not healthy.
    #[must_use]
    pub fn read(wanted: &NodeProxySpec, observed: Option<&'a KnownNodeProxy>) -> Self {
        let Some(observed) = observed else {
            return Self::Pending;
        };
        let status = &observed.status;
        if status.observed_generation.is_none() && status.conditions.is_empty() {
            return Self::Silent;
        }
        let told = observed
            .spec
            .as_ref()
            .is_some_and(|spec| spec.policy == wanted.policy && spec.revision == wanted.revision);
        let current = told && status.observed_generation == observed.generation;
        let updated = current && status.applied_revision.as_deref() == Some(wanted.revision.as_str());
        let running = updated.then_some(Running {
            mode: status.mode.as_deref(),
            mode_reason: status.mode_reason.as_deref(),
        });

        let not_applied = failure(&status.conditions, APPLIED).filter(|_| current);
        if let Some(condition) = not_applied.or_else(|| failure(&status.conditions, HEALTHY)) {
            return Self::Failed {
                message: &condition.message,
                running,
            };
        }
        match running {
            None => Self::Pending,
            Some(running) if is_true(&status.conditions, HEALTHY) => Self::Ready(running),
            Some(running) => Self::Updated(running),
        }
    }

    /// What the node runs, if that is the revision.
    #[must_use]
    pub fn running(&self) -> Option<Running<'a>> {
        match self {
            Self::Updated(running) | Self::Ready(running) => Some(*running),
            Self::Failed { running, .. } => *running,
            Self::Silent | Self::Pending => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pointsman_crds::{NodeProxyStatus, ProxyPolicySpec};
    use serde_json::{Value, json};

    use super::*;

    fn spec(revision: &str) -> NodeProxySpec {
        let settings = ProxyPolicySpec::default().settings();
        NodeProxySpec {
            policy: "p".to_owned(),
            revision: revision.to_owned(),
            settings,
        }
    }

    fn condition(type_: &str, status: &str, message: &str) -> Value {
        json!({"type": type_, "status": status, "message": message, "reason": "R", "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    fn observed(told: &str, status: Value) -> KnownNodeProxy {
        KnownNodeProxy {
            generation: Some(2),
            spec: Some(Arc::new(spec(told))),
            status: serde_json::from_value::<NodeProxyStatus>(status).unwrap(),
            ..KnownNodeProxy::default()
        }
    }

    #[test]
    fn a_report_counts_for_the_revision_that_it_is_about() {
        let running = Running {
            mode: Some("IPTables"),
            mode_reason: None,
        };
        let healthy = condition("Healthy", "True", "");
        let applied = condition("Applied", "True", "");
        let status = |generation: i64, revision: &str, conditions: Value| json!({"observedGeneration": generation, "appliedRevision": revision, "mode": "IPTables", "conditions": conditions});
        for (told, status, expected) in [
            ("new", json!({}), Report::Silent),
            (
                "new",
                status(1, "old", json!([applied, healthy])),
                Report::Pending,
            ),
            (
                "old",
                status(2, "old", json!([applied, healthy])),
                Report::Pending,
            ),
            (
                "new",
                status(1, "new", json!([applied, healthy])),
                Report::Pending,
            ),
            (
                "new",
                status(2, "new", json!([applied, healthy])),
                Report::Ready(running),
            ),
            (
                "new",
                status(2, "new", json!([applied])),
                Report::Updated(running),
            ),
            (
                "new",
                status(
                    2,
                    "old",
                    json!([condition("Applied", "False", "no table"), healthy]),
                ),
                Report::Failed {
                    message: "no table",
                    running: None,
                },
            ),
            (
                "new",
                status(
                    1,
                    "old",
                    json!([condition("Applied", "False", "no table"), healthy]),
                ),
                Report::Pending,
            ),
            (
                "new",
                status(1, "old", json!([condition("Healthy", "False", "restore failed")])),
                Report::Failed {
                    message: "restore failed",
                    running: None,
                },
            ),
            (
                "new",
                status(2, "new", json!([applied, condition("Healthy", "False", "drift")])),
                Report::Failed {
                    message: "drift",
                    running: Some(running),
                },
            ),
        ] {
            let observed = observed(told, status.clone());
            assert_eq!(
                Report::read(&spec("new"), Some(&observed)),
                expected,
                "{told}: {status}"
            );
        }
        assert_eq!(Report::read(&spec("new"), None), Report::Pending);
    }
}

//! `spec.nodeSelector`: read once, then matched against the labels of every node.
//!
//! The API server does not check LabelSelectors inside of custom resources, so what it would refuse elsewhere
//! (an unknown operator, `In` without values) arrives here. A selector that cannot be read selects nothing:
//! guessing could hand a node to the wrong policy.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::core::{Selector, SelectorExt as _};

/// Which nodes a policy asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSelector(Selector);

/// Why a selector cannot be used; the message names the entry and says what belongs there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// `operator` is none of the four.
    #[error(
        "matchExpressions[{index}] (key {key:?}) has operator {operator:?}: use In, NotIn, Exists or DoesNotExist"
    )]
    UnknownOperator {
        /// Place in the list.
        index: usize,
        /// The label's name.
        key: String,
        /// What was found.
        operator: String,
    },
    /// `In` and `NotIn` need values.
    #[error(
        "matchExpressions[{index}] (key {key:?}) has operator {operator} and no values: list at least one"
    )]
    MissingValues {
        /// Place in the list.
        index: usize,
        /// The label's name.
        key: String,
        /// `In` or `NotIn`.
        operator: String,
    },
    /// `Exists` and `DoesNotExist` take none.
    #[error(
        "matchExpressions[{index}] (key {key:?}) has operator {operator} and values: remove them, or use In or NotIn"
    )]
    SurplusValues {
        /// Place in the list.
        index: usize,
        /// The label's name.
        key: String,
        /// `Exists` or `DoesNotExist`.
        operator: String,
    },
}

impl NodeSelector {
    /// Reads `spec.nodeSelector`; absent and empty select every node.
    ///
    /// # Errors
    /// When an expression is one that the API server would refuse in a built-in kind.
    pub fn read(selector: Option<&LabelSelector>) -> Result<Self, SelectorError> {
        let Some(selector) = selector else {
            return Ok(Self::default());
        };
        for (index, requirement) in selector.match_expressions.iter().flatten().enumerate() {
            check(index, requirement)?;
        }
        Selector::try_from(selector.clone())
            .map(Self)
            .map_err(|error| SelectorError::UnknownOperator {
                index: 0,
                key: String::new(),
                operator: error.0,
            })
    }

    /// Whether a node with these labels is asked for.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.matches(labels)
    }

    /// Whether every node is asked for.
    #[must_use]
    pub fn selects_all(&self) -> bool {
        self.0.selects_all()
    }
}

impl fmt::Display for NodeSelector {
    /// As `kubectl get nodes -l` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn check(index: usize, requirement: &LabelSelectorRequirement) -> Result<(), SelectorError> {
    let key = requirement.key.clone();
    let operator = requirement.operator.clone();
    let has_values = requirement
        .values
        .as_ref()
        .is_some_and(|values| !values.is_empty());
    match (operator.as_str(), has_values) {
        ("In" | "NotIn", true) | ("Exists" | "DoesNotExist", false) => Ok(()),
        ("In" | "NotIn", false) => Err(SelectorError::MissingValues { index, key, operator }),
        ("Exists" | "DoesNotExist", true) => Err(SelectorError::SurplusValues { index, key, operator }),
        _ => Err(SelectorError::UnknownOperator { index, key, operator }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(selector: Value) -> Result<NodeSelector, SelectorError> {
        NodeSelector::read(Some(&serde_json::from_value(selector).unwrap()))
    }

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn every_operator_selects_as_kubernetes_documents_it() {
        let big = labels(&[("pool", "big"), ("zone", "a")]);
        let bare = labels(&[]);
        for (selector, matches_big, matches_bare) in [
            (json!({}), true, true),
            (json!({"matchLabels": {"pool": "big"}}), true, false),
            (json!({"matchLabels": {"pool": "big", "zone": "b"}}), false, false),
            (
                json!({"matchExpressions": [{"key": "pool", "operator": "In", "values": ["big", "small"]}]}),
                true,
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "pool", "operator": "NotIn", "values": ["big"]}]}),
                false,
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "pool", "operator": "Exists"}]}),
                true,
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "pool", "operator": "DoesNotExist", "values": []}]}),
                false,
                true,
            ),
            (
                json!({"matchLabels": {"pool": "big"}, "matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}),
                false,
                false,
            ),
        ] {
            let read = read(selector.clone()).unwrap();
            assert_eq!(
                (read.matches(&big), read.matches(&bare)),
                (matches_big, matches_bare),
                "{selector}"
            );
        }
        assert!(NodeSelector::read(None).unwrap().matches(&bare));
    }

    #[test]
    fn what_cannot_be_read_is_named_with_what_belongs_there() {
        for (expression, says) in [
            (
                json!({"key": "pool", "operator": "Gt", "values": ["1"]}),
                "use In, NotIn, Exists or DoesNotExist",
            ),
            (json!({"key": "pool", "operator": "In"}), "list at least one"),
            (
                json!({"key": "pool", "operator": "NotIn", "values": []}),
                "list at least one",
            ),
            (
                json!({"key": "pool", "operator": "Exists", "values": ["x"]}),
                "remove them",
            ),
        ] {
            let good = json!({"key": "zone", "operator": "Exists"});
            let error = read(json!({"matchExpressions": [good, expression]}))
                .unwrap_err()
                .to_string();
            assert!(
                error.starts_with("matchExpressions[1] (key \"pool\")") && error.contains(says),
                "{error}"
            );
        }
    }

    #[test]
    fn a_selector_is_printed_as_kubectl_takes_it() {
        let selector = read(json!({"matchLabels": {"pool": "big"},
            "matchExpressions": [{"key": "zone", "operator": "In", "values": ["b", "a"]}, {"key": "gpu", "operator": "DoesNotExist"}]}));
        assert_eq!(selector.unwrap().to_string(), "pool=big,zone in (a,b),!gpu");
    }
}

//! The NodeProxy that a node is to have, and what has to be done about the one that it has. Pure.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::ObjectMeta;
use pointsman_crds::{NodeProxy, NodeProxySpec};

use crate::fleet::KnownNodeProxy;

/// The label that every NodeProxy of the operator's carries.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "pointsman");

/// What a node is to have. All nodes of a policy share one spec.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The node's UID.
    pub node_uid: String,
    /// What the node is to do.
    pub spec: Arc<NodeProxySpec>,
}

/// What has to be done about one node's NodeProxy.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// It is as it is to be, or is on its way out and has to be gone first.
    Nothing,
    /// It has to be written.
    Apply(Wanted),
    /// It has to be deleted, if it still has this UID.
    Delete {
        /// The UID of the object that was seen.
        uid: String,
    },
    /// It should go, and does not carry our label: somebody else made it or took the label off.
    LeaveForeign,
}

/// Compares what is wanted with what was seen.
#[must_use]
pub fn plan(wanted: Option<Wanted>, observed: Option<&KnownNodeProxy>) -> Plan {
    match (wanted, observed) {
        (None, None) => Plan::Nothing,
        (_, Some(observed)) if observed.leaving => Plan::Nothing,
        (None, Some(observed)) if observed.ours => Plan::Delete {
            uid: observed.uid.clone(),
        },
        (None, Some(_)) => Plan::LeaveForeign,
        (Some(wanted), Some(observed)) if holds(observed, &wanted) => Plan::Nothing,
        (Some(wanted), _) => Plan::Apply(wanted),
    }
}

fn holds(observed: &KnownNodeProxy, wanted: &Wanted) -> bool {
    observed.ours
        && observed.owners == [wanted.node_uid.as_str()]
        && observed.spec.as_ref().is_some_and(|spec| *spec == wanted.spec)
}

impl Wanted {
    /// The object as it is sent, for the node of this name.
    ///
    /// The Node owns it: the garbage collector removes it with the Node, also while no operator runs.
    #[must_use]
    pub fn object(&self, node: &str) -> NodeProxy {
        let (label, value) = MANAGED_BY;
        NodeProxy {
            metadata: ObjectMeta {
                name: Some(node.to_owned()),
                labels: Some([(label.to_owned(), value.to_owned())].into()),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Node".to_owned(),
                    name: node.to_owned(),
                    uid: self.node_uid.clone(),
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            spec: NodeProxySpec::clone(&self.spec),
            status: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use pointsman_crds::{NodeProxyStatus, ProxyPolicySpec};

    use super::*;

    fn wanted(log_verbosity: i32) -> Wanted {
        let settings = ProxyPolicySpec {
            log_verbosity,
            ..ProxyPolicySpec::default()
        }
        .settings();
        Wanted {
            node_uid: "node-uid".to_owned(),
            spec: Arc::new(NodeProxySpec {
                policy: "p".to_owned(),
                revision: settings.revision(),
                settings,
            }),
        }
    }

    fn observed(wanted: &Wanted) -> KnownNodeProxy {
        KnownNodeProxy {
            uid: "uid".to_owned(),
            generation: Some(1),
            ours: true,
            owners: vec![wanted.node_uid.clone()],
            leaving: false,
            spec: Some(Arc::new(NodeProxySpec::clone(&wanted.spec))),
            status: NodeProxyStatus::default(),
        }
    }

    #[test]
    fn only_a_difference_is_written() {
        let want = wanted(2);
        let same = observed(&want);
        let apply = Plan::Apply(want.clone());
        assert_eq!(plan(Some(want.clone()), Some(&same)), Plan::Nothing);
        assert_eq!(plan(Some(want.clone()), None), apply);
        for different in [
            observed(&wanted(3)),
            KnownNodeProxy {
                ours: false,
                ..same.clone()
            },
            KnownNodeProxy {
                owners: vec!["the node before".to_owned()],
                ..same.clone()
            },
            KnownNodeProxy {
                owners: Vec::new(),
                ..same.clone()
            },
            KnownNodeProxy {
                spec: None,
                ..same.clone()
            },
        ] {
            assert_eq!(plan(Some(want.clone()), Some(&different)), apply, "{different:?}");
        }
        let reported = KnownNodeProxy {
            status: NodeProxyStatus {
                services: 7,
                ..NodeProxyStatus::default()
            },
            ..same.clone()
        };
        assert_eq!(
            plan(Some(want.clone()), Some(&reported)),
            Plan::Nothing,
            "a report is no difference"
        );
        let leaving = KnownNodeProxy {
            leaving: true,
            ..observed(&wanted(3))
        };
        assert_eq!(plan(Some(want), Some(&leaving)), Plan::Nothing);
    }

    #[test]
    fn only_what_is_ours_is_deleted() {
        let ours = observed(&wanted(2));
        assert_eq!(
            plan(None, Some(&ours)),
            Plan::Delete {
                uid: "uid".to_owned()
            }
        );
        let foreign = KnownNodeProxy {
            ours: false,
            ..ours.clone()
        };
        assert_eq!(plan(None, Some(&foreign)), Plan::LeaveForeign);
        let leaving = KnownNodeProxy {
            leaving: true,
            ..ours
        };
        assert_eq!(plan(None, Some(&leaving)), Plan::Nothing);
        assert_eq!(plan(None, None), Plan::Nothing);
    }

    #[test]
    fn the_object_names_its_node_as_owner_and_leaves_the_status_to_the_agent() {
        let object = serde_json::to_value(wanted(2).object("n1")).unwrap();
        assert_eq!(object["metadata"]["name"], "n1");
        assert_eq!(
            object["metadata"]["labels"]["app.kubernetes.io/managed-by"],
            "pointsman"
        );
        let owner = &object["metadata"]["ownerReferences"][0];
        assert_eq!(
            (&owner["kind"], &owner["uid"], &owner["name"]),
            (&"Node".into(), &"node-uid".into(), &"n1".into())
        );
        assert_eq!(object["spec"]["settings"]["logVerbosity"], 2);
        assert!(object.get("status").is_none());
    }
}

//! What a policy's status says in every situation that a person will ask about.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use pointsman_crds::{NodeProxySpec, ProxyPolicy, ProxyPolicyStatus};
use pointsman_operator::assignment::{Node, assign};
use pointsman_operator::fleet::KnownNodeProxy;
use pointsman_operator::status::status;
use serde_json::{Value, json};

fn policy(name: &str, spec: &Value) -> ProxyPolicy {
    serde_json::from_value(json!({
        "apiVersion": "pointsman.dev/v1alpha1", "kind": "ProxyPolicy",
        "metadata": {"name": name, "generation": 3, "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec
    }))
    .unwrap()
}

fn wanted(policy: &ProxyPolicy) -> NodeProxySpec {
    let settings = policy.spec.settings();
    let name = policy.metadata.name.clone().unwrap();
    NodeProxySpec {
        policy: name,
        revision: settings.revision(),
        settings,
    }
}

fn condition(type_: &str, status: &str, message: &str) -> Value {
    json!({"type": type_, "status": status, "message": message, "reason": "R", "lastTransitionTime": "2026-01-01T00:00:00Z"})
}

/// A NodeProxy whose agent has applied what it was told and says these conditions.
fn applied(policy: &ProxyPolicy, mode: &str, conditions: &[Value]) -> KnownNodeProxy {
    let wanted = wanted(policy);
    let status = json!({
        "observedGeneration": 1, "appliedRevision": wanted.revision, "mode": mode,
        "modeReason": format!("the kernel of this node is best at {mode}"), "conditions": conditions
    });
    KnownNodeProxy {
        generation: Some(1),
        spec: Some(wanted.into()),
        status: serde_json::from_value(status).unwrap(),
        ..KnownNodeProxy::default()
    }
}

fn healthy(policy: &ProxyPolicy) -> KnownNodeProxy {
    applied(
        policy,
        "IPTables",
        &[condition("Applied", "True", ""), condition("Healthy", "True", "")],
    )
}

/// The status of the first policy, with nodes n1.. that have the label pool=big and these NodeProxies.
fn status_of(policies: &[ProxyPolicy], node_proxies: &[Option<KnownNodeProxy>]) -> ProxyPolicyStatus {
    let labels: BTreeMap<String, String> = [("pool".to_owned(), "big".to_owned())].into();
    let names: Vec<String> = (1..=node_proxies.len())
        .map(|number| format!("n{number}"))
        .collect();
    let nodes = names.iter().map(|name| Node {
        name,
        labels: &labels,
        held_by: None,
    });
    let assignment = assign(policies, nodes);
    let by_name = names.iter().cloned().zip(node_proxies.iter().cloned());
    let known = by_name.filter_map(|(name, proxy)| Some((name, proxy?))).collect();
    let policy = &policies[0];
    let share = &assignment.shares[policy.metadata.name.as_deref().unwrap()];
    status(
        policy,
        &wanted(policy),
        share,
        &known,
        Timestamp::from_second(1_800_000_000).unwrap(),
    )
}

/// "True AllNodesReady the message"
fn said(status: &ProxyPolicyStatus, type_: &str) -> String {
    let condition = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == type_)
        .unwrap();
    assert_eq!(condition.observed_generation, Some(3));
    format!("{} {} {}", condition.status, condition.reason, condition.message)
}

#[test]
fn a_policy_whose_nodes_all_run_it_is_ready_and_says_what_auto_became() {
    let auto = policy("p", &json!({}));
    let status = status_of(
        std::slice::from_ref(&auto),
        &[Some(healthy(&auto)), Some(healthy(&auto))],
    );
    assert_eq!(
        said(&status, "Ready"),
        "True AllNodesReady 2 of 2 nodes ready; mode Auto became IPTables (the kernel of this node is best at IPTables)"
    );
    assert_eq!(
        said(&status, "Progressing"),
        format!(
            "False Settled no node is on the way to revision {}",
            status.revision.as_deref().unwrap()
        )
    );
    assert_eq!(
        said(&status, "Degraded"),
        "False NoFailures no node reports a failure"
    );
    assert_eq!(
        said(&status, "Conflicted"),
        "False NoConflict every selected node follows this policy"
    );
    assert_eq!(
        (status.mode.as_deref(), status.observed_generation),
        (Some("IPTables"), Some(3))
    );
    let nodes = status.nodes;
    assert_eq!(
        (
            nodes.selected,
            nodes.matched,
            nodes.updated,
            nodes.ready,
            nodes.failed,
            nodes.conflicted
        ),
        (2, 2, 2, 2, 0, 0)
    );
    let order: Vec<&str> = status
        .conditions
        .iter()
        .map(|condition| condition.type_.as_str())
        .collect();
    assert_eq!(
        order,
        ["Ready", "Progressing", "Degraded", "Conflicted", "SysctlsApplied"]
    );

    let chosen = policy("p", &json!({"mode": "IPTables"}));
    let status = status_of(std::slice::from_ref(&chosen), &[Some(healthy(&chosen))]);
    assert_eq!(said(&status, "Ready"), "True AllNodesReady 1 of 1 node ready");
}

#[test]
fn different_modes_are_mixed() {
    let auto = policy("p", &json!({}));
    let conditions = [condition("Healthy", "True", "")];
    let other = applied(&auto, "NFTables", &conditions);
    let status = status_of(
        std::slice::from_ref(&auto),
        &[Some(healthy(&auto)), Some(other), Some(healthy(&auto))],
    );
    assert_eq!(status.mode.as_deref(), Some("Mixed"));
    let ready = said(&status, "Ready");
    assert!(
        ready.contains("IPTables on 2 (the kernel") && ready.contains("NFTables on 1 (the kernel"),
        "{ready}"
    );
}

#[test]
fn a_policy_that_selects_no_node_says_which_selector_and_what_to_do() {
    let status = status_of(
        &[policy(
            "p",
            &json!({"nodeSelector": {"matchLabels": {"pool": "tiny"}}}),
        )],
        &[None],
    );
    let ready = said(&status, "Ready");
    assert!(
        ready.starts_with("False NoNodesSelected") && ready.contains("(pool=tiny): change it, or label"),
        "{ready}"
    );
    assert_eq!(
        said(&status, "Progressing"),
        "False NoNodes no node follows this policy"
    );
    assert_eq!((status.mode, status.nodes.selected), (None, 0));

    let empty = status_of(&[policy("p", &json!({}))], &[]);
    assert!(said(&empty, "Ready").contains("the cluster has none yet"));

    let selector = json!({"nodeSelector": {"matchExpressions": [{"key": "pool", "operator": "Near", "values": ["big"]}]}});
    let ready = said(&status_of(&[policy("p", &selector)], &[None]), "Ready");
    assert!(
        ready.starts_with("False InvalidSelector") && ready.contains("use In, NotIn, Exists or DoesNotExist"),
        "{ready}"
    );
}

#[test]
fn failing_nodes_are_named_up_to_three() {
    let auto = policy("p", &json!({}));
    let broken = applied(
        &auto,
        "IPTables",
        &[condition(
            "Applied",
            "False",
            "iptables-restore: no such table nat",
        )],
    );
    let status = status_of(
        std::slice::from_ref(&auto),
        &[Some(healthy(&auto)), Some(broken.clone())],
    );
    assert_eq!(
        said(&status, "Ready"),
        "False NodesFailed 1 of 2 nodes ready, 1 failed: see the condition Degraded"
    );
    assert_eq!(
        said(&status, "Degraded"),
        "True NodesFailed 1 of 2 nodes failed: n2: iptables-restore: no such table nat"
    );
    assert_eq!(status.nodes.failed, 1);

    let status = status_of(std::slice::from_ref(&auto), &vec![Some(broken); 500]);
    let degraded = said(&status, "Degraded");
    assert!(
        degraded.contains("n1: ") && degraded.ends_with("; and 497 more (kubectl get nodeproxies)"),
        "{degraded}"
    );
    assert!(degraded.len() < 1_000, "nothing grows with the number of nodes");
}

#[test]
fn nodes_on_their_way_are_told_from_nodes_whose_agent_is_silent() {
    let auto = policy("p", &json!({}));
    let silent = KnownNodeProxy {
        status: Default::default(),
        ..healthy(&auto)
    };
    let status = status_of(
        std::slice::from_ref(&auto),
        &[Some(healthy(&auto)), None, Some(silent.clone())],
    );
    let progressing = said(&status, "Progressing");
    assert!(
        progressing.starts_with("True NodesUpdating of 3 nodes: n2 on the way to revision "),
        "{progressing}"
    );
    assert!(
        progressing.ends_with("; nothing heard from the agent of n3: see that its pod runs there"),
        "{progressing}"
    );
    assert_eq!(
        said(&status, "Ready"),
        "False NodesPending 1 of 3 nodes ready: see the condition Progressing"
    );

    let status = status_of(std::slice::from_ref(&auto), &vec![Some(silent); 500]);
    let progressing = said(&status, "Progressing");
    assert!(
        progressing.starts_with("True AgentsSilent") && progressing.contains("n1, n10, n100 and 497 more"),
        "{progressing}"
    );
}

#[test]
fn the_loser_names_the_winners() {
    let rest = policy("rest", &json!({}));
    let big = policy(
        "big-nodes",
        &json!({"priority": 10, "nodeSelector": {"matchLabels": {"pool": "big"}}}),
    );
    let status = status_of(&[rest, big.clone()], &[Some(healthy(&big)), None]);
    let conflicted = said(&status, "Conflicted");
    assert!(
        conflicted.starts_with(
            "True OtherPolicyWins of 2 selected nodes: 2 follow policy big-nodes (priority 10); where"
        ),
        "{conflicted}"
    );
    assert_eq!(
        said(&status, "Ready"),
        "False NoNodesMatched 2 nodes selected, and all follow other policies: see the condition Conflicted"
    );
    assert_eq!(
        (
            status.nodes.selected,
            status.nodes.matched,
            status.nodes.conflicted
        ),
        (2, 0, 2)
    );
}

#[test]
fn the_same_facts_later_give_the_same_status() {
    let mut auto = policy("p", &json!({}));
    let proxies = [Some(healthy(&auto)), None];
    let first = status_of(std::slice::from_ref(&auto), &proxies);
    auto.status = Some(first.clone());
    let labels = BTreeMap::new();
    let assignment = assign(
        [&auto],
        ["n1", "n2"].map(|name| Node {
            name,
            labels: &labels,
            held_by: None,
        }),
    );
    let known = [("n1".to_owned(), healthy(&auto))].into();
    let later = Timestamp::from_second(1_900_000_000).unwrap();
    assert_eq!(
        status(&auto, &wanted(&auto), &assignment.shares["p"], &known, later),
        first
    );
}

#[test]
fn kernel_parameters_that_could_not_be_set_are_told_and_their_nodes_ready_all_the_same() {
    let chosen = policy("p", &json!({"mode": "IPTables"}));
    let without = condition(
        "SysctlsApplied",
        "False",
        "nf_conntrack_max cannot be written here",
    );
    let lacking = applied(&chosen, "IPTables", &[condition("Healthy", "True", ""), without]);
    let status = status_of(
        std::slice::from_ref(&chosen),
        &[Some(healthy(&chosen)), Some(lacking)],
    );
    assert_eq!(
        said(&status, "SysctlsApplied"),
        "False NodesFailed on 1 of 2 nodes some kernel parameter does not have its value: n2: nf_conntrack_max cannot be written here"
    );
    assert_eq!(status.nodes.ready, 2);
    let status = status_of(std::slice::from_ref(&chosen), &[Some(healthy(&chosen))]);
    assert!(said(&status, "SysctlsApplied").starts_with("True NoFailures"));
}

#[test]
fn services_with_direct_access_are_counted_as_the_nodes_report_them() {
    let policy = policy("p", &json!({"nodeSelector": {"matchLabels": {"pool": "big"}}}));
    let reporting = |number: i32| {
        let mut proxy = healthy(&policy);
        proxy.status.direct_access = number;
        Some(proxy)
    };
    let nodes = [reporting(2), reporting(3), None];
    let policies = std::slice::from_ref(&policy);
    assert_eq!(
        status_of(policies, &nodes).direct_access,
        3,
        "all see the same Services, some later"
    );
    assert_eq!(status_of(policies, &[None]).direct_access, 0);
}

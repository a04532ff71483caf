//! The whole decision, from watch events to writes.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

use k8s_openapi::jiff::Timestamp;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::watcher::Event;
use pointsman_operator::fleet::{Change, Fleet, Kind};
use pointsman_operator::pass::{Because, Pass, Write, look};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn read<T: DeserializeOwned>(object: &Value) -> T {
    serde_json::from_value(object.clone()).unwrap()
}

fn policy(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "pointsman.dev/v1alpha1", "kind": "ProxyPolicy", "spec": spec,
        "metadata": {"name": name, "uid": format!("uid-of-{name}"), "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"}})
}

fn node(name: &str, pool: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "uid": format!("uid-of-{name}"), "labels": {"pool": pool}}})
}

fn fleet(policies: &[Value], nodes: &[Value], node_proxies: &[Value]) -> Fleet {
    let mut fleet = Fleet::default();
    for object in policies {
        fleet.observe(Change::Policy(Event::InitApply(read::<DeserializeGuard<_>>(
            object,
        ))));
    }
    for object in nodes {
        fleet.observe(Change::Node(Event::InitApply(read::<PartialObjectMeta<_>>(
            object,
        ))));
    }
    for object in node_proxies {
        fleet.observe(Change::NodeProxy(Event::InitApply(read::<DeserializeGuard<_>>(
            object,
        ))));
    }
    assert!(!fleet.is_complete());
    fleet.observe(Change::Policy(Event::InitDone));
    fleet.observe(Change::Node(Event::InitDone));
    fleet.observe(Change::NodeProxy(Event::InitDone));
    assert!(fleet.is_complete());
    fleet
}

fn look_at(fleet: &Fleet) -> Pass {
    look(fleet, Timestamp::from_second(1_800_000_000).unwrap())
}

/// Writes in short: "status rest", "apply n1 rest", "delete n1 NoNode".
fn in_short(pass: &Pass) -> Vec<String> {
    pass.writes
        .iter()
        .map(|write| match write {
            Write::Status { policy, .. } => format!("status {policy}"),
            Write::Apply { node, wanted } => format!("apply {node} {}", wanted.spec.policy),
            Write::Delete { node, because, .. } => format!("delete {node} {because:?}"),
        })
        .collect()
}

/// What the API server has after the writes of a pass.
fn written(pass: &Pass, policies: &mut [Value], node_proxies: &mut Vec<Value>) {
    for write in &pass.writes {
        match write {
            Write::Status { policy, status, .. } => {
                let object = policies
                    .iter_mut()
                    .find(|object| object["metadata"]["name"] == policy.as_str())
                    .unwrap();
                object["status"] = serde_json::to_value(status).unwrap();
            }
            Write::Apply { node, wanted } => {
                let mut object = serde_json::to_value(wanted.object(node)).unwrap();
                object["metadata"]["uid"] = format!("uid-of-proxy-{node}").into();
                object["metadata"]["generation"] = 1.into();
                node_proxies.retain(|object| object["metadata"]["name"] != node.as_str());
                node_proxies.push(object);
            }
            Write::Delete { node, .. } => {
                node_proxies.retain(|object| object["metadata"]["name"] != node.as_str())
            }
        }
    }
}

#[test]
fn it_settles_in_two_passes_and_then_writes_nothing() {
    let mut policies = vec![
        policy("rest", &json!({})),
        policy(
            "big",
            &json!({"priority": 10, "nodeSelector": {"matchLabels": {"pool": "big"}}}),
        ),
    ];
    let nodes = [node("n1", "big"), node("n2", "small")];
    let mut proxies = Vec::new();
    let first = look_at(&fleet(&policies, &nodes, &proxies));
    assert_eq!(
        in_short(&first),
        ["status big", "status rest", "apply n1 big", "apply n2 rest"]
    );
    written(&first, &mut policies, &mut proxies);
    // The NodeProxies are there now: their agents are what is waited for.
    let second = look_at(&fleet(&policies, &nodes, &proxies));
    assert_eq!(in_short(&second), ["status big", "status rest"]);
    written(&second, &mut policies, &mut proxies);
    let third = look_at(&fleet(&policies, &nodes, &proxies));
    assert_eq!(in_short(&third), [""; 0]);
    assert_eq!(
        (
            third.totals.policies,
            third.totals.assigned,
            third.totals.unassigned
        ),
        (2, 2, 0)
    );
}

#[test]
fn a_policy_that_goes_hands_its_nodes_to_the_next_or_takes_their_node_proxies_along() {
    let mut policies = vec![
        policy("rest", &json!({"nodeSelector": {"matchLabels": {"pool": "big"}}})),
        policy("all", &json!({"priority": 10})),
    ];
    let nodes = [node("n1", "big"), node("n2", "small")];
    let mut proxies = Vec::new();
    written(
        &look_at(&fleet(&policies, &nodes, &proxies)),
        &mut policies,
        &mut proxies,
    );
    policies.pop();
    let pass = look_at(&fleet(&policies, &nodes, &proxies));
    assert_eq!(
        in_short(&pass),
        ["status rest", "apply n1 rest", "delete n2 NoPolicy"]
    );
    assert_eq!(pass.totals.unassigned, 1);

    let gone = look_at(&fleet(&policies, &nodes[..1], &proxies));
    assert!(in_short(&gone).contains(&format!("delete n2 {:?}", Because::NoNode)));
}

#[test]
fn nodes_of_a_policy_that_cannot_be_read_are_left_alone() {
    let mut policies = vec![
        policy("rest", &json!({})),
        policy(
            "big",
            &json!({"priority": 10, "nodeSelector": {"matchLabels": {"pool": "big"}}}),
        ),
    ];
    let nodes = [node("n1", "big"), node("n2", "small")];
    let mut proxies = Vec::new();
    written(
        &look_at(&fleet(&policies, &nodes, &proxies)),
        &mut policies,
        &mut proxies,
    );
    policies[1]["spec"]["mode"] = "Teleport".into();

    let mut fleet = fleet(&policies[..1], &nodes, &proxies);
    let seen = fleet.observe(Change::Policy(Event::Apply(read(&policies[1]))));
    let (kind, name, why) = seen.unreadable.unwrap();
    assert_eq!((kind, name.as_str()), (Kind::ProxyPolicy, "big"));
    assert!(why.contains("Teleport"), "{why}");
    let pass = look_at(&fleet);
    assert_eq!(in_short(&pass), ["status rest"]);
    let Write::Status { status, .. } = &pass.writes[0] else {
        panic!()
    };
    let conflicted = &status.conditions[3];
    assert!(
        conflicted
            .message
            .contains("1 follows policy big (which this version"),
        "{}",
        conflicted.message
    );
    assert_eq!((status.nodes.matched, status.nodes.conflicted), (1, 1));
}

#[test]
fn a_node_proxy_that_cannot_be_read_is_written_anew_and_a_foreign_one_is_not_deleted() {
    let policies = [policy(
        "rest",
        &json!({"nodeSelector": {"matchLabels": {"pool": "big"}}}),
    )];
    let nodes = [node("n1", "big"), node("n2", "small")];
    let broken = |name: &str, labels: Value| {
        json!({"apiVersion": "pointsman.dev/v1alpha1", "kind": "NodeProxy", "spec": 7,
        "metadata": {"name": name, "uid": "u", "labels": labels}})
    };
    let proxies = [broken("n1", json!({})), broken("n2", json!({}))];
    let pass = look_at(&fleet(&policies, &nodes, &proxies));
    assert_eq!(in_short(&pass), ["status rest", "apply n1 rest"]);
    assert_eq!(pass.foreign, ["n2"]);
    let ours = broken("n2", json!({"app.kubernetes.io/managed-by": "pointsman"}));
    let pass = look_at(&fleet(&policies, &nodes, &[ours]));
    assert!(in_short(&pass).contains(&"delete n2 NoPolicy".to_owned()));
}

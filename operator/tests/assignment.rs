//! Which policy each node follows: tables for the rules, properties for what must hold whatever comes in.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;

use pointsman_crds::ProxyPolicy;
use pointsman_operator::assignment::{Assignment, Loss, Node, Why, assign};
use proptest::prelude::*;
use serde_json::{Value, json};

fn policy(name: &str, priority: i32, created: i64, selector: &Value) -> ProxyPolicy {
    let created = k8s_openapi::jiff::Timestamp::from_second(created)
        .unwrap()
        .to_string();
    serde_json::from_value(json!({
        "apiVersion": "pointsman.dev/v1alpha1", "kind": "ProxyPolicy",
        "metadata": {"name": name, "creationTimestamp": created},
        "spec": {"priority": priority, "nodeSelector": selector}
    }))
    .unwrap()
}

fn labels(pool: &str) -> BTreeMap<String, String> {
    [("pool".to_owned(), pool.to_owned())].into()
}

fn node<'a>(name: &'a str, labels: &'a BTreeMap<String, String>) -> Node<'a> {
    Node {
        name,
        labels,
        held_by: None,
    }
}

#[test]
fn priority_then_age_then_name_decide() {
    let every = json!({});
    let labels = labels("big");
    for (rivals, winner, why) in [
        (
            [policy("a", 0, 1, &every), policy("b", 10, 2, &every)],
            "b",
            Why::Priority(10),
        ),
        (
            [policy("a", 5, 2, &every), policy("b", 5, 1, &every)],
            "b",
            Why::Age(5),
        ),
        (
            [policy("b", -1, 1, &every), policy("a", -1, 1, &every)],
            "a",
            Why::Name(-1),
        ),
    ] {
        let assignment = assign(&rivals, [node("n1", &labels)]);
        let loser = if winner == "a" { "b" } else { "a" };
        assert_eq!(assignment.winners, [("n1", winner)].into());
        assert_eq!(assignment.shares[winner].nodes, ["n1"]);
        assert_eq!(
            assignment.shares[loser].lost,
            [(winner, Loss { nodes: 1, why })].into()
        );
        assert_eq!(assignment.shares[loser].selected, 1);
    }
}

#[test]
fn a_policy_that_is_being_deleted_or_cannot_be_read_takes_no_part() {
    let labels = labels("big");
    let mut leaving = policy("leaving", 9, 1, &json!({}));
    leaving.metadata.deletion_timestamp = leaving.metadata.creation_timestamp.clone();
    let broken = policy(
        "broken",
        8,
        1,
        &json!({"matchExpressions": [{"key": "pool", "operator": "Near"}]}),
    );
    let policies = [leaving, broken, policy("rest", 0, 1, &json!({}))];
    let assignment = assign(&policies, [node("n1", &labels)]);
    assert_eq!(assignment.winners, [("n1", "rest")].into());
    assert_eq!(assignment.shares["leaving"].selector, None);
    assert!(matches!(assignment.shares["broken"].selector, Some(Err(_))));
    assert!(assignment.shares["rest"].lost.is_empty());
}

#[test]
fn a_node_of_an_unreadable_policy_stays_where_it_is() {
    let labels = labels("big");
    let policies = [policy("rest", 0, 1, &json!({}))];
    let held = Node {
        held_by: Some("newer"),
        ..node("n1", &labels)
    };
    let assignment = assign(&policies, [held, node("n2", &labels)]);
    assert_eq!(assignment.winners, [("n2", "rest")].into());
    assert_eq!(
        assignment.shares["rest"].lost,
        [(
            "newer",
            Loss {
                nodes: 1,
                why: Why::Unreadable
            }
        )]
        .into()
    );
    assert_eq!(assignment.shares["rest"].selected, 2);
}

fn policies() -> impl Strategy<Value = Vec<ProxyPolicy>> {
    let selector = prop_oneof![
        Just(json!({})),
        "[a-c]".prop_map(|pool| json!({"matchLabels": {"pool": pool}})),
        "[a-c]".prop_map(
            |pool| json!({"matchExpressions": [{"key": "pool", "operator": "NotIn", "values": [pool]}]})
        ),
        Just(json!({"matchExpressions": [{"key": "pool", "operator": "In"}]})),
    ];
    proptest::collection::btree_map("p[0-9]{1,2}", (-1..2i32, 0..3i64, selector), 0..6).prop_map(|entries| {
        entries
            .into_iter()
            .map(|(name, (priority, created, selector))| policy(&name, priority, created, &selector))
            .collect()
    })
}

fn nodes() -> impl Strategy<Value = BTreeMap<String, BTreeMap<String, String>>> {
    proptest::collection::btree_map("n[0-9]{1,2}", "[a-d]".prop_map(|pool| labels(&pool)), 0..12)
}

fn decide<'a>(
    policies: &'a [ProxyPolicy],
    nodes: &[(&'a String, &'a BTreeMap<String, String>)],
) -> Assignment<'a> {
    assign(policies, nodes.iter().map(|(name, labels)| node(name, labels)))
}

proptest! {
    #[test]
    fn the_order_of_the_input_does_not_matter(
        (policies, shuffled) in policies().prop_flat_map(|list| (Just(list.clone()), Just(list).prop_shuffle())),
        nodes in nodes(),
    ) {
        let forward: Vec<_> = nodes.iter().collect();
        let backward: Vec<_> = nodes.iter().rev().collect();
        prop_assert_eq!(decide(&policies, &forward), decide(&shuffled, &backward));
    }

    #[test]
    fn a_node_has_one_winner_exactly_when_a_policy_selects_it(policies in policies(), nodes in nodes()) {
        let list: Vec<_> = nodes.iter().collect();
        let assignment = decide(&policies, &list);
        for (name, labels) in &nodes {
            let selected = assignment.shares.values().any(|share| {
                matches!(&share.selector, Some(Ok(selector)) if selector.matches(labels))
            });
            let holders = assignment.shares.values().filter(|share| share.nodes.contains(&name.as_str())).count();
            prop_assert_eq!(assignment.winners.contains_key(name.as_str()), selected);
            prop_assert_eq!(holders, usize::from(selected));
        }
        for share in assignment.shares.values() {
            let lost: usize = share.lost.values().map(|loss| loss.nodes).sum();
            prop_assert_eq!(share.selected, share.nodes.len() + lost);
        }
    }
}

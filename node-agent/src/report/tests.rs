use pointsman_crds::{Mode, ProxyPolicySpec};
use pointsman_dataplane::iptables::Variant;
use pointsman_dataplane::leftover::Found;
use pointsman_dataplane::model::Family;

use super::*;
use crate::source::Assignment;
use crate::state::FamilyState;

fn state() -> State {
    let settings = serde_json::from_str::<ProxyPolicySpec>("{}").unwrap().settings();
    let assignment = Assignment {
        policy: "p".into(),
        revision: "r1".into(),
        generation: Some(7),
        settings,
    };
    State {
        assignment: Some(Arc::new(assignment)),
        listed: true,
        mode: Some((Mode::IPTables, Some("Auto chose it".into()))),
        applied_revision: Some("r1".into()),
        families: vec![FamilyState {
            family: Family::V4,
            outcome: Outcome::Applied,
        }],
        services: 3,
        endpoints: 9,
        node_eligible: true,
        leftovers: Some(Found::default()),
        ..State::default()
    }
}

/// Status and reason of each condition.
fn conditions_of(state: &State) -> Vec<(String, String)> {
    let status = status(state, &[], Timestamp::now());
    status
        .conditions
        .into_iter()
        .map(|c| (format!("{}={}", c.type_, c.status), c.reason))
        .collect()
}

fn says(state: &State, condition: &str, reason: &str) {
    let all = conditions_of(state);
    assert!(
        all.contains(&(condition.to_owned(), reason.to_owned())),
        "{condition} {reason} is not in {all:?}"
    );
}

#[test]
fn a_node_that_forwards_says_so() {
    let status = status(&state(), &[], Timestamp::now());
    assert_eq!(
        (status.observed_generation, status.applied_revision.as_deref()),
        (Some(7), Some("r1"))
    );
    assert_eq!(
        (status.mode.as_deref(), status.services, status.endpoints),
        (Some("IPTables"), 3, 9)
    );
    let all: Vec<String> = conditions_of(&state())
        .into_iter()
        .map(|(condition, _)| condition)
        .collect();
    assert_eq!(
        all,
        [
            "Applied=True",
            "Healthy=True",
            "Drifted=False",
            "LeftoverRules=False",
            "KernelComplete=True",
            "SysctlsApplied=True",
            "InputsValid=True"
        ]
    );
}

#[test]
fn every_fault_has_its_condition() {
    let starting = State {
        applied_revision: None,
        ..state()
    };
    says(&starting, "Applied=Unknown", "Applying");
    says(&starting, "Healthy=Unknown", "Starting");
    let rejected = State {
        rejected: Some("mend the policy".into()),
        ..state()
    };
    says(&rejected, "Applied=False", "InvalidSettings");
    says(&rejected, "Healthy=True", "Forwarding");
    let lacking = State {
        lacking: vec!["the kernel has no IPVS scheduler mh: load the module ip_vs_mh".into()],
        ..state()
    };
    says(&lacking, "KernelComplete=False", "Missing");
    says(&lacking, "Applied=True", "Applied");
    says(&starting, "KernelComplete=Unknown", "Starting");
    let failed = FamilyState {
        family: Family::V6,
        outcome: Outcome::Failed("no nat table".into()),
    };
    let failed = State {
        families: vec![failed],
        ..state()
    };
    says(&failed, "Applied=False", "KernelRefused");
    says(&failed, "Healthy=False", "KernelRefused");
    says(
        &State {
            drift: Some("a chain is gone".into()),
            ..state()
        },
        "Drifted=True",
        "Repaired",
    );
    says(
        &State {
            sysctl_failures: vec!["no".into()],
            ..state()
        },
        "SysctlsApplied=False",
        "KernelRefused",
    );
    says(
        &State {
            problems: (9, vec!["bad".into()]),
            ..state()
        },
        "InputsValid=False",
        "LeftOut",
    );
    let past = std::time::Instant::now() - Duration::from_secs(60);
    let stuck = State {
        pending_since: Some(past),
        pending_limit: Duration::from_secs(1),
        ..state()
    };
    says(&stuck, "Healthy=False", "Stuck");
}

#[test]
fn leftovers_are_told_with_what_they_do_and_what_to_do() {
    let look = |leftovers| State { leftovers, ..state() };
    says(&look(None), "LeftoverRules=Unknown", "Starting");
    let unread = Found {
        unread: vec!["install iptables".into()],
        ..Found::default()
    };
    says(&look(Some(unread.clone())), "LeftoverRules=Unknown", "NotRead");
    let place = |place| Leftover {
        family: Family::V4,
        place,
        before: Vec::new(),
        destinations: Vec::new(),
        more: 0,
        anywhere: Vec::new(),
    };
    let mut found = Found {
        rules: vec![place(Place::Table), place(Place::Iptables(Variant::Nft))],
        ..unread
    };
    says(&look(Some(found.clone())), "LeftoverRules=True", "KubeProxyRules");
    found.rules[0].before = vec!["early".into()];
    found.rules[0].destinations = vec!["203.0.113.9 port 80/TCP".into()];
    let state = look(Some(found));
    says(&state, "LeftoverRules=True", "KubeProxyDrops");
    let message = leftover(&state).message;
    for words in [
        "before the agent's rules, early can drop or refuse packets to 203.0.113.9 port 80/TCP",
        "install iptables",
        "`kube-proxy --cleanup`",
        "`nft delete table ip kube-proxy`",
        "translates before the agent's rules do",
    ] {
        assert!(message.contains(words), "{message}");
    }
    let nftables = State {
        mode: Some((Mode::NFTables, None)),
        ..state
    };
    assert!(!leftover(&nftables).message.contains("translates before"));
}

#[test]
fn counts_wait_and_conditions_do_not() {
    let before = status(&state(), &[], Timestamp::now());
    let more = status(
        &State {
            services: 4,
            digest: 9,
            ..state()
        },
        &before.conditions,
        Timestamp::now(),
    );
    assert!(differs_in_counts_only(&before, &more) && before != more);
    let drifted = State {
        drift: Some("x".into()),
        ..state()
    };
    assert!(!differs_in_counts_only(
        &before,
        &status(&drifted, &before.conditions, Timestamp::now())
    ));
}

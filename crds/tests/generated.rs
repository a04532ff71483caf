//! The committed YAML is what the types generate, and the API server's rules say what they should.

use std::{fs, path::Path};

use pointsman_crds::{Mode, ProxyPolicy, ProxyPolicySpec, SCHEDULERS, Settings, generated_yaml};
use serde_json::json;

#[test]
fn committed_yaml_is_what_the_types_generate() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("yaml");
    for (name, expected) in generated_yaml().unwrap() {
        let committed = fs::read_to_string(directory.join(name)).unwrap_or_default();
        assert!(
            committed == expected,
            "crds/yaml/{name} is stale: run `make generate` and commit what it changes"
        );
    }
}

/// What the API server would say to a policy with this spec; the schema's CEL rules, evaluated here.
fn verdict(spec: serde_json::Value) -> Result<(), String> {
    ProxyPolicySpec::validate_cel(&spec, None).map_err(|errors| errors.to_string())
}

#[test]
fn a_policy_that_uses_every_field_is_accepted() {
    let spec = json!({
        "nodeSelector": {"matchLabels": {"pool": "big"}}, "priority": 10, "mode": "IPVS",
        "scheduler": "mh",
        "ipvs": {
            "schedulerFlags": ["Port", "Fallback"], "strictARP": true, "tcpTimeoutSeconds": 900, "tcpFinTimeoutSeconds": 30,
            "udpTimeoutSeconds": 60, "gracefulSeconds": 0
        },
        "excludeCIDRs": ["10.0.0.0/24", "fd00::/64"],
        "detectLocal": {"mode": "ClusterCIDR", "clusterCIDRs": ["10.244.0.0/16"]},
        "masqueradeAll": true, "nodePortAddresses": ["Primary", "192.168.0.0/16"],
        "minSyncPeriodMilliseconds": 100, "syncPeriodSeconds": 10,
        "conntrack": {"maxPerCore": 32768, "min": 131_072, "tcpEstablishedTimeoutSeconds": 86400, "resetRemovedEndpoints": true},
        "sysctls": {"net.netfilter.nf_conntrack_max": "1048576"}, "logVerbosity": 4
    });
    assert_eq!(verdict(spec), Ok(()));
}

#[test]
fn every_scheduler_is_accepted_in_every_mode() {
    for mode in ["Auto", "NFTables", "IPVS", "IPTables"] {
        for scheduler in SCHEDULERS {
            let spec = json!({"mode": mode, "scheduler": scheduler, "ipvs": {"schedulerFlags": []}});
            assert_eq!(verdict(spec), Ok(()));
        }
    }
}

#[test]
fn bad_values_are_refused_with_what_to_do() {
    for (spec, says) in [
        (json!({"mode": "userspace"}), "use Auto"),
        (
            json!({"mode": "iptables"}),
            "mode must be Auto, NFTables, IPVS or IPTables",
        ),
        (
            json!({"mode": "ipvs"}),
            "mode must be Auto, NFTables, IPVS or IPTables",
        ),
        (
            json!({"scheduler": "WLC"}),
            "one of rr, wrr, lc, wlc, fo, ovf, lblc, lblcr, dh, sh, mh, sed, nq, twos, spelled so",
        ),
        (
            json!({"scheduler": "wlc", "ipvs": {"schedulerFlags": ["Port"]}}),
            "goes with scheduler sh or mh",
        ),
        (
            json!({"mode": "IPVS", "ipvs": {"schedulerFlags": ["Port"]}}),
            "goes with scheduler sh or mh",
        ),
        (
            json!({"excludeCIDRs": ["10.0.0.1"]}),
            "excludeCIDRs must be a CIDR such as",
        ),
        (
            json!({"nodePortAddresses": ["primary"]}),
            "must be Primary, All, or a CIDR",
        ),
        (
            json!({"sysctls": {"kernel.core_pattern": "1"}}),
            "not on the allow-list",
        ),
        (
            json!({"sysctls": {"net.netfilter.nf_conntrack_max": "-1"}}),
            "strings of numbers",
        ),
        (
            json!({"detectLocal": {"mode": "ClusterCIDR"}}),
            "needs at least one",
        ),
        (
            json!({"detectLocal": {"mode": "NodeCIDR", "bridgeInterface": "br0"}}),
            "goes with mode BridgeInterface",
        ),
        (
            json!({"conntrack": {"min": 5}}),
            "set conntrack.maxPerCore as well",
        ),
    ] {
        let said = verdict(spec.clone()).expect_err(&format!("{spec} was accepted"));
        assert!(said.contains(says), "{spec}: said {said:?}");
    }
}

#[test]
fn an_absent_value_is_the_documented_default() {
    let policy: ProxyPolicy = serde_json::from_value(json!({
        "apiVersion": "pointsman.dev/v1alpha1", "kind": "ProxyPolicy", "metadata": {"name": "p"}, "spec": {}
    }))
    .unwrap();
    let settings = policy.spec.settings();
    assert_eq!(settings.node_port_addresses, ["Primary"]);
    assert_eq!((settings.sync_period_seconds, settings.log_verbosity), (30, 2));
}

#[test]
fn a_revision_names_the_values_and_nothing_else() {
    let plain = ProxyPolicySpec::default().settings();
    let other = ProxyPolicySpec {
        masquerade_all: true,
        ..Default::default()
    }
    .settings();
    assert_eq!(
        plain.revision(),
        ProxyPolicySpec {
            priority: 7,
            ..Default::default()
        }
        .settings()
        .revision()
    );
    assert_ne!(plain.revision(), other.revision());
    assert_eq!(plain.revision().len(), 10);
}

#[test]
fn only_mode_ipvs_has_a_scheduler_where_none_is_named() {
    let scheduler = |mode, scheduler: Option<&str>| {
        let spec = ProxyPolicySpec {
            mode,
            scheduler: scheduler.map(str::to_owned),
            ..Default::default()
        };
        spec.settings().scheduler
    };
    assert_eq!(scheduler(Mode::IPVS, None).as_deref(), Some("wrr"));
    // Auto is IPVS only where a scheduler is named.
    assert_eq!(scheduler(Mode::Auto, None), None);
    assert_eq!(scheduler(Mode::Auto, Some("wlc")).as_deref(), Some("wlc"));
}

#[test]
fn settings_from_before_mode_ipvs_are_read_and_keep_their_revision() {
    let of = |spec: serde_json::Value| {
        let spec: ProxyPolicySpec = serde_json::from_value(spec).unwrap();
        spec.settings()
    };
    let settings = of(json!({}));
    let written = serde_json::to_value(&settings).unwrap();
    assert!(
        written.get("ipvs").is_none() && written.get("scheduler").is_none(),
        "{written}"
    );
    assert_eq!(serde_json::from_value::<Settings>(written).unwrap(), settings);
    assert_eq!(of(json!({"ipvs": {}})).revision(), settings.revision());
    let strict = of(json!({"ipvs": {"strictARP": true}}));
    assert_ne!(strict.revision(), settings.revision());
    let written = serde_json::to_value(&strict).unwrap();
    assert_eq!(serde_json::from_value::<Settings>(written).unwrap(), strict);
}

/// The names of all properties below a schema.
fn properties(schema: &serde_json::Value, found: &mut Vec<String>) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        // A LabelSelector is Kubernetes' own, and documented there.
        if name != "nodeSelector" && name != "conditions" {
            properties(property, found);
        }
        found.push(name.clone());
    }
}

#[test]
fn the_reference_names_every_field_and_every_kernel_parameter() {
    use kube::CustomResourceExt as _;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/proxypolicy.md");
    let reference = fs::read_to_string(path).unwrap();
    let crd = serde_json::to_value(ProxyPolicy::crd()).unwrap();
    let mut names = Vec::new();
    properties(
        &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"],
        &mut names,
    );
    assert!(names.len() > 25, "{names:?}");
    let fields = names
        .iter()
        .map(String::as_str)
        .filter(|name| !["spec", "status"].contains(name));
    for name in fields.chain(pointsman_crds::sysctl::ALLOWED.iter().copied()) {
        let quoted = reference.contains(&format!("`{name}`")) || reference.contains(&format!(".{name}`"));
        assert!(
            quoted,
            "docs/reference/proxypolicy.md does not say what {name} is"
        );
    }
}

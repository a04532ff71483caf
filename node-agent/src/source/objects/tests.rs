use pointsman_dataplane::model::{EndpointSlice, Service, TrafficPolicy, Weight, Weights};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::source::Parsed;

fn service(object: Value) -> Parsed<Service> {
    serde_json::from_value::<SlimService>(object).unwrap().parse()
}

fn slice(object: Value) -> Parsed<(ServiceName, EndpointSlice)> {
    serde_json::from_value::<SlimSlice>(object)
        .unwrap()
        .parse("node-1")
}

fn web() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "web", "namespace": "shop", "creationTimestamp": "1970-01-01T00:01:00Z",
            "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}],
        },
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
            "externalIPs": ["203.0.113.1"], "selector": {"app": "web"}, "sessionAffinity": "None",
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080, "nodePort": 30080}]
        },
        "status": {"loadBalancer": {"ingress": [
            {"ip": "198.51.100.1", "ipMode": "VIP"}, {"ip": "198.51.100.2", "ipMode": "Proxy"}, {"hostname": "lb.example"}
        ]}}
    })
}

#[test]
fn a_service_is_read_with_all_its_addresses() {
    let parsed = service(web());
    let service = parsed.object.unwrap();
    assert_eq!(
        (service.name.to_string().as_str(), service.created),
        ("shop/web", 60)
    );
    assert_eq!(service.cluster_ips.len(), 2);
    assert_eq!(service.load_balancer_ips, [address("198.51.100.1").unwrap()]);
    assert_eq!(
        (service.ports[0].port, service.ports[0].node_port),
        (80, Some(30080))
    );
    assert!(parsed.problems.is_empty());
}

#[test]
fn services_that_no_proxy_serves_are_nothing() {
    for (path, value) in [
        ("/spec/type", json!("ExternalName")),
        ("/spec/clusterIP", json!("None")),
        (
            "/metadata/labels",
            json!({"service.kubernetes.io/service-proxy-name": "other"}),
        ),
    ] {
        let mut object = web();
        let (parent, field) = path.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[field] = value;
        assert_eq!(service(object), Parsed::gone(), "{path}");
    }
}

#[test]
fn the_headless_label_is_for_slices_only() {
    let mut object = web();
    object["metadata"]["labels"] = json!({"service.kubernetes.io/headless": ""});
    assert_eq!(service(object).object, service(web()).object);
}

#[test]
fn what_is_wrong_with_a_service_is_said_and_the_rest_is_used() {
    let mut object = web();
    object["spec"]["externalIPs"] = json!(["nonsense", "203.0.113.1"]);
    object["spec"]["ports"] =
        json!([{"port": 0}, {"port": 70000}, {"port": 80, "protocol": "ICMP"}, {"port": 81}]);
    let parsed = service(object);
    let service = parsed.object.unwrap();
    assert_eq!((service.external_ips.len(), service.ports.len()), (1, 1));
    assert_eq!(parsed.problems.len(), 4);
    assert!(parsed.problems[0].contains("shop/web") && parsed.problems[0].contains("nonsense"));
}

#[test]
fn a_slice_is_read_with_its_conditions() {
    let parsed = slice(json!({
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}, {"name": "all", "port": null}],
        "endpoints": [
            {"addresses": ["10.0.1.1", "10.0.1.9"], "nodeName": "node-1"},
            {"addresses": ["10.0.1.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["10.0.1.3"], "conditions": {"ready": null}, "nodeName": "node-2"},
            {"addresses": ["10.0.1.4"], "conditions": {"ready": false, "terminating": true}},
            {"addresses": ["999.0.0.1"]}, {"addresses": []}
        ]
    }));
    let (owner, slice) = parsed.object.unwrap();
    assert_eq!(owner.to_string(), "shop/web");
    assert_eq!(slice.ports.len(), 1);
    let seen: Vec<_> = slice
        .endpoints
        .iter()
        .map(|e| (e.ready, e.serving, e.terminating, e.local, e.unplaced))
        .collect();
    assert_eq!(
        seen,
        [
            (true, true, false, true, false),
            (false, true, true, false, true),
            (true, true, false, false, false),
            (false, true, true, false, true)
        ]
    );
    assert!(parsed.problems[0].contains("999.0.0.1") && parsed.problems.len() == 1);
}

#[test]
fn slices_of_names_or_of_no_service_are_nothing() {
    let labels = json!({"kubernetes.io/service-name": "web"});
    let fqdn = json!({"metadata": {"name": "a", "labels": labels}, "addressType": "FQDN", "endpoints": null});
    let orphan = json!({"metadata": {"name": "a"}, "addressType": "IPv4", "endpoints": [], "ports": null});
    assert_eq!((slice(fqdn), slice(orphan)), (Parsed::gone(), Parsed::gone()));
}

#[test]
fn leading_zeros_are_decimal() {
    assert_eq!(address("172.030.099.011"), address("172.30.99.11"));
    assert_eq!(
        (
            address("1.2.3"),
            address("1.2.3.256"),
            address("1.2.3.+4"),
            address("")
        ),
        (None, None, None, None)
    );
}

#[test]
fn a_node_that_is_on_its_way_out_is_not_eligible() {
    let node = |object: Value| serde_json::from_value::<SlimNode>(object).unwrap().parse();
    let plain = node(json!({
        "metadata": {"name": "node-1"}, "spec": {"podCIDRs": ["10.244.1.7/24", "bad"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.1"}, {"type": "Hostname", "address": "n"}]}
    }));
    assert_eq!((plain.internal_ips.len(), plain.eligible), (1, true));
    assert_eq!(plain.pod_cidrs[0].to_string(), "10.244.1.0/24");
    assert!(!node(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})).eligible);
    let tainted = json!({"metadata": {}, "spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}});
    assert!(!node(tainted).eligible);
}

/// [`web`] with these fields of its spec set.
fn web_with(spec: Value) -> Parsed<Service> {
    let mut object = web();
    for (field, value) in spec.as_object().unwrap() {
        object["spec"][field] = value.clone();
    }
    service(object)
}

#[test]
fn affinity_has_a_default_and_a_range() {
    let affinity = |spec: Value| web_with(spec).object.unwrap().affinity;
    let with = |seconds: Value| {
        affinity(json!({
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}
        }))
    };
    assert_eq!(affinity(json!({"sessionAffinity": "ClientIP"})), Some(10_800));
    assert_eq!(
        affinity(json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": null})),
        Some(10_800)
    );
    assert_eq!(
        affinity(json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": null}})),
        Some(10_800)
    );
    for (seconds, expected) in [
        (json!(1), 1),
        (json!(86_400), 86_400),
        (json!(null), 10_800),
        (json!(0), 10_800),
        (json!(86_401), 10_800),
        (json!(-5), 10_800),
        (json!(5_000_000_000_i64), 10_800),
    ] {
        assert_eq!(with(seconds.clone()), Some(expected), "{seconds}");
    }
    for none in [json!("None"), json!(null), json!("clientip")] {
        assert_eq!(affinity(json!({"sessionAffinity": none})), None);
    }
}

#[test]
fn policies_are_read_where_they_mean_something() {
    let policies = |spec: Value| {
        let service = web_with(spec).object.unwrap();
        (service.internal_policy, service.external_policy)
    };
    use TrafficPolicy::{Cluster, Local};
    let local = json!({"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"});
    assert_eq!(policies(json!({})), (Cluster, Cluster));
    assert_eq!(policies(local.clone()), (Local, Local));
    assert_eq!(
        policies(json!({"externalTrafficPolicy": "Sideways"})),
        (Cluster, Cluster)
    );
    // A Service of type ClusterIP that nobody outside can reach: the field is left over from another type.
    let mut inside = local.clone();
    inside["type"] = "ClusterIP".into();
    inside["externalIPs"] = json!([]);
    assert_eq!(policies(inside.clone()), (Local, Cluster));
    inside["externalIPs"] = json!(["203.0.113.1"]);
    assert_eq!(policies(inside), (Local, Local), "external IPs can be reached");
    let mut ported = local;
    ported["type"] = "NodePort".into();
    assert_eq!(policies(ported), (Local, Local));
}

#[test]
fn a_health_check_port_needs_a_load_balancer_with_policy_local() {
    let port = |spec: Value| web_with(spec).object.unwrap().health_check_port;
    let local = json!({"healthCheckNodePort": 31000, "externalTrafficPolicy": "Local"});
    assert_eq!(port(local.clone()), Some(31000));
    let but = |field: &str, value: Value| {
        let mut spec = local.clone();
        spec[field] = value;
        port(spec)
    };
    assert_eq!(but("externalTrafficPolicy", json!("Cluster")), None);
    assert_eq!(but("type", json!("NodePort")), None);
    for nonsense in [json!(0), json!(null), json!(65_536), json!(-1)] {
        assert_eq!(but("healthCheckNodePort", nonsense), None);
    }
}

#[test]
fn source_ranges_are_read_leniently_and_nonsense_lets_nobody_in() {
    let ranges = |list: Value| {
        let parsed = web_with(json!({"loadBalancerSourceRanges": list}));
        let ranges = parsed.object.unwrap().source_ranges;
        let ranges = ranges.map(|ranges| ranges.iter().map(ToString::to_string).collect::<Vec<_>>());
        (ranges, parsed.problems.len())
    };
    assert_eq!((ranges(json!([])), ranges(json!(null))), ((None, 0), (None, 0)));
    assert_eq!(
        ranges(json!([" 203.0.113.000/025 ", "10.0.0.7/8", "\tfd00::1/64\n"])),
        (
            Some(vec![
                "203.0.113.0/25".into(),
                "10.0.0.0/8".into(),
                "fd00::/64".into()
            ]),
            0
        )
    );
    // As kube-proxy: with only nonsense in the list, the list still restricts.
    let garbage = json!([
        "",
        "10.0.0.0",
        "10.0.0.0/33",
        "10.0.0.0/+8",
        "fd00::/129",
        "10.0.0.0/8/8",
        "any"
    ]);
    assert_eq!(ranges(garbage), (Some(Vec::new()), 7));
}

#[test]
fn direct_access_is_asked_for_by_true_and_nothing_else() {
    let direct = |annotations: Value| {
        let mut object = web();
        object["metadata"]["annotations"] = annotations;
        service(object).object.unwrap().direct_access
    };
    let name = "networking.alpha.kubernetes.io/direct-access";
    assert!(direct(json!({name: "true", "other": "x"})));
    for other in ["false", "True", "1", "yes", "", " true"] {
        assert!(!direct(json!({name: other})), "{other:?}");
    }
    assert!(!direct(json!(null)) && !direct(json!({})));
}

#[test]
fn load_balancer_addresses_of_any_kind() {
    let mut object = web();
    object["status"]["loadBalancer"]["ingress"] = json!([
        {"ip": "198.51.100.010"}, {"ip": "fd00::99", "ipMode": null}, {"ip": "", "hostname": "lb.example"},
        {"ip": null}, {"ip": "here"}, {"ip": "198.51.100.2", "ipMode": "Proxy"},
        {"ip": "198.51.100.3", "ipMode": "Whatever", "ports": [{"port": 80, "protocol": "TCP"}]}
    ]);
    let parsed = service(object);
    let found: Vec<_> = parsed.object.unwrap().load_balancer_ips;
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    // One of a family that the Service does not have is left to the model, which says so.
    assert_eq!(found, ["198.51.100.10", "fd00::99", "198.51.100.3"]);
    assert!(parsed.problems.len() == 1 && parsed.problems[0].contains("here"));
    for nothing in [json!(null), json!({}), json!({"loadBalancer": {"ingress": null}})] {
        let mut object = web();
        object["status"] = nothing;
        if object["status"].is_null() {
            object.as_object_mut().unwrap().remove("status");
        }
        assert!(service(object).object.unwrap().load_balancer_ips.is_empty());
    }
}

#[test]
fn node_ports_and_cluster_ips_that_are_not_there() {
    let ports = |port: Value| web_with(json!({"ports": [port]})).object.unwrap().ports;
    for none in [
        json!({"port": 80}),
        json!({"port": 80, "nodePort": 0}),
        json!({"port": 80, "nodePort": null}),
    ] {
        assert_eq!(
            ports(none)[0].node_port,
            None,
            "allocateLoadBalancerNodePorts: false"
        );
    }
    assert!(ports(json!({"port": 80, "nodePort": 70_000})).is_empty());
    assert_eq!(&*ports(json!({"port": 80, "name": null}))[0].name, "");
    let pending = web_with(json!({"clusterIP": "", "clusterIPs": []}));
    assert_eq!(pending, Parsed::gone(), "not allocated yet");
    let old = web_with(json!({"clusterIPs": null})).object.unwrap();
    assert_eq!(old.cluster_ips, [address("10.96.0.1").unwrap()]);
    let zeros = web_with(json!({"clusterIP": "10.096.000.001", "clusterIPs": ["10.096.000.001"]}));
    assert_eq!(zeros.object.unwrap().cluster_ips, [address("10.96.0.1").unwrap()]);
}

#[test]
fn hints_are_read_for_this_node() {
    let endpoint = |hints: Value| {
        let parsed = slice(json!({
            "metadata": {"name": "a", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.1.1"], "hints": hints}]
        }));
        let endpoint = parsed.object.unwrap().1.endpoints.remove(0);
        let zones = endpoint.for_zones();
        let zones = zones.map(|zones| zones.iter().map(ToString::to_string).collect::<Vec<_>>());
        (endpoint.for_nodes, zones)
    };
    let name = |name: &str| json!([{"name": name}]);
    assert_eq!(endpoint(json!(null)), (None, None));
    assert_eq!(endpoint(json!({})), (None, None));
    assert_eq!(endpoint(json!({"forZones": null, "forNodes": []})), (None, None));
    assert_eq!(endpoint(json!({"forNodes": name("node-1")})), (Some(true), None));
    assert_eq!(endpoint(json!({"forNodes": name("node-2")})), (Some(false), None));
    assert_eq!(
        endpoint(json!({"forZones": [{"name": "a"}, {"name": "b"}], "forNodes": name("node-1")})),
        (Some(true), Some(vec!["a".into(), "b".into()]))
    );
}

#[test]
fn endpoints_share_what_they_have_in_common() {
    let endpoint = |zone: &str, workload: &str| {
        json!({
            "addresses": ["10.0.1.1"], "hints": {"forZones": [{"name": zone}]},
            "targetRef": {"kind": "Pod", "name": format!("{workload}-x2x4z")}
        })
    };
    let parsed = slice(json!({
        "metadata": {"name": "a", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
        "endpoints": [endpoint("a", "web"), endpoint("b", "web"), endpoint("a", "web"), endpoint("a", "db")]
    }));
    let endpoints = parsed.object.unwrap().1.endpoints;
    let shared = |one: usize, other: usize| {
        let common = |at: usize| endpoints[at].common.as_ref().unwrap();
        std::sync::Arc::ptr_eq(common(one), common(other))
    };
    assert_eq!([shared(0, 2), shared(0, 1), shared(0, 3)], [true, false, false]);
}

/// The weights of a slice's endpoints, and what is wrong with it.
fn slice_weights(annotations: Value, targets: &[Value]) -> (Vec<Weight>, Vec<String>) {
    let endpoint = |target: &Value| json!({"addresses": ["10.0.1.1"], "targetRef": target});
    let parsed = slice(json!({
        "metadata": {
            "name": "a", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}, "annotations": annotations
        },
        "addressType": "IPv4",
        "endpoints": targets.iter().map(endpoint).collect::<Vec<_>>()
    }));
    let endpoints = parsed.object.unwrap().1.endpoints;
    (
        endpoints
            .iter()
            .map(|endpoint| endpoint.weight().clone())
            .collect(),
        parsed.problems,
    )
}

#[test]
fn a_slice_says_what_its_endpoints_weigh() {
    let pod = [json!({"kind": "Pod", "name": "web-6d4cf56db6-x2x4z"})];
    let of = |text: &str| slice_weights(json!({"pointsman.dev/weight": text}), &pod);
    for (text, weight) in [("0", 0), ("9", 9), ("100", 100), (" 007\n", 7)] {
        assert_eq!(
            of(text),
            (vec![Weight::Given(Some(weight))], Vec::new()),
            "{text:?}"
        );
    }
    let long = "9".repeat(100_000);
    for text in ["", "101", "-1", "+1", "1.5", "1,2", "nine", "256", "٣", &long] {
        let (weights, problems) = of(text);
        assert_eq!(weights, [Weight::Given(Some(1))], "{text:?}");
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            problems[0].starts_with("EndpointSlice shop/a: pointsman.dev/weight is"),
            "{problems:?}"
        );
        assert!(
            problems[0].contains("0 to 100") && problems[0].len() < 400,
            "{problems:?}"
        );
    }
}

#[test]
fn an_endpoint_is_of_the_workload_that_its_pod_is_named_after() {
    let pod = |name: &str| json!({"kind": "Pod", "name": name});
    let targets = [
        pod("web-6d4cf56db6-x2x4z"),
        pod("web-6d4cf56db6-abcde"),
        pod("db-0"),
        pod("db"),
        json!({"kind": "VirtualMachine", "name": "web-1"}),
        json!({"kind": "Pod"}),
        json!({}),
        json!(null),
    ];
    let (weights, problems) = slice_weights(json!({"other": "5"}), &targets);
    let workload = |name: &str| Weight::Workload(name.into());
    assert_eq!(
        weights[..4],
        [
            workload("web-6d4cf56db6"),
            workload("web-6d4cf56db6"),
            workload("db"),
            workload("db")
        ]
    );
    assert!(weights[4..].iter().all(|weight| *weight == Weight::USUAL));
    assert_eq!(problems, Vec::<String>::new());
}

#[test]
fn a_service_says_what_its_workloads_weigh() {
    let of = |text: &str| {
        let mut object = web();
        object["metadata"]["annotations"] = json!({"pointsman.dev/weights": text});
        let parsed = service(object);
        (parsed.object.unwrap().weights, parsed.problems)
    };
    let weights = |entries: &[(&str, u8)]| {
        let mut weights = Weights::default();
        entries
            .iter()
            .for_each(|(name, weight)| assert!(weights.add(name, *weight)));
        weights
    };
    for text in [
        "web=9,web-canary=1",
        " web = 9 ,\n web-canary=1,\n",
        "web=9\nweb-canary=1",
    ] {
        assert_eq!(
            of(text),
            (weights(&[("web", 9), ("web-canary", 1)]), Vec::new()),
            "{text:?}"
        );
    }
    assert_eq!(of(" ,\n"), (Weights::default(), Vec::new()));
    // What is bad costs only itself: nobody has a shorter name's weight by it.
    let (found, problems) = of("web=9, web-canary=lots, =3, db, web=5");
    assert_eq!(found, weights(&[("web", 9), ("web-canary", 1), ("db", 1)]));
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].contains("pointsman.dev/weights has \"web-canary=lots\" and 3 more:"),
        "{problems:?}"
    );
    let (_, problems) = of(&"x".repeat(200_000));
    assert!(problems.len() == 1 && problems[0].len() < 500, "{problems:?}");
}

#[test]
fn a_service_names_its_scheduler() {
    let of = |annotations: Value| {
        let mut object = web();
        object["metadata"]["annotations"] = annotations;
        let parsed = service(object);
        let scheduler = parsed.object.unwrap().scheduler;
        (scheduler.map(|scheduler| scheduler.to_string()), parsed.problems)
    };
    let named = |name: &str| of(json!({"pointsman.dev/scheduler": name}));
    let flagged = |name: &str, flags: &str| {
        of(json!({"pointsman.dev/scheduler": name, "pointsman.dev/scheduler-flags": flags}))
    };
    for (found, scheduler) in [
        (of(json!({})), None),
        (named("wlc"), Some("wlc")),
        (named(" rr\n"), Some("rr")),
        (flagged("lc", " ,"), Some("lc")),
        (flagged("mh", "port"), Some("mh (port)")),
        (flagged("sh", "Fallback, Port"), Some("sh (fallback,port)")),
    ] {
        assert_eq!(found, (scheduler.map(str::to_owned), Vec::new()));
    }
    // What is bad leaves the Service to the policy, and says what there is.
    for (found, said) in [
        (
            named("WLC"),
            "pointsman.dev/scheduler: there is no scheduler \"WLC\", only rr, wrr, lc, wlc, fo, ovf, lblc, lblcr, dh, sh, mh, \
             sed, nq, twos;",
        ),
        (
            named(""),
            "pointsman.dev/scheduler: there is no scheduler \"\", only",
        ),
        (
            flagged("mh", "port,ports"),
            "pointsman.dev/scheduler-flags: there is no scheduler's flag \"ports\", only fallback and port;",
        ),
        (
            flagged("wlc", "port"),
            "pointsman.dev/scheduler-flags: scheduler wlc has no flag \"port\": only sh and mh have flags",
        ),
        (
            of(json!({"pointsman.dev/scheduler-flags": "port"})),
            "pointsman.dev/scheduler-flags is there without pointsman.dev/scheduler, which has to say sh or mh;",
        ),
        (named(&"x".repeat(200_000)), "there is no scheduler \"xxx"),
    ] {
        let (scheduler, problems) = found;
        assert_eq!((scheduler, problems.len()), (None, 1), "{problems:?}");
        let problem = &problems[0];
        assert!(
            problem.starts_with("Service shop/web: ") && problem.contains(said),
            "{problem}"
        );
        assert!(
            problem.ends_with("uses the policy's scheduler; mend the annotation"),
            "{problem}"
        );
        assert!(problem.len() < 400, "{problem}");
    }
}

#[test]
fn conditions_of_endpoints_that_come_and_go() {
    let conditions = |conditions: Value| {
        let parsed = slice(json!({
            "metadata": {"name": "a", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv6",
            "endpoints": [{"addresses": ["fd00::1"], "conditions": conditions}]
        }));
        let endpoint = parsed.object.unwrap().1.endpoints.remove(0);
        (endpoint.ready, endpoint.serving, endpoint.terminating)
    };
    assert_eq!(conditions(json!({})), (true, true, false));
    assert_eq!(conditions(json!({"ready": false})), (false, true, false));
    // publishNotReadyAddresses: the slice says ready, whatever the pod is.
    assert_eq!(
        conditions(json!({"ready": true, "serving": false, "terminating": true})),
        (true, false, true)
    );
    assert_eq!(
        conditions(json!({"ready": false, "serving": null, "terminating": true})),
        (false, true, true)
    );
}

#[test]
fn ports_of_slices_that_no_proxy_can_use() {
    let parsed = slice(json!({
        "metadata": {"name": "a", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
        "ports": [
            {"name": null, "port": 80, "protocol": null}, {"name": "all", "port": null}, {"port": 0},
            {"port": 99_999}, {"port": 53, "protocol": "UDP", "appProtocol": "dns"}, {"port": 1, "protocol": "ICMP"}
        ],
    }));
    let ports = parsed.object.unwrap().1.ports;
    let seen: Vec<_> = ports
        .iter()
        .map(|port| (&*port.name, port.protocol, port.port))
        .collect();
    assert_eq!(seen, [("", Protocol::Tcp, 80), ("", Protocol::Udp, 53)]);
    assert_eq!(
        parsed.problems.len(),
        3,
        "a port without a number is no fault: {:?}",
        parsed.problems
    );
}

#[test]
fn the_zone_is_a_label_and_an_empty_one_is_none() {
    let zone = |labels: Value| {
        let node = json!({"metadata": {"name": "node-1", "labels": labels}});
        serde_json::from_value::<SlimNode>(node).unwrap().parse().zone
    };
    assert_eq!(
        zone(json!({"topology.kubernetes.io/zone": "zone-a"})).as_deref(),
        Some("zone-a")
    );
    assert_eq!(zone(json!({"topology.kubernetes.io/zone": ""})), None);
    assert_eq!(zone(json!(null)), None);
}

#[test]
fn service_cidrs_are_ranges_and_nonsense_is_said() {
    let parse = |spec: Value| {
        let object = json!({"metadata": {"name": "kubernetes"}, "spec": spec});
        serde_json::from_value::<SlimServiceCidr>(object).unwrap().parse()
    };
    let parsed = parse(json!({"cidrs": ["10.96.0.0/16", "fd00:10:96::/112", "ten"]}));
    let ranges: Vec<_> = parsed.object.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["10.96.0.0/16", "fd00:10:96::/112"]);
    assert!(parsed.problems.len() == 1 && parsed.problems[0].contains("kubernetes"));
    assert_eq!(parse(json!({"cidrs": null})).object, Some(Vec::new()));
    // What would cut the node off from everything.
    let all = parse(json!({"cidrs": ["0.0.0.0/0", "::/0", "8.0.0.0/7", "10.0.0.0/8", "fd00::/32"]}));
    assert_eq!((all.object.unwrap().len(), all.problems.len()), (2, 3));
}

/// Any JSON, with names and values among it that mean something here.
fn any_json() -> impl Strategy<Value = Value> {
    let word = prop_oneof![
        Just("ClientIP"),
        Just("Local"),
        Just("LoadBalancer"),
        Just("None"),
        Just("10.0.0.1"),
        Just("10.0.0.0/8"),
        Just("fd00::1"),
        Just("1.2.3.4/99999999999"),
        Just("IPv4"),
        Just("TCP"),
        Just("true"),
        Just("2026-01-01T00:00:00Z"),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        word.prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    let field = prop_oneof![
        Just("ports"),
        Just("port"),
        Just("nodePort"),
        Just("name"),
        Just("protocol"),
        Just("clusterIPs"),
        Just("clusterIP"),
        Just("externalIPs"),
        Just("sessionAffinity"),
        Just("sessionAffinityConfig"),
        Just("clientIP"),
        Just("timeoutSeconds"),
        Just("loadBalancerSourceRanges"),
        Just("healthCheckNodePort"),
        Just("loadBalancer"),
        Just("ingress"),
        Just("ip"),
        Just("ipMode"),
        Just("endpoints"),
        Just("addresses"),
        Just("conditions"),
        Just("ready"),
        Just("hints"),
        Just("forZones"),
        Just("forNodes"),
        Just("labels"),
        Just("targetRef"),
        Just("kind"),
        Just("name"),
        Just("pointsman.dev/weight"),
        Just("pointsman.dev/weights"),
        Just("annotations"),
        Just("creationTimestamp"),
        Just("addressType"),
        Just("cidrs"),
        Just("podCIDRs"),
        Just("taints"),
        Just("metadata"),
        Just("spec"),
        Just("status"),
    ];
    leaf.prop_recursive(5, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((field.clone(), inner), 0..6).prop_map(|fields| {
                let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value));
                Value::Object(fields.collect())
            }),
        ]
    })
}

proptest! {
    /// Whatever comes: it is read, or refused by the parser, and nothing panics.
    #[test]
    fn any_json_is_read_or_refused(metadata in any_json(), spec in any_json(), status in any_json()) {
        let labels = json!({"kubernetes.io/service-name": "web"});
        for metadata in [metadata, json!({"name": "a", "labels": labels})] {
            let mut object = json!({"metadata": metadata, "spec": spec, "status": status, "addressType": "IPv4"});
            if let Value::Object(fields) = &spec {
                for (name, value) in fields {
                    object.as_object_mut().unwrap().entry(name).or_insert_with(|| value.clone());
                }
            }
            // The same by way of text, as watches and files have it.
            let text = object.to_string();
            let _ = serde_json::from_str::<SlimService>(&text).map(SlimService::parse);
            let _ = serde_json::from_str::<SlimSlice>(&text).map(|slice| slice.parse("node-1"));
            let _ = serde_json::from_str::<SlimNode>(&text).map(SlimNode::parse);
            let _ = serde_json::from_str::<SlimServiceCidr>(&text).map(SlimServiceCidr::parse);
        }
    }

    /// Any text is an address or is none; what is one is the same when it is read again.
    #[test]
    fn any_text_is_an_address_or_none(text in "\\PC{0,40}|[0-9.]{0,20}|[0-9a-f:]{0,40}") {
        if let Some(found) = address(&text) {
            prop_assert_eq!(address(&found.to_string()), Some(found));
        }
        if let Some(found) = range(&text) {
            prop_assert_eq!(range(&found.to_string()), Some(found));
        }
    }
}

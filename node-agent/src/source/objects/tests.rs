use pointsman_dataplane::model::{EndpointSlice, Service};
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
        ("/metadata/labels", json!({"service.kubernetes.io/headless": ""})),
    ] {
        let mut object = web();
        let (parent, field) = path.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[field] = value;
        assert_eq!(service(object), Parsed::gone(), "{path}");
    }
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
            {"addresses": ["999.0.0.1"]}, {"addresses": []}
        ]
    }));
    let (owner, slice) = parsed.object.unwrap();
    assert_eq!(owner.to_string(), "shop/web");
    assert_eq!(slice.ports.len(), 1);
    let seen: Vec<_> = slice
        .endpoints
        .iter()
        .map(|e| (e.ready, e.serving, e.terminating, e.local))
        .collect();
    assert_eq!(
        seen,
        [
            (true, true, false, true),
            (false, true, true, false),
            (true, true, false, false)
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

//! Values that make no sense: refused by the API server where it can tell, otherwise named in a condition, and
//! whatever else is there goes on.

use anyhow::{Context, Result, bail};
use pointsman_e2e::{
    Cluster, ControlPlane, Fabric, Options, Toolchain,
    cluster::{LIMIT, section},
    observe::condition,
    traffic::{Client, Protocol},
    workload::{self, read_example},
};

#[test]
fn bad_input_is_refused_or_named_and_disturbs_nothing_else() -> Result<()> {
    let (toolchain, fabric) = (Toolchain::locate()?, Fabric::new()?);
    let control_plane = ControlPlane::start(&toolchain, &fabric, Options::default())?;
    let cluster = Cluster::start(
        &toolchain,
        &fabric,
        &control_plane,
        &[("node-1", &[]), ("node-2", &[])],
    )?;
    control_plane.apply(&read_example("policy-fleet.yaml")?)?;
    let policy = cluster.ready("fleet", 2)?;
    let revision = policy["status"]["revision"].clone();
    let flood = Client::of(cluster.client.namespace()).flood(Protocol::Tcp, cluster.vips[0]);

    section("refused", || every_rule_refuses_with_its_message(&cluster))?;
    section("selector", || {
        a_selector_that_cannot_be_read_is_explained(&cluster)
    })?;
    section("slices", || slices_with_problems_are_named(&cluster))?;
    section("Service", || {
        an_address_of_a_family_that_the_service_lacks_is_named(&cluster)
    })?;

    flood
        .stop_without_loss()
        .context("another Service was disturbed")?;
    let policy = cluster.ready("fleet", 2)?;
    assert_eq!(policy["status"]["revision"], revision);
    Ok(())
}

/// (spec, what the API server says).
const REFUSED: &[(&str, &str)] = &[
    (
        "{mode: userspace}",
        "mode userspace was removed from Kubernetes in 1.26 and does not exist here: use Auto",
    ),
    (
        "{mode: Userspace}",
        "mode userspace was removed from Kubernetes in 1.26",
    ),
    (
        "{mode: iptables}",
        "mode must be Auto, NFTables, IPVS or IPTables, spelled so",
    ),
    ("{mode: eBPF}", "mode must be Auto, NFTables, IPVS or IPTables"),
    (
        "{excludeCIDRs: [10.0.0.0]}",
        "every entry of excludeCIDRs must be a CIDR such as 10.0.0.0/24",
    ),
    (
        "{excludeCIDRs: [10.0.0.0/33]}",
        "every entry of excludeCIDRs must be a CIDR",
    ),
    (
        "{nodePortAddresses: [eth0]}",
        "every entry of nodePortAddresses must be Primary, All, or a CIDR",
    ),
    (
        "{detectLocal: {mode: ClusterCIDR}}",
        "detectLocal.clusterCIDRs goes with mode ClusterCIDR, which needs at least one",
    ),
    (
        "{detectLocal: {mode: ClusterCIDR, clusterCIDRs: [pods]}}",
        "every entry of detectLocal.clusterCIDRs must be a CIDR",
    ),
    (
        "{detectLocal: {clusterCIDRs: [10.244.0.0/16]}}",
        "detectLocal.clusterCIDRs goes with mode ClusterCIDR",
    ),
    (
        "{detectLocal: {mode: BridgeInterface}}",
        "detectLocal.bridgeInterface goes with mode BridgeInterface, which needs it",
    ),
    (
        "{detectLocal: {mode: InterfaceNamePrefix}}",
        "detectLocal.interfaceNamePrefix goes with mode InterfaceNamePrefix, which needs it",
    ),
    (
        "{detectLocal: {interfaceNamePrefix: veth}}",
        "detectLocal.interfaceNamePrefix goes with mode InterfaceNamePrefix",
    ),
    (
        "{detectLocal: {mode: BridgeInterface, bridgeInterface: 'br 0'}}",
        "spec.detectLocal.bridgeInterface",
    ),
    ("{detectLocal: {mode: Nearby}}", "Unsupported value: \"Nearby\""),
    ("{conntrack: {min: 131072}}", "set conntrack.maxPerCore as well"),
    (
        "{conntrack: {maxPerCore: 0}}",
        "spec.conntrack.maxPerCore in body should be greater than or equal to 1",
    ),
    (
        "{conntrack: {tcpEstablishedTimeoutSeconds: -1}}",
        "spec.conntrack.tcpEstablishedTimeoutSeconds in body should be greater than or equal to 1",
    ),
    (
        "{conntrack: {udpTimeoutSeconds: 3000000}}",
        "spec.conntrack.udpTimeoutSeconds in body should be less than or equal to 2147483",
    ),
    (
        "{sysctls: {kernel.core_pattern: '1'}}",
        "a name in sysctls is not on the allow-list",
    ),
    (
        "{sysctls: {net.netfilter.nf_conntrack_max: plenty}}",
        "values in sysctls are written as strings of numbers",
    ),
    (
        "{sysctls: {net.netfilter.nf_conntrack_max: '1; reboot'}}",
        "values in sysctls are written as strings of numbers",
    ),
    (
        "{sysctls: {net.netfilter.nf_conntrack_max: 5}}",
        "spec.sysctls.net.netfilter.nf_conntrack_max in body must be of type string",
    ),
    (
        "{logVerbosity: 11}",
        "spec.logVerbosity in body should be less than or equal to 10",
    ),
    (
        "{logVerbosity: -1}",
        "spec.logVerbosity in body should be greater than or equal to 0",
    ),
    (
        "{syncPeriodSeconds: 0}",
        "spec.syncPeriodSeconds in body should be greater than or equal to 1",
    ),
    (
        "{minSyncPeriodMilliseconds: -5}",
        "spec.minSyncPeriodMilliseconds in body should be greater than or equal to 0",
    ),
    (
        "{mode: IPVS, scheduler: WLC}",
        "scheduler must be one of rr, wrr, lc, wlc, fo, ovf, lblc, lblcr, dh, sh, mh, sed, nq, twos, spelled so",
    ),
    (
        "{scheduler: wlc, ipvs: {schedulerFlags: [Port]}}",
        "ipvs.schedulerFlags goes with scheduler sh or mh",
    ),
    (
        "{mode: IPVS, ipvs: {schedulerFlags: [Port]}}",
        "ipvs.schedulerFlags goes with scheduler sh or mh",
    ),
    (
        "{scheduler: mh, ipvs: {schedulerFlags: [port]}}",
        "Unsupported value: \"port\": supported values: \"Fallback\", \"Port\"",
    ),
    (
        "{ipvs: {tcpTimeoutSeconds: 0}}",
        "spec.ipvs.tcpTimeoutSeconds in body should be greater than or equal to 1",
    ),
    (
        "{ipvs: {gracefulSeconds: -1}}",
        "spec.ipvs.gracefulSeconds in body should be greater than or equal to 0",
    ),
    (
        "{schedulerFlags: [Port]}",
        "unknown field \"spec.schedulerFlags\"",
    ),
];

fn every_rule_refuses_with_its_message(cluster: &Cluster<'_>) -> Result<()> {
    for (spec, message) in REFUSED {
        let policy = format!(
            "{{apiVersion: pointsman.dev/v1alpha1, kind: ProxyPolicy, metadata: {{name: bad}}, spec: {spec}}}"
        );
        let said = match cluster
            .control_plane
            .kubectl_with(&["create", "-f", "-"], &policy)
        {
            Ok(_) => bail!("{spec} is accepted"),
            Err(error) => error.to_string(),
        };
        assert!(said.contains(message), "{spec} is refused, but not so: {said}");
    }
    // An edit is refused as well, and what was there stays.
    let edit = ["patch", "proxypolicy", "fleet", "--type=merge", "-p"];
    let said = cluster
        .control_plane
        .kubectl(&[&edit[..], &[r#"{"spec":{"mode":"userspace"}}"#]].concat());
    let said = said.map_or_else(|error| error.to_string(), |_| String::new());
    assert!(said.contains("removed from Kubernetes in 1.26"), "{said}");
    // The resources that an agent has no use for are not the policy's business either.
    let good = "{apiVersion: pointsman.dev/v1alpha1, kind: ProxyPolicy, metadata: {name: good}, spec: {}}";
    let dry_run = ["create", "--dry-run=server", "-f", "-", "-o", "jsonpath={.spec}"];
    let defaulted = cluster.control_plane.kubectl_with(&dry_run, good)?;
    let defaulted: serde_json::Value = serde_json::from_str(&defaulted)?;
    assert_eq!(
        (
            &defaulted["mode"],
            &defaulted["logVerbosity"],
            &defaulted["priority"]
        ),
        (&"Auto".into(), &2.into(), &0.into())
    );
    // A field whose value was left out in YAML is as good as absent.
    for spec in [
        "{ipvs: , scheduler: }",
        "{mode: IPVS, scheduler: mh, ipvs: {schedulerFlags: [Fallback, Port], strictARP: true, gracefulSeconds: 0}}",
    ] {
        let dry_run = ["create", "--dry-run=server", "-f", "-"];
        let policy = good.replace("spec: {}", &format!("spec: {spec}"));
        let accepted = cluster.control_plane.kubectl_with(&dry_run, &policy);
        accepted.with_context(|| format!("{spec} is refused"))?;
    }
    Ok(())
}

fn a_selector_that_cannot_be_read_is_explained(cluster: &Cluster<'_>) -> Result<()> {
    cluster.control_plane.apply(
        "{apiVersion: pointsman.dev/v1alpha1, kind: ProxyPolicy, metadata: {name: odd}, spec: {priority: 50,
          nodeSelector: {matchExpressions: [{key: pool, operator: Like, values: [gold]}]}}}",
    )?;
    let odd = cluster
        .control_plane
        .until("proxypolicy", "odd", "explained", LIMIT, |policy| {
            condition(policy, "Ready").reason == "InvalidSelector"
        })?;
    let ready = condition(&odd, "Ready");
    assert!(
        ready.status == "False" && ready.message.contains("Like"),
        "{ready:?}"
    );
    cluster.ready("fleet", 2)?;
    cluster.control_plane.kubectl(&["delete", "proxypolicy", "odd"])?;
    Ok(())
}

/// Waits until every node names these in InputsValid, or has none to name when there are none.
fn inputs(cluster: &Cluster<'_>, named: &[&str]) -> Result<()> {
    let expected = if named.is_empty() { "True" } else { "False" };
    for node in &cluster.nodes {
        cluster.node_proxy(node.name(), &format!("naming {named:?}"), |proxy| {
            let valid = condition(proxy, "InputsValid");
            valid.status == expected && named.iter().all(|part| valid.message.contains(part))
        })?;
    }
    Ok(())
}

fn slices_with_problems_are_named(cluster: &Cluster<'_>) -> Result<()> {
    // What the API server accepts and nobody can forward to; beside it an endpoint and a port that are good.
    cluster.control_plane.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: crooked, namespace: default}, spec: {ipFamilyPolicy: RequireDualStack,
          ports: [{name: tcp, port: 80, targetPort: 8080}, {name: other, port: 81, targetPort: 8080}]}}",
    )?;
    let good = cluster.web[1].pod().addresses().v4;
    for (name, endpoint, port) in [
        ("crooked-multicast", "224.0.1.1", 8080),
        ("crooked-broadcast", "255.255.255.255", 8080),
        ("crooked-port", &good.to_string(), 70_000),
    ] {
        cluster.control_plane.apply(&format!(
            "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4,
               metadata: {{name: {name}, namespace: default, labels: {{kubernetes.io/service-name: crooked}}}},
               endpoints: [{{addresses: ['{endpoint}']}}, {{addresses: ['{good}']}}],
               ports: [{{name: other, port: {port}, protocol: TCP}}, {{name: tcp, port: 8080, protocol: TCP}}]}}"
        ))?;
    }
    inputs(
        cluster,
        &["default/crooked", "224.0.1.1", "255.255.255.255", "70000"],
    )?;
    let [v4, _] = workload::cluster_ips(cluster.control_plane, "crooked")?;
    for client in [cluster.client.namespace(), cluster.nodes[1].namespace()].map(Client::of) {
        client.until_answered_by(Protocol::Tcp, v4, &["web-2"], LIMIT)?;
        let tally = client.many(Protocol::Tcp, v4, 40)?;
        assert_eq!(
            (tally.lost(), tally.answerers()),
            (0, vec!["web-2"]),
            "only the good endpoint is used: {tally}"
        );
    }
    // The nodes forward, so they are healthy.
    cluster.ready("fleet", 2)?;
    cluster.control_plane.kubectl(&["delete", "service", "crooked"])?;
    cluster.control_plane.kubectl(&[
        "delete",
        "endpointslice",
        "--selector",
        "kubernetes.io/service-name=crooked",
    ])?;
    inputs(cluster, &[])
}

fn an_address_of_a_family_that_the_service_lacks_is_named(cluster: &Cluster<'_>) -> Result<()> {
    let outside = cluster.fabric.external("outside")?;
    outside.route_via("203.0.113.7/32".parse::<ipnet::IpNet>()?, &cluster.nodes[0])?;
    cluster.control_plane.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: half, namespace: default}, spec: {selector: {app: web},
          ipFamilyPolicy: SingleStack, ipFamilies: [IPv4], externalIPs: ['fd00:1::7', 203.0.113.7],
          ports: [{name: tcp, port: 80, targetPort: 8080}]}}",
    )?;
    inputs(cluster, &["Service default/half", "fd00:1::7", "IPv6"])?;
    Client::of(outside.namespace())
        .until_answered_by(
            Protocol::Tcp,
            "203.0.113.7:80".parse()?,
            &["web-1", "web-2"],
            LIMIT,
        )
        .context("the address of the right family works")?;
    cluster.control_plane.kubectl(&["delete", "service", "half"])?;
    inputs(cluster, &[])
}

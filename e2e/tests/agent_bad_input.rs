//! What is wrong in the manifests is said, and nothing else is disturbed by it.

mod support;

use anyhow::{Context, Result, ensure};
use pointsman_e2e::{
    Agent, IptablesVariant,
    manifests::{Policy, Service, Slice},
    traffic::{Flood, Outcome, Protocol},
};
use serde_json::{Value, json};
use support::{
    LIMIT, POLICY, Site, TCP_PORT, TCP_TARGET, WEB, at, cluster_ips, eventually, expect, expect_answers,
    vips, web, with_pods,
};

in_both_variants! {
    a_slice_with_an_impossible_address_loses_only_that_address
    a_service_with_an_impossible_field_loses_only_that_field
    objects_of_the_wrong_shape_cost_only_themselves
    a_file_that_is_no_yaml_keeps_what_it_said_before
    two_policies_leave_the_first_in_force
    a_policy_that_cannot_be_used_leaves_the_one_before_in_force
    a_restart_over_an_unusable_policy_leaves_the_rules_alone
    names_that_are_no_names_cannot_break_the_rules
}

/// Whatever happens meanwhile, connections through an unchanged Service are answered.
fn flood(site: &Site) -> [Flood; 2] {
    cluster_ips(Protocol::Tcp).map(|vip| site.pod_client().flood(Protocol::Tcp, vip))
}

fn without_loss(floods: [Flood; 2]) -> Result<()> {
    for flood in floods {
        flood.wait_for(20, LIMIT)?;
        flood
            .stop_without_loss()
            .context("through a Service that nothing was wrong with")?;
    }
    Ok(())
}

/// A Service on both VIPs of a number, and its slices.
fn service(name: &str, number: u16) -> Service {
    let service = vips(number)
        .into_iter()
        .fold(Service::new(name), Service::cluster_ip);
    service.port("http", Protocol::Tcp, TCP_PORT)
}

fn logged(agent: &Agent, texts: &[&str]) -> Result<()> {
    texts
        .iter()
        .try_for_each(|text| agent.wait_until_logged(text, LIMIT))
}

fn a_slice_with_an_impossible_address_loses_only_that_address(variant: IptablesVariant) -> Result<()> {
    let site = Site::new(variant)?;
    let agent = site.start()?;
    let floods = flood(&site);
    let impossible = [
        "10.244.1.300",
        "nonsense",
        "0.0.0.0",
        "127.0.0.1",
        "169.254.1.1",
        "224.0.0.1",
        "fd00::5",
    ];
    let good = &site.pods[0];
    let mut slice = Slice::v4("half").port("http", Protocol::Tcp, TCP_TARGET);
    for address in impossible {
        slice = slice.endpoint(address, "node-1");
    }
    slice = slice.endpoint(good.addresses().v4, good.node());
    // In the other family nothing usable is left.
    let other = Slice::v6("half")
        .port("http", Protocol::Tcp, TCP_TARGET)
        .endpoint("::1", "node-1");
    site.manifests.put(
        "half.yaml",
        [Value::from(service("half", 9)), slice.into(), other.into()],
    )?;
    let [v4, v6] = at(9, Protocol::Tcp);
    expect_answers(&site.pod_client(), Protocol::Tcp, v4, &["web-1"])?;
    site.pod_client()
        .until(Protocol::Tcp, v6, LIMIT, |outcome| *outcome == Outcome::Refused)?;
    logged(
        &agent,
        &[
            "half-ipv4",
            "\"10.244.1.300\" is no IP address",
            "\"nonsense\" is no IP address",
        ],
    )?;
    logged(
        &agent,
        &[
            "endpoint 127.0.0.1 is left out",
            "endpoint ::1 is left out",
            "mend its EndpointSlice",
        ],
    )?;
    without_loss(floods)?;
    ensure!(agent.health("/healthz")?.0 == 200);
    Ok(())
}

fn a_service_with_an_impossible_field_loses_only_that_field(variant: IptablesVariant) -> Result<()> {
    let site = Site::new(variant)?;
    let agent = site.start()?;
    let floods = flood(&site);
    let [v4, v6] = vips(10);
    let single = Service::new("single")
        .cluster_ip(v4)
        .external_ip(v6)
        .port("http", Protocol::Tcp, TCP_PORT);
    site.manifests
        .put("single.yaml", with_pods(single, "single", &[&site.pods[0]]))?;
    let zero = service("zero", 11)
        .port("none", Protocol::Tcp, 0)
        .port("big", Protocol::Tcp, 1);
    let mut zero = with_pods(zero, "zero", &[&site.pods[0]]);
    zero[0]["spec"]["ports"][2]["port"] = json!(65_536);
    site.manifests.put("zero.yaml", zero)?;
    let strange = service("strange", 12).set("externalIPs", json!(["10.0.0", "10.0.0.0/8"]));
    let mut strange = with_pods(strange, "strange", &[&site.pods[0]]);
    strange[0]["spec"]["ports"][0]["nodePort"] = json!(70_000);
    if let Some(ports) = strange[0]["spec"]["ports"].as_array_mut() {
        ports.push(json!({"name": "carrier-pigeon", "protocol": "IPoAC", "port": 1149}));
        ports.push(json!({"name": "again", "protocol": "TCP", "port": 81}));
        ports.push(json!({"name": "more", "protocol": "TCP", "port": 81}));
    }
    site.manifests.put("strange.yaml", strange)?;

    expect_answers(
        &site.pod_client(),
        Protocol::Tcp,
        at(10, Protocol::Tcp)[0],
        &["web-1"],
    )?;
    expect(
        &site.pod_client(),
        Protocol::Tcp,
        at(10, Protocol::Tcp)[1],
        &Outcome::Unreachable,
    )?;
    for target in at(11, Protocol::Tcp) {
        expect_answers(&site.pod_client(), Protocol::Tcp, target, &["web-1"])?;
    }
    logged(
        &agent,
        &["default/single: address fd00:10:96::a is left out, because the Service has no IPv6 ClusterIP"],
    )?;
    logged(
        &agent,
        &[
            "default/zero: port \"none\" (0,",
            "default/zero: port \"big\" (65536,",
        ],
    )?;
    logged(
        &agent,
        &[
            "\"10.0.0\", which is no IP address",
            "carrier-pigeon",
            "default/strange: a second entry for port 81",
        ],
    )?;
    without_loss(floods)
}

fn objects_of_the_wrong_shape_cost_only_themselves(variant: IptablesVariant) -> Result<()> {
    let site = Site::new(variant)?;
    let agent = site.start()?;
    let floods = flood(&site);
    let mut shapeless: Value = service("shapeless", 13).into();
    shapeless["spec"]["ports"] = json!("eighty");
    let mut slice: Value = Slice::v4("shapeless").into();
    slice["endpoints"] = json!({"addresses": 7});
    let node =
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}, "spec": [], "status": 4});
    let unknown = json!({"apiVersion": "example.org/v1", "kind": "Service", "metadata": {"name": "web"}});
    site.manifests.put("a.yaml", [shapeless, slice, node, unknown])?;
    logged(&agent, &["shapeless", "mend the manifest"])?;
    for (file, text, said) in [
        (
            "b.yaml",
            "kind: Service\nmetadata: {name: x}",
            "b.yaml has an object that cannot be used: it has no apiVersion or no kind",
        ),
        (
            "c.yaml",
            "apiVersion: v1\nkind: Service\nmetadata: {}",
            "the Service has no metadata.name",
        ),
        ("d.json", "{", "d.json is no JSON"),
        ("e.yaml", "- 1\n- 2", "e.yaml has an object that cannot be used"),
        ("f.yaml", "\u{0}\u{1}", "f.yaml is no YAML"),
    ] {
        site.manifests.put_text(file, text)?;
        logged(&agent, &[said])?;
    }
    site.manifests
        .put("g.yaml", with_pods(service("fine", 14), "fine", &[&site.pods[0]]))?;
    for target in at(14, Protocol::Tcp) {
        expect_answers(&site.pod_client(), Protocol::Tcp, target, &["web-1"])?;
    }
    without_loss(floods)?;
    ensure!(agent.health("/healthz")?.0 == 200);
    Ok(())
}

fn a_file_that_is_no_yaml_keeps_what_it_said_before(variant: IptablesVariant) -> Result<()> {
    let site = Site::new(variant)?;
    let agent = site.start()?;
    let floods = flood(&site);
    site.manifests.put_text(WEB, "apiVersion: v1\nkind: [Service\n")?;
    logged(
        &agent,
        &[
            "web.yaml is no YAML",
            "what it said before stays until it is mended",
        ],
    )?;
    // Others are followed meanwhile.
    site.manifests.put(
        "fine.yaml",
        with_pods(service("fine", 14), "fine", &[&site.pods[0]]),
    )?;
    for target in at(14, Protocol::Tcp) {
        expect_answers(&site.pod_client(), Protocol::Tcp, target, &["web-1"])?;
    }
    without_loss(floods)?;
    site.set_endpoints(&[&site.pods[1]])?;
    for target in cluster_ips(Protocol::Tcp) {
        expect_answers(&site.pod_client(), Protocol::Tcp, target, &["web-2"])?;
    }
    Ok(())
}

fn two_policies_leave_the_first_in_force(variant: IptablesVariant) -> Result<()> {
    let site = Site::new(variant)?;
    let agent = site.start()?;
    let floods = flood(&site);
    let second = Policy::new("second").set("excludeCIDRs", json!(["10.96.0.0/16"]));
    site.manifests.put("second.yaml", [second])?;
    logged(
        &agent,
        &["ProxyPolicies everywhere and second are both in the directory of --manifests: leave one"],
    )?;
    eventually("/configz says it", || {
        let now = agent.metrics("/configz")?.1;
        ensure!(
            now.contains("everywhere and second") && now.contains("\"policy\":\"everywhere\""),
            "{now}"
        );
        Ok(())
    })?;
    without_loss(floods)?;
    site.manifests.remove(POLICY)?;
    for target in cluster_ips(Protocol::Tcp)[..1].iter() {
        site.pod_client()
            .until(Protocol::Tcp, *target, LIMIT, |outcome| {
                *outcome == Outcome::Unreachable
            })?;
    }
    eventually("the other policy is followed", || {
        let now = agent.metrics("/configz")?.1;
        ensure!(
            now.contains("\"policy\":\"second\"") && !now.contains("rejected"),
            "{now}"
        );
        Ok(())
    })?;
    Ok(())
}

fn a_policy_that_cannot_be_used_leaves_the_one_before_in_force(variant: IptablesVariant) -> Result<()> {
    let site = Site::new(variant)?;
    let agent = site.start()?;
    let floods = flood(&site);
    let good = agent.metrics("/configz")?.1;
    let bad = [
        (
            "mode",
            json!("userspace"),
            "mode userspace was removed from Kubernetes in 1.26",
        ),
        (
            "mode",
            json!("iptables"),
            "mode must be Auto, NFTables, IPVS or IPTables, spelled so",
        ),
        (
            "excludeCIDRs",
            json!(["10.0.0.0/33"]),
            "every entry of excludeCIDRs must be a CIDR",
        ),
        (
            "nodePortAddresses",
            json!(["Secondary"]),
            "every entry of nodePortAddresses must be Primary, All, or a CIDR",
        ),
        (
            "detectLocal",
            json!({"mode": "ClusterCIDR"}),
            "detectLocal.clusterCIDRs goes with mode ClusterCIDR",
        ),
        (
            "detectLocal",
            json!({"mode": "InterfaceNamePrefix", "interfaceNamePrefix": "a\"b"}),
            "a valid detectLocal.interfaceNamePrefix",
        ),
        (
            "sysctls",
            json!({"kernel.panic": "1"}),
            "a name in sysctls is not on the allow-list",
        ),
        ("scheduler", json!("random"), "scheduler must be one of rr, wrr,"),
        (
            "ipvs",
            json!({"schedulerFlags": ["Port"]}),
            "ipvs.schedulerFlags goes with scheduler sh or mh",
        ),
        (
            "ipvs",
            json!({"udpTimeoutSeconds": 0}),
            "ipvs.udpTimeoutSeconds is 0",
        ),
        ("syncPeriodSeconds", json!(0), "syncPeriodSeconds is 0"),
        ("logVerbosity", json!("loud"), "mend the manifest"),
        (
            "conntrack",
            json!({"maxPerCore": -1}),
            "conntrack.maxPerCore is -1",
        ),
    ];
    for (field, value, said) in bad {
        site.set_policy(site.policy().set(field, value.clone()))?;
        logged(&agent, &[said]).with_context(|| format!("{field}: {value}"))?;
        eventually("/configz says it", || {
            let now = agent.metrics("/configz")?.1;
            let now: Value = serde_json::from_str(&now)?;
            let before: Value = serde_json::from_str(&good)?;
            let (now, before) = (&now["pointsman.dev"], &before["pointsman.dev"]);
            ensure!(
                now["settings"] == before["settings"] && now["policy"] == before["policy"],
                "{now}"
            );
            ensure!(
                now["rejected"].as_str().is_some_and(|why| why.contains(said)),
                "{now}"
            );
            Ok(())
        })
        .with_context(|| format!("{field}: {value}"))?;
        ensure!(
            agent.health("/healthz")?.0 == 200,
            "the policy before is in force"
        );
    }
    without_loss(floods)?;
    site.set_policy(site.policy().set("masqueradeAll", true))?;
    eventually("a good policy is followed", || {
        let now = agent.metrics("/configz")?.1;
        ensure!(
            now.contains("\"masqueradeAll\":true") && !now.contains("rejected"),
            "{now}"
        );
        Ok(())
    })?;
    Ok(())
}

fn a_restart_over_an_unusable_policy_leaves_the_rules_alone(variant: IptablesVariant) -> Result<()> {
    let site = Site::new(variant)?;
    let agent = site.start()?;
    let floods = flood(&site);
    let before = site.rules()?;
    ensure!(agent.process().stop(LIMIT)?);
    for (text, said) in [
        (
            "spec: {mode: [",
            "no ProxyPolicy was found, but it may be in a manifest that cannot be used",
        ),
        (
            "{apiVersion: pointsman.dev/v1alpha1, kind: ProxyPolicy, metadata: {name: everywhere}, spec: {mode: userspace}}",
            "userspace was removed",
        ),
    ] {
        site.manifests.put_text(POLICY, text)?;
        let agent = site.launch(&[])?;
        logged(&agent, &[said])?;
        eventually("it says that it does not work", || {
            ensure!(agent.health("/healthz")?.0 == 503 && agent.health("/livez")?.0 == 200);
            ensure!(agent.metrics("/configz")?.1.contains("rejected"));
            Ok(())
        })?;
        ensure!(
            site.rules()? == before,
            "the rules of the earlier agent were touched"
        );
        site.set_policy(site.policy())?;
        agent.wait_until_healthy(LIMIT)?;
        ensure!(agent.metric("pointsman_agent_kernel_objects_written_total", "")? < 1.0);
        ensure!(agent.process().stop(LIMIT)?);
    }
    without_loss(floods)
}

fn names_that_are_no_names_cannot_break_the_rules(variant: IptablesVariant) -> Result<()> {
    let site = Site::new(variant)?;
    let agent = site.start()?;
    let floods = flood(&site);
    // No API server would take these; a file may have them.
    let name = "x\" -j ACCEPT\nCOMMIT\n*filter\n-A INPUT -j DROP\n\u{7f}é";
    let evil = vips(15).into_iter().fold(Service::new(name), Service::cluster_ip);
    let evil = evil.port("h\"\n-X", Protocol::Tcp, TCP_PORT).node_port(30099);
    let mut objects: Vec<Value> = vec![evil.into()];
    for (slice, address) in [
        (Slice::v4(name), site.pods[0].at_v4(0)),
        (Slice::v6(name), site.pods[0].at_v6(0)),
    ] {
        objects.push(
            slice
                .port("h\"\n-X", Protocol::Tcp, TCP_TARGET)
                .endpoint(address.ip(), "node-1")
                .into(),
        );
    }
    // As JSON, which takes every letter.
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    site.manifests.put_text("evil.json", &list.to_string())?;
    for target in at(15, Protocol::Tcp) {
        expect_answers(&site.pod_client(), Protocol::Tcp, target, &["web-1"])?;
    }
    let rules = site.rules()?.concat();
    ensure!(
        rules
            .lines()
            .all(|rule| !rule.starts_with("filter INPUT -j DROP")),
        "{rules}"
    );
    without_loss(floods)?;
    site.manifests.remove("evil.json")?;
    let before = web();
    site.manifests
        .put(WEB, with_pods(before, "web", &[&site.pods[0]]))?;
    expect_answers(
        &site.pod_client(),
        Protocol::Tcp,
        cluster_ips(Protocol::Tcp)[0],
        &["web-1"],
    )?;
    ensure!(agent.metric("kubeproxy_sync_proxy_rules_iptables_restore_failures_total", "")? < 1.0);
    Ok(())
}

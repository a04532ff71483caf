//! What a Service can ask for besides endpoints, through the whole agent: health checks for load balancers, affinity,
//! local traffic policies, and what becomes of ClusterIPs that no Service has.

mod support;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use pointsman_e2e::{
    IptablesVariant, Pod, http,
    manifests::{Service, Slice},
    traffic::{Client, Outcome, Protocol, serve},
};
use serde_json::{Value, json};
use support::{
    BALANCER_IP, BOTH, CLUSTER_IP, EXTERNAL_IP, Forwarding, LIMIT, Site, WEB, at, cluster_ips, eventually,
    expect, expect_answers, node_port, slices, vips, web, with_pods,
};

in_every_mode! {
    cluster_ips_that_no_service_has_are_dropped_where_the_ranges_are_known
    affinity_survives_a_restart_and_forgets_endpoints_that_are_gone
    external_policy_local_keeps_outsiders_here_and_lets_insiders_everywhere
    internal_policy_local_keeps_pods_here
    direct_access_refuses_at_once_and_balances_again_afterwards
    weights_are_what_annotations_say
}

const CHECK: u16 = 31000;

/// [`web`] as a load balancer's Service whose outside traffic stays on its node.
fn balanced(check: u16) -> Service {
    web()
        .set("type", "LoadBalancer")
        .set("externalTrafficPolicy", "Local")
        .set("healthCheckNodePort", check)
}

/// The slices of [`web`] with these pods, each of them going or not.
fn going(pods: &[(&Pod, bool)]) -> Vec<Value> {
    let all: Vec<&Pod> = pods.iter().map(|(pod, _)| *pod).collect();
    let with_conditions = |slice: Slice| {
        let mut slice = Value::from(slice);
        for (at, (_, going)) in pods.iter().enumerate() {
            slice["endpoints"][at]["conditions"] =
                json!({"ready": !going, "serving": true, "terminating": going});
        }
        slice
    };
    slices("web", &all).into_iter().map(with_conditions).collect()
}

/// Waits for an answer at a health-check port of the node, in both families, as a load balancer asks from outside.
fn expect_check(site: &Site, port: u16, code: u16, local: usize) -> Result<()> {
    for target in site.node.addresses().both(port) {
        eventually("the answer to a health check", || {
            let (found, body) = http::get(site.outside.namespace(), target, "/")?;
            let body: Value = serde_json::from_str(&body)?;
            ensure!(
                found == code && body["localEndpoints"] == local,
                "{target}: {found} {body} instead of {code} with {local} endpoints"
            );
            ensure!(
                body["service"] == json!({"namespace": "default", "name": "web"})
                    && body["serviceProxyHealthy"] == true,
                "{target}: {body}"
            );
            Ok(())
        })?;
    }
    Ok(())
}

fn expect_no_check(site: &Site, port: u16) -> Result<()> {
    for target in site.node.addresses().both(port) {
        site.outside_client()
            .until(Protocol::Tcp, target, LIMIT, |outcome| {
                *outcome == Outcome::Refused
            })?;
    }
    Ok(())
}

#[test]
fn load_balancers_hear_whether_this_node_has_endpoints() -> Result<()> {
    let site = Site::new(IptablesVariant::Nft)?;
    let [here, away] = &site.pods;
    let put = |service: Service, slices: Vec<Value>| {
        site.manifests
            .put(WEB, [Value::from(service)].into_iter().chain(slices))
    };
    put(balanced(CHECK), going(&[(here, false), (away, false)]))?;
    let agent = site.start()?;
    expect_check(&site, CHECK, 200, 1)?;

    put(balanced(CHECK), going(&[(away, false)]))?;
    expect_check(&site, CHECK, 503, 0)?;
    put(balanced(CHECK), going(&[(here, false)]))?;
    expect_check(&site, CHECK, 200, 1)?;
    // One that ends still serves what comes, but nothing more is to be sent here.
    put(balanced(CHECK), going(&[(here, true), (away, false)]))?;
    expect_check(&site, CHECK, 503, 0)?;
    for target in site.node.addresses().both(node_port(Protocol::Tcp)) {
        expect_answers(&site.outside_client(), Protocol::Tcp, target, &["web-1"])?;
    }

    // The port moves, to one that is taken at first.
    let both = || going(&[(here, false), (away, false)]);
    let squatters = site.node.addresses().both(CHECK + 1).map(|address| {
        let any = if address.is_ipv4() { "0.0.0.0" } else { "::" };
        let address = any.parse().map(|ip: IpAddr| SocketAddr::new(ip, CHECK + 1));
        serve(site.node.namespace(), Protocol::Tcp, address?, "squatter")
    });
    let squatters = squatters.into_iter().collect::<Result<Vec<_>>>()?;
    put(balanced(CHECK + 1), both())?;
    expect_no_check(&site, CHECK)?;
    agent.wait_until_logged("health checks cannot be answered there", LIMIT)?;
    ensure!(agent.health("/healthz")?.0 == 200, "the rest goes on");
    drop(squatters);
    expect_check(&site, CHECK + 1, 200, 1)?;

    // With NodePorts on all addresses, health checks are on all addresses; loopback is none of them for NodePorts.
    site.set_policy(site.policy().set("nodePortAddresses", json!(["All"])))?;
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, CHECK + 1));
    eventually("an answer on every address", || {
        let (code, _) = http::get(site.node.namespace(), loopback, "/")?;
        ensure!(code == 200);
        Ok(())
    })?;
    expect_check(&site, CHECK + 1, 200, 1)?;

    // Only load balancers with policy Local have checks; and a Service that is gone has none.
    put(
        balanced(CHECK + 1).set("externalTrafficPolicy", "Cluster"),
        both(),
    )?;
    expect_no_check(&site, CHECK + 1)?;
    put(balanced(CHECK + 1), both())?;
    expect_check(&site, CHECK + 1, 200, 1)?;
    site.manifests.remove(WEB)?;
    expect_no_check(&site, CHECK + 1)?;
    ensure!(agent.health("/healthz")?.0 == 200);
    Ok(())
}

fn service_cidr() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.0/16", "fd00:10:96::/112"]},
    })
}

fn cluster_ips_that_no_service_has_are_dropped_where_the_ranges_are_known(
    forwarding: Forwarding,
) -> Result<()> {
    const RANGES: &str = "ranges.yaml";
    let site = Site::new(forwarding)?;
    let _agent = site.start()?;
    let unallocated = vips(0x0909).map(|ip| SocketAddr::from((ip, 80)));
    let until = |wanted: Outcome| -> Result<()> {
        for target in unallocated {
            for client in [site.pod_client(), site.node_client()] {
                client
                    .until(Protocol::Tcp, target, LIMIT, |outcome| *outcome == wanted)
                    .with_context(|| format!("{target} is to be {wanted}"))?;
            }
        }
        Ok(())
    };
    until(Outcome::Unreachable)?;
    site.manifests.put(RANGES, [service_cidr()])?;
    for client in [site.pod_client(), site.node_client()] {
        for target in unallocated {
            eventually("a drop", || {
                let outcome = client.clone().timeout(Duration::from_millis(300)).tcp(target);
                // The node's own packet is dropped before it leaves, which the kernel may tell at once.
                ensure!(
                    matches!(outcome, Outcome::TimedOut | Outcome::Failed(_)),
                    "{target}: {outcome}"
                );
                Ok(())
            })?;
        }
    }
    // What a Service has is as it was, and the ports that it does not have are refused.
    for vip in cluster_ips(Protocol::Tcp) {
        expect_answers(&site.pod_client(), Protocol::Tcp, vip, &["web-1", "web-2"])?;
        expect(
            &site.pod_client(),
            Protocol::Tcp,
            (vip.ip(), 81).into(),
            &Outcome::Refused,
        )?;
    }
    // A Service that is just being made is reached by the second SYN of whoever was too early.
    let early: Vec<_> = unallocated
        .into_iter()
        .map(|target| {
            let client = site.pod_client().timeout(LIMIT);
            thread::spawn(move || client.tcp(target))
        })
        .collect();
    thread::sleep(Duration::from_millis(200));
    let mut late = Service::new("late").port("http", Protocol::Tcp, 80);
    for address in unallocated {
        late = late.cluster_ip(address.ip());
    }
    site.manifests
        .put("late.yaml", with_pods(late, "late", &[&site.pods[0]]))?;
    for attempt in early {
        let outcome = attempt.join().map_err(|_| anyhow::anyhow!("the client broke"))?;
        ensure!(outcome.is_by("web-1"), "{outcome}");
    }
    site.manifests.remove("late.yaml")?;
    site.manifests.remove(RANGES)?;
    until(Outcome::Unreachable)
}

fn affinity_survives_a_restart_and_forgets_endpoints_that_are_gone(forwarding: Forwarding) -> Result<()> {
    let site = Site::new(forwarding)?;
    let service = || web().set("sessionAffinity", "ClientIP");
    let put = |pods: &[&Pod]| site.manifests.put(WEB, with_pods(service(), "web", pods));
    put(&[&site.pods[0], &site.pods[1]])?;
    let agent = site.start()?;
    let client = site.pod_client();
    // Each of its own: by family and port.
    let flows: Vec<(Protocol, SocketAddr)> = BOTH
        .into_iter()
        .flat_map(|protocol| cluster_ips(protocol).map(|vip| (protocol, vip)))
        .collect();
    let chosen = |protocol: Protocol, vip: SocketAddr| -> Result<String> {
        let tally = client.many(protocol, vip, 20)?;
        ensure!(
            tally.lost() == 0 && tally.answerers().len() == 1,
            "{protocol:?} {vip}: {tally}"
        );
        Ok(tally.answerers().concat())
    };
    let first = flows
        .iter()
        .map(|(protocol, vip)| chosen(*protocol, *vip))
        .collect::<Result<Vec<_>>>()?;
    let stays = |when: &str| -> Result<()> {
        for ((protocol, vip), first) in flows.iter().zip(&first) {
            let now = chosen(*protocol, *vip).with_context(|| when.to_owned())?;
            ensure!(
                now == *first,
                "{when}: {protocol:?} {vip} went from {first} to {now}"
            );
        }
        Ok(())
    };
    stays("nothing happened")?;
    // Another Service and another endpoint come; then the agent is killed, and a new one takes over.
    let other = Service::new("other")
        .cluster_ip(vips(7)[0])
        .port("http", Protocol::Tcp, 80);
    site.manifests
        .put("other.yaml", with_pods(other, "other", &[&site.pods[0]]))?;
    expect_answers(&client, Protocol::Tcp, (vips(7)[0], 80).into(), &["web-1"])?;
    stays("another Service came")?;
    agent.process().kill9()?;
    stays("no agent runs")?;
    drop(agent);
    let _agent = site.start()?;
    stays("a new agent runs")?;
    let third = site.away.add_pod("web-3")?;
    let _servers = support::serve_web(&third)?;
    put(&[&site.pods[0], &site.pods[1], &third])?;
    for (protocol, vip) in &flows {
        expect_answers_to_newcomers(&site, *protocol, *vip, "web-3")?;
    }
    stays("a third endpoint came")?;
    // An endpoint that is gone is forgotten: its clients go to another one and stay there.
    let by_name = |name: &str| site.pods.iter().find(|pod| pod.name() == name);
    for ((protocol, vip), first) in flows.iter().zip(&first) {
        let gone = by_name(first).context("an answer by nobody that there is")?;
        let others: Vec<&Pod> = site.pods.iter().filter(|pod| pod.name() != gone.name()).collect();
        let others = [others, vec![&third]].concat();
        put(&others)?;
        client.until(*protocol, *vip, LIMIT, |outcome| {
            outcome.by().is_some_and(|by| by != first)
        })?;
        let next = chosen(*protocol, *vip)?;
        ensure!(next != *first);
        put(&[&site.pods[0], &site.pods[1], &third])?;
        expect_answers_to_newcomers(&site, *protocol, *vip, first)?;
        ensure!(
            chosen(*protocol, *vip)? == next,
            "{protocol:?} {vip}: the one that came back is no longer its own"
        );
    }
    Ok(())
}

/// Waits until this endpoint answers a client that was not seen before: only such a one has a choice.
fn expect_answers_to_newcomers(site: &Site, protocol: Protocol, vip: SocketAddr, by: &str) -> Result<()> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    eventually("an answer to a client that was not seen before", || {
        let name = format!("new-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let newcomer = site.node.add_pod(&name)?;
        let outcome = Client::of(newcomer.namespace()).ask(protocol, vip);
        ensure!(outcome.is_by(by), "{protocol:?} {vip}: {outcome} instead of {by}");
        Ok(())
    })?;
    Ok(())
}

/// What the external traffic policy is about.
fn external_targets(site: &Site, protocol: Protocol) -> Vec<SocketAddr> {
    let mut targets = site.node.addresses().both(node_port(protocol)).to_vec();
    for kind in [EXTERNAL_IP, BALANCER_IP] {
        targets.extend(at(kind, protocol));
    }
    targets
}

fn external_policy_local_keeps_outsiders_here_and_lets_insiders_everywhere(
    forwarding: Forwarding,
) -> Result<()> {
    let site = Site::new(forwarding)?;
    let put = |pods: &[&Pod]| site.manifests.put(WEB, with_pods(balanced(CHECK), "web", pods));
    put(&[&site.pods[0], &site.pods[1]])?;
    let agent = site.start()?;
    let outside = site.outside.addresses();
    for protocol in BOTH {
        for target in external_targets(&site, protocol) {
            expect_answers(&site.outside_client(), protocol, target, &["web-1"])?;
            let outcome = site.outside_client().ask(protocol, target);
            let seen = outcome.answer().map(|answer| answer.seen_source.ip());
            let own = outside.both(0).map(|own| own.ip());
            ensure!(
                seen.is_some_and(|seen| own.contains(&seen)),
                "{target}: the source of an outsider is kept, and {seen:?} was seen"
            );
            expect_answers(&site.pod_client(), protocol, target, &["web-1", "web-2"])?;
            expect_answers(&site.node_client(), protocol, target, &["web-1", "web-2"])?;
        }
    }
    let without = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
    ensure!(agent.metric(without, "traffic_policy=\"external\"")? < 1.0);
    // None here: outsiders are to look for another node, so that they are not refused. Insiders need not.
    put(&[&site.pods[1]])?;
    for protocol in BOTH {
        for target in external_targets(&site, protocol) {
            site.outside_client()
                .until(protocol, target, LIMIT, |outcome| *outcome == Outcome::TimedOut)?;
            expect(&site.outside_client(), protocol, target, &Outcome::TimedOut)?;
            expect_answers(&site.pod_client(), protocol, target, &["web-2"])?;
            expect_answers(&site.node_client(), protocol, target, &["web-2"])?;
        }
    }
    // Two ports in each of two families.
    ensure!((agent.metric(without, "traffic_policy=\"external\"")? - 4.0).abs() < 0.1);
    ensure!(agent.metric(without, "traffic_policy=\"internal\"")? < 1.0);
    // None anywhere is another matter.
    put(&[])?;
    for target in external_targets(&site, Protocol::Tcp) {
        site.outside_client()
            .until(Protocol::Tcp, target, LIMIT, |outcome| {
                *outcome == Outcome::Refused
            })?;
    }
    Ok(())
}

fn internal_policy_local_keeps_pods_here(forwarding: Forwarding) -> Result<()> {
    let site = Site::new(forwarding)?;
    let service = || web().set("internalTrafficPolicy", "Local");
    let put = |pods: &[&Pod]| site.manifests.put(WEB, with_pods(service(), "web", pods));
    put(&[&site.pods[0], &site.pods[1]])?;
    let _agent = site.start()?;
    for protocol in BOTH {
        for vip in cluster_ips(protocol) {
            expect_answers(&site.pod_client(), protocol, vip, &["web-1"])?;
            expect_answers(&site.node_client(), protocol, vip, &["web-1"])?;
        }
        // The policy is about ClusterIPs only.
        for target in external_targets(&site, protocol) {
            expect_answers(&site.outside_client(), protocol, target, &["web-1", "web-2"])?;
        }
    }
    put(&[&site.pods[1]])?;
    for vip in cluster_ips(Protocol::Tcp) {
        site.pod_client()
            .until(Protocol::Tcp, vip, LIMIT, |outcome| *outcome == Outcome::TimedOut)?;
        expect(&site.pod_client(), Protocol::Tcp, vip, &Outcome::TimedOut)?;
    }
    Ok(())
}

fn direct_access_refuses_at_once_and_balances_again_afterwards(forwarding: Forwarding) -> Result<()> {
    let site = Site::new(forwarding)?;
    let agent = site.start()?;
    let mut service = Value::from(web());
    service["metadata"]["annotations"] = json!({"networking.alpha.kubernetes.io/direct-access": "true"});
    let slices = slices("web", &[&site.pods[0], &site.pods[1]]).map(Value::from);
    site.manifests.put(WEB, [service].into_iter().chain(slices))?;
    agent.wait_until_logged("asks for direct access", LIMIT)?;
    for protocol in BOTH {
        let own = at(CLUSTER_IP, protocol);
        for target in own.into_iter().chain(external_targets(&site, protocol)) {
            let refused = |outcome: &Outcome| *outcome == Outcome::Refused;
            site.pod_client().until(protocol, target, LIMIT, refused)?;
            expect(&site.pod_client(), protocol, target, &Outcome::Refused)?;
            expect(&site.outside_client(), protocol, target, &Outcome::Refused)?;
        }
    }
    // The pods are there for whoever goes to them.
    for pod in &site.pods {
        for target in pod.addresses().both(support::TCP_TARGET) {
            expect_answers(&site.pod_client(), Protocol::Tcp, target, &[pod.name()])?;
        }
    }
    site.set_endpoints(&[&site.pods[0], &site.pods[1]])?;
    for vip in cluster_ips(Protocol::Tcp) {
        expect_answers(&site.pod_client(), Protocol::Tcp, vip, &["web-1", "web-2"])?;
    }
    Ok(())
}

/// Who answers is certain with weight 0 only; that shares are right is seen in dataplane/tests/flows/weights.yaml.
fn weights_are_what_annotations_say(forwarding: Forwarding) -> Result<()> {
    let site = Site::new(forwarding)?;
    let agent = site.start()?;
    // Each pod is of a workload of its own.
    let put = |of_service: Value, of_slices: Value| {
        let mut service = Value::from(web());
        service["metadata"]["annotations"] = of_service;
        let slices = slices("web", &[&site.pods[0], &site.pods[1]]).map(|slice| {
            let mut slice = Value::from(slice);
            slice["metadata"]["annotations"] = of_slices.clone();
            for (at, pod) in ["stable-6d4cf56db6-x2x4z", "canary-5f7b9c8d4-2v8kd"]
                .iter()
                .enumerate()
            {
                slice["endpoints"][at]["targetRef"] = json!({"kind": "Pod", "name": pod});
            }
            slice
        });
        site.manifests.put(WEB, [service].into_iter().chain(slices))
    };
    let both = ["web-1", "web-2"];
    let answered_by = |by: &[&str]| -> Result<()> {
        for protocol in BOTH {
            for vip in cluster_ips(protocol) {
                expect_answers(&site.pod_client(), protocol, vip, by)?;
            }
        }
        Ok(())
    };
    let weights = |text: &str| json!({"pointsman.dev/weights": text});
    for (text, by) in [
        ("stable=9, canary=0", &both[..1]),
        ("stable=0, canary=1", &both[1..]),
        ("stable=5, canary=5", &both),
    ] {
        put(weights(text), json!(null))?;
        answered_by(by)?;
    }
    put(weights("stable=0, canary=lots"), json!(null))?;
    agent.wait_until_logged("pointsman.dev/weights has \"canary=lots\"", LIMIT)?;
    answered_by(&both[1..])?;
    // A slice's own weight comes first.
    put(weights("stable=0"), json!({"pointsman.dev/weight": "3"}))?;
    answered_by(&both)
}

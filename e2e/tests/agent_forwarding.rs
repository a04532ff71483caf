//! What a node forwards: packets through the rules of the real agent, which reads manifests.

mod support;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use pointsman_e2e::{
    ip,
    manifests::{Service, Slice},
    pod::INTERFACE_PREFIX,
    traffic::{Client, Outcome, Protocol, serve},
};
use serde_json::{Value, json};
use support::{
    BALANCER_IP, BOTH, CLUSTER_IP, EXTERNAL_IP, Forwarding, LIMIT, POLICY, Site, TCP_PORT, WEB, at,
    cluster_ips, expect, expect_answers, node_port, slices, vips, web, with_pods,
};

in_every_mode! {
    a_cluster_ip_reaches_all_endpoints_about_equally
    each_port_of_a_service_has_its_own_endpoints
    node_ports_answer_on_the_addresses_that_the_policy_names
    external_and_load_balancer_addresses_answer_the_outside
    a_pod_reaches_itself_through_its_service
    sources_are_kept_or_masqueraded_as_the_policy_says
    without_endpoints_every_address_refuses_at_once
    excluded_addresses_are_left_alone
    services_of_others_produce_nothing
}

fn a_cluster_ip_reaches_all_endpoints_about_equally(forwarding: Forwarding) -> Result<()> {
    let site = Site::new(forwarding)?;
    let third = site.away.add_pod("web-3")?;
    let _servers = support::serve_web(&third)?;
    site.set_endpoints(&[&site.pods[0], &site.pods[1], &third])?;
    let _agent = site.start()?;
    for protocol in BOTH {
        for vip in cluster_ips(protocol) {
            for client in [site.pod_client(), site.node_client(), site.outside_client()] {
                let tally = client.many(protocol, vip, 150)?;
                // 150 draws of 3: a share below 24 or above 76 has one chance in a million.
                let shares = ["web-1", "web-2", "web-3"].map(|name| tally.by(name));
                ensure!(tally.lost() == 0, "{protocol:?} {vip}: {tally}");
                ensure!(
                    shares.iter().all(|share| (24..=76).contains(share)),
                    "{protocol:?} {vip}: {tally}"
                );
            }
        }
    }
    Ok(())
}

fn each_port_of_a_service_has_its_own_endpoints(forwarding: Forwarding) -> Result<()> {
    let site = Site::new(forwarding)?;
    let pod = &site.pods[0];
    let mut servers = Vec::new();
    let ports = [
        ("first", Protocol::Tcp, 81, 8081),
        ("second", Protocol::Tcp, 82, 8082),
        ("third", Protocol::Udp, 82, 8083),
    ];
    let (mut service, mut v4, mut v6) = (Service::new("many"), Slice::v4("many"), Slice::v6("many"));
    for vip in vips(7) {
        service = service.cluster_ip(vip);
    }
    for (name, protocol, port, target) in ports {
        service = service.port(name, protocol, port);
        (v4, v6) = (v4.port(name, protocol, target), v6.port(name, protocol, target));
        for at in pod.addresses().both(target) {
            servers.push(serve(pod.namespace(), protocol, at, name)?);
        }
    }
    v4 = v4.endpoint(pod.addresses().v4, pod.node());
    v6 = v6.endpoint(pod.addresses().v6, pod.node());
    site.manifests
        .put("many.yaml", [Value::from(service), v4.into(), v6.into()])?;
    let _agent = site.start()?;
    for (name, protocol, port, _) in ports {
        for vip in vips(7) {
            expect_answers(&site.pod_client(), protocol, (vip, port).into(), &[name])?;
        }
    }
    // The protocol counts: nobody has UDP 81.
    for vip in vips(7) {
        let outcome = site.pod_client().udp((vip, 81).into());
        ensure!(outcome.answer().is_none(), "{vip}: {outcome}");
    }
    Ok(())
}

fn node_ports_answer_on_the_addresses_that_the_policy_names(forwarding: Forwarding) -> Result<()> {
    let site = Site::new(forwarding)?;
    let second: [IpAddr; 2] = ["192.168.77.99".parse()?, "fd00:77::99".parse()?];
    ip::batch(
        site.node.namespace(),
        [
            format!("addr add {}/24 dev eth0", second[0]),
            format!("addr add {}/64 dev eth0 nodad", second[1]),
        ],
    )?;
    let first: [IpAddr; 2] = [site.node.addresses().v4.into(), site.node.addresses().v6.into()];
    let agent = site.start()?;
    let cases = [
        (json!(["Primary"]), &first[..], &second[..]),
        (json!(["All"]), &[first, second].concat(), &[]),
        (json!(["192.168.77.99/32", "fd00:77::98/127"]), &second, &first),
        (
            json!(["Primary", "192.168.77.64/26", "fd00:77::99/128"]),
            &[first, second].concat(),
            &[],
        ),
    ];
    for (addresses, answering, silent) in cases {
        site.set_policy(site.policy().set("nodePortAddresses", addresses.clone()))?;
        agent.process().wait_until("follow the policy", LIMIT, || {
            agent
                .metrics("/configz")
                .is_ok_and(|(_, text)| text.contains(&addresses.to_string()))
        })?;
        for protocol in BOTH {
            let with_port = |address: &IpAddr| SocketAddr::new(*address, node_port(protocol));
            for target in answering.iter().map(with_port) {
                expect_answers(&site.outside_client(), protocol, target, &["web-1", "web-2"])
                    .with_context(|| format!("nodePortAddresses {addresses}"))?;
            }
            for target in silent.iter().map(with_port) {
                // The node itself refuses: nobody listens there.
                site.outside_client()
                    .until(protocol, target, LIMIT, |outcome| *outcome == Outcome::Refused)
                    .with_context(|| format!("nodePortAddresses {addresses}"))?;
                expect(&site.outside_client(), protocol, target, &Outcome::Refused)?;
            }
        }
        // Loopback never: an answer to it could not come back.
        for loopback in ["127.0.0.1", "::1"] {
            let target = SocketAddr::new(loopback.parse()?, node_port(Protocol::Tcp));
            expect(&site.node_client(), Protocol::Tcp, target, &Outcome::Refused)?;
        }
    }
    Ok(())
}

fn external_and_load_balancer_addresses_answer_the_outside(forwarding: Forwarding) -> Result<()> {
    let site = Site::new(forwarding)?;
    // A balancer that terminates connections itself: traffic to it must leave the node.
    let elsewhere = 0x0302;
    let [v4, v6] = vips(elsewhere);
    let service = web()
        .load_balancer_ip(v4, Some("Proxy"))
        .load_balancer_ip(v6, Some("Proxy"));
    site.manifests
        .put(WEB, with_pods(service, "web", &[&site.pods[0], &site.pods[1]]))?;
    let _agent = site.start()?;
    for protocol in BOTH {
        for kind in [EXTERNAL_IP, BALANCER_IP] {
            for target in at(kind, protocol) {
                for client in [site.outside_client(), site.pod_client(), site.node_client()] {
                    expect_answers(&client, protocol, target, &["web-1", "web-2"])?;
                }
            }
        }
        for target in at(elsewhere, protocol) {
            for client in [site.pod_client(), site.node_client()] {
                expect(&client, protocol, target, &Outcome::Unreachable)?;
            }
        }
    }
    Ok(())
}

fn a_pod_reaches_itself_through_its_service(forwarding: Forwarding) -> Result<()> {
    let site = Site::new(forwarding)?;
    let pod = &site.pods[0];
    site.set_endpoints(&[pod])?;
    let _agent = site.start()?;
    let itself = Client::of(pod.namespace());
    for protocol in BOTH {
        for (target, own) in cluster_ips(protocol).into_iter().zip(pod.addresses().both(0)) {
            expect_answers(&itself, protocol, target, &["web-1"])?;
            let seen = seen_source(&itself, protocol, target)?;
            ensure!(
                seen != own.ip(),
                "{protocol:?} {target}: a hairpin connection must be masqueraded"
            );
        }
    }
    Ok(())
}

fn sources_are_kept_or_masqueraded_as_the_policy_says(forwarding: Forwarding) -> Result<()> {
    let site = Site::new(forwarding)?;
    // On the node itself, so that answers come by whatever the source is.
    site.set_endpoints(&[&site.pods[0]])?;
    let _agent = site.start()?;
    let outside = site.outside.addresses();
    let ranges = json!(["10.244.0.0/16", "fd00:10:244::/48"]);
    let hosts = json!([format!("{}/32", outside.v4), format!("{}/128", outside.v6)]);
    let cases = [
        // The policy, and whether the sources of a pod and of the outside host are kept.
        (json!({}), true, false),
        (json!({"masqueradeAll": true}), false, false),
        (json!({"detectLocal": {"mode": "NodeCIDR"}}), true, false),
        (
            json!({"detectLocal": {"mode": "ClusterCIDR", "clusterCIDRs": ranges}}),
            true,
            false,
        ),
        (
            json!({"detectLocal": {"mode": "ClusterCIDR", "clusterCIDRs": hosts}}),
            false,
            true,
        ),
        (
            json!({"detectLocal": {"mode": "InterfaceNamePrefix", "interfaceNamePrefix": INTERFACE_PREFIX}}),
            true,
            false,
        ),
        (
            json!({"detectLocal": {"mode": "BridgeInterface", "bridgeInterface": "eth0"}}),
            false,
            true,
        ),
    ];
    let sources = [
        (site.pod_client(), site.client.addresses()),
        (site.outside_client(), outside),
    ];
    for (fields, pod_kept, outside_kept) in cases {
        let mut policy = site.policy();
        for (field, value) in fields.as_object().into_iter().flatten() {
            policy = policy.set(field, value.clone());
        }
        site.set_policy(policy)?;
        for ((client, own), kept) in sources.iter().zip([pod_kept, outside_kept]) {
            for protocol in BOTH {
                for (target, own) in cluster_ips(protocol).into_iter().zip(own.both(0)) {
                    let is_right = |outcome: &Outcome| {
                        outcome
                            .answer()
                            .is_some_and(|answer| (answer.seen_source.ip() == own.ip()) == kept)
                    };
                    client
                        .until(protocol, target, LIMIT, is_right)
                        .with_context(|| format!("{fields}: the source {own} is to be kept: {kept}"))?;
                }
            }
        }
        // And so it stays, now that all of it has come about; from outside every other address is masqueraded.
        for ((client, own), kept) in sources.iter().zip([pod_kept, outside_kept]) {
            for protocol in BOTH {
                for family in 0..2 {
                    let own = own.both(0)[family].ip();
                    let seen = seen_source(client, protocol, cluster_ips(protocol)[family])?;
                    ensure!((seen == own) == kept, "{fields}: {seen} was seen of {own}");
                    for kind in [EXTERNAL_IP, BALANCER_IP] {
                        let seen = seen_source(client, protocol, at(kind, protocol)[family])?;
                        ensure!(
                            seen != own,
                            "{fields}: {own} was not masqueraded towards an external address"
                        );
                    }
                }
            }
        }
    }
    Ok(())
}

fn without_endpoints_every_address_refuses_at_once(forwarding: Forwarding) -> Result<()> {
    let site = Site::new(forwarding)?;
    site.set_endpoints(&[])?;
    let _agent = site.start()?;
    for protocol in BOTH {
        let mut targets = site.node.addresses().both(node_port(protocol)).to_vec();
        for kind in [CLUSTER_IP, EXTERNAL_IP, BALANCER_IP] {
            targets.extend(at(kind, protocol));
        }
        for target in targets {
            // Within 900 ms: the answer to the first packet, not to one that was sent again.
            for client in [site.pod_client(), site.outside_client()] {
                expect(&client, protocol, target, &Outcome::Refused)?;
            }
            // The node's own datagram is refused before it leaves, which send() says by itself (EPERM).
            let outcome = site
                .node_client()
                .timeout(Duration::from_millis(900))
                .ask(protocol, target);
            let refused = outcome == Outcome::Refused
                || protocol == Protocol::Udp
                    && outcome == Outcome::Failed("Operation not permitted (os error 1)".to_owned());
            ensure!(refused, "{protocol:?} {target} from the node: {outcome}");
        }
    }
    Ok(())
}

fn excluded_addresses_are_left_alone(forwarding: Forwarding) -> Result<()> {
    let site = Site::new(forwarding)?;
    let spared = 0x0901;
    let mut service = Service::new("spared");
    for vip in vips(spared) {
        service = service.cluster_ip(vip);
    }
    let service = service.port("http", Protocol::Tcp, TCP_PORT).node_port(30081);
    site.manifests
        .put("spared.yaml", with_pods(service, "spared", &[&site.pods[0]]))?;
    let excluded = json!(["10.96.9.0/24", "fd00:10:96::900/120"]);
    site.set_policy(site.policy().set("excludeCIDRs", excluded))?;
    let _agent = site.start()?;
    for target in at(spared, Protocol::Tcp) {
        for client in [site.pod_client(), site.node_client()] {
            expect(&client, Protocol::Tcp, target, &Outcome::Unreachable)?;
        }
    }
    // Its node port is no address of the range, and other Services are none of its business.
    for target in site.node.addresses().both(30081).into_iter() {
        expect_answers(&site.outside_client(), Protocol::Tcp, target, &["web-1"])?;
    }
    for target in cluster_ips(Protocol::Tcp) {
        expect_answers(&site.pod_client(), Protocol::Tcp, target, &["web-1", "web-2"])?;
    }
    site.set_policy(site.policy())?;
    for target in at(spared, Protocol::Tcp) {
        expect_answers(&site.pod_client(), Protocol::Tcp, target, &["web-1"])?;
    }
    Ok(())
}

fn services_of_others_produce_nothing(forwarding: Forwarding) -> Result<()> {
    let site = Site::new(forwarding)?;
    let agent = site.start()?;
    let before = site.rules()?;
    let plain = |name: &str, number: u16| {
        let service = vips(number)
            .into_iter()
            .fold(Service::new(name), Service::cluster_ip);
        service
            .port("http", Protocol::Tcp, TCP_PORT)
            .node_port(30000 + number)
    };
    let foreign = [
        (
            "external-name",
            plain("external-name", 11)
                .set("type", "ExternalName")
                .set("externalName", "example.org"),
        ),
        (
            "headless",
            plain("headless", 12)
                .set("clusterIP", "None")
                .set("clusterIPs", json!(["None"])),
        ),
        (
            "other-proxy",
            plain("other-proxy", 13).label("service.kubernetes.io/service-proxy-name", "somebody"),
        ),
        (
            "pending",
            plain("pending", 14)
                .set("clusterIP", "")
                .set("clusterIPs", json!([])),
        ),
    ];
    let mut objects = Vec::new();
    for (name, service) in foreign {
        objects.push(service.into());
        objects.extend(slices(name, &[&site.pods[0]]).map(Value::from));
    }
    // A Service that is ours, to know that the file was read.
    let ours = vips(16)
        .into_iter()
        .fold(Service::new("ours"), Service::cluster_ip);
    let ours = ours.port("http", Protocol::Tcp, TCP_PORT);
    objects.extend(with_pods(ours, "ours", &[&site.pods[0]]));
    site.manifests.put("others.yaml", objects.clone())?;
    for target in at(16, Protocol::Tcp) {
        expect_answers(&site.pod_client(), Protocol::Tcp, target, &["web-1"])?;
    }
    for number in 11..=14 {
        for target in at(number, Protocol::Tcp) {
            expect(&site.pod_client(), Protocol::Tcp, target, &Outcome::Unreachable)?;
        }
        for target in site.node.addresses().both(30000 + number) {
            expect(&site.outside_client(), Protocol::Tcp, target, &Outcome::Refused)?;
        }
    }
    objects.truncate(objects.len() - 3);
    site.manifests.put("others.yaml", objects)?;
    for target in at(16, Protocol::Tcp) {
        site.pod_client().until(Protocol::Tcp, target, LIMIT, |outcome| {
            *outcome == Outcome::Unreachable
        })?;
    }
    ensure!(
        site.rules()? == before,
        "the others' Services left something behind"
    );
    let (_, health) = agent.health("/healthz")?;
    ensure!(health.contains("lastUpdated"), "{health}");
    // The policy is still the only thing that is said about this node.
    ensure!(agent.metrics("/configz")?.1.contains("everywhere"), "{POLICY}");
    Ok(())
}

/// The source address that the server sees of a new connection.
fn seen_source(client: &Client, protocol: Protocol, target: SocketAddr) -> Result<IpAddr> {
    let outcome = client
        .clone()
        .timeout(Duration::from_secs(2))
        .ask(protocol, target);
    let answer = outcome
        .answer()
        .with_context(|| format!("{protocol:?} {target}: {outcome}"))?;
    Ok(answer.seen_source.ip())
}

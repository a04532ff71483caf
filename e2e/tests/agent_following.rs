//! How packets follow changes of the manifests and of the node, and how fast.

#![allow(
    clippy::print_stdout,
    reason = "measured times are for whoever runs the tests"
)]

mod support;

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use pointsman_e2e::{
    ip,
    manifests::{Node, Service},
    traffic::{Outcome, Protocol},
};
use serde_json::{Value, json};
use support::{
    BOTH, Forwarding, LIMIT, NODE, Site, TCP_PORT, WEB, at, cluster_ips, expect, expect_answers, node_port,
    serve_web, slices, vips, web, with_pods,
};

in_every_mode! {
    endpoints_that_come_and_go_show_in_packets
    the_first_endpoint_and_the_last_one_show_in_packets
    a_service_that_goes_answers_no_longer
    ports_and_addresses_of_a_service_can_change
    an_endpoint_that_terminates_gets_nothing_new
    an_address_that_the_node_gets_answers_node_ports
    a_node_object_that_changes_moves_node_ports_and_masquerade
    a_row_of_changes_without_a_pause_is_followed_while_it_lasts
}

fn endpoints_that_come_and_go_show_in_packets(forwarding: Forwarding) -> Result<()> {
    let site = Site::new(forwarding)?;
    let [first, second] = [&site.pods[0], &site.pods[1]];
    let third = site.node.add_pod("web-3")?;
    let _servers = serve_web(&third)?;
    site.set_endpoints(&[first])?;
    let _agent = site.start()?;
    let client = site.pod_client();
    for protocol in BOTH {
        for vip in cluster_ips(protocol) {
            expect_answers(&client, protocol, vip, &["web-1"])?;
        }
    }
    let vip = cluster_ips(Protocol::Tcp)[0];
    let steps = [
        ("added", vec![first, second], "web-2"),
        ("removed", vec![second], "web-2"),
        ("changed", vec![&third], "web-3"),
    ];
    for (what, pods, by) in steps {
        site.set_endpoints(&pods)?;
        let took = if what == "removed" {
            // Every connection goes there when ten in a row do.
            client.until(Protocol::Tcp, vip, LIMIT, |_| {
                (0..10).all(|_| client.tcp(vip).is_by(by))
            })?
        } else {
            client.until_answered_by(Protocol::Tcp, vip, &[by], LIMIT)?
        };
        println!("{forwarding:?}: an endpoint {what}: {took:?} from the file to the first packet");
        ensure!(took < Duration::from_secs(10), "{what}: {took:?}");
        let names: Vec<_> = pods.iter().map(|pod| pod.name()).collect();
        for protocol in BOTH {
            for vip in cluster_ips(protocol) {
                expect_answers(&client, protocol, vip, &names)?;
            }
        }
    }
    Ok(())
}

fn the_first_endpoint_and_the_last_one_show_in_packets(forwarding: Forwarding) -> Result<()> {
    let site = Site::new(forwarding)?;
    site.set_endpoints(&[])?;
    let _agent = site.start()?;
    let client = site.outside_client();
    for _ in 0..3 {
        for (pods, answered) in [(vec![&site.pods[1]], true), (vec![], false)] {
            site.set_endpoints(&pods)?;
            for protocol in BOTH {
                let mut targets = site.node.addresses().both(node_port(protocol)).to_vec();
                targets.extend(cluster_ips(protocol));
                for target in targets {
                    if answered {
                        expect_answers(&client, protocol, target, &["web-2"])?;
                    } else {
                        client.until(protocol, target, LIMIT, |outcome| *outcome == Outcome::Refused)?;
                        expect(&client, protocol, target, &Outcome::Refused)?;
                    }
                }
            }
        }
    }
    Ok(())
}

fn a_service_that_goes_answers_no_longer(forwarding: Forwarding) -> Result<()> {
    let site = Site::new(forwarding)?;
    let other = vips(5)
        .into_iter()
        .fold(Service::new("other"), Service::cluster_ip);
    let other = other.port("http", Protocol::Tcp, TCP_PORT);
    site.manifests
        .put("other.yaml", with_pods(other, "other", &[&site.pods[0]]))?;
    let agent = site.start()?;
    let client = site.pod_client();
    expect_answers(
        &client,
        Protocol::Tcp,
        cluster_ips(Protocol::Tcp)[0],
        &["web-1", "web-2"],
    )?;
    let mut held = client.open(cluster_ips(Protocol::Tcp)[0])?;
    // First the Service without its slices, as the API server deletes them; then the whole file.
    site.manifests.put(WEB, slices("web", &[&site.pods[0]]))?;
    for protocol in BOTH {
        for target in cluster_ips(protocol) {
            client.until(protocol, target, LIMIT, |outcome| {
                *outcome == Outcome::Unreachable
            })?;
        }
        for target in site.node.addresses().both(node_port(protocol)) {
            site.outside_client()
                .until(protocol, target, LIMIT, |outcome| *outcome == Outcome::Refused)?;
        }
    }
    site.manifests.remove(WEB)?;
    agent.process().wait_until("forget web", LIMIT, || {
        site.rules().is_ok_and(|rules| !rules.concat().contains("web"))
    })?;
    held.ping().context("a connection from before the Service went")?;
    for target in at(5, Protocol::Tcp) {
        expect_answers(&client, Protocol::Tcp, target, &["web-1"])?;
    }
    Ok(())
}

fn ports_and_addresses_of_a_service_can_change(forwarding: Forwarding) -> Result<()> {
    let site = Site::new(forwarding)?;
    let _agent = site.start()?;
    let client = site.pod_client();
    let make = |number: u16, port: u16, node_port: u16| {
        let service = vips(number)
            .into_iter()
            .fold(Service::new("web"), Service::cluster_ip);
        service.port("http", Protocol::Tcp, port).node_port(node_port)
    };
    let gone = |outcome: &Outcome| outcome.answer().is_none();
    let mut before: Vec<SocketAddr> = cluster_ips(Protocol::Tcp).to_vec();
    for (number, port, node_port) in [(0x0101, 81, 30090), (0x0102, 81, 30091), (0x0103, 82, 30080)] {
        site.manifests.put(
            WEB,
            with_pods(make(number, port, node_port), "web", &[&site.pods[0]]),
        )?;
        let now = vips(number).map(|address| SocketAddr::from((address, port)));
        let ports = site.node.addresses().both(node_port);
        for target in now.into_iter().chain(ports) {
            expect_answers(&client, Protocol::Tcp, target, &["web-1"])?;
        }
        for target in before.drain(..) {
            client.until(Protocol::Tcp, target, LIMIT, gone)?;
        }
        before.extend(now);
        before.extend(ports);
    }
    Ok(())
}

fn an_endpoint_that_terminates_gets_nothing_new(forwarding: Forwarding) -> Result<()> {
    let site = Site::new(forwarding)?;
    let _agent = site.start()?;
    let client = site.pod_client();
    let vip = cluster_ips(Protocol::Tcp)[0];
    expect_answers(&client, Protocol::Tcp, vip, &["web-1", "web-2"])?;
    // (ready, serving, terminating) of web-1; web-2 is as in the last column. KEP-1669.
    let going = json!({"ready": false, "serving": true, "terminating": true});
    let dead = json!({"ready": false, "serving": false, "terminating": true});
    let ready = json!({"ready": true, "serving": true, "terminating": false});
    let cases: [(&Value, &Value, &[&str]); 4] = [
        (&going, &ready, &["web-2"]),
        (&going, &going, &["web-1", "web-2"]),
        (&going, &dead, &["web-1"]),
        (&json!({}), &dead, &["web-1"]),
    ];
    for (first, second, by) in cases {
        let mut objects = with_pods(web(), "web", &[&site.pods[0], &site.pods[1]]);
        for slice in &mut objects[1..] {
            slice["endpoints"][0]["conditions"] = first.clone();
            slice["endpoints"][1]["conditions"] = second.clone();
        }
        site.manifests.put(WEB, objects)?;
        client
            .until(Protocol::Tcp, vip, LIMIT, |_| {
                let tally = client.many(Protocol::Tcp, vip, 20);
                tally.is_ok_and(|tally| tally.answerers() == by)
            })
            .with_context(|| format!("{first} {second}"))?;
    }
    Ok(())
}

fn an_address_that_the_node_gets_answers_node_ports(forwarding: Forwarding) -> Result<()> {
    for addresses in [json!(["All"]), json!(["192.168.77.0/24", "fd00:77::/64"])] {
        let site = Site::new(forwarding)?;
        site.set_policy(site.policy().set("nodePortAddresses", addresses.clone()))?;
        let _agent = site.start()?;
        let client = site.outside_client();
        let new = ["192.168.77.99/24", "fd00:77::99/64"];
        for command in ["add", "del"] {
            ip::batch(
                site.node.namespace(),
                [
                    format!("addr {command} {} dev eth0", new[0]),
                    format!(
                        "addr {command} {} dev eth0 {}",
                        new[1],
                        if command == "add" { "nodad" } else { "" }
                    ),
                ],
            )?;
            for address in new {
                let address: std::net::IpAddr = address.split('/').next().unwrap_or_default().parse()?;
                for protocol in BOTH {
                    let target = SocketAddr::new(address, node_port(protocol));
                    if command == "add" {
                        let took =
                            client.until(protocol, target, LIMIT, |outcome| outcome.answer().is_some());
                        println!(
                            "{forwarding:?}, {addresses}: {target} answers {:?} after the address came",
                            took?
                        );
                    } else {
                        client.until(protocol, target, LIMIT, |outcome| outcome.answer().is_none())?;
                    }
                }
            }
        }
        for target in site.node.addresses().both(node_port(Protocol::Tcp)) {
            expect_answers(&client, Protocol::Tcp, target, &["web-1", "web-2"])?;
        }
    }
    Ok(())
}

fn a_node_object_that_changes_moves_node_ports_and_masquerade(forwarding: Forwarding) -> Result<()> {
    let site = Site::new(forwarding)?;
    site.set_endpoints(&[&site.pods[0]])?;
    site.manifests.remove(NODE)?;
    ip::batch(site.node.namespace(), ["addr add 192.168.77.99/24 dev eth0"])?;
    let _agent = site.start()?;
    let (client, vip) = (site.pod_client(), cluster_ips(Protocol::Tcp)[0]);
    let (port, own) = (node_port(Protocol::Tcp), site.client.addresses().v4);
    // Without a Node nothing is known of its addresses: ClusterIPs work, and node ports do not.
    expect_answers(&client, Protocol::Tcp, vip, &["web-1"])?;
    expect(
        &site.outside_client(),
        Protocol::Tcp,
        site.node.addresses().at_v4(port),
        &Outcome::Refused,
    )?;
    let kept = |outcome: &Outcome| {
        outcome
            .answer()
            .is_some_and(|answer| answer.seen_source.ip() == own)
    };
    let masked = |outcome: &Outcome| {
        outcome
            .answer()
            .is_some_and(|answer| answer.seen_source.ip() != own)
    };

    site.manifests.put(NODE, [Node::of(&site.node)])?;
    for target in site.node.addresses().both(port) {
        expect_answers(&site.outside_client(), Protocol::Tcp, target, &["web-1"])?;
    }
    client.until(Protocol::Tcp, vip, LIMIT, kept)?;

    let mut node: Value = Node::of(&site.node).internal_ip([192, 168, 77, 99]).into();
    node["spec"]["podCIDRs"] = json!(["10.9.0.0/16"]);
    site.manifests.put(NODE, [node])?;
    expect_answers(
        &site.outside_client(),
        Protocol::Tcp,
        SocketAddr::from(([192, 168, 77, 99], port)),
        &["web-1"],
    )?;
    client.until(Protocol::Tcp, vip, LIMIT, masked)?;

    // A Node that goes, as when a kubelet registers anew, changes nothing.
    site.manifests.remove(NODE)?;
    site.set_endpoints(&[&site.pods[1]])?;
    expect_answers(&client, Protocol::Tcp, vip, &["web-2"])?;
    for target in site.node.addresses().both(port) {
        expect_answers(&site.outside_client(), Protocol::Tcp, target, &["web-2"])?;
    }
    Ok(())
}

fn a_row_of_changes_without_a_pause_is_followed_while_it_lasts(forwarding: Forwarding) -> Result<()> {
    let site = Site::new(forwarding)?;
    let agent = site.start()?;
    let (client, vip) = (site.pod_client(), cluster_ips(Protocol::Tcp)[0]);
    site.set_endpoints(&[&site.pods[0]])?;
    client.until(Protocol::Tcp, vip, LIMIT, |_| {
        (0..10).all(|_| client.tcp(vip).is_by("web-1"))
    })?;
    let stop = AtomicBool::new(false);
    let took = thread::scope(|scope| {
        let writer = scope.spawn(|| -> Result<()> {
            // A file of somebody else every 5 ms: the folder is never quiet.
            for number in 1.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let busy = Service::new("busy").cluster_ip(vips(0x0401)[0]);
                site.manifests
                    .put("busy.yaml", [busy.port("", Protocol::Tcp, number)])?;
                thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        });
        thread::sleep(Duration::from_millis(100));
        let moved = site.set_endpoints(&[&site.pods[1]]);
        let took = moved.and_then(|()| client.until_answered_by(Protocol::Tcp, vip, &["web-2"], LIMIT));
        stop.store(true, Ordering::Relaxed);
        writer.join().map_err(|_| anyhow!("the writer panicked"))??;
        took
    })?;
    println!("{forwarding:?}: followed after {took:?} in a folder that is never quiet");
    ensure!(took < Duration::from_secs(5), "{took:?}");
    ensure!(agent.health("/healthz")?.0 == 200);
    Ok(())
}

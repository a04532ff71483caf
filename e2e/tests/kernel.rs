//! Whether the harness tells the truth in the test kernel as well: nodes with IPVS, and a control plane outside of it.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use pointsman_dataplane::{
    model,
    netlink::ipvs::{Ipvs, ServiceKey},
};
use pointsman_e2e::{
    NodeNet, Peer, PeerMode, PeerOptions, Toolchain, inside,
    traffic::{Client, Outcome, Protocol, serve},
};

pointsman_e2e::run_inside_with_control_plane!();

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn kube_proxy_in_ipvs_mode_serves_pods_nodes_and_the_outside() -> Result<()> {
    let toolchain = Toolchain::locate()?;
    let (fabric, access) = inside::join()?;
    let nodes = [fabric.node("node-1")?, fabric.node("node-2")?];
    let mut peers = Vec::new();
    for node in &nodes {
        access.create_node(node)?;
        peers.push(Peer::start(
            &toolchain,
            &access,
            node,
            &PeerOptions::new(PeerMode::Ipvs),
        )?);
    }
    let client = nodes[0].add_pod("client")?;
    let webs = [nodes[0].add_pod("web-1")?, nodes[1].add_pod("web-2")?];
    let mut servers = Vec::new();
    for web in &webs {
        access.create_pod(web, &[("app", "web")])?;
        for at in web.addresses().both(8080) {
            servers.push(serve(web.namespace(), Protocol::Tcp, at, web.name())?);
        }
    }
    access.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: default}, spec: {selector: {app: web},
          type: NodePort, clusterIP: 10.96.1.1, clusterIPs: [10.96.1.1, 'fd00:10:96::101'], ipFamilyPolicy: RequireDualStack,
          ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}}",
    )?;
    let vips: [SocketAddr; 2] = ["10.96.1.1:80".parse()?, "[fd00:10:96::101]:80".parse()?];
    for (number, vip) in vips.into_iter().enumerate() {
        for client in [client.namespace(), nodes[1].namespace()].map(Client::of) {
            for web in &webs {
                client.until_answered_by(Protocol::Tcp, vip, &[web.name()], LIMIT)?;
            }
            // Its scheduler is rr.
            let tally = client.many(Protocol::Tcp, vip, 20)?;
            ensure!(
                webs.iter().all(|web| tally.by(web.name()) == 10),
                "{vip}: {tally}"
            );
        }
        for node in &nodes {
            let expected = webs.each_ref().map(|web| web.addresses().both(8080)[number]);
            assert_eq!(
                destinations(node, vip)?,
                BTreeSet::from(expected),
                "{vip} on {}",
                node.name()
            );
        }
    }
    // From outside, by way of a node, which puts its own address before the sender's; and through a node port.
    let outside = fabric.external("outside")?;
    for range in ["10.96.0.0/16", "fd00:10:96::/112"] {
        outside.route_via(range.parse::<ipnet::IpNet>()?, &nodes[1])?;
    }
    let from_outside = Client::of(outside.namespace());
    for (vip, node) in vips.into_iter().zip(nodes[1].addresses().both(0)) {
        let outcome = from_outside.until_answered_by(Protocol::Tcp, vip, &["web-1"], LIMIT);
        outcome.with_context(|| format!("from outside to {vip}"))?;
        let tally = from_outside.many(Protocol::Tcp, vip, 20)?;
        assert_eq!((tally.by("web-1"), tally.by("web-2")), (10, 10), "{vip}: {tally}");
        // In turns: one of two is answered by the other node's pod.
        let outcomes = [from_outside.tcp(vip), from_outside.tcp(vip)];
        let mut answers = outcomes.iter().filter_map(Outcome::answer);
        let seen = answers.find(|answer| answer.by == "web-1");
        assert_eq!(
            seen.map(|answer| answer.seen_source.ip()),
            Some(node.ip()),
            "masqueraded"
        );
    }
    for at in nodes[0].addresses().both(30080) {
        let tally = from_outside.many(Protocol::Tcp, at, 20)?;
        assert_eq!(tally.lost(), 0, "{at}: {tally}");
    }
    for peer in &peers {
        peer.wait_until_healthy(LIMIT)?;
        ensure!(
            peer.process().stop(Duration::from_secs(10))?,
            "kube-proxy did not end by itself"
        );
    }
    Ok(())
}

/// What a node's IPVS has for an address.
fn destinations(node: &NodeNet, vip: SocketAddr) -> Result<BTreeSet<SocketAddr>> {
    let key = ServiceKey::Address(model::Protocol::Tcp, vip);
    let listed = node.namespace().run(|| Ipvs::open()?.destinations(&key))??;
    Ok(listed.iter().map(|state| state.destination.address).collect())
}

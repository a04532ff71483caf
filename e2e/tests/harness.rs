//! Whether the harness itself tells the truth: what the other e2e tests stand on.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, ErrorKind},
    net::TcpStream,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, api::ListParams};
use pointsman_e2e::{
    ControlPlane, Fabric, IptablesVariant, Netns, NodeNet, Options, Peer, PeerMode, PeerOptions, Pod,
    Toolchain,
    bench::{Commits, rules},
    nft, sysctl,
    traffic::{Client, Outcome, Protocol, serve},
};

const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn pods_on_different_nodes_reach_each_other_with_their_own_addresses() -> Result<()> {
    let fabric = Fabric::new()?;
    let nodes = [fabric.node("node-1")?, fabric.node("node-2")?];
    let [client, server] = [nodes[0].add_pod("client")?, nodes[1].add_pod("server")?];
    let addresses = client.addresses();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for (at, source) in server.addresses().both(80).into_iter().zip(addresses.both(0)) {
            let _server = serve(server.namespace(), protocol, at, "server")?;
            let outcome = Client::of(client.namespace()).ask(protocol, at);
            let answer = outcome
                .answer()
                .with_context(|| format!("{protocol:?} {at}: {outcome}"))?;
            assert_eq!(
                (answer.by.as_str(), answer.seen_source.ip()),
                ("server", source.ip())
            );
        }
    }
    Ok(())
}

#[test]
fn the_outside_reaches_pods_and_pods_reach_the_outside() -> Result<()> {
    let fabric = Fabric::new()?;
    let before = fabric.external("before")?;
    let node = fabric.node("node-1")?;
    let pod = node.add_pod("web")?;
    let after = fabric.external("after")?;
    for outside in [&before, &after] {
        for (inner, outer) in pod
            .addresses()
            .both(80)
            .into_iter()
            .zip(outside.addresses().both(80))
        {
            let inside = serve(pod.namespace(), Protocol::Tcp, inner, "pod")?;
            let away = serve(outside.namespace(), Protocol::Tcp, outer, "outside")?;
            assert!(Client::of(outside.namespace()).tcp(inside.address()).is_by("pod"));
            assert!(Client::of(pod.namespace()).tcp(away.address()).is_by("outside"));
        }
    }
    // A VIP is nobody's until a node takes it: here one that has it as an address of its own.
    let vip = "10.96.7.7".parse()?;
    before.route_via(ipnet::IpNet::new(vip, 32)?, &node)?;
    pointsman_e2e::ip::batch(node.namespace(), ["addr add 10.96.7.7/32 dev lo"])?;
    let server = serve(node.namespace(), Protocol::Udp, (vip, 53).into(), "vip")?;
    assert!(Client::of(before.namespace()).udp(server.address()).is_by("vip"));
    Ok(())
}

#[test]
fn the_first_packet_after_setting_up_is_not_lost() -> Result<()> {
    let fabric = Fabric::new()?;
    let node = fabric.node("node-1")?;
    for round in 0..25 {
        let pod = node.add_pod("pod")?;
        let outside = fabric.external("outside")?;
        // A lost question for a neighbour or a lost SYN would be repeated after a second.
        for at in pod.addresses().both(80) {
            let _server = serve(pod.namespace(), Protocol::Tcp, at, "pod")?;
            let outcome = Client::of(outside.namespace())
                .timeout(Duration::from_millis(900))
                .tcp(at);
            assert!(outcome.is_by("pod"), "round {round}, {at}: {outcome}");
        }
    }
    Ok(())
}

#[test]
fn outcomes_are_told_apart() -> Result<()> {
    let fabric = Fabric::new()?;
    let node = fabric.node("node-1")?;
    let [client, server] = [node.add_pod("client")?, node.add_pod("server")?];
    let quick = Client::of(client.namespace()).timeout(Duration::from_millis(200));
    for closed in server.addresses().both(81) {
        for _ in 0..20 {
            assert_eq!(
                (quick.tcp(closed), quick.udp(closed)),
                (Outcome::Refused, Outcome::Refused)
            );
        }
    }
    for nowhere in ["10.96.0.1:80", "[fd00:10:96::1]:80"] {
        let nowhere = nowhere.parse()?;
        for _ in 0..20 {
            assert_eq!(
                (quick.tcp(nowhere), quick.udp(nowhere)),
                (Outcome::Unreachable, Outcome::Unreachable),
                "{nowhere}"
            );
        }
    }
    // As kube-proxy refuses a Service without endpoints: ICMP port unreachable, also to TCP.
    let refuse = "add table inet r; add chain inet r c { type filter hook forward priority 0; };
        add rule inet r c th dport 82 reject with icmpx type port-unreachable";
    ensure!(node.namespace().command("nft").arg(refuse).status()?.success());
    for refused in server.addresses().both(82) {
        for _ in 0..20 {
            assert_eq!(
                (quick.tcp(refused), quick.udp(refused)),
                (Outcome::Refused, Outcome::Refused)
            );
        }
    }
    let silence =
        "add table ip t; add chain ip t c { type filter hook input priority 0; }; add rule ip t c drop";
    ensure!(server.namespace().command("nft").arg(silence).status()?.success());
    assert_eq!(quick.tcp(server.at_v4(81)), Outcome::TimedOut);
    assert_eq!(quick.udp(server.at_v4(81)), Outcome::TimedOut);
    Ok(())
}

#[test]
fn lasting_traffic_notices_a_server_that_goes() -> Result<()> {
    let fabric = Fabric::new()?;
    let node = fabric.node("node-1")?;
    let [pod, server] = [node.add_pod("client")?, node.add_pod("server")?];
    let client = Client::of(pod.namespace());
    let at = server.at_v4(80);
    let running = serve(server.namespace(), Protocol::Tcp, at, "first")?;

    let mut held = client.open(at)?;
    held.ping()?;
    assert_eq!(held.by(), "first");
    let datagrams = serve(server.namespace(), Protocol::Udp, at, "datagrams")?;
    let flow = client.udp_flow(at)?;
    let (one, two) = (flow.ask(), flow.ask());
    assert!(
        one == two && one.is_by("datagrams"),
        "one source port: {one}; {two}"
    );
    drop(datagrams);
    assert_eq!(flow.ask(), Outcome::Refused);
    let source = pod.at_v4(4711);
    let answer = client.clone().from(source).tcp(at);
    assert_eq!(answer.answer().map(|answer| answer.seen_source), Some(source));
    let flood = client.flood(Protocol::Tcp, at);
    flood.wait_for(200, LIMIT)?;
    let tally = flood.stop_without_loss()?;
    assert_eq!(tally.answerers(), ["first"]);
    assert_eq!(client.many(Protocol::Tcp, at, 50)?.by("first"), 50);

    let flood = client.flood(Protocol::Tcp, at);
    flood.wait_for(10, LIMIT)?;
    drop(running);
    assert!(held.ping().is_err());
    assert_eq!(client.tcp(at), Outcome::Refused);
    let later = thread::spawn({
        let pod = server.namespace().clone();
        move || {
            thread::sleep(Duration::from_millis(100));
            serve(&pod, Protocol::Tcp, at, "second")
        }
    });
    let took = client.until_answered_by(Protocol::Tcp, at, &["second"], LIMIT)?;
    assert!(
        took > Duration::from_millis(80) && took < Duration::from_secs(5),
        "{took:?}"
    );
    assert!(flood.stop_without_loss().is_err());
    drop(later.join());
    Ok(())
}

#[test]
fn nodes_have_their_own_iptables_and_sysctls() -> Result<()> {
    let fabric = Fabric::new()?;
    let legacy = fabric.node("old")?.with_iptables(IptablesVariant::Legacy)?;
    let nft = fabric.node("new")?;
    let version = |node: &NodeNet, program| -> Result<String> {
        Ok(String::from_utf8(
            node.command(program).arg("--version").output()?.stdout,
        )?)
    };
    for program in ["iptables", "ip6tables-restore"] {
        let (old, new) = (version(&legacy, program)?, version(&nft, program)?);
        assert!(old.contains("legacy") && new.contains("nf_tables"), "{old} {new}");
    }
    sysctl::write(
        legacy.namespace(),
        &[("net.ipv4.ip_local_port_range", "40000\t41000")],
    )?;
    assert_eq!(
        sysctl::read(legacy.namespace(), "net.ipv4.ip_local_port_range")?,
        "40000\t41000"
    );
    assert_ne!(
        sysctl::read(nft.namespace(), "net.ipv4.ip_local_port_range")?,
        "40000\t41000"
    );
    Ok(())
}

#[test]
fn the_end_of_every_nf_tables_transaction_is_seen_and_counted() -> Result<()> {
    let namespace = Netns::new("commits")?;
    let commits = Commits::listen(&namespace)?;
    assert!(commits.since(Instant::now())?.is_empty());
    // More notifications than any socket's buffer holds: what is not asked for must not push out what is.
    let elements: Vec<_> = (0..60_000).map(|number: u32| (number + 1).to_string()).collect();
    let table = format!(
        "add table ip t; add chain ip t c; add rule ip t c counter; add rule ip t c counter\n\
         add set ip t s {{ type mark; }}; add element ip t s {{ {} }}",
        elements.join(", ")
    );
    for commands in [table.as_str(), "add chain ip t d"] {
        let began = Instant::now();
        nft::run(&namespace, commands)?;
        let ended = Instant::now();
        let seen = commits.settled(began, Duration::from_millis(100), LIMIT)?;
        let [commit] = seen.as_slice() else {
            anyhow::bail!("one transaction, and seen were {seen:?}")
        };
        assert_eq!(commit.program, "nft");
        assert!(commit.at > began && commit.at < ended + LIMIT);
    }
    // More than the kernel puts into one datagram.
    let chains =
        (0..3000).map(|number| format!("add chain ip t c{number}\nadd rule ip t c{number} counter\n"));
    nft::run(&namespace, &chains.collect::<String>())?;
    let counted = rules::nftables(&namespace)?;
    let expected = rules::Rules {
        rules: 3002,
        chains: 3002,
    };
    assert_eq!(counted, expected);
    Ok(())
}

#[test]
fn three_nodes_with_ten_pods_each_are_quick() -> Result<()> {
    let started = Instant::now();
    let fabric = Fabric::new()?;
    let mut kept: Vec<(NodeNet, Vec<Pod>)> = Vec::new();
    for number in 1..=3 {
        let node = fabric.node(&format!("node-{number}"))?;
        let pods = (0..10)
            .map(|pod| node.add_pod(&format!("pod-{number}-{pod}")))
            .collect::<Result<_>>()?;
        kept.push((node, pods));
    }
    let took = started.elapsed();
    println!("3 nodes with 10 pods each: {took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    Ok(())
}

#[test]
fn the_control_plane_is_a_real_one_and_survives_what_tests_do_to_it() -> Result<()> {
    let started = Instant::now();
    let fabric = Fabric::new()?;
    let control_plane = ControlPlane::start(&Toolchain::locate()?, &fabric, Options::default())?;
    println!("control plane: {:?}", started.elapsed());
    let [node, other] = [fabric.node("node-1")?, fabric.node("node-2")?];
    let uid = control_plane.create_node_with(&node, &[("pool", "big")])?;
    control_plane.create_node(&other)?;
    assert!(control_plane.kubectl(&["get", "nodes"])?.contains("node-2"));
    assert!(
        control_plane
            .kubectl(&["version"])?
            .contains("Server Version: v1.36.3")
    );

    // A client on a thread that is in no namespace of ours.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let nodes: Vec<Node> = runtime.block_on(async {
        let client = control_plane.client().await?;
        anyhow::Ok(
            Api::<Node>::all(client)
                .list(&ListParams::default().labels("pool=big"))
                .await?
                .items,
        )
    })?;
    assert_eq!(nodes.len(), 1);
    assert_eq!(nodes[0].metadata.uid.as_deref(), Some(uid.as_str()));

    // A bound token says which node it is on, and can be used from that node over the wire.
    let kubeconfig =
        control_plane.kubeconfig_for_token(&control_plane.token("default", "default", Some("node-1"))?)?;
    let who = control_plane.kubectl_as(&kubeconfig, &["auth", "whoami", "-o", "json"], "")?;
    let who: serde_json::Value = serde_json::from_str(&who)?;
    let extra = &who["status"]["userInfo"]["extra"];
    assert_eq!(
        extra["authentication.kubernetes.io/node-name"][0], "node-1",
        "{who}"
    );
    assert_eq!(
        extra["authentication.kubernetes.io/node-uid"][0],
        uid.as_str(),
        "{who}"
    );

    // Cut off is one node only, in silence, until it heals.
    let reach = |node: &NodeNet| {
        let connect = || TcpStream::connect_timeout(&control_plane.api_server(), Duration::from_millis(300));
        anyhow::Ok(
            node.namespace()
                .run(connect)?
                .map(drop)
                .map_err(|error| error.kind()),
        )
    };
    let cut = control_plane.cut_off(&node)?;
    assert_eq!(
        (reach(&node)?, reach(&other)?),
        (Err(ErrorKind::TimedOut), Ok(()))
    );
    drop(cut);
    assert_eq!(reach(&node)?, Ok(()));

    let frozen = control_plane.freeze_api_server()?;
    assert!(
        control_plane
            .kubectl(&["get", "--raw=/readyz", "--request-timeout=500ms"])
            .is_err()
    );
    drop(frozen);
    control_plane.kubectl(&["get", "--raw=/readyz"])?;

    let started = Instant::now();
    control_plane.stop_api_server()?;
    println!("API server stopped: {:?}", started.elapsed());
    assert!(control_plane.kubectl(&["get", "nodes"]).is_err());
    let started = Instant::now();
    control_plane.start_api_server()?;
    println!("API server again: {:?}", started.elapsed());
    assert!(control_plane.kubectl(&["get", "nodes"])?.contains("node-1"));
    Ok(())
}

#[test]
fn kube_proxy_makes_a_service_answer_from_a_pod() -> Result<()> {
    let (fabric, toolchain) = (Fabric::new()?, Toolchain::locate()?);
    let control_plane = ControlPlane::start(&toolchain, &fabric, Options::default())?;
    let nodes = [
        fabric.node("node-1")?,
        fabric.node("node-2")?.with_iptables(IptablesVariant::Legacy)?,
    ];
    let mut peers = Vec::new();
    for node in &nodes {
        control_plane.create_node(node)?;
        peers.push(Peer::start(
            &toolchain,
            &control_plane,
            node,
            &PeerOptions::new(PeerMode::Iptables),
        )?);
    }
    let client = nodes[0].add_pod("client")?;
    let webs = [nodes[0].add_pod("web-1")?, nodes[1].add_pod("web-2")?];
    let mut servers = Vec::new();
    for web in &webs {
        control_plane.create_pod(web, &[("app", "web")])?;
        for at in web.addresses().both(8080) {
            servers.push(serve(web.namespace(), Protocol::Tcp, at, web.name())?);
        }
    }
    control_plane.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: default}, spec: {selector: {app: web},
          type: NodePort, clusterIP: 10.96.1.1, clusterIPs: [10.96.1.1, 'fd00:10:96::101'], ipFamilyPolicy: RequireDualStack,
          ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}}",
    )?;
    for vip in ["10.96.1.1:80", "[fd00:10:96::101]:80"] {
        let vip = vip.parse()?;
        for client in [client.namespace(), nodes[1].namespace()].map(Client::of) {
            // One by one: the first sync of a node may know one of the two only.
            for web in &webs {
                client.until_answered_by(Protocol::Tcp, vip, &[web.name()], LIMIT)?;
            }
            let tally = client.many(Protocol::Tcp, vip, 60)?;
            assert_eq!(
                (tally.lost(), tally.answerers()),
                (0, vec!["web-1", "web-2"]),
                "{vip}: {tally}"
            );
        }
    }
    // From outside, through a VIP's node and through a node port.
    let outside = fabric.external("outside")?;
    outside.route_via("10.96.0.0/16".parse::<ipnet::IpNet>()?, &nodes[1])?;
    for at in ["10.96.1.1:80".parse()?, nodes[0].addresses().at_v4(30080)] {
        let flood = Client::of(outside.namespace()).flood(Protocol::Tcp, at);
        flood.wait_for(500, LIMIT)?;
        flood
            .stop_without_loss()
            .with_context(|| format!("from outside to {at}"))?;
    }
    for peer in &peers {
        peer.wait_until_healthy(LIMIT)?;
        assert!(
            peer.metrics()?
                .contains("kubeproxy_sync_proxy_rules_duration_seconds")
        );
        let process = peer.process();
        println!(
            "{}: {} MB, {:?}",
            process.name(),
            process.peak_memory()? >> 20,
            process.cpu_time()?
        );
        assert!(
            process.stop(Duration::from_secs(5))?,
            "kube-proxy did not end by itself"
        );
    }
    Ok(())
}

/// What [`nothing_is_left_after_the_tests_are_killed`] starts and kills. It is no test of its own.
#[test]
#[ignore = "run by another test, in a process of its own"]
fn hold_everything_until_killed() -> Result<()> {
    let fabric = Fabric::new()?;
    let node = fabric.node("node-1")?;
    let _pod = node.add_pod("pod")?;
    // Started from a thread that ends: the servers must outlive it, and not the process.
    let started = thread::scope(|scope| {
        scope
            .spawn(|| ControlPlane::start(&Toolchain::locate()?, &fabric, Options::default()))
            .join()
    });
    let _control_plane = started.map_err(|_| anyhow::anyhow!("starting the control plane panicked"))??;
    thread::sleep(Duration::from_millis(300));
    println!("\nholding");
    thread::sleep(LIMIT);
    Ok(())
}

#[test]
fn nothing_is_left_after_the_tests_are_killed() -> Result<()> {
    let interfaces = interfaces()?;
    let mut holder = Command::new(std::env::current_exe()?)
        .args([
            "--ignored",
            "--exact",
            "hold_everything_until_killed",
            "--nocapture",
        ])
        .stdout(Stdio::piped())
        .spawn()?;
    let output = BufReader::new(holder.stdout.take().context("no output of the holder")?);
    let ready = output
        .lines()
        .map_while(std::io::Result::ok)
        .any(|line| line == "holding");
    let children = children_of(holder.id())?;
    assert!(
        ready && children.len() >= 3,
        "the holder did not get ready; its children: {children:?}"
    );
    holder.kill()?;
    holder.wait()?;
    let gone = |pid: &u32| match fs::read_to_string(format!("/proc/{pid}/stat")) {
        // Dead and not yet reaped is dead.
        Ok(stat) => stat.contains(") Z "),
        Err(_) => true,
    };
    let deadline = Instant::now() + Duration::from_secs(5);
    while !children.iter().all(gone) {
        ensure!(Instant::now() < deadline, "still running: {children:?}");
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(self::interfaces()?, interfaces);
    Ok(())
}

#[test]
fn nothing_is_left_after_everything_is_dropped() -> Result<()> {
    let before = interfaces()?;
    let fabric = Fabric::new()?;
    let control_plane = ControlPlane::start(&Toolchain::locate()?, &fabric, Options::default())?;
    let node = fabric.node("node-1")?;
    let published = node.namespace().publish("pointsman-harness-test")?;
    let list = Command::new("ip")
        .args(["netns", "exec", "pointsman-harness-test", "ip", "link"])
        .output()?;
    assert!(String::from_utf8_lossy(&list.stdout).contains("eth0"));
    let folders = [
        control_plane.folder().path().to_owned(),
        node.folder().path().to_owned(),
    ];
    let namespace = control_plane.namespace().path();
    let identity = |path| fs::read_link(path).unwrap_or_default();
    let inside = processes_in(&identity(namespace))?;
    assert!(inside.len() >= 3, "{inside:?}");
    drop((published, node, control_plane, fabric));
    for process in inside {
        assert!(
            !fs::exists(format!("/proc/{process}"))?,
            "process {process} is left"
        );
    }
    for folder in folders {
        assert!(!folder.exists(), "{} is left", folder.display());
    }
    assert!(!fs::exists("/run/netns/pointsman-harness-test")?);
    assert_eq!(interfaces()?, before);
    Ok(())
}

/// The interfaces of the test's own namespace.
fn interfaces() -> Result<BTreeSet<String>> {
    let entries = fs::read_to_string("/proc/net/dev")?;
    Ok(entries
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
        .collect())
}

/// The processes whose network namespace is the given one (`net:[inode]`).
fn processes_in(namespace: &std::path::Path) -> Result<Vec<u32>> {
    let all = fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(all
        .filter(|pid: &u32| fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|own| own == namespace))
        .collect())
}

/// The children of all threads of a process.
fn children_of(pid: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let list = fs::read_to_string(thread?.path().join("children"))?;
        children.extend(
            list.split_whitespace()
                .filter_map(|child| child.parse::<u32>().ok()),
        );
    }
    Ok(children)
}

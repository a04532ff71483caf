//! What the kernel parameters of mode IPVS do, beside what it is like without them. Runs in the test kernel by itself; see
//! CONTRIBUTING.md. Needs the packages of e2e/packages.sh; without them it fails and says what to do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by failing"
)]

mod support;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use nix::errno::Errno;
use pointsman_dataplane::ipvs::parameters;
use pointsman_dataplane::model::{Family, Protocol};
use pointsman_dataplane::sysctl::{Sysctls, Wanted};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use support::namespace::Namespace;
use support::talk::{Connection, ask, receive};
use support::virtual_server::{Network, client, ends};

pointsman_test_kernel::run_inside!();

/// Sets everything that mode IPVS needs, but this one.
fn parameters_but(node: &Namespace, strict_arp: bool, without: &str) {
    let folder = TempDir::new().unwrap();
    let mut wanted = parameters::sysctls(strict_arp);
    assert_eq!(wanted.remove(without).is_some(), !without.is_empty(), "{without}");
    if !without.is_empty() {
        wanted.insert(without.to_owned(), "0".into());
    }
    node.run(|| {
        let outcome = Sysctls::new("/proc/sys".into(), folder.path().join("state")).apply(&wanted);
        assert!(outcome.is_clean(), "{outcome:?}");
    });
}

/// Runs it in both families, each with the parameter and without it.
fn with_and_without(parameter: &str, options: &str, work: impl Fn(&Network, Family, SocketAddr, bool)) {
    for has in [true, false] {
        let network = Network::new();
        parameters_but(&network.node, false, if has { "" } else { parameter });
        for family in Family::ALL {
            let to = network.balance(family, options);
            work(&network, family, to, has);
        }
    }
}

#[test]
fn the_kernel_has_all_of_them_and_they_are_put_back() {
    let node = Namespace::new();
    let folder = TempDir::new().unwrap();
    let wanted = parameters::sysctls(true);
    node.run(|| {
        let read = |name: &String| {
            let file = format!("/proc/sys/{}", name.replace('.', "/"));
            std::fs::read_to_string(file).unwrap().trim().to_owned()
        };
        let forward = "net.ipv4.ip_forward".to_owned();
        let found: Vec<String> = wanted.keys().map(read).collect();
        assert_eq!(read(&forward), "0");
        let mut sysctls = Sysctls::new("/proc/sys".into(), folder.path().join("state"));
        let outcome = sysctls.apply(&wanted);
        assert!(outcome.is_clean(), "{outcome:?}");
        for (name, value) in &wanted {
            let (Wanted::Exactly(value) | Wanted::ForGood(value)) = value else {
                panic!("{name}")
            };
            assert_eq!(read(name), *value, "{name}");
        }
        assert!(sysctls.restore_all().is_clean());
        assert_eq!(read(&forward), "1", "pods rely on it");
        for (name, found) in wanted.keys().zip(&found).filter(|(name, _)| **name != forward) {
            assert_eq!(read(name), *found, "{name}");
        }
    });
}

#[test]
fn without_conntrack_nothing_is_masqueraded() {
    let rule = |family, to: SocketAddr| {
        let word = if family == Family::V4 { "ip" } else { "ip6" };
        let addresses = format!("ct original {word} daddr {}", to.ip());
        format!(
            "table {word} t {{ chain c {{ type nat hook postrouting priority 100; {addresses} masquerade; }}\n}}\n"
        )
    };
    with_and_without("net.ipv4.vs.conntrack", "-s rr", |network, family, to, has| {
        network.node.program(&["nft", "-f", "-"], &rule(family, to));
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let answer = ask(&network.client, protocol, to).unwrap();
            assert_eq!(answer.saw != client(family), has, "{protocol:?} {to}: {answer:?}");
        }
    });
}

#[test]
fn a_port_that_is_used_again_is_balanced_anew() {
    with_and_without(
        "net.ipv4.vs.conn_reuse_mode",
        "-s rr",
        |network, family, to, has| {
            let from = SocketAddr::new(client(family), 5000);
            let mut seen: Vec<IpAddr> = (0..4).map(|_| ask_and_reset(&network.client, from, to)).collect();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), if has { 2 } else { 1 }, "{to}: {seen:?}");
        },
    );
}

/// Asks once from this port, and ends the connection so that the port is free at once.
fn ask_and_reset(namespace: &Namespace, from: SocketAddr, to: SocketAddr) -> IpAddr {
    namespace.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        socket.bind(&from.into()).unwrap();
        socket.connect(&to.into()).unwrap();
        Connection::of(socket.into()).ask().unwrap().who
    })
}

#[test]
fn a_udp_flow_to_a_removed_endpoint_goes_to_another() {
    with_and_without(
        "net.ipv4.vs.expire_nodest_conn",
        "-s rr",
        |network, family, to, has| {
            let any = SocketAddr::new(client(family), 0);
            let flow = network.client.run(|| UdpSocket::bind(any)).unwrap();
            flow.connect(to).unwrap();
            let ask_again = || {
                let mut buffer = [0; 128];
                flow.send(b"?").unwrap();
                let length = receive(&flow, &mut buffer).ok()?;
                Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
            };
            flow.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            let first = ask_again().expect("an answer");
            let is_at = |end: &SocketAddr| first.starts_with(&format!("{} ", end.ip()));
            let end = ends(family).into_iter().find(is_at).expect("one of them");
            network.ipvsadm(&format!("-d -u {to} -r {end}"));
            if has {
                // The first packet may meet the old flow's tracking entry, and is dropped then.
                let second = ask_again().or_else(ask_again).expect("an answer");
                assert_ne!(second, first);
            } else {
                flow.send(b"?").unwrap();
                // Who asks anew is answered, after that.
                ask(&network.client, Protocol::Udp, to).unwrap();
                flow.set_nonblocking(true).unwrap();
                let answer = receive(&flow, &mut [0; 128]);
                assert_eq!(answer.unwrap_err().kind(), ErrorKind::WouldBlock);
            }
        },
    );
}

#[test]
fn a_tcp_client_of_a_removed_endpoint_is_reset() {
    for family in Family::ALL {
        let network = Network::new();
        parameters_but(&network.node, false, "");
        let to = network.balance(family, "-s rr");
        let mut connection = Connection::open(&network.client, to).unwrap();
        let answer = connection.ask().unwrap();
        let end = SocketAddr::new(answer.who, answer.port);
        network.ipvsadm(&format!("-d -t {to} -r {end}"));
        let error = connection.ask().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
}

#[test]
fn a_client_that_affinity_holds_leaves_an_endpoint_of_weight_0() {
    let parameter = "net.ipv4.vs.expire_quiescent_template";
    with_and_without(parameter, "-s rr -p 600", |network, _, to, has| {
        for (option, protocol) in [("-t", Protocol::Tcp), ("-u", Protocol::Udp)] {
            let who = || ask(&network.client, protocol, to).unwrap();
            let first = who();
            assert_eq!(who(), first);
            let end = SocketAddr::new(first.who, first.port);
            network.ipvsadm(&format!("-e {option} {to} -r {end} -m -w 0"));
            assert_eq!(who() != first, has, "{protocol:?} {to}");
        }
    });
}

#[test]
fn strict_arp_does_not_answer_for_services() {
    for strict in [false, true] {
        let network = Network::new();
        parameters_but(&network.node, strict, "");
        let to = network.balance(Family::V4, "-s rr");
        let vip = to.ip();
        network.client.sysctl("ipv4/neigh/eth0/retrans_time_ms", "50");
        // The client takes the Service's address for one of its own network, and asks who has it.
        network.client.ip(&format!("route add {vip}/32 dev eth0"));
        let answered = Connection::open(&network.client, to).map(|_| ());
        if strict {
            let error = answered.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::EHOSTUNREACH as i32), "{error}");
        } else {
            answered.unwrap();
        }
    }
}

//! A network for IPVS without an agent: a client and two servers, each a namespace, with a node between them.

use std::net::{IpAddr, SocketAddr};

use pointsman_dataplane::model::Family;

use super::namespace::Namespace;
use super::talk::serve;

pub struct Network {
    pub node: Namespace,
    pub client: Namespace,
    pub servers: [Namespace; 2],
}

/// Who is where, each in a network of its own.
const CLIENT: &str = "10.1.0.2";
const SERVERS: [&str; 2] = ["10.1.1.2", "10.1.2.2"];

impl Network {
    pub fn new() -> Self {
        let [node, client, first, second] = [(); 4].map(|()| Namespace::new());
        node.become_router();
        let servers = [first, second];
        let places = [
            (&client, CLIENT),
            (&servers[0], SERVERS[0]),
            (&servers[1], SERVERS[1]),
        ];
        for (number, (namespace, address)) in places.into_iter().enumerate() {
            let interface = format!("to{number}");
            node.join(&interface, namespace, "eth0");
            let (gateway, gateway6) = (format!("10.1.{number}.1"), format!("fd00:1:{number}::1"));
            node.ip(&format!(
                "addr add {gateway}/24 dev {interface}\naddr add {gateway6}/64 nodad dev {interface}"
            ));
            namespace.ip(&format!(
                "addr add {address}/24 dev eth0\naddr add {}/64 nodad dev eth0\n\
                 route add default via {gateway}\nroute add default via {gateway6}",
                v6(address)
            ));
        }
        Self {
            node,
            client,
            servers,
        }
    }

    /// Makes a virtual service's address the node's, serves it by TCP and UDP with both servers and these options, and gives
    /// where it is.
    pub fn balance(&self, family: Family, options: &str) -> SocketAddr {
        let (vip, nodad) = match family {
            Family::V4 => ("10.96.0.1", ""),
            Family::V6 => ("fd00:10:96::1", " nodad"),
        };
        let vip: IpAddr = vip.parse().unwrap();
        let vips = format!("vips{}", if family == Family::V4 { 4 } else { 6 });
        self.node.ip(&format!(
            "link add {vips} type dummy\nlink set {vips} up\naddr add {}{nodad} dev {vips}",
            ipnet::IpNet::from(vip)
        ));
        let to = SocketAddr::new(vip, 80);
        let services = ["-t", "-u"].map(|protocol| {
            let end = |end| format!("-a {protocol} {to} -r {end} -m\n");
            format!("-A {protocol} {to} {options}\n") + &ends(family).map(end).concat()
        });
        self.node.program(&["ipvsadm", "-R"], &services.concat());
        for (end, namespace) in ends(family).into_iter().zip(&self.servers) {
            serve(namespace, end);
        }
        to
    }

    pub fn ipvsadm(&self, words: &str) -> String {
        let words: Vec<&str> = ["ipvsadm"].into_iter().chain(words.split_whitespace()).collect();
        self.node.program(&words, "")
    }
}

fn v6(address: &str) -> String {
    let number = address.split('.').nth(2).unwrap();
    format!("fd00:1:{number}::2")
}

/// The client's address.
pub fn client(family: Family) -> IpAddr {
    of_family(family, CLIENT)
}

/// Where the servers are to listen.
pub fn ends(family: Family) -> [SocketAddr; 2] {
    SERVERS.map(|address| SocketAddr::new(of_family(family, address), 8080))
}

fn of_family(family: Family, address: &str) -> IpAddr {
    match family {
        Family::V4 => address.parse().unwrap(),
        Family::V6 => v6(address).parse().unwrap(),
    }
}

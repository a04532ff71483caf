//! Many clients and many servers around a [`Node`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use pointsman_dataplane::model::{Family, Protocol};

use super::node::{Node, TARGET};
use super::talk::{Ending, knock, serve};

const PATIENCE: Duration = Duration::from_secs(3);

/// Who got how many connections.
pub type Shares = BTreeMap<IpAddr, usize>;

/// Makes so many more addresses answer, and gives them.
pub fn more_servers(node: &Node, count: u8) -> Vec<IpAddr> {
    let addresses = (100..100 + count).map(|last| -> IpAddr {
        match node.family {
            Family::V4 => Ipv4Addr::new(10, 244, 2, last).into(),
            Family::V6 => Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 1, last.into()).into(),
        }
    });
    let addresses: Vec<IpAddr> = addresses.collect();
    let lines = addresses.iter().map(|address| match node.family {
        Family::V4 => format!("addr add {address}/24 dev eth0\n"),
        Family::V6 => format!("addr add {address}/64 nodad dev eth0\n"),
    });
    node.servers.ip(&lines.collect::<String>());
    for address in &addresses {
        serve(&node.servers, SocketAddr::new(*address, TARGET));
    }
    addresses
}

/// Clients, each with an address of its own, all in the client's namespace.
pub struct Crowd {
    clients: Vec<IpAddr>,
    /// Each asks from the next port each time.
    port: u16,
}

impl Crowd {
    pub fn new(node: &Node, count: u16) -> Self {
        let range = match node.family {
            Family::V4 => "198.18.0.0/16",
            Family::V6 => "2001:db8:18::/64",
        };
        node.client.sysctl("ipv6/ip_nonlocal_bind", "1");
        node.client.ip(&format!("route add local {range} dev lo\n"));
        node.host
            .ip(&format!("route add {range} via {}\n", node.at.client));
        let address = |number: u16| -> IpAddr {
            let [high, low] = number.to_be_bytes();
            match node.family {
                Family::V4 => Ipv4Addr::new(198, 18, high, low).into(),
                Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, number).into(),
            }
        };
        Self {
            clients: (1..=count).map(address).collect(),
            port: 20_000,
        }
    }

    /// Every client asks once. Who answered each; all have to be answered.
    pub fn ask(&mut self, node: &Node, protocol: Protocol, to: SocketAddr) -> BTreeMap<IpAddr, IpAddr> {
        self.port += 1;
        let (clients, port) = (&self.clients, self.port);
        node.client.run(|| {
            let asked = clients.iter().map(|client| {
                let from = SocketAddr::new(*client, port);
                match knock(protocol, from, to, PATIENCE) {
                    Ending::Answered(answer) => (*client, answer.who),
                    other => panic!("{client} asked {to} by {protocol}: {other:?}"),
                }
            });
            asked.collect()
        })
    }
}

/// How many got each.
pub fn shares<'a>(answers: impl IntoIterator<Item = &'a IpAddr>) -> Shares {
    let mut shares = Shares::new();
    for who in answers {
        *shares.entry(*who).or_default() += 1;
    }
    shares
}

//! Reading `/proc/net/ip_vs`: all virtual services with all destinations at once, where netlink tells the destinations of
//! one service at a time and takes more than ten times as long.
//!
//! What it does not tell: flags, thresholds, and of persistence anything but that it is there (the timeout is in ticks of
//! the kernel's clock).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::model::Protocol;
use crate::netlink::ipvs::{Name, ServiceKey};
use crate::nftables::family_of_mark;

/// The file, for the network namespace of the calling thread.
pub(super) const PATH: &str = "/proc/thread-self/net/ip_vs";

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A virtual service. One of a mark that is none of ours has no key: the file does not tell its family.
    Service {
        /// What it is known by.
        key: Option<ServiceKey>,
        /// How it picks.
        scheduler: Name,
        /// Whether clients keep their destination.
        is_persistent: bool,
    },
    /// A destination of the service before.
    Destination(Listed),
}

/// A destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Where packets go.
    pub address: SocketAddr,
    /// Whether packets get there by translation.
    pub is_translated: bool,
    /// Its weight.
    pub weight: u32,
    /// Connections that it has, established or not.
    pub connections: u64,
}

/// Reads a line (`ip_vs_info_seq_show`); none for a heading, a service of another protocol, and what cannot be read.
#[must_use]
pub fn line(line: &str) -> Option<Line> {
    let mut words = line.split_ascii_whitespace();
    let protocol = match words.next()? {
        "->" => return destination(words).map(Line::Destination),
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        "FWM" => None,
        _ => return None,
    };
    let known_by = words.next()?;
    let key = match protocol {
        Some(protocol) => Some(ServiceKey::Address(protocol, socket(known_by)?)),
        None => {
            let mark = u32::from_str_radix(known_by, 16).ok()?;
            family_of_mark(mark).map(|family| ServiceKey::Mark(family, mark))
        }
    };
    let scheduler = Name::new(words.next()?)?;
    let is_persistent = words.any(|word| word == "persistent");
    Some(Line::Service {
        key,
        scheduler,
        is_persistent,
    })
}

fn destination<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<Listed> {
    let address = socket(words.next()?)?;
    let is_translated = words.next()? == "Masq";
    let weight = words.next()?.parse().ok()?;
    let mut connections = || words.next()?.parse::<u64>().ok();
    let connections = connections()?.checked_add(connections()?)?;
    Some(Listed {
        address,
        is_translated,
        weight,
        connections,
    })
}

/// `0A600001:0050`, or `[fd00:0000:...:0001]:0050`.
fn socket(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.rsplit_once(':')?;
    let address: IpAddr = match address.strip_prefix('[') {
        Some(v6) => IpAddr::V6(v6.strip_suffix(']')?.parse().ok()?),
        None => Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?).into(),
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Family;
    use crate::nftables::mark_of;

    fn service(key: ServiceKey, scheduler: &str, is_persistent: bool) -> Line {
        Line::Service {
            key: Some(key),
            scheduler: Name::new(scheduler).unwrap(),
            is_persistent,
        }
    }

    #[test]
    fn the_kernels_lines_are_read() {
        let tcp = |text: &str| ServiceKey::Address(Protocol::Tcp, text.parse().unwrap());
        assert_eq!(
            line("TCP  0A600001:0050 rr  \n"),
            Some(service(tcp("10.96.0.1:80"), "rr", false))
        );
        assert_eq!(
            line("TCP  [fd00:0010:0096:0000:0000:0000:0000:0001]:01BB wlc "),
            Some(service(tcp("[fd00:10:96::1]:443"), "wlc", false))
        );
        let udp = ServiceKey::Address(Protocol::Udp, "10.96.0.10:53".parse().unwrap());
        assert_eq!(
            line("UDP  0A60000A:0035 sh ops persistent 1080000 FFFFFFFF"),
            Some(service(udp, "sh", true))
        );
        for family in Family::ALL {
            let mark = mark_of(family, 300);
            assert_eq!(
                line(&format!("FWM  {mark:08X} mh persistent 6000 FFFFFFFF")),
                Some(service(ServiceKey::Mark(family, mark), "mh", true))
            );
        }
        assert_eq!(
            line("FWM  00000007 rr "),
            Some(Line::Service {
                key: None,
                scheduler: Name::new("rr").unwrap(),
                is_persistent: false
            })
        );
        let listed = Listed {
            address: "10.244.1.2:8080".parse().unwrap(),
            is_translated: true,
            weight: 3,
            connections: 12,
        };
        assert_eq!(
            line("  -> 0AF40102:1F90      Masq    3      10         2         "),
            Some(Line::Destination(listed))
        );
        assert_eq!(
            line("  -> [fd00:0000:0000:0000:0000:0000:0000:0002]:1F90      Route   0      0          0"),
            Some(Line::Destination(Listed {
                address: "[fd00::2]:8080".parse().unwrap(),
                is_translated: false,
                weight: 0,
                connections: 0,
            }))
        );
    }

    #[test]
    fn headings_and_other_protocols_are_passed_over() {
        for text in [
            "IP Virtual Server version 1.2.1 (size=4096)",
            "Prot LocalAddress:Port Scheduler Flags",
            "  -> RemoteAddress:Port Forward Weight ActiveConn InActConn",
            "",
            "AH  0A600001:0000 rr",
        ] {
            assert_eq!(line(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_in_the_file_is_read_or_passed_over(text in "(TCP|UDP|FWM|  ->)? {0,2}[0-9A-Fa-f:\\[\\]]{0,40} ?.{0,40}") {
            let _ = line(&text);
        }
    }
}

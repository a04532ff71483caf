//! The parts of rules: addresses, shares, comments, each as iptables-save prints it.

use std::{
    fmt::{self, Write as _},
    net::IpAddr,
};

use ipnet::IpNet;

use crate::model::{Destination, Family, Frontend, FrontendKey, IpPort};

/// The match of a frontend's key.
pub(super) struct Addressed<'a>(pub(super) &'a FrontendKey);

/// The same, of what comes in through an interface: its name, or what it begins with and a `+`.
pub(super) struct AddressedFrom<'a>(
    pub(super) &'a FrontendKey,
    pub(super) &'a str,
    pub(super) &'static str,
);

impl fmt::Display for AddressedFrom<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(key, name, more) = self;
        address(f, key)?;
        write!(f, "-i {name}{more} ")?;
        port(f, key)
    }
}

impl fmt::Display for Addressed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        address(f, self.0)?;
        port(f, self.0)
    }
}

fn address(f: &mut fmt::Formatter<'_>, key: &FrontendKey) -> fmt::Result {
    match key.destination {
        Destination::Address(address) => write!(f, "-d {} ", Host(address)),
        Destination::NodePort => Ok(()),
    }
}

fn port(f: &mut fmt::Formatter<'_>, FrontendKey { protocol, port, .. }: &FrontendKey) -> fmt::Result {
    write!(f, "-p {protocol} -m {protocol} --dport {port}")
}

/// A match of a range by this option, with a space behind; nothing for a range that has every address.
pub(super) struct Range(pub(super) &'static str, pub(super) IpNet);

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(option, range) = self;
        match range.prefix_len() {
            0 => Ok(()),
            length => write!(f, "{option} {}/{length} ", Address(range.network())),
        }
    }
}

/// The mask that leaves an address whole.
pub(super) struct Mask(pub(super) Family);

impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Family::V4 => "255.255.255.255",
            Family::V6 => "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        })
    }
}

/// `namespace/name:port kind`. Names come from outside: what is not plain becomes `_`, so that no name can end the
/// quotes or the line. At most 200 bytes: `xt_comment` has room for 255.
pub(super) struct Comment<'a>(pub(super) &'a Frontend);

impl fmt::Display for Comment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{} {}", self.0.owner, self.0.kind);
        for letter in text.chars().take(200) {
            let plain = letter.is_ascii_alphanumeric() || "-._/: ".contains(letter);
            f.write_char(if plain { letter } else { '_' })?;
        }
        Ok(())
    }
}

/// So many connections of so many. `xt_statistic` keeps a probability as 31 bits and iptables prints it with 11 digits:
/// what is written here is what comes back.
pub(super) struct Share(pub(super) u32, pub(super) u32);

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(part, all) = *self;
        if part >= all {
            return Ok(());
        }
        let whole = f64::from(1_u32 << 31);
        let fixed = (whole * f64::from(part) / f64::from(all)).round();
        write!(
            f,
            " -m statistic --mode random --probability {:.11}",
            fixed / whole
        )
    }
}

/// An address of which only some of the last eight bits count.
pub(super) struct LastBits(pub(super) Family, pub(super) u8, pub(super) u8);

impl fmt::Display for LastBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(family, bits, mask) = self;
        match family {
            Family::V4 => write!(f, "0.0.0.{bits}/0.0.0.{mask}"),
            Family::V6 if *bits == 0 => write!(f, "::/::{mask:x}"),
            Family::V6 => write!(f, "::{bits:x}/::{mask:x}"),
        }
    }
}

/// An address as a range of one.
pub(super) struct Host(pub(super) IpAddr);

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}",
            Address(self.0),
            if self.0.is_ipv4() { 32 } else { 128 }
        )
    }
}

pub(super) struct Socket(pub(super) IpPort);

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, port) = (Address(self.0.ip()), self.0.port());
        match self.0.ip() {
            IpAddr::V4(_) => write!(f, "{address}:{port}"),
            IpAddr::V6(_) => write!(f, "[{address}]:{port}"),
        }
    }
}

/// An address as glibc's `inet_ntop` prints it, and so iptables: unlike Rust it has the IPv4 form for all of ::/96.
pub(super) struct Address(pub(super) IpAddr);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let IpAddr::V6(v6) = self.0
            && let [0, 0, 0, 0, 0, 0, high, low] = v6.segments()
            && high != 0
        {
            let [a, b] = high.to_be_bytes();
            let [c, d] = low.to_be_bytes();
            return write!(f, "::{a}.{b}.{c}.{d}");
        }
        write!(f, "{}", self.0)
    }
}

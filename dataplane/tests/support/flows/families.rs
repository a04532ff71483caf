//! A file is written in one family and also runs in the other: each address has a counterpart.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use pointsman_dataplane::model::Family;

/// The last four groups of `fd00::10:96:0:1` are the digits of `10.96.0.1`, and the other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// As the files have it.
    Written,
    /// IPv4 and IPv6 swapped.
    Swapped,
}

impl Families {
    pub fn family(self, written: Family) -> Family {
        match (self, written) {
            (Self::Written, family) => family,
            (Self::Swapped, Family::V4) => Family::V6,
            (Self::Swapped, Family::V6) => Family::V4,
        }
    }

    pub fn ip(self, written: IpAddr) -> Result<IpAddr, String> {
        match self {
            Self::Written => Ok(written),
            Self::Swapped => counterpart(written),
        }
    }

    pub fn socket(self, written: SocketAddr) -> Result<SocketAddr, String> {
        Ok(SocketAddr::new(self.ip(written.ip())?, written.port()))
    }

    pub fn net(self, written: IpNet) -> Result<IpNet, String> {
        match self {
            Self::Written => Ok(written),
            Self::Swapped => counterpart_net(written),
        }
    }
}

impl fmt::Display for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Written => "as written",
            Self::Swapped => "families swapped",
        })
    }
}

/// The address of the other family.
pub fn counterpart(address: IpAddr) -> Result<IpAddr, String> {
    let digits = |text: String, radix| {
        u16::from_str_radix(&text, radix).map_err(|_| format!("{address} has no counterpart in IPv4"))
    };
    if address.is_unspecified() {
        return Ok(match address {
            IpAddr::V4(_) => Ipv6Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED.into(),
        });
    }
    match address {
        IpAddr::V4(Ipv4Addr::LOCALHOST) => Ok(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::LOCALHOST) => Ok(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V4(v4) => {
            let mut groups = [0xfd00, 0, 0, 0, 0, 0, 0, 0];
            for (group, octet) in groups[4..].iter_mut().zip(v4.octets()) {
                *group = digits(octet.to_string(), 16)?;
            }
            Ok(Ipv6Addr::from(groups).into())
        }
        IpAddr::V6(v6) => {
            let groups = v6.segments();
            let mut octets = [0; 4];
            for (octet, group) in octets.iter_mut().zip(&groups[4..]) {
                *octet = u8::try_from(digits(format!("{group:x}"), 10)?)
                    .map_err(|_| format!("{address} has no counterpart in IPv4"))?;
            }
            if groups[..4] != [0xfd00, 0, 0, 0] {
                return Err(format!(
                    "{address} has no counterpart in IPv4: write fd00::10:96:0:1"
                ));
            }
            Ok(Ipv4Addr::from(octets).into())
        }
    }
}

fn counterpart_net(range: IpNet) -> Result<IpNet, String> {
    let length = range.prefix_len();
    let other = match range {
        _ if length == 0 => Some(0),
        IpNet::V4(_) if length.is_multiple_of(8) => Some(64 + 2 * length),
        IpNet::V6(_) if length >= 64 && length.is_multiple_of(16) => Some((length - 64) / 2),
        _ => None,
    };
    let other = other.ok_or(format!(
        "{range} has no counterpart: a range of a flow file ends between two digit groups"
    ))?;
    IpNet::new(counterpart(range.network())?, other).map_err(|error| format!("{range}: {error}"))
}

//! The short forms of the files: endpoints, sources, outcomes.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::Deserialize;

use super::world::{self, Place};

/// `10.244.2.11`, or with conditions behind it: `10.244.2.11 terminating zones=zone-a,zone-b`.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct EndpointWords {
    pub address: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub unplaced: bool,
    pub nodes: Option<Vec<String>>,
    pub zones: Option<Vec<String>>,
    pub workload: Option<String>,
}

impl TryFrom<String> for EndpointWords {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let address = words.next().unwrap_or_default();
        let mut found = Self {
            address: address
                .parse()
                .map_err(|_| format!("endpoint {text:?} does not begin with an address"))?,
            ready: true,
            serving: true,
            terminating: false,
            unplaced: false,
            nodes: None,
            zones: None,
            workload: None,
        };
        for word in words {
            let names = |list: &str| Some(list.split(',').map(str::to_owned).collect());
            match word.split_once('=') {
                Some(("nodes", list)) => found.nodes = names(list),
                Some(("zones", list)) => found.zones = names(list),
                Some(("workload", name)) => found.workload = Some(name.to_owned()),
                None if word == "unready" => (found.ready, found.serving) = (false, false),
                None if word == "terminating" => (found.ready, found.terminating) = (false, true),
                None if word == "stopped" => {
                    (found.ready, found.serving, found.terminating) = (false, false, true);
                }
                None if word == "unplaced" => found.unplaced = true,
                _ => {
                    return Err(format!(
                        "endpoint {text:?}: {word:?} is none of unready, terminating, stopped, unplaced, nodes=, zones=, workload="
                    ));
                }
            }
        }
        Ok(found)
    }
}

/// Where a packet comes from.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    pub place: Place,
    pub from: From,
}

/// Its source address: one, or for each try another one of a range.
#[derive(Clone, Copy, Debug)]
pub enum From {
    One(IpAddr),
    Crowd(IpNet),
}

/// `pod node outside`, or addresses, or `node@203.0.113.9`.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Sources(pub Vec<Source>);

impl TryFrom<String> for Sources {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let source = |word: &str| {
            let (place, from) = match word.split_once('@') {
                Some(("node", address)) => (Some(Place::Node), address),
                Some((place, _)) => return Err(format!("from {text:?}: {place}@ is not known, only node@")),
                None => (None, world::address_of(word).unwrap_or(word)),
            };
            let unknown =
                || format!("from {text:?}: {word:?} is no place and no address of the test's network");
            let from = match from.parse() {
                Ok(address) => From::One(address),
                Err(_) => From::Crowd(from.parse().map_err(|_| unknown())?),
            };
            let address = match from {
                From::One(address) => address,
                From::Crowd(range) => range.addr(),
            };
            let place = place.or_else(|| world::place_of(address)).ok_or_else(unknown)?;
            Ok(Source { place, from })
        };
        let found: Vec<Source> = text.split_whitespace().map(source).collect::<Result<_, _>>()?;
        if found.is_empty() {
            return Err("from is empty".to_owned());
        }
        Ok(Self(found))
    }
}

/// `10.96.0.10:80`, or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Sockets(pub Vec<SocketAddr>);

impl TryFrom<String> for Sockets {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let found: Vec<SocketAddr> = text
            .split_whitespace()
            .map(|word| {
                word.parse()
                    .map_err(|_| format!("{word:?} in {text:?} is no address:port"))
            })
            .collect::<Result<_, _>>()?;
        if found.is_empty() {
            return Err("an address:port is missing".to_owned());
        }
        Ok(Self(found))
    }
}

/// `REJECT`, `DROP`, `PASS`, or the endpoints that may get it.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub enum Expect {
    /// Each with its share of the packets.
    Targets(Vec<(SocketAddr, u8)>),
    Reject,
    Drop,
    Pass,
}

impl TryFrom<String> for Expect {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Ok(match text.as_str() {
            "REJECT" => Self::Reject,
            "DROP" => Self::Drop,
            "PASS" => Self::Pass,
            _ => {
                let wrong = |error| format!("expect is none of REJECT, DROP, PASS, and {error}");
                let target = |word: &str| {
                    let (address, share) = word.split_once('*').unwrap_or((word, "1"));
                    let share = share
                        .parse()
                        .map_err(|_| wrong(format!("{word:?} has no share from 1 to 100")))?;
                    let address = Sockets::try_from(address.to_owned()).map_err(wrong)?.0;
                    Ok::<_, String>(address.into_iter().map(move |address| (address, share)))
                };
                let targets: Vec<_> = text.split_whitespace().map(target).collect::<Result<_, _>>()?;
                if targets.is_empty() {
                    return Err(wrong("an address:port is missing".to_owned()));
                }
                Self::Targets(targets.into_iter().flatten().collect())
            }
        })
    }
}

/// Which of the endpoints see the node's address: `none`, `all`, or these.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(try_from = "String")]
pub enum Masqueraded {
    #[default]
    None,
    All,
    These(Vec<SocketAddr>),
}

impl TryFrom<String> for Masqueraded {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Ok(match text.as_str() {
            "none" => Self::None,
            "all" => Self::All,
            _ => Self::These(
                Sockets::try_from(text)
                    .map_err(|error| format!("masqueraded is neither none nor all, and {error}"))?
                    .0,
            ),
        })
    }
}

//! Tables and chains: what they are called.

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::model::{Destination, FrontendKey, IpPort, PoolKey, Protocol, TrafficPolicy};

/// What the names of all our chains begin with. A chain of this name is ours, whoever made it.
pub(super) const PREFIX: &str = "PM-";

/// What the comments of our rules in built-in chains begin with.
pub(super) const COMMENT: &str = "pointsman: ";

/// A table that we have chains in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Table {
    /// Translates the addresses of first packets.
    Nat,
    /// Refuses and accepts.
    Filter,
}

impl Table {
    pub(super) const ALL: [Self; 2] = [Self::Nat, Self::Filter];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }
}

/// One of our chains. Small, because a node has tens of thousands: the name is made when it is written.
///
/// `Services`, `Nibble`, `Addresses`, `NodeAddresses`, `NodePorts` and `Ports` find the frontend of a packet; they
/// are in both tables, in nat with the frontends that balance and in filter with what is refused and dropped. The
/// others are in one table each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Chain {
    /// The root: by the last four bits of the address, then node ports.
    Services,
    /// Addresses whose last four bits are this: by the four bits before those.
    Nibble(u8),
    /// Addresses whose last eight bits are this: a bucket of frontends.
    Addresses(u8),
    /// The node's own addresses that NodePorts answer on.
    NodeAddresses,
    /// By blocks of node ports.
    NodePorts,
    /// A block of [`PORTS_IN_BLOCK`] node ports of one protocol, named by its first: a bucket of frontends.
    Ports(Protocol, u16),
    /// Marks for masquerade what is not traffic of the node's own pods (nat).
    NonLocal,
    /// Masquerades what is marked (nat).
    Postrouting,
    /// Keeps a FORWARD policy of DROP from breaking Services (filter).
    Forward,
    /// Refuses: TCP with a reset, everything else with "port unreachable" (filter).
    Refuse,
    /// Drops what is addressed to a ClusterIP that no Service has (filter).
    Unallocated,
    /// Lets only a frontend's source ranges pass (nat).
    Sources(Tag),
    /// Chooses an endpoint of a pool (nat).
    Pool(Tag),
    /// An endpoint of a pool: a local one, for hairpin, or any of a pool with affinity, which it remembers (nat).
    Endpoint(Tag),
}

/// How many node ports share a chain: with the default range, 30000-32767, at most 22 blocks a protocol.
pub(super) const PORTS_IN_BLOCK: u16 = 128;

/// 80 bits of a SHA-256: 16 characters of base32, as kube-proxy's chain names have. With them the longest name is
/// well below the limit of 28 characters (`XT_EXTENSION_MAXNAMELEN`).
pub(super) type Tag = [u8; 10];

impl Chain {
    /// The chain that chooses an endpoint of a pool. A backend has one family, so that the family need not go in.
    pub(super) fn pool(pool: &PoolKey) -> Self {
        Self::Pool(tag(pool, policy(pool)))
    }

    /// The chain of an endpoint. Of the pool, too: both pools of a Service port may have it.
    pub(super) fn endpoint(pool: &PoolKey, endpoint: IpPort) -> Self {
        Self::Endpoint(tag(pool, format_args!("{}{endpoint}", policy(pool))))
    }

    /// The chain with a frontend's source ranges.
    pub(super) fn sources(of: &FrontendKey) -> Self {
        let mut hash = Sha256::new();
        match of.destination {
            Destination::Address(address) => hash.update(address.to_string()),
            Destination::NodePort => (),
        }
        hash.update([0]);
        hash.update(of.protocol.as_str());
        hash.update(of.port.to_be_bytes());
        Self::Sources(cut(hash))
    }
}

/// What a pool's name has beside the Service port's.
fn policy(pool: &PoolKey) -> &'static str {
    match pool.policy {
        TrafficPolicy::Cluster => "",
        TrafficPolicy::Local => "local ",
    }
}

/// The list in which `xt_recent` keeps the clients of an endpoint. The pools of a Service port share it, so that a
/// client keeps its endpoint whichever way it comes.
pub(super) struct Recent<'a>(pub(super) &'a PoolKey, pub(super) IpPort);

impl fmt::Display for Recent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", Base32(&tag(self.0, self.1)))
    }
}

fn tag(pool: &PoolKey, part: impl fmt::Display) -> Tag {
    let owner = &pool.owner;
    let mut hash = Sha256::new();
    for text in [&owner.service.namespace, &owner.service.name, &owner.port] {
        hash.update(text.as_bytes());
        hash.update([0]);
    }
    hash.update(owner.protocol.as_str());
    hash.update([0]);
    hash.update(part.to_string());
    cut(hash)
}

fn cut(hash: Sha256) -> Tag {
    let mut tag = Tag::default();
    tag.iter_mut()
        .zip(hash.finalize())
        .for_each(|(to, from)| *to = from);
    tag
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        match self {
            Self::Services => f.write_str("SERVICES"),
            Self::Nibble(low) => write!(f, "VIP-{low:X}"),
            Self::Addresses(low) => write!(f, "VIP-{low:02X}"),
            Self::NodeAddresses => f.write_str("NODE-ADDRESSES"),
            Self::NodePorts => f.write_str("NODE-PORTS"),
            Self::Ports(Protocol::Tcp, first) => write!(f, "TCP-{first}"),
            Self::Ports(Protocol::Udp, first) => write!(f, "UDP-{first}"),
            Self::Ports(Protocol::Sctp, first) => write!(f, "SCTP-{first}"),
            Self::NonLocal => f.write_str("NON-LOCAL"),
            Self::Postrouting => f.write_str("POSTROUTING"),
            Self::Forward => f.write_str("FORWARD"),
            Self::Refuse => f.write_str("REFUSE"),
            Self::Unallocated => f.write_str("UNALLOCATED"),
            Self::Sources(tag) => write!(f, "SRC-{}", Base32(tag)),
            Self::Pool(tag) => write!(f, "SVC-{}", Base32(tag)),
            Self::Endpoint(tag) => write!(f, "SEP-{}", Base32(tag)),
        }
    }
}

/// RFC 4648 base32: ten bytes are sixteen characters, without padding.
struct Base32<'a>(&'a Tag);

impl fmt::Display for Base32<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for five in self.0.as_chunks::<5>().0 {
            let bits = five
                .iter()
                .fold(0_u64, |bits, byte| (bits << 8) | u64::from(*byte));
            for at in (0..8).rev() {
                let digit = ((bits >> (at * 5)) & 31) as u8;
                let letter = if digit < 26 {
                    b'A' + digit
                } else {
                    b'2' + digit - 26
                };
                fmt::Write::write_char(f, char::from(letter))?;
            }
        }
        Ok(())
    }
}

/// A jump from a built-in chain to one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Jump {
    pub(super) table: Table,
    /// The built-in chain.
    pub(super) from: &'static str,
    /// The rule, as iptables-save prints it.
    pub(super) rule: &'static str,
}

/// All jumps from built-in chains. Each is inserted first, in the order in which they are here, so that the last
/// of a chain ends up in front.
pub(super) const JUMPS: [Jump; 7] = [
    Jump {
        table: Table::Nat,
        from: "PREROUTING",
        rule: r#"-m comment --comment "pointsman: Service addresses" -j PM-SERVICES"#,
    },
    Jump {
        table: Table::Nat,
        from: "OUTPUT",
        rule: r#"-m comment --comment "pointsman: Service addresses" -j PM-SERVICES"#,
    },
    Jump {
        table: Table::Nat,
        from: "POSTROUTING",
        rule: r#"-m comment --comment "pointsman: masquerade" -j PM-POSTROUTING"#,
    },
    Jump {
        table: Table::Filter,
        from: "INPUT",
        rule: r#"-m conntrack --ctstate NEW -m comment --comment "pointsman: what is not forwarded" -j PM-SERVICES"#,
    },
    Jump {
        table: Table::Filter,
        from: "OUTPUT",
        rule: r#"-m conntrack --ctstate NEW -m comment --comment "pointsman: what is not forwarded" -j PM-SERVICES"#,
    },
    Jump {
        table: Table::Filter,
        from: "FORWARD",
        rule: r#"-m conntrack --ctstate NEW -m comment --comment "pointsman: what is not forwarded" -j PM-SERVICES"#,
    },
    // In front of the one above: packets of established connections are done after two rules.
    Jump {
        table: Table::Filter,
        from: "FORWARD",
        rule: r#"-m comment --comment "pointsman: forwarding" -j PM-FORWARD"#,
    },
];

/// What [`super::Iptables`]'s teardown leaves behind in FORWARD for connections that live on.
pub(super) const GRACE: &str = r#"-m conntrack --ctstate RELATED,ESTABLISHED -m conntrack --ctstate DNAT -m comment --comment "pointsman: connections from before the teardown" -j ACCEPT"#;

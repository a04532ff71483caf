//! Whether the kernel can do what the layout needs: it is shown all of it, and takes none.
//!
//! Versions tell little: distributions port features back and leave modules out. A transaction without an end is
//! checked to the last expression, modules are loaded for it, and then it is undone.

use nix::errno::Errno;

use super::entry::{Class, Entry, Map};
use super::layout::{Layout, Purpose, chains};
use super::picks::class_chains;
use super::sets::{affinity_set, set};
use super::words::{Header, R0, Rule, dnat, look_up};
use super::write::{put_chain, put_elements, put_layout};
use crate::model::{Context, DetectLocal, Family, NodePortAddresses, Settings};
use crate::netlink::expression::{Ct, DynamicOp, Expression as E, FibAddress, Meta, Refusal, Register};
use crate::netlink::nftables::{Batch, Hook, TableName};
use crate::netlink::socket::{NetlinkError, Socket};

/// Never in the kernel, so that it is in nobody's way.
const TABLE: &str = "pointsman-probe";
/// The longest that a Service may ask its clients to be remembered, in seconds.
const LONGEST: u32 = 86_400;

/// What a kernel can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capability {
    /// All that is needed.
    Full,
    /// Something is missing: what, and what to do about it.
    Lacking(String),
    /// The question failed for a reason that may pass, such as a lack of memory or of rights.
    Undecided(String),
}

/// Asks the kernel of the calling thread's network namespace. Takes about a millisecond, longer where modules have
/// to be loaded first; changes nothing.
#[must_use]
pub fn probe(family: Family) -> Capability {
    ask(family, put_all)
}

/// The same for what stands before IPVS.
pub(crate) fn probe_front(family: Family) -> Capability {
    ask(family, put_front)
}

fn ask(family: Family, put: fn(&mut Batch, Family)) -> Capability {
    match Socket::open() {
        Ok(mut socket) => match show(&mut socket, family, put) {
            Ok(()) => Capability::Full,
            Err(error) => verdict(&error, || missing_from(&mut socket, family)),
        },
        Err(error) => verdict(&error, Vec::new),
    }
}

/// The features that the kernel does not have, each asked for by itself.
///
/// # Errors
/// When it has no nf_tables.
pub fn missing(family: Family) -> Result<Vec<&'static str>, NetlinkError> {
    let missing = missing_from(&mut Socket::open()?, family);
    Ok(missing.into_iter().map(|feature| feature.what).collect())
}

fn missing_from(socket: &mut Socket, family: Family) -> Vec<&'static Feature> {
    let is_missing =
        |feature: &&Feature| show(socket, family, feature.put).is_err_and(|error| is_final(&error));
    FEATURES.iter().filter(is_missing).collect()
}

/// Has the kernel check what is put into a table that there is not.
fn show(socket: &mut Socket, family: Family, put: fn(&mut Batch, Family)) -> Result<(), NetlinkError> {
    let mut batch = socket.batch(TableName::new(family, TABLE));
    batch.add_table();
    put(&mut batch, family);
    socket.commit(&batch.finish_for_check())
}

/// What an error means; `missing` finds out which features are not there.
fn verdict(error: &NetlinkError, missing: impl FnOnce() -> Vec<&'static Feature>) -> Capability {
    if !is_final(error) {
        return Capability::Undecided(error.to_string());
    }
    let missing: Vec<String> = missing()
        .into_iter()
        .map(|feature| format!("{} ({})", feature.what, feature.from))
        .collect();
    Capability::Lacking(match missing.is_empty() {
        true => error.to_string(),
        false => format!("the kernel lacks {}", missing.join(", ")),
    })
}

/// Whether asking again would bring the same answer. What is not there by name, such as an expression or a type of
/// chain, is `ENOENT` (`nft_expr_type_get`); what an older kernel does not know of is mostly `EINVAL`.
fn is_final(error: &NetlinkError) -> bool {
    const FINAL: [Errno; 5] = [
        Errno::ENOENT,
        Errno::EOPNOTSUPP,
        Errno::EINVAL,
        Errno::EAFNOSUPPORT,
        Errno::EPROTONOSUPPORT,
    ];
    let errno = error.errno();
    matches!(error, NetlinkError::Absent) || FINAL.iter().any(|known| errno == Some(*known as i32))
}

/// Everything that any settings can bring into the table.
fn put_all(batch: &mut Batch, family: Family) {
    let mut anonymous = 0;
    put_constant(batch, Purpose::Translate, family, &mut anonymous);
    batch.add_set(&affinity_set(LONGEST, family));
    for (number, class) in [(101, Class::Pick(2)), (102, Class::Sticky(2, LONGEST))] {
        for chain in class_chains(class, family) {
            put_chain(batch, &chain, &mut anonymous);
        }
        put_elements(batch, &[Entry::Class(number, class)], true);
    }
}

/// The same for what stands before IPVS.
fn put_front(batch: &mut Batch, family: Family) {
    put_constant(batch, Purpose::Admit, family, &mut 0);
}

/// What a table has whatever Services there are.
fn put_constant(batch: &mut Batch, purpose: Purpose, family: Family, anonymous: &mut u32) {
    let mut context = Context {
        settings: Settings {
            node_port_addresses: vec![NodePortAddresses::All],
            detect_local: DetectLocal::BridgeInterface("cni0".into()),
            ..Settings::default()
        },
        ..Context::default()
    };
    context.service_cidrs = ["10.96.0.0/12", "fd00:10:96::/112"]
        .into_iter()
        .filter_map(|range| range.parse().ok())
        .collect();
    let layout = Layout { purpose, family };
    put_layout(batch, &chains(&context, layout), layout, anonymous);
}

/// One thing that kernels are built with or without.
struct Feature {
    what: &'static str,
    /// Where it comes from.
    from: &'static str,
    put: fn(&mut Batch, Family),
}

static FEATURES: [Feature; 8] = [
    Feature {
        what: "chains of nf_tables for this family",
        from: "CONFIG_NF_TABLES_IPV4, CONFIG_NF_TABLES_IPV6",
        put: |batch, _| put_rule(batch, FORWARD, &[]),
    },
    Feature {
        what: "address translation by nf_tables",
        from: "modules nft_chain_nat, nft_nat, nft_masq",
        put: |batch, family| {
            put_rule(batch, nat(4), &[E::Masquerade]);
            batch.add_set(&set(Map::Members, family));
            batch.add_chain("dnat", Some(nat(0)));
            let member = vec![
                E::MetaLoad(Meta::Priority, R0),
                look_up(Map::Members, R0, Some(R0)),
            ];
            batch.add_rule("dnat", &[member, vec![dnat(Header::of(family))]].concat(), &[]);
        },
    },
    Feature {
        what: "types of addresses in rules",
        from: "modules nft_fib_ipv4, nft_fib_ipv6",
        put: |batch, _| put_rule(batch, nat(0), &[E::FibType(FibAddress::Destination, R0)]),
    },
    Feature {
        what: "random numbers in rules",
        from: "module nft_numgen",
        put: |batch, _| put_rule(batch, FORWARD, &[E::Random { to: R0, below: 2 }]),
    },
    Feature {
        what: "refusal by rules",
        from: "modules nft_reject_ipv4, nft_reject_ipv6",
        put: |batch, family| {
            let unreachable = Header::of(family).unreachable;
            put_rule(batch, FORWARD, &[E::Reject(Refusal::Icmp(unreachable))]);
        },
    },
    Feature {
        what: "connection tracking in rules",
        from: "module nft_ct",
        put: |batch, _| put_rule(batch, FORWARD, &[E::CtLoad(Ct::State, R0)]),
    },
    Feature {
        what: "sets with ranges in keys of several parts",
        from: "Linux 5.6 or newer",
        put: |batch, family| batch.add_set(&set(Map::Sources, family)),
    },
    Feature {
        what: "maps that rules write to",
        from: "CONFIG_NF_TABLES with nft_dynset, or its module",
        put: |batch, family| {
            let affinity = affinity_set(LONGEST, family);
            let name = affinity.name.clone();
            batch.add_set(&affinity);
            let remember = E::Dynamic {
                op: DynamicOp::Add,
                set: name,
                key: R0,
                value: Register(8),
                timeout: 1000,
            };
            let header = Header::of(family);
            let key: Rule = vec![
                E::MetaLoad(Meta::Priority, R0),
                header.load_source(R0.after(4)),
                E::MetaLoad(Meta::Priority, Register(8)),
                remember,
            ];
            put_rule(batch, FORWARD, &key);
        },
    },
];

const FORWARD: Hook = Hook {
    kind: "filter",
    number: 2,
    priority: 0,
};

fn nat(number: u32) -> Hook {
    Hook {
        kind: "nat",
        number,
        priority: -101,
    }
}

/// A base chain with one rule.
fn put_rule(batch: &mut Batch, hook: Hook, rule: &[E]) {
    batch.add_chain("probe", Some(hook));
    batch.add_rule("probe", rule, &[]);
}

#[cfg(test)]
mod tests;

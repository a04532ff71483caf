//! The chains that are there whatever Services there are: their rules follow settings and node facts. Pure.

use ipnet::IpNet;

use super::entry::Map;
use super::number::{CLASS, EXTERNAL, ID, MASQUERADE, MASQUERADE_NON_LOCAL, RESTRICTED};
use super::words::{
    Header, MARK, R0, Rule, back, counted_drop, ending, goto, has_flag, jump, load, load_number, look_up,
    mark, number, pods, replace_number, within,
};
use crate::backend::{FORGOTTEN, INVALID, MISSES};
use crate::model::{Context, Family, LocalTraffic, NodePortAddresses};
use crate::netlink::expression::{Base, Ct, Expression as E, FibAddress, Meta, Refusal, Verdict};
use crate::netlink::nftables::{Hook, TableName};

/// The name of the table, in both families.
pub(super) const TABLE: &str = "pointsman";
/// The table that stands in while the other one is replaced.
pub(super) const DEPUTY: &str = "pointsman-deputy";
/// The table's named counters.
pub(super) const COUNTERS: [&str; 3] = [MISSES, FORGOTTEN, INVALID];

/// A chain with its rules.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chain {
    pub(super) name: String,
    pub(super) hook: Option<Hook>,
    pub(super) rules: Vec<Rule>,
}

pub(super) fn table(family: Family) -> TableName {
    TableName::new(family, TABLE)
}

pub(super) fn deputy(family: Family) -> TableName {
    TableName::new(family, DEPUTY)
}

/// Where destinations are translated: before kube-proxy (-100), since the first that translates wins.
const TRANSLATE: i32 = -102;

/// The chains of the table that stands in: what the other one does not translate, it does.
pub(super) fn deputy_chains(mut chains: Vec<Chain>) -> Vec<Chain> {
    for hook in chains.iter_mut().filter_map(|chain| chain.hook.as_mut()) {
        if hook.priority == TRANSLATE {
            hook.priority += 1;
        }
    }
    chains
}

/// The chains that are there whatever Services there are, those first that others go to.
pub(super) fn chains(context: &Context, family: Family) -> Vec<Chain> {
    let header = Header::of(family);
    let traffic = context.local_traffic(family);
    let inner = |name: &str, rules| Chain {
        name: name.to_owned(),
        hook: None,
        rules,
    };
    let base = |name: &str, kind, number, priority, rules| Chain {
        name: name.to_owned(),
        hook: Some(Hook {
            kind,
            number,
            priority,
        }),
        rules,
    };
    vec![
        inner("refuse", refuse(header)),
        inner("non-local", non_local(&traffic, header)),
        inner("restricted", restricted(header)),
        inner("external", external(&traffic, header)),
        inner("special", special()),
        inner("dispatch", dispatch(&traffic)),
        inner("node-port", node_port(context, family)),
        inner("services", services(family)),
        inner("unclaimed", unclaimed(context, family)),
        base(
            "nat-prerouting",
            "nat",
            0,
            TRANSLATE,
            vec![vec![jump("services")]],
        ),
        base("nat-output", "nat", 3, TRANSLATE, vec![vec![jump("services")]]),
        base(
            "nat-prerouting-last",
            "nat",
            0,
            -90,
            vec![vec![jump("unclaimed")]],
        ),
        base("nat-output-last", "nat", 3, -90, vec![vec![jump("unclaimed")]]),
        base("nat-postrouting", "nat", 4, 99, postrouting(header)),
        base(
            "filter-forward",
            "filter",
            2,
            0,
            forward(context.settings.accept_invalid),
        ),
    ]
}

/// TCP with a reset, everything else with "port unreachable".
fn refuse(header: Header) -> Vec<Rule> {
    vec![
        vec![
            E::MetaLoad(Meta::Protocol, R0),
            E::Compare {
                at: R0,
                equal: true,
                value: vec![6],
            },
            E::Reject(Refusal::TcpReset),
        ],
        vec![E::Reject(Refusal::Icmp(header.unreachable))],
    ]
}

fn non_local(traffic: &LocalTraffic, header: Header) -> Vec<Rule> {
    if *traffic == LocalTraffic::Unknown {
        return Vec::new();
    }
    let mut rules: Vec<Rule> = pods(traffic, header)
        .into_iter()
        .map(|rule| ending(rule, back()))
        .collect();
    rules.push(mark());
    rules
}

/// The number becomes that of the frontend behind the restriction; who is not allowed is dropped.
fn restricted(header: Header) -> Vec<Rule> {
    let mut allowed = vec![
        E::MetaLoad(Meta::Priority, R0),
        E::ToNetworkOrder(R0),
        header.load_source(R0.after(4)),
        look_up(Map::Sources, R0, None),
    ];
    allowed.extend(replace_number(u32::MAX, Map::Restricted));
    allowed.push(back());
    vec![allowed, vec![E::Verdict(Verdict::Drop)]]
}

/// External policy Local: what comes from this node keeps the number, with all endpoints; the rest gets the local
/// ones.
fn external(traffic: &LocalTraffic, header: Header) -> Vec<Rule> {
    let mut rules: Vec<Rule> = pods(traffic, header)
        .into_iter()
        .map(|rule| ending(rule, back()))
        .collect();
    let mut host = vec![
        E::FibType(FibAddress::Source, R0),
        E::Compare {
            at: R0,
            equal: true,
            value: number(RTN_LOCAL),
        },
    ];
    host.extend(mark());
    rules.push(ending(host, back()));
    rules.push(ending(replace_number(ID, Map::Outside), back()));
    rules.push(counted_drop());
    rules
}

/// `RTN_LOCAL`: an address of the node.
const RTN_LOCAL: u32 = 2;

/// A frontend of which nothing is asked but what is usual, a ClusterIP mostly, meets no rule about what it has not: at
/// some 10 ns an expression those would cost more than its lookups.
fn dispatch(traffic: &LocalTraffic) -> Vec<Rule> {
    let mut rules = vec![ending(
        [
            load_number(RESTRICTED | EXTERNAL | MASQUERADE | MASQUERADE_NON_LOCAL, R0),
            vec![E::Compare {
                at: R0,
                equal: false,
                value: number(MASQUERADE_NON_LOCAL),
            }],
        ]
        .concat(),
        goto("special"),
    )];
    if *traffic != LocalTraffic::Unknown {
        rules.push(vec![jump("non-local")]);
    }
    rules.extend(assign());
    rules
}

fn special() -> Vec<Rule> {
    let mut rules = vec![
        ending(has_flag(RESTRICTED), jump("restricted")),
        ending(has_flag(EXTERNAL), jump("external")),
        [has_flag(MASQUERADE), mark()].concat(),
        ending(has_flag(MASQUERADE_NON_LOCAL), jump("non-local")),
    ];
    rules.extend(assign());
    rules
}

/// Sends the packet to its pool's class.
fn assign() -> Vec<Rule> {
    vec![
        replace_number(ID, Map::Pools),
        ending(
            load_number(CLASS, R0),
            E::LookupVerdict {
                set: Map::Classes.name().to_owned(),
                key: R0,
            },
        ),
        counted_drop(),
    ]
}

fn services(family: Family) -> Vec<Rule> {
    let header = Header::of(family);
    let (protocol, port) = (R0.after(header.length), R0.after(header.length).after(1));
    vec![
        vec![
            header.load_destination(R0),
            E::MetaLoad(Meta::Protocol, protocol),
            load(Base::Transport, 2, 2, port),
            look_up(Map::Frontends, R0, Some(R0)),
            E::MetaSet(Meta::Priority, R0),
            goto("dispatch"),
        ],
        vec![goto("node-port")],
    ]
}

/// What is addressed to a Service and was translated by nobody: other proxies' Services have their turn before
/// (`service.kubernetes.io/service-proxy-name`), and the kernel asks no further nat chain once one has translated
/// (`nf_nat_inet_fn`).
fn unclaimed(context: &Context, family: Family) -> Vec<Rule> {
    let header = Header::of(family);
    let of_family = |range: &&IpNet| Family::of(range.addr()) == family;
    // What is left of a ClusterIP is a port that its Service does not have.
    let mut rules = vec![vec![
        header.load_destination(R0),
        look_up(Map::ClusterIps, R0, None),
        goto("refuse"),
    ]];
    if context.service_cidrs.iter().any(|range| of_family(&range)) {
        for range in context.settings.exclude_cidrs.iter().filter(of_family) {
            rules.push(ending(within(header.destination, range), back()));
        }
    }
    // Dropped, not refused: a Service that is just being made is reached by a client's second try.
    for range in context.service_cidrs.iter().filter(of_family) {
        rules.push(ending(
            within(header.destination, range),
            E::Verdict(Verdict::Drop),
        ));
    }
    rules
}

fn node_port(context: &Context, family: Family) -> Vec<Rule> {
    let header = Header::of(family);
    let mut rules = Vec::new();
    let mut here = if context
        .settings
        .node_port_addresses
        .contains(&NodePortAddresses::All)
    {
        // The kernel's own list of local addresses is never behind; loopback and link-local ones are not meant.
        let except = match family {
            Family::V4 => ["127.0.0.0/8", "169.254.0.0/16"],
            Family::V6 => ["::1/128", "fe80::/10"],
        };
        for range in except.iter().filter_map(|range| range.parse().ok()) {
            rules.push(ending(within(header.destination, &range), back()));
        }
        vec![
            E::FibType(FibAddress::Destination, R0),
            E::Compare {
                at: R0,
                equal: true,
                value: number(RTN_LOCAL),
            },
        ]
    } else {
        vec![header.load_destination(R0), look_up(Map::NodeAddresses, R0, None)]
    };
    here.extend([
        E::MetaLoad(Meta::Protocol, R0),
        load(Base::Transport, 2, 2, R0.after(1)),
        look_up(Map::NodePorts, R0, Some(R0)),
        E::MetaSet(Meta::Priority, R0),
        goto("dispatch"),
    ]);
    rules.push(here);
    rules
}

fn postrouting(header: Header) -> Vec<Rule> {
    vec![
        // Nothing else is any business of ours.
        ending(is_translated(false), back()),
        // A number of ours has a class; the kernel's own priorities are small.
        vec![
            E::MetaLoad(Meta::Priority, R0),
            E::ToNetworkOrder(R0),
            E::AtLeast(R0, (ID + 1).to_be_bytes().to_vec()),
            E::Immediate(R0, number(0)),
            E::MetaSet(Meta::Priority, R0),
        ],
        // A pod that reaches itself through its Service must see the node as the source, or it would answer itself
        // directly and not recognise the answer.
        vec![
            header.load_source(R0),
            header.load_destination(R0.after(header.length)),
            look_up(Map::Hairpins, R0, None),
            E::Masquerade,
        ],
        vec![
            E::MetaLoad(Meta::Mark, R0),
            E::Bitwise {
                at: R0,
                mask: number(MARK),
                xor: number(0),
            },
            E::Compare {
                at: R0,
                equal: true,
                value: number(0),
            },
            back(),
        ],
        // The mark goes before the packet leaves: it may come by again encapsulated.
        vec![
            E::MetaLoad(Meta::Mark, R0),
            E::Bitwise {
                at: R0,
                mask: number(!MARK),
                xor: number(0),
            },
            E::MetaSet(Meta::Mark, R0),
        ],
        vec![E::Masquerade],
    ]
}

/// Passes only packets of connections whose destination was translated, or only those whose was not.
fn is_translated(yes: bool) -> Vec<E> {
    vec![
        E::CtLoad(Ct::Status, R0),
        E::Bitwise {
            at: R0,
            mask: number(IPS_DST_NAT),
            xor: number(0),
        },
        E::Compare {
            at: R0,
            equal: !yes,
            value: number(0),
        },
    ]
}

/// `IPS_DST_NAT`: the connection's destination was translated.
const IPS_DST_NAT: u32 = 1 << 5;
/// `NF_CT_STATE_INVALID_BIT`.
const INVALID_STATE: u32 = 1;

/// An answer that conntrack calls invalid would leave untranslated, and the client would reset the connection
/// (kubernetes/kubernetes#74839).
fn forward(accept_invalid: bool) -> Vec<Rule> {
    if accept_invalid {
        return Vec::new();
    }
    vec![vec![
        E::CtLoad(Ct::State, R0),
        E::Bitwise {
            at: R0,
            mask: number(INVALID_STATE),
            xor: number(0),
        },
        E::Compare {
            at: R0,
            equal: false,
            value: number(0),
        },
        E::Counter(INVALID.to_owned()),
        E::Verdict(Verdict::Drop),
    ]]
}

/// What teardown leaves in a chain of its own: the kernel stops tracking, and with it translating, when the last rule
/// of a namespace that needs conntrack is gone (`nf_ct_netns_put`).
pub(super) fn grace() -> Chain {
    Chain {
        name: "established".to_owned(),
        hook: Some(Hook {
            kind: "nat",
            number: 4,
            priority: 99,
        }),
        rules: vec![ending(is_translated(true), E::Verdict(Verdict::Accept))],
    }
}

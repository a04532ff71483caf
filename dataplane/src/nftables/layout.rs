//! The chains that are there whatever Services there are: their rules follow settings and node facts. Pure.

use ipnet::IpNet;

use super::admit;
use super::entry::Map;
use super::number::{
    ADMITTED, CLASS, EXTERNAL, ID, MASQUERADE, MASQUERADE_NON_LOCAL, OWN_SOURCE, RESTRICTED,
};
use super::words::{
    Header, MARK, R0, Rule, back, counted_drop, ending, goto, has_flag, jump, load, load_number, look_up,
    mark, number, pods, replace_number, set_flag, within,
};
use crate::backend::{FORGOTTEN, INVALID, MISSES};
use crate::model::{Context, Family, LocalTraffic, NodePortAddresses};
use crate::netlink::expression::{Base, Ct, Expression as E, FibAddress, Meta, Refusal, Verdict};
use crate::netlink::nftables::{Hook, TableName};

/// What becomes of a packet that a frontend takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    /// An endpoint is picked and the destination translated: mode NFTables.
    Translate,
    /// It goes on to IPVS, which balances it: mode IPVS.
    Admit,
}

/// Which table: its purpose and family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Layout {
    pub(super) purpose: Purpose,
    pub(super) family: Family,
}

impl Layout {
    /// The table's name, in both families.
    pub(super) fn name(self) -> &'static str {
        match self.purpose {
            Purpose::Translate => "pointsman",
            Purpose::Admit => "pointsman-ipvs",
        }
    }

    /// The name of the table that stands in while the other one is replaced.
    pub(super) fn deputy_name(self) -> &'static str {
        match self.purpose {
            Purpose::Translate => "pointsman-deputy",
            Purpose::Admit => "pointsman-ipvs-deputy",
        }
    }

    pub(super) fn table(self) -> TableName {
        TableName::new(self.family, self.name())
    }

    pub(super) fn deputy(self) -> TableName {
        TableName::new(self.family, self.deputy_name())
    }

    /// The table's named counters.
    pub(super) fn counters(self) -> &'static [&'static str] {
        match self.purpose {
            Purpose::Translate => &[MISSES, FORGOTTEN, INVALID],
            Purpose::Admit => &[MISSES, INVALID],
        }
    }

    /// Its maps, those before that others refer to.
    pub(super) fn maps(self) -> impl Iterator<Item = Map> {
        let is_there = move |map: &Map| match map {
            Map::Endpoints | Map::Members | Map::Stable | Map::Classes | Map::Pools => {
                self.purpose == Purpose::Translate
            }
            Map::Marks | Map::Vips => self.purpose == Purpose::Admit,
            _ => true,
        };
        Map::ALL.into_iter().filter(is_there)
    }

    /// Where destinations are looked at. To translate before kube-proxy (-100), since the first that translates wins. What
    /// IPVS is to have, after all that translate: while a node goes over to IPVS or away from it, the other mode's rules
    /// have every packet that they take.
    fn priority(self) -> i32 {
        match self.purpose {
            Purpose::Translate => -102,
            Purpose::Admit => -95,
        }
    }
}

/// A chain with its rules.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chain {
    pub(super) name: String,
    pub(super) hook: Option<Hook>,
    pub(super) rules: Vec<Rule>,
}

/// The chains of the table that stands in: what the other one does not take, it does.
pub(super) fn deputy_chains(layout: Layout, mut chains: Vec<Chain>) -> Vec<Chain> {
    for hook in chains.iter_mut().filter_map(|chain| chain.hook.as_mut()) {
        if hook.priority == layout.priority() {
            hook.priority += 1;
        }
    }
    chains
}

/// The chains that are there whatever Services there are, those first that others go to.
pub(super) fn chains(context: &Context, layout: Layout) -> Vec<Chain> {
    let Layout { purpose, family } = layout;
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
    let priority = layout.priority();
    let mut chains = vec![
        inner("refuse", refuse(header)),
        inner("non-local", non_local(&traffic, header, purpose)),
        inner("restricted", restricted(header)),
    ];
    match purpose {
        Purpose::Translate => chains.push(inner("external", external(&traffic, header))),
        Purpose::Admit => chains.extend([
            inner("admit", admit::admit()),
            inner("by-address", admit::by_address()),
            inner("by-mark", admit::by_mark()),
            inner("external", admit::external(&traffic, header)),
        ]),
    }
    chains.extend([
        inner("special", special(purpose)),
        inner("dispatch", dispatch(&traffic, purpose)),
        inner("node-port", node_port(context, layout)),
        inner("services", services(family)),
        inner("unclaimed", unclaimed(context, layout)),
        base("nat-prerouting", "nat", 0, priority, vec![vec![jump("services")]]),
        base("nat-output", "nat", 3, priority, vec![vec![jump("services")]]),
        base(
            "nat-prerouting-last",
            "nat",
            0,
            -90,
            vec![vec![jump("unclaimed")]],
        ),
        base("nat-output-last", "nat", 3, -90, vec![vec![jump("unclaimed")]]),
        base(
            "nat-postrouting",
            "nat",
            4,
            99,
            match purpose {
                Purpose::Translate => postrouting(header),
                Purpose::Admit => admit::postrouting(family),
            },
        ),
        base(
            "filter-forward",
            "filter",
            2,
            0,
            forward(context.settings.accept_invalid),
        ),
    ]);
    chains
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

/// What makes the packet's source the node's own when it leaves.
fn masquerade(purpose: Purpose) -> Rule {
    match purpose {
        Purpose::Translate => mark(),
        Purpose::Admit => set_flag(OWN_SOURCE),
    }
}

fn non_local(traffic: &LocalTraffic, header: Header, purpose: Purpose) -> Vec<Rule> {
    if *traffic == LocalTraffic::Unknown {
        return Vec::new();
    }
    let mut rules: Vec<Rule> = pods(traffic, header)
        .into_iter()
        .map(|rule| ending(rule, back()))
        .collect();
    rules.push(masquerade(purpose));
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
    let mut host = is_from_host();
    host.extend(mark());
    rules.push(ending(host, back()));
    rules.push(ending(replace_number(ID, Map::Outside), back()));
    rules.push(counted_drop());
    rules
}

/// Matches what the node itself sends.
pub(super) fn is_from_host() -> Rule {
    vec![
        E::FibType(FibAddress::Source, R0),
        E::Compare {
            at: R0,
            equal: true,
            value: number(RTN_LOCAL),
        },
    ]
}

/// `RTN_LOCAL`: an address of the node.
const RTN_LOCAL: u32 = 2;

/// A frontend of which nothing is asked but what is usual, a ClusterIP mostly, meets no rule about what it has not: at
/// some 10 ns an expression those would cost more than its lookups.
fn dispatch(traffic: &LocalTraffic, purpose: Purpose) -> Vec<Rule> {
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
    rules.extend(assign(purpose));
    rules
}

fn special(purpose: Purpose) -> Vec<Rule> {
    let mut rules = vec![
        ending(has_flag(RESTRICTED), jump("restricted")),
        ending(has_flag(EXTERNAL), jump("external")),
        [has_flag(MASQUERADE), masquerade(purpose)].concat(),
        ending(has_flag(MASQUERADE_NON_LOCAL), jump("non-local")),
    ];
    rules.extend(assign(purpose));
    rules
}

/// Sends the packet to its pool's class, or to IPVS.
fn assign(purpose: Purpose) -> Vec<Rule> {
    if purpose == Purpose::Admit {
        return admit::assign();
    }
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
fn unclaimed(context: &Context, layout: Layout) -> Vec<Rule> {
    let family = layout.family;
    let header = Header::of(family);
    let of_family = |range: &&IpNet| Family::of(range.addr()) == family;
    let mut rules = Vec::new();
    if layout.purpose == Purpose::Admit {
        rules.push(ending(has_flag(ADMITTED), back()));
    }
    // What is left of a ClusterIP is a port that its Service does not have.
    rules.push(vec![
        header.load_destination(R0),
        look_up(Map::ClusterIps, R0, None),
        goto("refuse"),
    ]);
    if layout.purpose == Purpose::Admit {
        // A listener of the node's own on all addresses would answer.
        rules.push(vec![
            header.load_destination(R0),
            look_up(Map::Vips, R0, None),
            goto("refuse"),
        ]);
    }
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

fn node_port(context: &Context, layout: Layout) -> Vec<Rule> {
    let family = layout.family;
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
        if layout.purpose == Purpose::Admit {
            // The node has Services' addresses for its own.
            for map in [Map::ClusterIps, Map::Vips] {
                rules.push(vec![header.load_destination(R0), look_up(map, R0, None), back()]);
            }
            let own = context.service_cidrs.iter();
            for range in own.filter(|range| Family::of(range.addr()) == family) {
                rules.push(ending(within(header.destination, range), back()));
            }
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

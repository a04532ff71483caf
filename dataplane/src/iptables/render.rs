//! The rules of each chain, in the words in which iptables-save prints them: what was written and what is read back
//! can be compared as text. Pure.

mod words;

use std::fmt::{self, Write as _};

use ipnet::IpNet;

use super::layout::{ChainId, Layout, has_rules};
use super::names::{Chain, PORTS_IN_BLOCK, Recent, Table};
use crate::model::{
    Action, Context, Family, ForwardingTable, Frontend, FrontendKey, LocalTraffic, Masquerade,
    NodePortAddresses, Pool, PoolEndpoint, PoolKey,
};
use words::{Addressed, AddressedFrom, Comment, Host, LastBits, Mask, Range, Share, Socket};

/// Marks a packet for masquerade. The bit is kube-proxy's: CNI plugins know to leave it alone.
const MARK: &str = "-j MARK --set-xmark 0x4000/0x4000";

/// The rules of a chain, a line each, without the `-A CHAIN` in front.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    text: String,
    count: usize,
}

impl Rules {
    fn push(&mut self, rule: fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.text.write_fmt(rule);
        self.text.push('\n');
        self.count += 1;
    }

    #[cfg(test)]
    pub(super) fn of(lines: &[&str]) -> Self {
        let mut rules = Self::default();
        lines.iter().for_each(|line| rules.push(format_args!("{line}")));
        rules
    }

    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.count = 0;
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = &str> {
        self.text.lines()
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }
}

/// What differs between hosts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    pub(super) family: Family,
    /// Whether MASQUERADE knows `--random-fully`, without which concurrent connections race for a source port.
    pub(super) random_fully: bool,
}

/// Writes the rules of one chain to `rules`, those apart that belong to pools and single frontends ([`pool`],
/// [`endpoint`], [`sources`]).
///
/// An interface name must have been checked ([`super::restore::check_interface`]).
pub(super) fn chain(id: ChainId, table: &ForwardingTable, layout: &Layout, style: Style, rules: &mut Rules) {
    let (of, chain) = id;
    match chain {
        Chain::Services => services(of, layout, style.family, rules),
        Chain::Nibble(low) => nibble(of, low, layout, style.family, rules),
        Chain::NodePorts => node_ports(of, layout, rules),
        Chain::NodeAddresses => node_addresses(table, style.family, rules),
        Chain::Addresses(_) | Chain::Ports(..) => bucket(of, chain, table, layout, style.family, rules),
        Chain::NonLocal => non_local(&table.context().local_traffic(style.family), rules),
        Chain::Postrouting => postrouting(style.random_fully, rules),
        Chain::Forward => forward(table.context().settings.accept_invalid, rules),
        Chain::Refuse => refuse(style.family, rules),
        Chain::Unallocated => unallocated(table.context(), style.family, rules),
        Chain::Sources(_) | Chain::Pool(_) | Chain::Endpoint(_) => (),
    }
}

/// Up to sixteen rules on the last four bits of the address. A first packet so passes about 8 + 8 + frontends/512
/// rules instead of half of all frontends, as in the linear KUBE-SERVICES.
fn services(of: Table, layout: &Layout, family: Family, rules: &mut Rules) {
    for low in (0..16).filter(|&low| layout.is_live((of, Chain::Nibble(low)))) {
        // A jump, not a goto: an address that no Service has goes on to the node ports.
        rules.push(format_args!(
            "-d {} -j {}",
            LastBits(family, low, 0x0f),
            Chain::Nibble(low)
        ));
    }
    if of == Table::Filter {
        rules.push(format_args!("-j {}", Chain::Unallocated));
    }
    rules.push(format_args!("-j {}", Chain::NodeAddresses));
}

fn nibble(of: Table, low: u8, layout: &Layout, family: Family, rules: &mut Rules) {
    let byte = (0..16).map(|high| (high << 4) | low);
    for byte in byte.filter(|&byte| layout.is_live((of, Chain::Addresses(byte)))) {
        rules.push(format_args!(
            "-d {} -g {}",
            LastBits(family, byte & 0xf0, 0xf0),
            Chain::Addresses(byte)
        ));
    }
}

/// Which of the node's addresses NodePorts answer on. Never loopback (a connection from there could not be
/// answered), and not link-local ones, as the model has it.
fn node_addresses(table: &ForwardingTable, family: Family, rules: &mut Rules) {
    let context = table.context();
    let all = context
        .settings
        .node_port_addresses
        .contains(&NodePortAddresses::All);
    if all {
        // The kernel's own list of local addresses is never behind.
        let except = match family {
            Family::V4 => ["127.0.0.0/8", "169.254.0.0/16"],
            Family::V6 => ["::1/128", "fe80::/10"],
        };
        for range in except {
            rules.push(format_args!("-d {range} -j RETURN"));
        }
        rules.push(format_args!(
            "-m addrtype --dst-type LOCAL -j {}",
            Chain::NodePorts
        ));
    } else {
        for address in context.node_port_addresses(family) {
            rules.push(format_args!("-d {} -j {}", Host(address), Chain::NodePorts));
        }
    }
}

fn node_ports(of: Table, layout: &Layout, rules: &mut Rules) {
    for block in layout.port_blocks(of) {
        if let Chain::Ports(protocol, first) = block {
            let last = first + (PORTS_IN_BLOCK - 1);
            rules.push(format_args!(
                "-p {protocol} -m {protocol} --dport {first}:{last} -g {block}"
            ));
        }
    }
}

fn bucket(
    of: Table,
    chain: Chain,
    table: &ForwardingTable,
    layout: &Layout,
    family: Family,
    rules: &mut Rules,
) {
    let pods = table.context().local_traffic(family);
    for key in layout.frontends(chain) {
        match (of, table.frontend(key)) {
            (Table::Nat, Some(frontend)) => forwarded(key, frontend, &pods, rules),
            (Table::Filter, Some(frontend)) if has_rules(frontend, of) => blocked(key, frontend, rules),
            _ => (),
        }
    }
    if of == Table::Filter {
        // What is left of a ClusterIP is a port that its Service does not have.
        for &address in layout.cluster_ips(chain) {
            rules.push(format_args!("-d {} -g {}", Host(address), Chain::Refuse));
        }
    }
}

/// A frontend's rules in nat. Only one has the comment: in the legacy variant a comment takes more room in the kernel
/// than the rest of a rule, whatever its length, and the whole table is copied for every change.
fn forwarded(key: &FrontendKey, frontend: &Frontend, pods: &LocalTraffic, rules: &mut Rules) {
    if !has_rules(frontend, Table::Nat) {
        return;
    }
    let to = Addressed(key);
    let comment = Comment(frontend);
    if frontend.sources.is_some() {
        rules.push(format_args!("{to} -j {}", Chain::sources(key)));
    }
    match &frontend.action {
        Action::Balance { pool, masquerade } => {
            match masquerade {
                Masquerade::NonLocal => rules.push(format_args!("{to} -j {}", Chain::NonLocal)),
                Masquerade::Always => rules.push(format_args!("{to} {MARK}")),
            }
            rules.push(format_args!(
                "{to} -m comment --comment \"{comment}\" -g {}",
                Chain::pool(pool)
            ));
        }
        Action::External { inside, outside } => {
            let inside = Chain::pool(inside);
            match pods {
                LocalTraffic::Unknown => (),
                LocalTraffic::From(ranges) => {
                    for range in ranges {
                        rules.push(format_args!("{}{to} -g {inside}", Range("-s", *range)));
                    }
                }
                LocalTraffic::Interface(name) => {
                    rules.push(format_args!("{} -g {inside}", AddressedFrom(key, name, "")));
                }
                LocalTraffic::InterfacePrefix(prefix) => {
                    rules.push(format_args!("{} -g {inside}", AddressedFrom(key, prefix, "+")));
                }
            }
            // The source address of what the node itself sends may be the load balancer's, which is no good elsewhere.
            rules.push(format_args!("{to} -m addrtype --src-type LOCAL {MARK}"));
            rules.push(format_args!("{to} -m addrtype --src-type LOCAL -g {inside}"));
            match outside {
                Some(outside) => rules.push(format_args!(
                    "{to} -m comment --comment \"{comment}\" -g {}",
                    Chain::pool(outside)
                )),
                // Ends the search in nat, untranslated; filter drops it.
                None => rules.push(format_args!(
                    "{to} -m comment --comment \"{comment} has no local endpoints\" -j ACCEPT"
                )),
            }
        }
        Action::Reject | Action::Drop => (),
    }
}

/// A frontend's rule in filter: what nat has translated has another address by now.
fn blocked(key: &FrontendKey, frontend: &Frontend, rules: &mut Rules) {
    let to = Addressed(key);
    let comment = Comment(frontend);
    let (why, verdict) = match &frontend.action {
        Action::Reject => ("has no endpoints", format!("-g {}", Chain::Refuse)),
        Action::Drop | Action::External { outside: None, .. } => {
            ("has no local endpoints", "-j DROP".to_owned())
        }
        _ => ("is not for this source", "-j DROP".to_owned()),
    };
    rules.push(format_args!(
        "{to} -m comment --comment \"{comment} {why}\" {verdict}"
    ));
}

/// Who may use a frontend. Others end their search in nat, untranslated, and are dropped in filter.
pub(super) fn sources(ranges: &[IpNet], rules: &mut Rules) {
    for range in ranges {
        rules.push(format_args!("{}-j RETURN", Range("-s", *range)));
    }
    rules.push(format_args!("-j ACCEPT"));
}

/// The choice of an endpoint: with affinity the one that remembers the client; otherwise the next gets its share of what
/// is left, with equal shares one connection in `k` where `k` are left. Remote endpoints are translated to at once;
/// those that have more to do have a chain.
pub(super) fn pool(key: &PoolKey, pool: &Pool, family: Family, rules: &mut Rules) {
    let protocol = key.owner.protocol;
    if let Some(seconds) = pool.affinity {
        for endpoint in &pool.endpoints {
            rules.push(format_args!(
                "-m recent --rcheck --seconds {seconds} --reap --name {} --mask {} --rsource -j {}",
                Recent(key, endpoint.address),
                Mask(family),
                Chain::endpoint(key, endpoint.address)
            ));
        }
    }
    let mut left = pool.endpoints.iter().map(|it| u32::from(it.share)).sum();
    for endpoint in &pool.endpoints {
        let share = Share(endpoint.share.into(), left);
        left = left.saturating_sub(endpoint.share.into());
        if has_chain(pool, endpoint) {
            let chain = Chain::endpoint(key, endpoint.address);
            rules.push(format_args!("-p {protocol}{share} -j {chain}"));
        } else {
            rules.push(format_args!(
                "-p {protocol}{share} -j DNAT --to-destination {}",
                Socket(endpoint.address)
            ));
        }
    }
}

/// Whether an endpoint has a chain of its own.
pub(super) fn has_chain(pool: &Pool, endpoint: &PoolEndpoint) -> bool {
    endpoint.local || pool.affinity.is_some()
}

/// An endpoint that has a chain. A pod that reaches itself through its Service must see the node as the source, or it
/// would answer itself directly and not recognise the answer.
pub(super) fn endpoint(
    key: &PoolKey,
    pool: &Pool,
    endpoint: &PoolEndpoint,
    family: Family,
    rules: &mut Rules,
) {
    let protocol = key.owner.protocol;
    let to = Socket(endpoint.address);
    if endpoint.local {
        rules.push(format_args!("-s {} {MARK}", Host(endpoint.address.ip())));
    }
    if pool.affinity.is_some() {
        rules.push(format_args!(
            "-p {protocol} -m recent --set --name {} --mask {} --rsource -j DNAT --to-destination {to}",
            Recent(key, endpoint.address),
            Mask(family)
        ));
    } else {
        rules.push(format_args!("-p {protocol} -j DNAT --to-destination {to}"));
    }
}

/// One small chain for all Services: a change of how pods are recognised rewrites only this.
fn non_local(traffic: &LocalTraffic, rules: &mut Rules) {
    match traffic {
        LocalTraffic::Unknown => (),
        // Everybody is.
        LocalTraffic::From(ranges) if ranges.iter().any(|range| range.prefix_len() == 0) => (),
        LocalTraffic::From(ranges) => {
            for range in ranges {
                rules.push(format_args!("{}-j RETURN", Range("-s", *range)));
            }
            rules.push(format_args!("{MARK}"));
        }
        LocalTraffic::Interface(name) => rules.push(format_args!("! -i {name} {MARK}")),
        LocalTraffic::InterfacePrefix(prefix) => rules.push(format_args!("! -i {prefix}+ {MARK}")),
    }
}

/// As kube-proxy's KUBE-POSTROUTING: the mark goes before the packet leaves, since it may come by again
/// encapsulated, and would be masqueraded a second time.
fn postrouting(random_fully: bool, rules: &mut Rules) {
    rules.push(format_args!("-m mark ! --mark 0x4000/0x4000 -j RETURN"));
    rules.push(format_args!("-j MARK --set-xmark 0x4000/0x0"));
    let random_fully = if random_fully { " --random-fully" } else { "" };
    rules.push(format_args!("-j MASQUERADE{random_fully}"));
}

/// The rule that drops what conntrack calls invalid.
pub(super) const INVALID: &str = "-m conntrack --ctstate INVALID -j DROP";

/// As kube-proxy's KUBE-FORWARD, but accepting only what this node translated.
fn forward(accept_invalid: bool, rules: &mut Rules) {
    rules.push(format_args!(
        "-m conntrack --ctstate RELATED,ESTABLISHED -m conntrack --ctstate DNAT -j ACCEPT"
    ));
    if !accept_invalid {
        rules.push(format_args!("{INVALID}"));
    }
    rules.push(format_args!("-m mark --mark 0x4000/0x4000 -j ACCEPT"));
}

/// A reset ends an established TCP connection as well, one whose endpoint was taken away; ICMP errors do not
/// (RFC 5927).
fn refuse(family: Family, rules: &mut Rules) {
    rules.push(format_args!("-p tcp -j REJECT --reject-with tcp-reset"));
    let with = match family {
        Family::V4 => "icmp-port-unreachable",
        Family::V6 => "icmp6-port-unreachable",
    };
    rules.push(format_args!("-j REJECT --reject-with {with}"));
}

/// Dropped, not refused: a Service that this node is about to hear of is reached by the second try of a client.
fn unallocated(context: &Context, family: Family, rules: &mut Rules) {
    let of_family = |range: &&IpNet| Family::of(range.addr()) == family;
    for range in context.settings.exclude_cidrs.iter().filter(of_family) {
        rules.push(format_args!("{}-j RETURN", Range("-d", *range)));
    }
    for range in context.service_cidrs.iter().filter(of_family) {
        rules.push(format_args!("{}-j DROP", Range("-d", *range)));
    }
}

#[cfg(test)]
mod tests;

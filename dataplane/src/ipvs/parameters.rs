//! The kernel parameters that mode IPVS needs. docs/ipvs.md says the same to users, with what to override them for.
//!
//! `net.ipv4.vs.*` are of IPVS for IPv6 as well. They belong to the network namespace, and are there only once the kernel has
//! loaded IPVS ([`crate::netlink::ipvs::Ipvs::open`] makes it do so). Set them before the first virtual service is there: a
//! connection keeps what `conntrack` was when it began.
//!
//! What is left as the kernel has it, on purpose:
//!
//! - `net.ipv4.vs.sloppy_tcp` (0): with 1 IPVS takes up TCP connections in their midst (`tcp_conn_schedule`) and gives those that
//!   it does not know to just any endpoint, which resets them. The node's own reset, without it, says the same.
//! - `net.ipv6.conf.all.forwarding`: with 1 the kernel no longer learns its routes from router advertisements
//!   (`ipv6_accept_ra`), so that a node may lose its way out. Network plugins set it for pods with IPv6; so do policies.
//! - For IPv6 there is nothing like strict ARP to set: the kernel answers a neighbour solicitation only for addresses of the
//!   interface that it came in through (`ndisc_recv_ns`).

use std::collections::BTreeMap;

use crate::sysctl::Wanted;

/// Needed always, and put back when mode IPVS has nothing in the kernel any more.
const ALWAYS: [(&str, &str); 4] = [
    // IPVS's connections stay tracked. With 0 the kernel takes a packet's tracking away once IPVS has handled it
    // (`ip_vs_notrack`): nothing masquerades it, and rules that ask for its connection, `ct original ip daddr` and
    // `ct state`, do not know it. Costs an entry of conntrack for each connection beside IPVS's own.
    ("net.ipv4.vs.conntrack", "1"),
    // A new TCP connection from an address and port that IPVS remembers in TIME_WAIT is balanced anew. With 0 it goes where
    // the one before went: clients that use ports again quickly stay with few endpoints, and kernels before 5.16 send them
    // even to endpoints of weight 0, so that a rolling update breaks their connections (kubernetes/kubernetes#81775).
    // Kernels before 5.9 drop the first packet of such a connection, because they know the old one's tracking entry still:
    // one second, until the client sends it again (kubernetes/kubernetes#70747). kube-proxy therefore has 0 there.
    ("net.ipv4.vs.conn_reuse_mode", "1"),
    // The connections of a destination that was removed end at once (`ip_vs_expire_nodest_conn_flush`, since 5.9; before, each
    // at its next packet), with their tracking entries: the next packet of a UDP flow begins a new one to another endpoint, and
    // a TCP client is reset. With 0 their packets are dropped until they time out, UDP's 300 s after the last one.
    // Costs a walk through all connections of IPVS after destinations were removed, and one that comes back within moments
    // finds none of its connections. Graceful removal keeps the destination for as long as it has TCP connections.
    ("net.ipv4.vs.expire_nodest_conn", "1"),
    // A client that affinity holds to a destination of weight 0 gets another one at its next connection. With 0 it goes on to
    // come, and the destination never drains (`ip_vs_check_template`). Costs the memory of the clients of an endpoint whose
    // weight was 0 for just a moment.
    ("net.ipv4.vs.expire_quiescent_template", "1"),
];

/// Answers and requests of ARP are about addresses of the interface that they go through, and no other.
const STRICT_ARP: [(&str, &str); 2] = [
    ("net.ipv4.conf.all.arp_ignore", "1"),
    ("net.ipv4.conf.all.arp_announce", "2"),
];

/// Needed always and never put back: answers of endpoints on other nodes are forwarded to their clients, but so are all packets of
/// pods, whatever the mode, and a network plugin that came later found it set. Put back, pods lose their network.
const FORWARD: (&str, &str) = ("net.ipv4.ip_forward", "1");

/// The parameters by name. `strict_arp`: whether the node is not to answer ARP for the addresses of Services, which are its own
/// in this mode.
#[must_use]
pub fn sysctls(strict_arp: bool) -> BTreeMap<String, Wanted> {
    let arp = STRICT_ARP.into_iter().filter(|_| strict_arp);
    let mut sysctls: BTreeMap<String, Wanted> = ALWAYS
        .into_iter()
        .chain(arp)
        .map(|(name, value)| (name.to_owned(), Wanted::from(value)))
        .collect();
    let (name, value) = FORWARD;
    sysctls.insert(name.to_owned(), Wanted::ForGood(value.to_owned()));
    sysctls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_arp_adds_its_own_and_only_forwarding_stays() {
        let (usual, strict) = (sysctls(false), sysctls(true));
        assert_eq!(usual.len(), 5);
        let added: Vec<_> = strict
            .iter()
            .filter(|(name, _)| !usual.contains_key(*name))
            .collect();
        assert_eq!(
            added,
            [
                (&"net.ipv4.conf.all.arp_announce".to_owned(), &"2".into()),
                (&"net.ipv4.conf.all.arp_ignore".to_owned(), &"1".into()),
            ]
        );
        let for_good = |wanted: &Wanted| matches!(wanted, Wanted::ForGood(_));
        let stays: Vec<_> = strict.iter().filter(|(_, wanted)| for_good(wanted)).collect();
        assert_eq!(
            stays,
            [(&"net.ipv4.ip_forward".to_owned(), &Wanted::ForGood("1".into()))]
        );
    }
}

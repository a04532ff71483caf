//! The kernel parameters that a policy may set, and the rule that the API server checks them by.

/// Names that `spec.sysctls` accepts, sorted.
///
/// Only what steers Service forwarding and connection tracking is here: a policy is written by whoever may
/// configure the cluster's proxy, not by whoever may configure its hosts. Of IPVS all but these: the synchronization of
/// connections between machines, the means against floods, whose values the kernel changes by itself
/// (`update_defense_level`), and what has no use where Service addresses are the node's own (`backup_only`, `cache_bypass`,
/// `ignore_tunneled`).
pub const ALLOWED: &[&str] = &[
    "net.core.netdev_max_backlog",
    "net.core.somaxconn",
    "net.ipv4.conf.all.arp_announce",
    "net.ipv4.conf.all.arp_ignore",
    "net.ipv4.conf.all.route_localnet",
    "net.ipv4.conf.all.rp_filter",
    "net.ipv4.ip_forward",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.neigh.default.gc_thresh1",
    "net.ipv4.neigh.default.gc_thresh2",
    "net.ipv4.neigh.default.gc_thresh3",
    "net.ipv4.vs.conn_reuse_mode",
    "net.ipv4.vs.conntrack",
    "net.ipv4.vs.est_cpulist",
    "net.ipv4.vs.est_nice",
    "net.ipv4.vs.expire_nodest_conn",
    "net.ipv4.vs.expire_quiescent_template",
    "net.ipv4.vs.lblc_expiration",
    "net.ipv4.vs.lblcr_expiration",
    "net.ipv4.vs.nat_icmp_send",
    "net.ipv4.vs.pmtu_disc",
    "net.ipv4.vs.run_estimation",
    "net.ipv4.vs.schedule_icmp",
    "net.ipv4.vs.sloppy_sctp",
    "net.ipv4.vs.sloppy_tcp",
    "net.ipv4.vs.snat_reroute",
    "net.ipv6.conf.all.forwarding",
    "net.ipv6.neigh.default.gc_thresh1",
    "net.ipv6.neigh.default.gc_thresh2",
    "net.ipv6.neigh.default.gc_thresh3",
    "net.netfilter.nf_conntrack_acct",
    "net.netfilter.nf_conntrack_buckets",
    "net.netfilter.nf_conntrack_generic_timeout",
    "net.netfilter.nf_conntrack_icmp_timeout",
    "net.netfilter.nf_conntrack_icmpv6_timeout",
    "net.netfilter.nf_conntrack_max",
    "net.netfilter.nf_conntrack_tcp_be_liberal",
    "net.netfilter.nf_conntrack_tcp_loose",
    "net.netfilter.nf_conntrack_tcp_max_retrans",
    "net.netfilter.nf_conntrack_tcp_timeout_close",
    "net.netfilter.nf_conntrack_tcp_timeout_close_wait",
    "net.netfilter.nf_conntrack_tcp_timeout_established",
    "net.netfilter.nf_conntrack_tcp_timeout_fin_wait",
    "net.netfilter.nf_conntrack_tcp_timeout_last_ack",
    "net.netfilter.nf_conntrack_tcp_timeout_max_retrans",
    "net.netfilter.nf_conntrack_tcp_timeout_syn_recv",
    "net.netfilter.nf_conntrack_tcp_timeout_syn_sent",
    "net.netfilter.nf_conntrack_tcp_timeout_time_wait",
    "net.netfilter.nf_conntrack_tcp_timeout_unacknowledged",
    "net.netfilter.nf_conntrack_timestamp",
    "net.netfilter.nf_conntrack_udp_timeout",
    "net.netfilter.nf_conntrack_udp_timeout_stream",
];

/// Whether a policy may set `name`.
#[must_use]
pub fn is_allowed(name: &str) -> bool {
    ALLOWED.binary_search(&name).is_ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_list_is_sorted_so_that_the_binary_search_finds_every_name() {
        assert!(super::ALLOWED.is_sorted());
        assert!(super::ALLOWED.iter().all(|name| super::is_allowed(name)));
        assert!(!super::is_allowed("kernel.core_pattern"));
    }
}

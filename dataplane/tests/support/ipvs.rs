//! What tests of the IPVS backend share.

/// Below /proc/sys/net: what the agent sets in mode IPVS.
pub const PARAMETERS: [(&str, &str); 4] = [
    ("ipv4/vs/conntrack", "1"),
    ("ipv4/vs/conn_reuse_mode", "1"),
    ("ipv4/vs/expire_nodest_conn", "1"),
    ("ipv4/vs/expire_quiescent_template", "1"),
];

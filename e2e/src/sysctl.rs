//! Settings under /proc/sys/net, which every namespace has of its own.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

use crate::netns::Netns;

/// What a host on the wire needs: addresses usable at once, packets taken whichever way they come.
pub const HOST: &[(&str, &str)] = &[
    // Duplicate address detection would keep an IPv6 address tentative for a second or more.
    ("net.ipv6.conf.all.accept_dad", "0"),
    ("net.ipv6.conf.default.accept_dad", "0"),
    ("net.ipv6.conf.default.router_solicitations", "0"),
    // The kernel takes the higher one of `all` and the interface's own; 2 is loose: a VIP's answer may come
    // back through another interface than a strict check would expect.
    ("net.ipv4.conf.all.rp_filter", "2"),
    ("net.ipv4.conf.default.rp_filter", "2"),
    // The kernel limits its ICMP errors by target and in all (icmpv4_global_allow: 50 at once); past that a
    // refused datagram would look like a lost one. Types outside of the mask are not limited: none, and the
    // unused type 0.
    ("net.ipv4.icmp_ratemask", "0"),
    ("net.ipv6.icmp.ratemask", "0"),
];

/// What a node needs on top: it forwards for its pods.
pub const ROUTER: &[(&str, &str)] = &[
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv6.conf.all.forwarding", "1"),
    ("net.ipv6.conf.default.forwarding", "1"),
    // A redirect would teach a host on the wire to bypass the node for a VIP.
    ("net.ipv4.conf.all.send_redirects", "0"),
    ("net.ipv4.conf.default.send_redirects", "0"),
];

/// Where the kernel has br_netfilter, it would show bridged frames to the gateway's IP rules as if they were
/// sent to the gateway.
pub const PLAIN_BRIDGE: &[(&str, &str)] = &[
    ("net.bridge.bridge-nf-call-iptables", "0"),
    ("net.bridge.bridge-nf-call-ip6tables", "0"),
];

/// Writes settings (dotted names, as `sysctl` takes them) in a namespace.
///
/// # Errors
/// Names the setting that could not be written.
pub fn write(namespace: &Netns, settings: &[(&str, &str)]) -> Result<()> {
    namespace.run(|| {
        settings.iter().try_for_each(|(name, value)| {
            fs::write(path(name), value)
                .with_context(|| format!("setting {name}={value} in the namespace of {}", namespace.name()))
        })
    })?
}

/// [`write()`] for settings that depend on what the kernel was built with: those it does not have are left out.
///
/// # Errors
/// Names the setting that could not be written.
pub fn write_where_known(namespace: &Netns, settings: &[(&str, &str)]) -> Result<()> {
    let known = namespace.run(|| {
        settings
            .iter()
            .copied()
            .filter(|(name, _)| path(name).exists())
            .collect::<Vec<_>>()
    })?;
    write(namespace, &known)
}

/// Reads one setting in a namespace, without the newline at its end.
///
/// # Errors
/// When this kernel or this namespace does not have the setting.
pub fn read(namespace: &Netns, name: &str) -> Result<String> {
    let value = namespace.run(|| fs::read_to_string(path(name)))?;
    let value = value.with_context(|| format!("reading {name} in the namespace of {}", namespace.name()))?;
    Ok(value.trim_end().to_owned())
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name.replace('.', "/"))
}

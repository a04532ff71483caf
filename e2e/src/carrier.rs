//! When a link that was set up carries packets.

use std::{
    fs,
    net::Ipv6Addr,
    thread,
    time::{Duration, Instant},
};

use crate::Netns;
use anyhow::{Context, Result, ensure};

/// The kernel looks at a link at once, or once a second when it takes it for unimportant (linkwatch_urgent_event).
const LIMIT: Duration = Duration::from_secs(10);

/// Waits until an interface is up. After `ip link set up` on both ends of a veth pair a worker of the
/// kernel (linkwatch) still has to start the end that came up first; until then it drops what it is to send,
/// and a bridge does not forward to it. The first packet of a test would be lost once in a while.
///
/// # Errors
/// When it is not up after ten seconds.
pub(crate) fn wait(namespace: &Netns, interface: &str) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while !is_up(namespace, interface)? {
        let in_time = Instant::now() < deadline;
        ensure!(
            in_time,
            "{interface} of {} has no carrier after {LIMIT:?}",
            namespace.name()
        );
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Waits until an interface answers who asks for its IPv6 address. It joins the address' solicited-node group in
/// a work item (addrconf_dad_begin), without duplicate address detection too: a question that comes before that
/// is lost and repeated after a second.
///
/// # Errors
/// When it has not joined after ten seconds.
pub(crate) fn wait_for_neighbours(namespace: &Netns, interface: &str, address: Ipv6Addr) -> Result<()> {
    let [.., a, b, c] = address.octets();
    let group = format!("ff0200000000000000000001ff{a:02x}{b:02x}{c:02x}");
    let deadline = Instant::now() + LIMIT;
    namespace.run(|| {
        loop {
            // Not /proc/net: that is the main thread's namespace.
            let groups =
                fs::read_to_string("/proc/thread-self/net/igmp6").context("reading multicast groups")?;
            let mut ours = groups.lines().map(|line| line.split_whitespace().skip(1));
            if ours.any(|mut line| line.next() == Some(interface) && line.next() == Some(&group)) {
                return Ok(());
            }
            let in_time = Instant::now() < deadline;
            ensure!(
                in_time,
                "{interface} of {} did not join {group}",
                namespace.name()
            );
            thread::sleep(Duration::from_micros(200));
        }
    })?
}

/// The operational state, which is what that worker sets. IFF_RUNNING would not do: it also means UNKNOWN, the
/// state of a link that the worker has not looked at yet.
fn is_up(namespace: &Netns, interface: &str) -> Result<bool> {
    let shown = namespace
        .command("ip")
        .args(["-o", "link", "show", "dev", interface])
        .output();
    let shown = shown.context("starting `ip`; is the package iproute2 installed? run e2e/packages.sh")?;
    Ok(String::from_utf8_lossy(&shown.stdout).contains(" state UP "))
}

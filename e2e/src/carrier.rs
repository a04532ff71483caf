//! When a link that was set up carries packets.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};

use crate::Netns;

/// The kernel looks at a link at once, or once a second when it takes it for unimportant (linkwatch_urgent_event).
const LIMIT: Duration = Duration::from_secs(10);

/// Waits until an interface is running. After `ip link set up` on both ends of a veth pair a worker of the
/// kernel (linkwatch) still has to start the end that came up first; until then it drops what it is to send,
/// and a bridge does not forward to it. The first packet of a test would be lost once in a while.
///
/// # Errors
/// When it is not running after ten seconds.
pub(crate) fn wait(namespace: &Netns, interface: &str) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    namespace.run(|| {
        while !is_running(interface)? {
            let in_time = Instant::now() < deadline;
            ensure!(
                in_time,
                "{interface} of {} has no carrier after {LIMIT:?}",
                namespace.name()
            );
            thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    })?
}

/// IFF_RUNNING follows the operational state, which is what that worker sets.
fn is_running(interface: &str) -> Result<bool> {
    let all = getifaddrs().context("listing interfaces")?;
    let ours = all.into_iter().find(|one| one.interface_name == interface);
    Ok(ours.is_some_and(|one| one.flags.contains(InterfaceFlags::IFF_RUNNING)))
}

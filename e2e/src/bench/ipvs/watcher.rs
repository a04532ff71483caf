//! When a change has arrived in IPVS: the destinations of one service, asked for every millisecond.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use pointsman_dataplane::{
    model::Protocol,
    netlink::ipvs::{Ipvs, ServiceKey},
};

use crate::{Netns, NodeNet, bench::interrupt};

/// Between two questions.
pub const PAUSE: Duration = Duration::from_millis(1);

/// Asks a node's IPVS.
#[derive(Debug)]
pub struct Watcher {
    ipvs: Mutex<Ipvs>,
    asked: AtomicU64,
    namespace: Netns,
}

/// What was seen of a change.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When the answer was here that had it.
    pub arrived: Instant,
    /// From one answer to the next, while it was waited for: how late `arrived` may be.
    pub gaps: Vec<Duration>,
}

impl Watcher {
    /// A watcher on this node.
    ///
    /// # Errors
    /// When the kernel has no IPVS.
    pub fn on(node: &NodeNet) -> Result<Self> {
        let ipvs = node.namespace().run(Ipvs::open)??;
        Ok(Self {
            ipvs: Mutex::new(ipvs),
            asked: AtomicU64::new(0),
            namespace: node.namespace().clone(),
        })
    }

    /// How many questions it has asked, each a datagram.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Whether all new connections to a service go to this destination.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn leads_to(&self, vip: SocketAddr, to: SocketAddr) -> Result<bool> {
        let key = ServiceKey::Address(Protocol::Tcp, vip);
        let mut ipvs = self.ipvs.lock().unwrap_or_else(PoisonError::into_inner);
        self.asked.fetch_add(1, Ordering::Relaxed);
        let listed = ipvs.destinations(&key)?;
        // One that is being drained has weight 0.
        let mut takers = listed
            .iter()
            .map(|state| state.destination)
            .filter(|it| it.weight > 0);
        Ok(takers.next().is_some_and(|first| first.address == to) && takers.next().is_none())
    }

    /// Makes a change while the destinations of a service are looked at, and returns what came of both. The change is made once
    /// they were seen as before.
    ///
    /// # Errors
    /// When the change fails, or does not arrive within `limit`.
    pub fn watch<T>(
        &self,
        vip: SocketAddr,
        to: SocketAddr,
        limit: Duration,
        change: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Seen)> {
        ensure!(!self.leads_to(vip, to)?, "{vip} leads to {to} already");
        let given_up = AtomicBool::new(false);
        let (ready, is_ready) = mpsc::channel();
        thread::scope(|scope| {
            let look = || {
                let _ = ready.send(());
                let (started, mut last) = (Instant::now(), Instant::now());
                let mut gaps = Vec::new();
                loop {
                    thread::sleep(PAUSE);
                    let arrived = self.leads_to(vip, to)?;
                    let now = Instant::now();
                    gaps.push(now - last);
                    last = now;
                    if arrived {
                        return Ok(Seen { arrived: now, gaps });
                    }
                    ensure!(!given_up.load(Ordering::Relaxed), "given up");
                    interrupt::check()?;
                    if started.elapsed() > limit {
                        bail!("IPVS did not lead {vip} to {to} within {limit:?}");
                    }
                }
            };
            let seen = scope.spawn(look);
            is_ready.recv().context("the watcher ended")?;
            let changed = change();
            if changed.is_err() {
                given_up.store(true, Ordering::Relaxed);
            }
            let seen = seen.join().map_err(|_| anyhow!("the watcher panicked"))?;
            Ok((changed?, seen?))
        })
    }

    /// How many virtual services and destinations there are, by the text of /proc: no message tells that.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn count(&self) -> Result<(usize, usize)> {
        // Not /proc/net: that is the main thread's namespace.
        let read = || fs::read_to_string("/proc/thread-self/net/ip_vs");
        let text = self.namespace.run(read)?.context("reading IPVS's table")?;
        Ok(count(&text))
    }
}

fn count(text: &str) -> (usize, usize) {
    // Three lines of headings.
    let (mut services, mut destinations) = (0, 0);
    for line in text.lines().skip(3) {
        match line.starts_with("  ->") {
            true => destinations += 1,
            false => services += 1,
        }
    }
    (services, destinations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_and_destinations_are_told_apart() {
        let text = "IP Virtual Server version 1.2.1 (size=4096)\n\
            Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
            TCP  0A600001:0050 rr \n  -> 0AF40102:1F90      Masq    1      0          0         \n\
            \x20 -> 0AF40202:1F90      Masq    1      0          0         \n\
            TCP  [fd00:0010:0096:0000:0000:0000:0000:0001]:0050 rr \n";
        assert_eq!(count(text), (2, 2));
        assert_eq!(count(""), (0, 0));
    }
}

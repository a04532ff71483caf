//! What packets feel: how long a new connection takes through a Service's address, and how many there can be.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};

use super::{interrupt, observer::first_byte};
use crate::{Netns, traffic::connect};

/// Long enough for the repetition of a lost SYN to be seen as what it is: a second.
const LIMIT: Duration = Duration::from_secs(5);

/// Opens `rounds` connections to each target, in turns, and returns how long each took in microseconds, by target.
/// Measured is the time of connect(2) from before the SYN to after the SYN-ACK: on one machine both pass all rules
/// before the system call would sleep, so that no program's wake-up is in it.
///
/// # Errors
/// When a connection fails.
pub fn first_packets(pod: &Netns, targets: &[SocketAddr], rounds: usize) -> Result<Vec<Vec<f64>>> {
    let targets = targets.to_vec();
    pod.run(move || {
        let mut times = vec![Vec::with_capacity(rounds); targets.len()];
        for round in 0..rounds + 1 {
            interrupt::check()?;
            for (target, times) in targets.iter().zip(&mut times) {
                let began = Instant::now();
                let connected = connect(None, *target, LIMIT);
                let took = began.elapsed();
                let mut connection = connected.with_context(|| format!("connecting to {target}"))?;
                first_byte(&mut connection, LIMIT).with_context(|| format!("asking {target}"))?;
                // The first round finds neighbours and routes.
                if round > 0 {
                    times.push(took.as_secs_f64() * 1e6);
                }
            }
        }
        Ok(times)
    })?
}

/// What came of connections, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Those that were answered, per second.
    pub per_second: f64,
    /// Those that were not.
    pub failed: u64,
}

/// New connections per second: two clients (two processors) that open a connection, read the answer, close it and
/// go on to the next target, for some time. Servers and clients share the processors, so it is a figure to compare
/// with the other side's, not a capacity.
///
/// # Errors
/// When the pod's namespace cannot be entered.
pub fn connections_per_second(pod: &Netns, targets: &[SocketAddr], time: Duration) -> Result<Rate> {
    const CLIENTS: usize = 2;
    let (count, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    let began = Instant::now();
    let client = |offset: usize| -> Result<()> {
        pod.enter()?;
        for target in targets.iter().cycle().skip(offset * targets.len() / CLIENTS) {
            if began.elapsed() >= time {
                break;
            }
            let answered =
                connect(None, *target, LIMIT).and_then(|mut connection| first_byte(&mut connection, LIMIT));
            let counter = if answered.is_ok() { &count } else { &failed };
            counter.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| scope.spawn(move || client(number)))
            .collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().map_err(|_| anyhow!("a client panicked")).flatten())
    })?;
    Ok(Rate {
        per_second: count.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64(),
        failed: failed.load(Ordering::Relaxed),
    })
}

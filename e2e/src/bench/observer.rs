//! When a change has arrived in the kernel, seen by packets: see [`crate::bench`] for resolution and error.

use std::{
    io::{self, Read as _},
    net::{SocketAddr, TcpStream},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, bail};
use socket2::SockRef;

use super::{backends::Backend, interrupt};
use crate::{Netns, traffic::connect};

/// How long one connection may take: many times what it takes on a busy machine. A lost SYN is not waited for (its
/// repetition comes after a second).
const ATTEMPT: Duration = Duration::from_millis(50);
/// Between two connections.
const PAUSE: Duration = Duration::from_millis(1);
/// After the first connection to the new server these many must get it, too.
const CONFIRM: u32 = 20;

/// A client in a pod on the node that is measured.
#[derive(Clone, Debug)]
pub struct Observer {
    pod: Netns,
}

/// What the observer saw of a change.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The change has arrived: the first connection to the new server was open, and none after it got the old one.
    pub arrived: Instant,
    /// Connections that got the old server after one had got the new one.
    pub old_after_new: u64,
    /// Connections that got no server.
    pub lost: u64,
}

impl Observer {
    /// An observer in this pod's namespace.
    #[must_use]
    pub fn new(pod: &Netns) -> Self {
        Self { pod: pod.clone() }
    }

    /// The namespace that it sends from.
    #[must_use]
    pub fn namespace(&self) -> &Netns {
        &self.pod
    }

    /// Makes a change while connections are made, and returns what came of both. The change is made once a
    /// connection got the server from before it.
    ///
    /// # Errors
    /// When the change fails, or does not arrive within `limit`.
    pub fn watch<T>(
        &self,
        vip: SocketAddr,
        to: Backend,
        limit: Duration,
        change: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Seen)> {
        let given_up = AtomicBool::new(false);
        let (ready, is_ready) = mpsc::channel();
        thread::scope(|scope| {
            let look = || {
                self.pod.enter()?;
                look(vip, to, limit, &given_up, &ready)
            };
            let seen = scope.spawn(look);
            // An observer that ends before it is ready has an error, which is told below.
            let changed = match is_ready.recv_timeout(limit) {
                Ok(()) => Some(change()),
                Err(_) => None,
            };
            if !matches!(changed, Some(Ok(_))) {
                given_up.store(true, Ordering::Relaxed);
            }
            let seen = seen.join().map_err(|_| anyhow!("the observer panicked"))?;
            match changed {
                Some(changed) => Ok((changed?, seen?)),
                None => Err(seen
                    .err()
                    .unwrap_or_else(|| anyhow!("no connection through {vip} got the server from before"))),
            }
        })
    }

    /// Waits until a connection through `vip` gets this server, asking every millisecond; `meanwhile` is called
    /// between two attempts. Returns when that connection was open.
    ///
    /// # Errors
    /// When `limit` passes first, or what `meanwhile` fails with.
    pub fn wait_for(
        &self,
        vip: SocketAddr,
        server: Backend,
        limit: Duration,
        mut meanwhile: impl FnMut() -> Result<()> + Send,
    ) -> Result<Instant> {
        self.pod.run(move || {
            let started = Instant::now();
            loop {
                match ask(vip) {
                    Ok((byte, at)) if byte == server.byte() => return Ok(at),
                    _ if started.elapsed() > limit => {
                        bail!("no connection through {vip} got {server:?} within {limit:?}")
                    }
                    _ => {}
                }
                meanwhile()?;
                interrupt::check()?;
                thread::sleep(pause(started.elapsed()));
            }
        })?
    }
}

fn look(
    vip: SocketAddr,
    to: Backend,
    limit: Duration,
    given_up: &AtomicBool,
    ready: &Sender<()>,
) -> Result<Seen> {
    let started = Instant::now();
    let (mut lost, mut old_after_new, mut confirmed) = (0, 0, 0);
    let (mut arrived, mut last_problem) = (None, None);
    let mut is_ready = false;
    loop {
        match ask(vip) {
            Ok((byte, at)) if byte == to.byte() => {
                let arrived = *arrived.get_or_insert(at);
                confirmed += 1;
                if confirmed > CONFIRM {
                    return Ok(Seen {
                        arrived,
                        old_after_new,
                        lost,
                    });
                }
            }
            Ok(_) => {
                old_after_new += u64::from(arrived.take().is_some());
                confirmed = 0;
                if !is_ready {
                    is_ready = true;
                    // Nobody listens only when the bench has given up.
                    let _ = ready.send(());
                }
            }
            Err(error) => {
                lost += 1;
                last_problem = Some(error);
            }
        }
        if given_up.load(Ordering::Relaxed) {
            bail!("given up");
        }
        interrupt::check()?;
        if started.elapsed() > limit {
            let problem = last_problem.map_or_else(|| "none".to_owned(), |error| error.to_string());
            bail!(
                "the change of {vip} to {to:?} did not arrive within {limit:?}; {lost} connections got no server (the \
                 last error: {problem})"
            );
        }
        let wait = match arrived {
            None => pause(started.elapsed()),
            Some(_) => PAUSE,
        };
        thread::sleep(wait);
    }
}

/// A connection costs about 0.1 ms of a processor: at one a millisecond that would be a tenth of a processor, which
/// a subject that needs seconds could use. So it is half a percent of the time waited, once that is more.
fn pause(waited: Duration) -> Duration {
    PAUSE.max(waited / 200)
}

/// Opens a connection and asks who has it. Returns the answer, and when the connection was open: after that only
/// programs are waited for.
fn ask(at: SocketAddr) -> io::Result<(u8, Instant)> {
    let mut connection = connect(None, at, ATTEMPT)?;
    let open = Instant::now();
    let byte = first_byte(&mut connection, Duration::from_secs(2))?;
    Ok((byte, open))
}

/// Reads the server's byte and prepares the connection to be closed with a reset, which leaves no TIME_WAIT behind.
pub(super) fn first_byte(connection: &mut TcpStream, limit: Duration) -> io::Result<u8> {
    connection.set_read_timeout(Some(limit))?;
    let mut byte = [0];
    connection.read_exact(&mut byte)?;
    SockRef::from(&*connection).set_linger(Some(Duration::ZERO))?;
    Ok(byte[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_with_the_wait() {
        assert_eq!(pause(Duration::ZERO), PAUSE);
        assert_eq!(pause(Duration::from_millis(100)), PAUSE);
        assert_eq!(pause(Duration::from_secs(2)), Duration::from_millis(10));
    }
}

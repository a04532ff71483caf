//! A client in a namespace.

use std::{
    io::{self, BufRead, BufReader},
    net::{SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    Flood, Held, Outcome, Protocol, Tally, UdpFlow,
    socket::{connect, datagrams},
};
use crate::Netns;

/// How long one of a row of quick attempts may take. Longer than any answer in a network of namespaces takes,
/// also on a busy machine; short, because a lost packet hides the moment when the next would have come through.
const QUICK: Duration = Duration::from_millis(20);

/// Between two quick attempts, so that the client does not take the processor from what it waits for.
const PAUSE: Duration = Duration::from_millis(1);

/// Makes connections and sends datagrams from inside a namespace.
#[derive(Clone, Debug)]
pub struct Client {
    namespace: Netns,
    timeout: Duration,
    source: Option<SocketAddr>,
}

impl Client {
    /// A client with a limit of one second per attempt.
    #[must_use]
    pub fn of(namespace: &Netns) -> Self {
        Self {
            namespace: namespace.clone(),
            timeout: Duration::from_secs(1),
            source: None,
        }
    }

    /// The same client with another limit per attempt.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The same client with a source address and port of its own; port 0 leaves the port free.
    #[must_use]
    pub fn from(mut self, source: SocketAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// One TCP connection: connect, read the answer, close.
    #[must_use]
    pub fn tcp(&self, target: SocketAddr) -> Outcome {
        self.ask(Protocol::Tcp, target)
    }

    /// One UDP datagram and its answer.
    #[must_use]
    pub fn udp(&self, target: SocketAddr) -> Outcome {
        self.ask(Protocol::Udp, target)
    }

    /// One attempt with either protocol.
    #[must_use]
    pub fn ask(&self, protocol: Protocol, target: SocketAddr) -> Outcome {
        let inside = self
            .namespace
            .run(|| self.attempt(protocol, target, self.timeout));
        inside.unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")))
    }

    /// `count` attempts one after the other.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn many(&self, protocol: Protocol, target: SocketAddr, count: usize) -> Result<Tally> {
        self.namespace.run(|| {
            let mut tally = Tally::default();
            (0..count).for_each(|_| tally.add(&self.attempt(protocol, target, self.timeout)));
            tally
        })
    }

    /// Opens a TCP connection that is held until dropped.
    ///
    /// # Errors
    /// When no server answers on it: the outcome in words.
    pub fn open(&self, target: SocketAddr) -> Result<Held> {
        let stream = self
            .namespace
            .run(|| connect(self.source, target, self.timeout))?;
        let held = stream.and_then(|stream| Held::start(stream, self.timeout));
        held.map_err(|error| anyhow::anyhow!("{}", Outcome::from(error)))
            .with_context(|| format!("opening a connection from {} to {target}", self.namespace.name()))
    }

    /// Opens a UDP socket that keeps its source port, as a client does whose conntrack entry lives on.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn udp_flow(&self, target: SocketAddr) -> Result<UdpFlow> {
        let socket = self
            .namespace
            .run(|| datagrams(self.source, target, self.timeout))?;
        Ok(UdpFlow::new(
            socket.with_context(|| format!("a UDP socket to {target}"))?,
        ))
    }

    /// Makes attempts continually, about a thousand a second, from a thread until stopped.
    #[must_use]
    pub fn flood(&self, protocol: Protocol, target: SocketAddr) -> Flood {
        let client = self.clone();
        let attempt = move || client.attempt(protocol, target, client.timeout);
        let what = format!("{protocol:?} from {} to {target}", self.namespace.name());
        Flood::start(what, self.namespace.clone(), attempt)
    }

    /// Makes quick attempts, each a fresh connection, until one's outcome satisfies `wanted`. Returns the time
    /// from the call to the moment when that attempt had ended; about 1 ms fine, 20 ms where packets get lost.
    ///
    /// # Errors
    /// When `limit` passes first: with the count of what came instead.
    pub fn until(
        &self,
        protocol: Protocol,
        target: SocketAddr,
        limit: Duration,
        wanted: impl Fn(&Outcome) -> bool + Send,
    ) -> Result<Duration> {
        let started = Instant::now();
        self.namespace.run(move || {
            let mut tally = Tally::default();
            loop {
                let outcome = self.attempt(protocol, target, QUICK.min(self.timeout));
                if wanted(&outcome) {
                    return Ok(started.elapsed());
                }
                tally.add(&outcome);
                if started.elapsed() > limit {
                    bail!(
                        "{protocol:?} from {} to {target} was not as wanted within {limit:?}: {tally}",
                        self.namespace.name()
                    );
                }
                thread::sleep(PAUSE);
            }
        })?
    }

    /// [`Client::until`] one of the named servers answers.
    ///
    /// # Errors
    /// When `limit` passes first.
    pub fn until_answered_by(
        &self,
        protocol: Protocol,
        target: SocketAddr,
        servers: &[&str],
        limit: Duration,
    ) -> Result<Duration> {
        self.until(protocol, target, limit, |outcome| {
            outcome.by().is_some_and(|by| servers.contains(&by))
        })
        .with_context(|| format!("waiting for an answer by {}", servers.join(" or ")))
    }

    /// One attempt, on a thread that is in the namespace already.
    fn attempt(&self, protocol: Protocol, target: SocketAddr, timeout: Duration) -> Outcome {
        let line = match protocol {
            Protocol::Tcp => self.tcp_line(target, timeout),
            Protocol::Udp => datagrams(self.source, target, timeout).and_then(|socket| udp_line(&socket)),
        };
        line.map_or_else(Outcome::from, |line| Outcome::from_line(&line))
    }

    fn tcp_line(&self, target: SocketAddr, timeout: Duration) -> io::Result<String> {
        let stream = connect(self.source, target, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line)?;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // Closing with a reset leaves no TIME_WAIT behind: thousands of attempts would use up the ports.
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        Ok(line)
    }
}

/// Sends one datagram and reads the answer to it.
pub(super) fn udp_line(socket: &UdpSocket) -> io::Result<String> {
    let mut answer = [0; 2048];
    socket.send(b"?\n")?;
    // With a time limit on the socket the kernel does not go on by itself after a signal (signal(7)).
    let length = loop {
        match socket.recv(&mut answer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => break received?,
        }
    };
    Ok(String::from_utf8_lossy(answer.get(..length).unwrap_or_default()).into_owned())
}

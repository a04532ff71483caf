//! Connections and flows that last.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{Answer, Outcome, client::udp_line};

/// An open TCP connection to a server, closed when dropped.
#[derive(Debug)]
pub struct Held {
    lines: BufReader<TcpStream>,
    answer: Answer,
    pings: u64,
}

impl Held {
    pub(super) fn start(stream: TcpStream, timeout: Duration) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        let mut lines = BufReader::new(stream);
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match Outcome::from_line(&line) {
            Outcome::Answered(answer) => Ok(Self {
                lines,
                answer,
                pings: 0,
            }),
            other => Err(io::Error::other(other.to_string())),
        }
    }

    /// The server at the other end.
    #[must_use]
    pub fn by(&self) -> &str {
        &self.answer.by
    }

    /// This end's address as the server sees it.
    #[must_use]
    pub fn seen_source(&self) -> SocketAddr {
        self.answer.seen_source
    }

    /// Sends a line and waits for its echo; returns how long that took.
    ///
    /// # Errors
    /// When the connection no longer lives.
    pub fn ping(&mut self) -> Result<Duration> {
        let started = Instant::now();
        self.pings += 1;
        let sent = format!("ping {}\n", self.pings);
        let mut echo = String::new();
        let context = || format!("the connection to {} does not live any more", self.answer.by);
        self.lines
            .get_mut()
            .write_all(sent.as_bytes())
            .with_context(context)?;
        self.lines.read_line(&mut echo).with_context(context)?;
        ensure!(echo == sent, "{}: sent {sent:?} and got {echo:?}", context());
        Ok(started.elapsed())
    }
}

/// A UDP socket that keeps its source port between datagrams.
#[derive(Debug)]
pub struct UdpFlow {
    socket: UdpSocket,
}

impl UdpFlow {
    pub(super) fn new(socket: UdpSocket) -> Self {
        Self { socket }
    }

    /// Sends a datagram and waits for its answer.
    #[must_use]
    pub fn ask(&self) -> Outcome {
        udp_line(&self.socket).map_or_else(Outcome::from, |line| Outcome::from_line(&line))
    }
}

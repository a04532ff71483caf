//! Many attempts at once from one namespace: those that get no answer are waited for together.

use std::{
    io::{self, Read},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use anyhow::Result;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{SockRef, Type};

use super::{Outcome, Protocol, socket};
use crate::Netns;

/// One attempt of a volley.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shot {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The source address; none leaves it to the kernel. The port is always a fresh one.
    pub source: Option<IpAddr>,
    /// The address and port.
    pub target: SocketAddr,
}

/// Makes all attempts at once, each from a socket of its own. Ends when all have an outcome, or when nothing came
/// for as long as `silence`: what has none then has timed out. The outcomes are in the order of the shots.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn volley(namespace: &Netns, shots: &[Shot], silence: Duration) -> Result<Vec<Outcome>> {
    namespace.run(|| fire(shots, silence))
}

enum Waiting {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

fn fire(shots: &[Shot], silence: Duration) -> Vec<Outcome> {
    let mut waiting: Vec<(usize, Waiting)> = Vec::new();
    let mut outcomes = vec![Outcome::TimedOut; shots.len()];
    for (number, shot) in shots.iter().enumerate() {
        match begin(shot) {
            Ok(begun) => waiting.push((number, begun)),
            Err(error) => outcomes[number] = error.into(),
        }
    }
    let mut last = Instant::now();
    while !waiting.is_empty() {
        let Some(left) = silence.checked_sub(last.elapsed()) else {
            break;
        };
        let readable = PollFlags::POLLIN;
        let mut polled: Vec<_> = waiting
            .iter()
            .map(|(_, it)| PollFd::new(it.as_fd(), readable))
            .collect();
        let limit = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        // A poll that fails, or ends for a signal, is tried again until the silence is over.
        if poll(&mut polled, limit).is_err() {
            continue;
        }
        // Errors and hang-ups are told without being asked for.
        let told: Vec<bool> = polled.iter().map(|it| it.any() == Some(true)).collect();
        let mut told = told.into_iter();
        waiting.retain_mut(|(number, it)| {
            if !told.next().unwrap_or(false) {
                return true;
            }
            last = Instant::now();
            outcomes[*number] = it.outcome();
            false
        });
    }
    outcomes
}

fn begin(shot: &Shot) -> io::Result<Waiting> {
    let (source, target) = (shot.source, shot.target);
    Ok(match shot.protocol {
        Protocol::Tcp => {
            let socket = socket::fresh(source, target, Type::STREAM)?;
            Waiting::Tcp(socket::begin_connect(socket, target)?.into())
        }
        Protocol::Udp => {
            let socket = socket::fresh_datagrams(source, target, Duration::from_secs(1))?;
            socket.set_nonblocking(true)?;
            match socket.send(b"?\n") {
                // A rule of this namespace's own output took it; whether it was refused or dropped, the socket will
                // be told or not, as with every other datagram.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                sent => {
                    sent?;
                }
            }
            Waiting::Udp(socket)
        }
    })
}

impl Waiting {
    /// What came of a socket that has something to tell. A server's line comes in one piece.
    fn outcome(&mut self) -> Outcome {
        let mut line = [0; 256];
        let read = match self {
            Self::Tcp(stream) => {
                let read = stream.take_error().and_then(|error| match error {
                    Some(error) => Err(error),
                    None => stream.read(&mut line),
                });
                // Closing with a reset leaves no TIME_WAIT behind: thousands of attempts would use up the ports.
                let _ = SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
                read
            }
            Self::Udp(socket) => socket.recv(&mut line),
        };
        match read {
            Ok(0) => Outcome::Reset,
            Ok(length) => {
                Outcome::from_line(&String::from_utf8_lossy(line.get(..length).unwrap_or_default()))
            }
            Err(error) => error.into(),
        }
    }
}

impl AsFd for Waiting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Udp(socket) => socket.as_fd(),
        }
    }
}

//! Sockets that hear every ICMP error. Both functions are for threads that are in the namespace.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsFd,
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{setsockopt, sockopt},
};
use socket2::{Domain, Socket, Type};

/// Connects within `timeout`, from `source` if there is one.
pub fn connect(source: Option<SocketAddr>, target: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let socket = begin_connect(bound(source, target, Type::STREAM)?, target)?;
    let mut wanted = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    let begin = Instant::now();
    loop {
        let left = timeout.saturating_sub(begin.elapsed());
        match poll(
            &mut wanted,
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
        ) {
            Ok(0) => return Err(ErrorKind::TimedOut.into()),
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match socket.take_error()? {
        Some(error) => Err(error),
        None => {
            socket.set_nonblocking(false)?;
            Ok(socket.into())
        }
    }
}

/// Begins to connect; the socket does not block from then on.
pub(super) fn begin_connect(socket: Socket, target: SocketAddr) -> io::Result<Socket> {
    socket.set_nonblocking(true)?;
    match socket.connect(&target.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => return Err(error),
        _ => {}
    }
    // Between namespaces a SYN is answered while connect() still owns the socket. An ICMP error that arrives
    // then is kept as a soft one only (tcp_v4_err, tcp_v6_err) and connect() goes on to wait for the next SYN's,
    // a second later. SO_ERROR tells the soft error too.
    match socket.take_error()? {
        Some(error) => Err(error),
        None => Ok(socket),
    }
}

/// A UDP socket that sends to `target` and waits `timeout` for an answer.
pub(super) fn datagrams(
    source: Option<SocketAddr>,
    target: SocketAddr,
    timeout: Duration,
) -> io::Result<UdpSocket> {
    let socket = match source {
        Some(_) => bound(source, target, Type::DGRAM)?,
        None => fresh(None, target, Type::DGRAM)?,
    };
    prepare(socket, target, timeout)
}

/// A UDP socket of [`fresh`].
pub(super) fn fresh_datagrams(
    source: Option<IpAddr>,
    target: SocketAddr,
    timeout: Duration,
) -> io::Result<UdpSocket> {
    prepare(fresh(source, target, Type::DGRAM)?, target, timeout)
}

fn prepare(socket: Socket, target: SocketAddr, timeout: Duration) -> io::Result<UdpSocket> {
    // Without it UDP hides the errors that might pass, network unreachable among them (udp_err in the kernel).
    match target {
        SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?,
        SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?,
    }
    // Only a connected socket is told about ICMP port unreachable.
    socket.connect(&target.into())?;
    socket.set_read_timeout(Some(timeout))?;
    Ok(socket.into())
}

/// A socket with the next source port. The kernel would draw ports by lot, and now and then two attempts would draw the
/// same one: the second belongs to the conntrack entry of the first, for as long as this lives, and goes where that went,
/// whatever the rules say by then.
pub(super) fn fresh(source: Option<IpAddr>, target: SocketAddr, kind: Type) -> io::Result<Socket> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let source = source.unwrap_or(any);
    let socket = Socket::new(Domain::for_address(target), kind, None)?;
    let mut attempts = 0;
    loop {
        let port = 16_384 + NEXT.fetch_add(1, Ordering::Relaxed) % 49_152;
        match socket.bind(&SocketAddr::from((source, port)).into()) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && attempts < 100 => attempts += 1,
            other => return other.map(|()| socket),
        }
    }
}

fn bound(source: Option<SocketAddr>, target: SocketAddr, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(target), kind, None)?;
    if let Some(source) = source {
        socket.set_reuse_address(true)?;
        socket.bind(&source.into())?;
    }
    Ok(socket)
}

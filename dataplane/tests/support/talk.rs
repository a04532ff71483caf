//! Servers that say who they are and whom they see, and clients that ask.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc::{EALREADY, EINPROGRESS, EISCONN};
use pointsman_dataplane::model::Protocol;
use socket2::{Domain, Socket, Type};

use super::namespace::Namespace;

/// Who answered, and whose address it saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Answer {
    pub who: IpAddr,
    pub saw: IpAddr,
}

const PATIENCE: Duration = Duration::from_secs(3);

/// Serves TCP and UDP at an address, until the test's process ends.
pub fn serve(namespace: &Namespace, at: SocketAddr) {
    let (listener, socket) = namespace.run(|| (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap()));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || hold(at, stream));
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{} {}\n", at.ip(), from.ip()).as_bytes(), from);
        }
    });
}

/// Answers every line, so that a connection can be asked again later.
fn hold(at: SocketAddr, stream: TcpStream) -> io::Result<()> {
    let peer = stream.peer_addr()?;
    let mut writer = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        line?;
        writeln!(writer, "{} {}", at.ip(), peer.ip())?;
    }
    Ok(())
}

fn parse(line: &str) -> Answer {
    let (who, saw) = line.trim().split_once(' ').unwrap();
    Answer {
        who: who.parse().unwrap(),
        saw: saw.parse().unwrap(),
    }
}

/// A TCP connection that stays open.
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    pub fn open(from: &Namespace, to: SocketAddr) -> io::Result<Self> {
        Self::open_within(PATIENCE, from, to)
    }

    fn open_within(limit: Duration, from: &Namespace, to: SocketAddr) -> io::Result<Self> {
        let stream = from.run(|| connect(to, limit))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    pub fn ask(&mut self) -> io::Result<Answer> {
        self.0.get_mut().write_all(b"?\n")?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(parse(&line))
    }
}

/// Connects, and hears it when it is refused. Between namespaces a SYN is answered while connect() still owns the
/// socket; an ICMP error that arrives then is only kept as a soft one (`tcp_v4_err`, `tcp_v6_err`), and connect() would
/// wait for the answer to the next SYN, a second later. SO_ERROR tells the soft error.
fn connect(to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    let begin = Instant::now();
    // A second connect() tells how the first went; while it lasts, EALREADY.
    while let Err(error) = socket.connect(&to.into()) {
        if let Some(soft) = socket.take_error()? {
            return Err(soft);
        }
        match error.raw_os_error() {
            Some(EISCONN) => break,
            Some(EINPROGRESS | EALREADY) if begin.elapsed() < limit => {
                thread::sleep(Duration::from_micros(200));
            }
            Some(EINPROGRESS | EALREADY) => return Err(io::ErrorKind::TimedOut.into()),
            _ => return Err(error),
        }
    }
    socket.set_nonblocking(false)?;
    Ok(socket.into())
}

/// One question over a new connection, or from a new UDP port.
pub fn ask(from: &Namespace, protocol: Protocol, to: SocketAddr) -> io::Result<Answer> {
    match protocol {
        Protocol::Udp => {
            let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
            let socket = from.run(|| UdpSocket::bind(any))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(to)?;
            socket.send(b"?")?;
            let mut buffer = [0; 128];
            let read = socket.recv(&mut buffer)?;
            Ok(parse(std::str::from_utf8(&buffer[..read]).unwrap()))
        }
        _ => Connection::open(from, to)?.ask(),
    }
}

/// How asking ended: who answered, `refused`, or the kind of error.
pub fn outcome(from: &Namespace, protocol: Protocol, to: SocketAddr) -> String {
    match ask(from, protocol, to) {
        Ok(_) => "answered".to_owned(),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => "refused".to_owned(),
        Err(error) => format!("{:?}", error.kind()),
    }
}

/// Fails when somebody answers a TCP connection.
pub fn nobody_answers(from: &Namespace, to: SocketAddr) {
    let connection = Connection::open_within(Duration::from_millis(500), from, to);
    assert!(connection.is_err(), "{to} takes connections");
}

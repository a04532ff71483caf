//! Servers that say who they are and whom they see, and clients that ask.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc::{EALREADY, EINPROGRESS, EISCONN};
use pointsman_dataplane::model::Protocol;
use socket2::{Domain, SockRef, Socket, Type};

use super::namespace::Namespace;
use super::sctp;

/// Who answered, and whose address it saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Answer {
    pub who: IpAddr,
    pub port: u16,
    pub saw: IpAddr,
}

/// How asking once ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    Answered(Answer),
    Refused,
    Silence,
    Failed(String),
}

const PATIENCE: Duration = Duration::from_secs(3);

/// Receives a datagram. With a time limit on its socket the kernel does not go on by itself after a signal, one of a
/// debugger or of the kernel's own among them (signal(7)).
pub fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match socket.recv(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            received => return received,
        }
    }
}

/// Serves TCP and UDP at an address, until the test's process ends.
pub fn serve(namespace: &Namespace, at: SocketAddr) {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        serve_one(namespace, protocol, at);
    }
}

/// Serves one protocol at an address, until the test's process ends.
pub fn serve_one(namespace: &Namespace, protocol: Protocol, at: SocketAddr) {
    match protocol {
        Protocol::Tcp => {
            let listener = namespace.run(|| TcpListener::bind(at)).unwrap();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    thread::spawn(move || hold(at, stream));
                }
            });
        }
        Protocol::Udp => {
            let socket = namespace.run(|| UdpSocket::bind(at)).unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(said(at, from).as_bytes(), from);
                }
            });
        }
        Protocol::Sctp => sctp::serve(namespace, at.ip()),
    }
}

fn said(at: SocketAddr, peer: SocketAddr) -> String {
    format!("{} {} {}\n", at.ip(), at.port(), peer.ip())
}

/// Answers every line, so that a connection can be asked again later.
fn hold(at: SocketAddr, stream: TcpStream) -> io::Result<()> {
    let peer = stream.peer_addr()?;
    let mut writer = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        line?;
        writer.write_all(said(at, peer).as_bytes())?;
    }
    Ok(())
}

fn parse(line: &str) -> Answer {
    let [who, port, saw] = line.split_whitespace().collect::<Vec<_>>()[..] else {
        panic!("a server said {line:?}");
    };
    Answer {
        who: who.parse().unwrap(),
        port: port.parse().unwrap(),
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
        let socket = from.run(|| Socket::new(Domain::for_address(to), Type::STREAM, None))?;
        Self::begin(socket, to, limit)
    }

    fn begin(socket: Socket, to: SocketAddr, limit: Duration) -> io::Result<Self> {
        let stream = connect(socket, to, limit)?;
        stream.set_read_timeout(Some(limit.max(PATIENCE)))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// A connection that somebody else made.
    pub fn of(stream: TcpStream) -> Self {
        Self(BufReader::new(stream))
    }

    /// Ends it by a reset, which is forgotten sooner than an end of both sides.
    pub fn reset(self) {
        SockRef::from(self.0.get_ref())
            .set_linger(Some(Duration::ZERO))
            .unwrap();
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
fn connect(socket: Socket, to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    socket.set_nonblocking(true)?;
    let begin = Instant::now();
    let mut pause = Duration::from_micros(100);
    // A second connect() tells how the first went; while it lasts, EALREADY.
    while let Err(error) = socket.connect(&to.into()) {
        if let Some(soft) = socket.take_error()? {
            return Err(soft);
        }
        match error.raw_os_error() {
            Some(EISCONN) => break,
            Some(EINPROGRESS | EALREADY) if begin.elapsed() < limit => {
                thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(4));
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
            let read = receive(&socket, &mut buffer)?;
            Ok(parse(std::str::from_utf8(&buffer[..read]).unwrap()))
        }
        _ => Connection::open(from, to)?.ask(),
    }
}

/// Asks once from this address and port, on a thread that is in the right namespace. What is not answered within
/// `patience` is silence.
pub fn knock(protocol: Protocol, from: SocketAddr, to: SocketAddr, patience: Duration) -> Ending {
    let asked = match protocol {
        Protocol::Tcp => knock_tcp(from, to, patience),
        Protocol::Udp => knock_udp(from, to, patience),
        Protocol::Sctp => sctp::knock(from, to, patience),
    };
    match asked {
        Ok(answer) => Ending::Answered(answer),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => Ending::Refused,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Ending::Silence,
            _ => Ending::Failed(error.to_string()),
        },
    }
}

fn knock_tcp(from: SocketAddr, to: SocketAddr, patience: Duration) -> io::Result<Answer> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind(&from.into())?;
    Connection::begin(socket, to, patience)?.ask()
}

fn knock_udp(from: SocketAddr, to: SocketAddr, patience: Duration) -> io::Result<Answer> {
    let socket = UdpSocket::bind(from)?;
    socket.set_read_timeout(Some(patience))?;
    socket.connect(to)?;
    match socket.send(b"?") {
        // The kernel tells a sender of its own that its datagram was dropped, also when it is refused; the ICMP message
        // comes after it.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => (),
        sent => {
            sent?;
        }
    }
    let mut buffer = [0; 128];
    let read = receive(&socket, &mut buffer)?;
    Ok(parse(std::str::from_utf8(&buffer[..read]).unwrap()))
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

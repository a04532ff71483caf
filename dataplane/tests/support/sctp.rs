//! SCTP without SCTP sockets, which not every kernel has: the first packet of an association, sent and received through
//! raw IP sockets. Conntrack and NAT of the kernel between them treat it as any other.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc::{IPPROTO_SCTP, SOCK_RAW};
use socket2::{Domain, Protocol, Socket, Type};

use super::namespace::Namespace;
use super::talk::Answer;

/// Who received the INIT with this tag. Both ends are in this process.
static RECEIVED: LazyLock<Mutex<HashMap<u32, Answer>>> = LazyLock::new(Mutex::default);

/// One at a time: a raw socket hears of every refusal between two addresses, whatever the ports.
static TURN: Mutex<()> = Mutex::new(());

static TAG: AtomicU32 = AtomicU32::new(1);

const INIT: u8 = 1;

fn raw(address: IpAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(SocketAddr::new(address, 0));
    let socket = Socket::new(domain, Type::from(SOCK_RAW), Some(Protocol::from(IPPROTO_SCTP)))?;
    socket.bind(&SocketAddr::new(address, 0).into())?;
    Ok(socket)
}

/// Notes every INIT that arrives at an address, whatever its port, until the test's process ends. The kernel's own
/// answer (ICMP protocol unreachable) is not sent where a raw socket takes a packet.
pub fn serve(namespace: &Namespace, at: IpAddr) {
    // Only the descriptor matters: std's receiving is the same for all sockets of datagrams.
    let socket: UdpSocket = namespace.run(|| raw(at)).unwrap().into();
    thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            // Only an IPv4 raw socket gets the IP header.
            let header = if at.is_ipv4() {
                usize::from(buffer[0] & 0xf) * 4
            } else {
                0
            };
            let from = from.ip();
            if let Some((tag, port)) = buffer.get(header..length).and_then(init_of) {
                let answer = Answer {
                    who: at,
                    port,
                    saw: from,
                };
                RECEIVED.lock().unwrap().insert(tag, answer);
            }
        }
    });
}

/// Sends one INIT and waits for it to be received or refused.
pub fn knock(from: SocketAddr, to: SocketAddr, patience: Duration) -> io::Result<Answer> {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let socket = raw(from.ip())?;
    socket.connect(&SocketAddr::new(to.ip(), 0).into())?;
    let tag = TAG.fetch_add(1, Ordering::Relaxed);
    match socket.send(&init(from.port(), to.port(), tag)) {
        // As with UDP: dropped or refused, which the ICMP message tells.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => (),
        sent => {
            sent?;
        }
    }
    let begin = Instant::now();
    let mut pause = Duration::from_micros(100);
    while begin.elapsed() < patience {
        if let Some(answer) = RECEIVED.lock().unwrap().remove(&tag) {
            return Ok(answer);
        }
        if let Some(error) = socket.take_error()? {
            return Err(error);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(4));
    }
    Err(ErrorKind::TimedOut.into())
}

/// A packet with an INIT chunk (RFC 9260, 3.3.2).
fn init(from: u16, to: u16, tag: u32) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(from.to_be_bytes());
    packet.extend(to.to_be_bytes());
    packet.extend([0; 8]); // verification tag and checksum
    packet.extend([INIT, 0, 0, 20]);
    packet.extend(tag.to_be_bytes());
    packet.extend(65_536_u32.to_be_bytes()); // receive window
    packet.extend([0, 1, 0, 1]); // streams out and in
    packet.extend(tag.to_be_bytes()); // first TSN
    let checksum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&checksum);
    packet
}

/// Tag and destination port of an INIT whose checksum is right.
fn init_of(packet: &[u8]) -> Option<(u32, u16)> {
    if packet.len() < 32 || packet[12] != INIT {
        return None;
    }
    let mut blank = packet.to_vec();
    blank[8..12].fill(0);
    if packet[8..12] != crc32c(&blank).to_le_bytes() {
        return None;
    }
    let tag = u32::from_be_bytes(packet[16..20].try_into().ok()?);
    Some((tag, u16::from_be_bytes([packet[2], packet[3]])))
}

/// The checksum of RFC 9260, appendix A, a bit at a time.
fn crc32c(bytes: &[u8]) -> u32 {
    let rest = bytes.iter().fold(u32::MAX, |rest, byte| {
        (0..8).fold(rest ^ u32::from(*byte), |rest, _| {
            (rest >> 1) ^ (0x82f6_3b78 & (rest & 1).wrapping_neg())
        })
    });
    !rest
}

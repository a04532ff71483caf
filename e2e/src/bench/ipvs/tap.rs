//! What the programs of a node say to its kernel, counted at the kernel's own tap: a device of type nlmon gets a copy of
//! every netlink message of its namespace.

use std::{
    io::{self, IoSliceMut},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use nix::{
    cmsg_space,
    errno::Errno,
    sys::{
        socket::{ControlMessageOwned, LinkAddr, MsgFlags, MultiHeaders, recvmmsg, setsockopt, sockopt},
        time::TimeSpec,
    },
};
use pointsman_dataplane::netlink::{
    attribute::{Messages, NLM_F_REQUEST, NLMSG_ERROR},
    ipvs::{Request, Verb},
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::{NodeNet, ip};

/// The device's name.
const DEVICE: &str = "nlmon0";
/// How long what was said may wait to be counted. Longer pauses cost the programs that are measured less.
const PAUSE: Duration = Duration::from_millis(20);
/// What may wait: some hundred thousand small datagrams.
const BUFFER: usize = 512 << 20;
/// How many datagrams are read at once, and how long one may be.
const SLOTS: usize = 32;
const LENGTH: usize = 2 << 20;

/// `NETLINK_ROUTE`, `NETLINK_NETFILTER` and `NETLINK_GENERIC`.
const ROUTE: u16 = 0;
const NETFILTER: u16 = 12;
const GENERIC: u16 = 16;
/// `GENL_ID_CTRL`: the question for a family's number.
const CONTROL: u16 = 0x10;

/// What was said so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Commands to IPVS that change something.
    pub ipvs_commands: u64,
    /// Of them, those that add a service or a destination.
    pub ipvs_added: u64,
    /// Questions to IPVS, a listing being one.
    pub ipvs_questions: u64,
    /// Messages about links, addresses and routes.
    pub route: u64,
    /// Messages to nf_tables, ipset and conntrack.
    pub netfilter: u64,
    /// Datagrams of all of these: each is a system call.
    pub datagrams: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Counts {
    /// What came since an earlier moment.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            ipvs_commands: self.ipvs_commands - before.ipvs_commands,
            ipvs_added: self.ipvs_added - before.ipvs_added,
            ipvs_questions: self.ipvs_questions - before.ipvs_questions,
            route: self.route - before.route,
            netfilter: self.netfilter - before.netfilter,
            datagrams: self.datagrams - before.datagrams,
            bytes: self.bytes - before.bytes,
        }
    }

    /// All messages.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.ipvs_commands + self.ipvs_questions + self.route + self.netfilter
    }

    /// Takes these many questions, each a datagram of its own, for somebody else's.
    #[must_use]
    pub fn without_questions(self, questions: u64) -> Self {
        Self {
            ipvs_questions: self.ipvs_questions.saturating_sub(questions),
            datagrams: self.datagrams.saturating_sub(questions),
            ..self
        }
    }
}

/// What a tap heard.
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    counts: Counts,
    /// The number of the last command to IPVS, until it is answered.
    open: Option<u32>,
    /// When the last answer to such a command was given, since the epoch.
    answered: Option<Duration>,
}

/// Listens on a node.
#[derive(Debug)]
pub struct Tap {
    heard: Arc<Mutex<Heard>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tap {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the kernel has no nlmon.
    pub fn on(node: &NodeNet) -> Result<Self> {
        ip::batch(
            node.namespace(),
            [
                format!("link add {DEVICE} type nlmon"),
                format!("link set {DEVICE} up"),
            ],
        )?;
        let socket = node.namespace().run(open)?.context("listening to netlink")?;
        let (heard, stop) = (Arc::<Mutex<Heard>>::default(), Arc::<AtomicBool>::default());
        let (counts, stopped) = (Arc::clone(&heard), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; SLOTS * LENGTH];
            while !stopped.load(Ordering::Relaxed) {
                match drain(&socket, &mut buffer, &counts) {
                    // Interrupted, or full: there is more.
                    Ok(SLOTS) | Err(Errno::EINTR) => {}
                    _ => thread::sleep(PAUSE),
                }
            }
        });
        Ok(Self {
            heard,
            stop,
            thread: Some(thread),
        })
    }

    /// What was said until now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.look().counts
    }

    /// From a moment until the last command to IPVS was answered.
    ///
    /// # Errors
    /// When there was none after it.
    pub fn until_last_command(&self, since: SystemTime) -> Result<Duration> {
        let since = since.duration_since(UNIX_EPOCH).context("the clock")?;
        let answered = self.look().answered;
        answered
            .and_then(|answered| answered.checked_sub(since))
            .context("nobody gave IPVS a command")
    }

    fn look(&self) -> Heard {
        // Twice: what is under way now is counted by then.
        thread::sleep(2 * PAUSE);
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open() -> io::Result<Socket> {
    /// `ETH_P_ALL`, in network byte order.
    const ALL: i32 = 0x0003_u16.to_be() as i32;
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(ALL)))?;
    socket.attach_filter(&filter())?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Requests, and their acknowledgements: of the answers, those that would cost most are not copied. A program of classic BPF
/// (`linux/filter.h`).
fn filter() -> [SockFilter; 8] {
    const LOAD_WORD: u16 = 0x20;
    const LOAD_HALF: u16 = 0x28;
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_SET: u16 = 0x45;
    const RETURN: u16 = 0x06;
    /// `SKF_AD_OFF + SKF_AD_HATYPE`, the kind of device.
    const DEVICE_KIND: u32 = 0xffff_f000 + 28;
    /// `ARPHRD_NETLINK`.
    const NETLINK: u32 = 824;
    /// What is loaded from a packet is taken for network byte order, and `struct nlmsghdr` has the machine's.
    const ERROR: u32 = NLMSG_ERROR.swap_bytes() as u32;
    const REQUEST: u32 = NLM_F_REQUEST as u32;
    [
        SockFilter::new(LOAD_WORD, 0, 0, DEVICE_KIND),
        SockFilter::new(JUMP_EQUAL, 0, 5, NETLINK),
        SockFilter::new(LOAD_HALF, 0, 0, 4),
        SockFilter::new(JUMP_EQUAL, 2, 0, ERROR),
        SockFilter::new(LOAD_BYTE, 0, 0, 6),
        SockFilter::new(JUMP_SET, 0, 1, REQUEST),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

/// Counts what is there, up to [`SLOTS`] datagrams. Returns how many there were.
fn drain(socket: &Socket, buffer: &mut [u8], heard: &Mutex<Heard>) -> Result<usize, Errno> {
    let mut headers = MultiHeaders::<LinkAddr>::preallocate(SLOTS, Some(cmsg_space!(TimeSpec)));
    let mut slots: Vec<_> = buffer
        .chunks_mut(LENGTH)
        .map(|slot| [IoSliceMut::new(slot)])
        .collect();
    let received = recvmmsg(
        socket.as_raw_fd(),
        &mut headers,
        slots.iter_mut(),
        MsgFlags::empty(),
        None,
    )?;
    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    let mut count = 0;
    for datagram in received {
        count += 1;
        let at = datagram.cmsgs().ok().and_then(|mut all| {
            all.find_map(|message| match message {
                ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
                _ => None,
            })
        });
        let protocol = datagram.address.map_or(u16::MAX, |address| address.protocol());
        if let Some(bytes) = datagram.iovs().next() {
            heard.take(u16::from_be(protocol), bytes, at.unwrap_or_default());
        }
    }
    Ok(count)
}

impl Heard {
    fn take(&mut self, protocol: u16, datagram: &[u8], at: Duration) {
        let mut is_request = false;
        for message in Messages(datagram) {
            if message.kind == NLMSG_ERROR {
                if protocol == GENERIC && self.open == Some(message.sequence) {
                    self.open = None;
                    self.answered = Some(at);
                }
                continue;
            }
            if message.flags & NLM_F_REQUEST == 0 || message.kind == CONTROL && protocol == GENERIC {
                continue;
            }
            is_request = true;
            let counts = &mut self.counts;
            match protocol {
                ROUTE => counts.route += 1,
                NETFILTER => counts.netfilter += 1,
                GENERIC => match Request::read(&message) {
                    Some(request) => {
                        counts.ipvs_commands += 1;
                        let adds = matches!(
                            request,
                            Request::Service(Verb::New, _) | Request::Destination(Verb::New, ..)
                        );
                        counts.ipvs_added += u64::from(adds);
                        self.open = Some(message.sequence);
                    }
                    None => counts.ipvs_questions += 1,
                },
                _ => is_request = false,
            }
        }
        if is_request {
            self.counts.datagrams += 1;
            self.counts.bytes += datagram.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use pointsman_dataplane::netlink::{attribute::Writer, generic};

    use super::*;

    /// A number that the kernel may have given to the family IPVS.
    const IPVS: u16 = 0x1f;
    const NEW_SERVICE: u8 = 1;
    const DELETE_SERVICE: u8 = 3;
    const GET_SERVICE: u8 = 4;

    fn put(writer: &mut Writer, command: u8, sequence: u32) {
        let begun = writer.begin(IPVS, NLM_F_REQUEST, sequence, &generic::header(command, 1));
        // IPVS_CMD_ATTR_SERVICE with IPVS_SVC_ATTR_AF, PROTOCOL, ADDR and PORT.
        writer.nested(1, |list| {
            list.put_host_u16(1, 2);
            list.put_host_u16(2, 6);
            list.put(3, &[10, 96, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            list.put(4, &80_u16.to_be_bytes());
        });
        writer.end_message(begun);
    }

    fn answer(sequence: u32) -> Vec<u8> {
        let mut writer = Writer::default();
        let begun = writer.begin(NLMSG_ERROR, 0, sequence, &[0; 4]);
        writer.end_message(begun);
        writer.into_bytes()
    }

    #[test]
    fn commands_and_questions_are_told_apart_and_a_sync_ends_with_an_answer() {
        let mut heard = Heard::default();
        let mut datagram = Writer::default();
        put(&mut datagram, NEW_SERVICE, 7);
        put(&mut datagram, DELETE_SERVICE, 8);
        heard.take(GENERIC, datagram.bytes(), Duration::from_secs(1));
        heard.take(GENERIC, &answer(7), Duration::from_secs(2));
        assert_eq!(heard.answered, None, "the last command is still open");
        heard.take(GENERIC, &answer(8), Duration::from_secs(3));
        let mut datagram = Writer::default();
        put(&mut datagram, GET_SERVICE, 9);
        heard.take(GENERIC, datagram.bytes(), Duration::from_secs(4));
        heard.take(GENERIC, &answer(9), Duration::from_secs(5));
        assert_eq!(heard.answered, Some(Duration::from_secs(3)));
        heard.take(
            GENERIC,
            &generic::family_request("IPVS", 10),
            Duration::from_secs(6),
        );
        let expected = Counts {
            ipvs_commands: 2,
            ipvs_added: 1,
            ipvs_questions: 1,
            datagrams: 2,
            ..Counts::default()
        };
        assert_eq!(
            Counts {
                bytes: 0,
                ..heard.counts
            },
            expected
        );
        assert!(heard.counts.bytes > 0);
    }
}

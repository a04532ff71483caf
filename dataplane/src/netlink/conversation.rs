//! A netlink socket, and the two ways of talking over it: one request and everything that answers it, or many requests
//! at once of which only the refused ones are answered. Calls block.

use std::io;
use std::time::Duration;

use netlink_sys::{Socket as Netlink, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::attribute::{
    Attributes, Begun, HEADER, Message, Messages, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, Writer, aligned, array,
};

/// The payload of the request is not in the answer (`NLM_F_CAPPED`).
const CAPPED: u16 = 0x100;
/// The answer has attributes behind the error (`NLM_F_ACK_TLVS`).
const HAS_TEXT: u16 = 0x200;
/// Text of an error (`NLMSGERR_ATTR_MSG`).
const ERROR_TEXT: u16 = 1;

/// A transaction of nf_tables is one datagram, and must fit.
const SEND_BUFFER: usize = 32 << 20;
/// The kernel doubles it.
const RECEIVE_BUFFER: usize = 4 << 20;
/// The kernel answers while it handles a request; a commit of a large table takes a second or two.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// How many requests a datagram has at most. Each may be refused, and all answers wait in the receive buffer until the
/// datagram is done: some 770 bytes each, as the kernel counts them, of 8 MiB. An answer that finds no room is lost.
const REQUESTS: u32 = 4000;
/// How many bytes a datagram has before it is full: the kernel copies it to memory that it allocates in one piece.
const DATAGRAM: usize = 1 << 20;

/// A socket that talks to one part of the kernel, in the network namespace that it was opened in.
#[derive(Debug)]
pub(crate) struct Conversation {
    netlink: Netlink,
    sequence: u32,
    port: u32,
    buffer: Vec<u8>,
}

/// How an answer ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The error as a positive number, 0 for success.
    pub errno: i32,
    /// What the kernel said of the error.
    pub text: String,
    /// What was dumped changed meanwhile, as far as the kernel noticed.
    pub interrupted: bool,
}

/// A request that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// Its place in its datagram, from 0.
    pub place: u32,
    /// The error as a positive number.
    pub errno: i32,
    /// What the kernel said of it.
    pub text: String,
}

/// Requests that go to the kernel at once. It handles one after the other, whether or not one before was refused.
///
/// Only the last is acknowledged: an error is answered without being asked for (`netlink_rcv_skb`), and because the
/// requests are handled in their order, before `sendmsg` returns, the last answer tells that there are no more. So a
/// datagram that is taken as a whole costs one answer, not thousands.
#[derive(Clone, Debug)]
pub(crate) struct Datagram {
    writer: Writer,
    first: u32,
    count: u32,
    last: Option<Begun>,
}

impl Datagram {
    /// An empty one, whose requests are numbered from here.
    pub fn new(first: u32) -> Self {
        Self {
            writer: Writer::default(),
            first,
            count: 0,
            last: None,
        }
    }

    /// Adds a request: its type, its flags beside `NLM_F_REQUEST`, its subsystem's header and its attributes.
    pub fn request(&mut self, kind: u16, flags: u16, header: &[u8], attributes: impl FnOnce(&mut Writer)) {
        let sequence = self.first.wrapping_add(self.count);
        let begun = self.writer.begin(kind, NLM_F_REQUEST | flags, sequence, header);
        attributes(&mut self.writer);
        self.writer.end_message(begun);
        self.last = Some(begun);
        self.count += 1;
    }

    /// Whether it has to be sent before another request is added.
    pub fn is_full(&self) -> bool {
        self.count >= REQUESTS || self.writer.len() >= DATAGRAM
    }

    /// How many requests it has.
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Ends it: the last request will be acknowledged.
    pub fn finish(&mut self) {
        if let Some(last) = self.last {
            self.writer.add_flags(last, NLM_F_ACK);
        }
    }

    /// What is sent.
    pub fn bytes(&self) -> &[u8] {
        self.writer.bytes()
    }
}

impl Conversation {
    /// Opens a socket for one of netlink's protocols (`NETLINK_*`).
    pub fn open(protocol: isize) -> io::Result<Self> {
        let mut netlink = Netlink::new(protocol)?;
        let address = netlink.bind_auto()?;
        netlink.set_ext_ack(true)?;
        netlink.set_cap_ack(true)?;
        setsockopt(&netlink, sockopt::SndBufForce, &SEND_BUFFER)?;
        setsockopt(&netlink, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
        let limit = TimeVal::new(ANSWER_LIMIT.as_secs().cast_signed(), 0);
        setsockopt(&netlink, sockopt::ReceiveTimeout, &limit)?;
        Ok(Self {
            netlink,
            sequence: 0,
            port: address.port_number(),
            buffer: vec![0; 1 << 16],
        })
    }

    /// Makes dumps leave out what the request does not ask for, where the kernel can (`NETLINK_GET_STRICT_CHK`).
    pub fn filter_dumps(&self) {
        // Before 4.20 the kernel does not know it, and dumps more: whoever reads it has to look.
        if let Err(error) = self.netlink.set_netlink_get_strict_chk(true) {
            tracing::debug!("the kernel does not filter what it dumps: {error}");
        }
    }

    /// The port by which the kernel knows the socket.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// A number that no request had yet.
    pub fn number(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Takes note that requests had the numbers up to this one.
    pub fn numbered_to(&mut self, sequence: u32) {
        self.sequence = sequence;
    }

    /// Sends a datagram.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.netlink.send_to(bytes, &SocketAddr::new(0, 0), 0).map(|_| ())
    }

    /// Sends one request, and calls back for every message that answers it. It has to be a dump or to ask for an
    /// acknowledgement, so that the answer has an end.
    pub fn ask(
        &mut self,
        request: &[u8],
        sequence: u32,
        mut each: impl FnMut(&Message<'_>),
    ) -> io::Result<Answer> {
        self.send(request)?;
        let mut answer = Answer::default();
        loop {
            let mut ended = false;
            self.receive(|message| {
                // Answers of an earlier request that was given up are passed over.
                if message.sequence != sequence || ended {
                    return;
                }
                answer.interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                if matches!(message.kind, NLMSG_DONE | NLMSG_ERROR) {
                    ended = true;
                    answer.errno = message.error();
                    if message.kind == NLMSG_ERROR {
                        answer.text = text(message);
                    }
                } else {
                    each(message);
                }
            })?;
            if ended {
                return Ok(answer);
            }
        }
    }

    /// Sends many requests, and returns those that were refused, in their order. The next datagram has to have other
    /// numbers.
    pub fn tell(&mut self, datagram: &Datagram) -> io::Result<Vec<Refused>> {
        let mut refused = Vec::new();
        let Some(last) = datagram.count.checked_sub(1) else {
            return Ok(refused);
        };
        self.numbered_to(datagram.first.wrapping_add(last));
        self.send(datagram.bytes())?;
        loop {
            let mut ended = false;
            self.receive(|message| {
                let place = message.sequence.wrapping_sub(datagram.first);
                if message.kind != NLMSG_ERROR || place > last {
                    return;
                }
                let errno = message.error();
                if errno != 0 {
                    refused.push(Refused {
                        place,
                        errno,
                        text: text(message),
                    });
                }
                ended |= place == last;
            })?;
            if ended {
                return Ok(refused);
            }
        }
    }

    /// Receives one datagram.
    pub fn receive(&mut self, mut each: impl FnMut(&Message<'_>)) -> io::Result<()> {
        let mut room = std::mem::take(&mut self.buffer);
        let received = loop {
            let mut free: &mut [u8] = &mut room;
            match self.netlink.recv(&mut free, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                other => break other,
            }
        };
        let outcome = received.map(|length| {
            for message in Messages(room.get(..length).unwrap_or_default()) {
                each(&message);
            }
        });
        self.buffer = room;
        outcome
    }
}

/// What the kernel said of an error, in an answer of type `NLMSG_ERROR`.
pub(crate) fn text(message: &Message<'_>) -> String {
    if message.flags & HAS_TEXT == 0 {
        return String::new();
    }
    let request = if message.flags & CAPPED != 0 {
        HEADER
    } else {
        array(message.payload, 4).map_or(HEADER, |bytes| u32::from_ne_bytes(bytes) as usize)
    };
    let attributes = message.payload.get(4 + aligned(request)..);
    Attributes(attributes.unwrap_or_default())
        .text(ERROR_TEXT)
        .unwrap_or_default()
        .to_owned()
}

/// What the kernel said of an error, as the end of a message; nothing when it said nothing.
pub(crate) fn in_brackets(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!(" ({text})")
    }
}

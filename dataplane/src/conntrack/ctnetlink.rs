//! The conversation with the kernel about tracked connections.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::libc;

use super::entry::Entry;
use super::request::{self, Filter};
use crate::netlink::attribute::{Message, Messages, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR};

/// The kernel fills at most 32 KiB at once (`netlink_dump`), and takes the size of the buffer as a hint.
const BUFFER: usize = 64 << 10;
/// How many entries one datagram deletes. The kernel may have as many errors to tell at once, and they all must have
/// room in the socket's receive buffer.
pub const DELETED_AT_ONCE: usize = 100;

/// A socket for the connections of the network namespace that it was opened in.
#[derive(Debug)]
pub struct Ctnetlink {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

/// How far a walk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There may be more.
    Goes,
    /// That was all.
    Ended {
        /// Something disturbed the walk, so that entries may have been missed.
        interrupted: bool,
    },
}

/// What became of entries that were to go.
#[derive(Debug, Default)]
pub struct Deleted {
    /// So many are gone now.
    pub deleted: u64,
    /// So many were gone already.
    pub vanished: u64,
    /// So many the kernel kept, as it does with those that hardware forwards (`EBUSY`).
    pub kept: u64,
    /// Why it kept the last of them.
    pub why: Option<io::Error>,
}

impl Ctnetlink {
    /// Opens a socket.
    ///
    /// # Errors
    /// When the kernel has no netfilter, or no descriptor is left.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Errors without the request that they answer: it is known by its number.
        socket.set_cap_ack(true)?;
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(BUFFER),
            sequence: 0,
        })
    }

    /// How many entries there are, as the kernel counts them.
    ///
    /// # Errors
    /// When the kernel does not tell: it has no ctnetlink, or the process lacks CAP_NET_ADMIN.
    pub fn entries(&mut self) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1);
        self.send(request::statistics(self.sequence).bytes())?;
        loop {
            self.receive_datagram()?;
            for message in self.answers() {
                if message.kind == NLMSG_ERROR {
                    check(&message)?;
                } else if message.kind == request::STATISTICS {
                    return Ok(message.attributes().u32(request::ENTRIES).unwrap_or(0));
                }
            }
        }
    }

    /// Begins a walk; [`Ctnetlink::receive`] goes on with it. A walk that was not brought to its end is over.
    ///
    /// # Errors
    /// When the request cannot be sent.
    pub fn walk(&mut self, filter: &Filter) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        self.send(request::walk(filter, self.sequence).bytes())
    }

    /// Takes the next entries of a walk, some hundred at most.
    ///
    /// # Errors
    /// When the kernel refuses the walk or its filter, or had no room for an answer.
    pub fn receive(&mut self, mut each: impl FnMut(Entry)) -> io::Result<Progress> {
        self.receive_datagram()?;
        let mut interrupted = false;
        for message in self.answers() {
            interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
            match message.kind {
                NLMSG_ERROR | NLMSG_DONE => {
                    check(&message)?;
                    return Ok(Progress::Ended { interrupted });
                }
                request::NEW => {
                    if let Some(entry) = Entry::parse(message.attributes()) {
                        each(entry);
                    }
                }
                _ => {}
            }
        }
        if interrupted {
            return Ok(Progress::Ended { interrupted });
        }
        Ok(Progress::Goes)
    }

    /// Deletes entries. One that is gone already, or whose addresses now belong to a later connection, is none of an
    /// error.
    ///
    /// # Errors
    /// When the kernel takes no requests, or had no room for its answers.
    pub fn delete(&mut self, entries: &[Entry]) -> io::Result<Deleted> {
        let mut sum = Deleted::default();
        for entries in entries.chunks(DELETED_AT_ONCE) {
            self.send(request::delete(entries).bytes())?;
            let mut failed = 0;
            let last = u32::try_from(entries.len() - 1).unwrap_or(u32::MAX);
            let mut acknowledged = false;
            while !acknowledged {
                self.receive_datagram()?;
                for message in Messages(&self.buffer).filter(|message| message.kind == NLMSG_ERROR) {
                    acknowledged |= message.sequence == last;
                    match message.error() {
                        0 => {}
                        libc::ENOENT => {
                            sum.vanished += 1;
                            failed += 1;
                        }
                        error => {
                            sum.kept += 1;
                            sum.why = Some(io::Error::from_raw_os_error(error));
                            failed += 1;
                        }
                    }
                }
            }
            sum.deleted += (entries.len() as u64).saturating_sub(failed);
        }
        Ok(sum)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        loop {
            match self.socket.send(bytes, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn receive_datagram(&mut self) -> io::Result<()> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The messages of the last datagram that answer the last request.
    fn answers(&self) -> impl Iterator<Item = Message<'_>> {
        let sequence = self.sequence;
        Messages(&self.buffer).filter(move |message| message.sequence == sequence)
    }
}

fn check(message: &Message<'_>) -> io::Result<()> {
    match message.error() {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

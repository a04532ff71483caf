//! Talking to nf_tables: transactions and dumps over one socket. Calls block.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::attribute::{Message, NLMSG_ERROR};
use super::conversation::{Conversation, text};
use super::nftables::answer::generation;
use super::nftables::{Batch, Listing, TableName, Transaction, generation_request, request};
use super::ruleset;

/// How often a dump is begun again because the ruleset changed under it.
const DUMP_TRIES: usize = 20;
/// How often several listings are begun again because somebody committed between them.
const STEADY_TRIES: usize = 5;

/// Why nf_tables did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// It refused a message.
    #[error("nf_tables refused {what}: {source}{}", if text.is_empty() { String::new() } else { format!(" ({text})") })]
    Refused {
        /// What the message was about.
        what: String,
        /// The kernel's error.
        source: io::Error,
        /// What it said of it.
        text: String,
    },
    /// The socket failed.
    #[error("talking to nf_tables: {0}")]
    Socket(#[from] io::Error),
    /// The kernel has no nf_tables at all, so that nothing of ours can be in it.
    #[error("the kernel has no nf_tables (CONFIG_NF_TABLES)")]
    Absent,
    /// The ruleset changed whenever it was read.
    #[error(
        "the nf_tables ruleset changed whenever it was read: something rewrites it all the time; find out what with `nft monitor`"
    )]
    Unsteady,
}

impl NetlinkError {
    /// The kernel's error number, if it refused something.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } | Self::Socket(source) => source.raw_os_error(),
            Self::Absent | Self::Unsteady => None,
        }
    }
}

/// A socket to nf_tables of the network namespace that it was opened in.
#[derive(Debug)]
pub struct Socket {
    conversation: Conversation,
}

impl Socket {
    /// Opens it.
    ///
    /// # Errors
    /// When the kernel has no nfnetlink or the process may not talk to it (it needs CAP_NET_ADMIN).
    pub fn open() -> Result<Self, NetlinkError> {
        match Conversation::open(NETLINK_NETFILTER) {
            Err(error) if error.raw_os_error() == Some(Errno::EPROTONOSUPPORT as i32) => {
                Err(NetlinkError::Absent)
            }
            opened => Ok(Self {
                conversation: opened?,
            }),
        }
    }

    /// A transaction whose messages have numbers that this socket did not use yet.
    pub fn batch(&mut self, table: TableName) -> Batch {
        Batch::new(table, self.conversation.number())
    }

    /// Commits a transaction.
    ///
    /// # Errors
    /// When the kernel refused a message: then nothing was changed.
    pub fn commit(&mut self, transaction: &Transaction) -> Result<(), NetlinkError> {
        // The kernel tells everybody of it, by the number of the port.
        ruleset::note_ours(self.conversation.port());
        let (first, last) = transaction.sequences;
        self.conversation.numbered_to(last.wrapping_add(1));
        self.conversation.send(&transaction.bytes)?;
        let mut refused = None;
        loop {
            let (mut acknowledged, mut aborted) = (false, false);
            self.conversation.receive(|message| {
                // Answers of an earlier request that was given up are passed over.
                let is_ours = message.sequence.wrapping_sub(first) <= last.wrapping_sub(first);
                if message.kind != NLMSG_ERROR || !is_ours {
                    return;
                }
                let errno = message.error();
                if errno != 0 && refused.is_none() {
                    refused = Some(NetlinkError::Refused {
                        what: transaction.name_of(message.sequence).to_owned(),
                        source: io::Error::from_raw_os_error(errno),
                        text: text(message),
                    });
                }
                acknowledged |= message.sequence == last;
                // An error of the opening message is one of the whole transaction, and the only answer.
                aborted |= message.sequence == first && errno != 0;
            })?;
            if acknowledged || aborted {
                return refused.map_or(Ok(()), Err);
            }
        }
    }

    /// Reads a listing: calls back for every message of it. When something changed meanwhile, `again` is called and
    /// the listing begins anew.
    ///
    /// # Errors
    /// When the kernel refused, or the ruleset never held still.
    pub fn list(
        &mut self,
        table: TableName,
        listing: Listing<'_>,
        mut again: impl FnMut(),
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<(), NetlinkError> {
        for _ in 0..DUMP_TRIES {
            let sequence = self.conversation.number();
            let answer = self
                .conversation
                .ask(&request(table, listing, sequence), sequence, &mut each)?;
            match answer.errno {
                errno if errno == Errno::EINTR as i32 => (),
                0 if answer.interrupted => (),
                0 => return Ok(()),
                errno => {
                    return Err(NetlinkError::Refused {
                        what: format!("listing {listing:?}"),
                        source: io::Error::from_raw_os_error(errno),
                        text: answer.text,
                    });
                }
            }
            again();
        }
        Err(NetlinkError::Unsteady)
    }

    /// Reads what takes several listings, until nobody changed anything meanwhile; returned with the ruleset's generation.
    /// `read` is told which attempt it is, from 0.
    ///
    /// # Errors
    /// Those of `read`, or when the ruleset never held still.
    pub fn steadily<T>(
        &mut self,
        mut read: impl FnMut(&mut Self, usize) -> Result<T, NetlinkError>,
    ) -> Result<(u32, T), NetlinkError> {
        for attempt in 0..STEADY_TRIES {
            let generation = self.generation()?;
            let outcome = read(self, attempt);
            // Otherwise what was listed may have gone before it was looked into.
            if self.generation()? == generation {
                return outcome.map(|found| (generation, found));
            }
        }
        Err(NetlinkError::Unsteady)
    }

    /// The ruleset's generation: it changes with every transaction of anybody in this network namespace.
    ///
    /// # Errors
    /// When the kernel has no nf_tables.
    pub fn generation(&mut self) -> Result<u32, NetlinkError> {
        let sequence = self.conversation.number();
        self.conversation.send(&generation_request(sequence))?;
        let mut found = None;
        while found.is_none() {
            self.conversation.receive(|message| {
                if message.sequence == sequence {
                    found = Some(match message.kind {
                        NLMSG_ERROR => Err(message.error()),
                        _ => Ok(generation(message).unwrap_or(0)),
                    });
                }
            })?;
        }
        match found {
            Some(Ok(generation)) => Ok(generation),
            // A part of netfilter that the kernel does not have (`nfnetlink_rcv_msg`).
            Some(Err(errno)) if errno == Errno::EINVAL as i32 => Err(NetlinkError::Absent),
            Some(Err(errno)) => Err(NetlinkError::Refused {
                what: "the question for its generation".to_owned(),
                source: io::Error::from_raw_os_error(errno),
                text: String::new(),
            }),
            None => Ok(0),
        }
    }
}

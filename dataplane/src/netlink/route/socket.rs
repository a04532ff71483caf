//! The conversation with rtnetlink. Calls block.

use std::fmt;
use std::io;

use ipnet::IpNet;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use super::super::attribute::Message;
use super::super::conversation::{Answer, Conversation, in_brackets};
use super::{Batch, Change, Link, LocalRoute, answer, request};
use crate::model::Family;

/// How often a dump is begun again because something changed under it.
const DUMP_TRIES: usize = 20;

/// Why rtnetlink did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// The kernel cannot make a dummy.
    #[error(
        "the kernel has no dummy links (CONFIG_DUMMY): load the module dummy on the node (`modprobe dummy`)"
    )]
    NoDummy,
    /// It refused something.
    #[error("the kernel refused {what}: {source}{}", in_brackets(text))]
    Refused {
        /// What was asked.
        what: String,
        /// The kernel's error.
        source: io::Error,
        /// What it said of it.
        text: String,
    },
    /// What was listed changed whenever it was read.
    #[error(
        "{0} changed whenever they were read: find out with `ip monitor` what rewrites them all the time"
    )]
    Unsteady(&'static str),
    /// The socket failed.
    #[error("talking to rtnetlink: {0}")]
    Socket(#[from] io::Error),
}

/// A change that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its place among the changes of the call, from 0.
    pub place: usize,
    /// The change.
    pub change: Change,
    /// The kernel's error: `EEXIST`, `ESRCH` or `EADDRNOTAVAIL` when something is or is not there (see [`super`]).
    pub errno: Errno,
    /// What the kernel said of it.
    pub text: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = in_brackets(&self.text);
        write!(
            f,
            "the kernel refused {}: {}{text}",
            self.change,
            self.errno.desc()
        )
    }
}

/// What became of changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// So many were sent.
    pub changes: usize,
    /// In so many datagrams.
    pub datagrams: usize,
    /// Those that were refused, in their order.
    pub refused: Vec<Refusal>,
}

/// A socket to rtnetlink of the network namespace that it was opened in.
#[derive(Debug)]
pub struct Rtnetlink {
    conversation: Conversation,
}

impl Rtnetlink {
    /// Opens it.
    ///
    /// # Errors
    /// When no socket is to be had (it needs CAP_NET_ADMIN).
    pub fn open() -> Result<Self, RouteError> {
        let conversation = Conversation::open(NETLINK_ROUTE)?;
        conversation.filter_dumps();
        Ok(Self { conversation })
    }

    /// The link of this name, or none.
    ///
    /// # Errors
    /// When the kernel refused or the socket failed.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, RouteError> {
        let mut found = None;
        let sequence = self.conversation.number();
        let request = request::link_by_name(name, sequence);
        let answer = self.conversation.ask(&request, sequence, |message| {
            found = answer::link(message);
        })?;
        if answer.errno == Errno::ENODEV as i32 {
            return Ok(None);
        }
        accepted(answer, || format!("the question for link {name}"))?;
        Ok(found)
    }

    /// Makes a dummy that is up, and returns it.
    ///
    /// # Errors
    /// When the kernel has none, there is a link of this name already (`EEXIST`), or the socket failed.
    pub fn add_dummy(&mut self, name: &str) -> Result<Link, RouteError> {
        let sequence = self.conversation.number();
        let request = request::new_dummy(name, sequence);
        let answer = self.conversation.ask(&request, sequence, |_| ())?;
        // An unknown kind of link (`__rtnl_newlink`).
        if answer.errno == Errno::EOPNOTSUPP as i32 {
            return Err(RouteError::NoDummy);
        }
        accepted(answer, || format!("new dummy {name}"))?;
        let gone = || RouteError::Refused {
            what: format!("the question for the new dummy {name}"),
            source: io::Error::from_raw_os_error(Errno::ENODEV as i32),
            text: "somebody removed it at once".to_owned(),
        };
        self.link(name)?.ok_or_else(gone)
    }

    /// Sets a link up or down.
    ///
    /// # Errors
    /// When there is no such link (`ENODEV`), the kernel refused, or the socket failed.
    pub fn set_up(&mut self, link: u32, up: bool) -> Result<(), RouteError> {
        let sequence = self.conversation.number();
        let request = request::set_up(link, up, sequence);
        let answer = self.conversation.ask(&request, sequence, |_| ())?;
        accepted(answer, || {
            format!("setting link {link} {}", if up { "up" } else { "down" })
        })
    }

    /// Removes a link with its addresses and routes.
    ///
    /// # Errors
    /// When there is no such link (`ENODEV`), the kernel refused, or the socket failed.
    pub fn delete_link(&mut self, link: u32) -> Result<(), RouteError> {
        let sequence = self.conversation.number();
        let request = request::delete_link(link, sequence);
        let answer = self.conversation.ask(&request, sequence, |_| ())?;
        accepted(answer, || format!("removal of link {link}"))
    }

    /// The addresses of a family that a link has.
    ///
    /// # Errors
    /// When the kernel refused, the addresses never held still, or the socket failed.
    pub fn addresses(&mut self, family: Family, link: u32) -> Result<Vec<IpNet>, RouteError> {
        self.list(
            "the addresses",
            |sequence| request::addresses(family, link, sequence),
            |message| {
                let read = answer::address(message, family);
                // Older kernels tell those of all links.
                read.filter(|(of, _)| *of == link).map(|(_, address)| address)
            },
        )
    }

    /// The local routes of a family that are ours, with whatever link.
    ///
    /// # Errors
    /// When the kernel refused, the routes never held still, or the socket failed.
    pub fn local_routes(&mut self, family: Family) -> Result<Vec<LocalRoute>, RouteError> {
        self.list(
            "the local routes",
            |sequence| request::routes(family, sequence),
            |message| answer::local_route(message, family),
        )
    }

    /// Does all of these in their order, and goes on when some are refused. They are sent in datagrams of some thousand.
    ///
    /// # Errors
    /// When the socket failed: then it is not known how far the kernel got.
    pub fn run(&mut self, changes: impl IntoIterator<Item = Change>) -> Result<Outcome, RouteError> {
        let mut outcome = Outcome::default();
        let mut batch = Batch::new(self.conversation.number());
        for change in changes {
            if batch.is_full() {
                let full = std::mem::replace(&mut batch, Batch::new(0));
                self.send(full, &mut outcome)?;
                batch = Batch::new(self.conversation.number());
            }
            batch.push(change);
        }
        if !batch.is_empty() {
            self.send(batch, &mut outcome)?;
        }
        Ok(outcome)
    }

    fn send(&mut self, batch: Batch, outcome: &mut Outcome) -> Result<(), RouteError> {
        let (datagram, changes) = batch.finish();
        for refused in self.conversation.tell(&datagram)? {
            let place = refused.place as usize;
            let Some(&change) = changes.get(place) else {
                continue;
            };
            outcome.refused.push(Refusal {
                place: outcome.changes + place,
                change,
                errno: Errno::from_raw(refused.errno),
                text: refused.text,
            });
        }
        outcome.changes += changes.len();
        outcome.datagrams += 1;
        Ok(())
    }

    fn list<T>(
        &mut self,
        what: &'static str,
        request: impl Fn(u32) -> Vec<u8>,
        read: impl Fn(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, RouteError> {
        for _ in 0..DUMP_TRIES {
            let sequence = self.conversation.number();
            let mut found = Vec::new();
            let answer = self.conversation.ask(&request(sequence), sequence, |message| {
                found.extend(read(message));
            })?;
            if answer.errno == Errno::EINTR as i32 || answer.interrupted {
                continue;
            }
            accepted(answer, || format!("listing {what}"))?;
            return Ok(found);
        }
        Err(RouteError::Unsteady(what))
    }
}

fn accepted(answer: Answer, what: impl FnOnce() -> String) -> Result<(), RouteError> {
    match answer.errno {
        0 => Ok(()),
        errno => Err(RouteError::Refused {
            what: what(),
            source: io::Error::from_raw_os_error(errno),
            text: answer.text,
        }),
    }
}

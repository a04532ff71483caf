//! The conversation with IPVS. Calls block.

use std::io;

use netlink_sys::protocols::NETLINK_GENERIC;
use nix::errno::Errno;

use super::super::attribute::{Message, Messages};
use super::super::conversation::{Conversation, Datagram, Refused, in_brackets};
use super::super::generic::resolve;
use super::request::{Question, question};
use super::{
    Batch, Command, DestinationState, FAMILY_NAME, Information, Request, ServiceKey, ServiceState, Timeouts,
    answer,
};

/// Why IPVS did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum IpvsError {
    /// The kernel has no IPVS at all, so that nothing of ours can be in it.
    #[error(
        "the kernel has no IPVS (CONFIG_IP_VS): load the module ip_vs on the node (`modprobe ip_vs`), or choose another mode"
    )]
    Absent,
    /// It refused a question.
    #[error("IPVS refused {what}: {source}{}", in_brackets(text))]
    Refused {
        /// What was asked.
        what: &'static str,
        /// The kernel's error.
        source: io::Error,
        /// What it said of it.
        text: String,
    },
    /// The socket failed.
    #[error("talking to IPVS: {0}")]
    Socket(#[from] io::Error),
}

/// A command that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its place among the commands of the call, from 0.
    pub place: usize,
    /// What it was about.
    pub request: Option<Request>,
    /// The kernel's error: `EEXIST`, `ESRCH` or `ENOENT` when something is or is not there (see [`super`]).
    pub errno: Errno,
    /// What the kernel said of it, mostly nothing.
    pub text: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IPVS refused ")?;
        match &self.request {
            Some(request) => write!(f, "{request}")?,
            None => write!(f, "command {}", self.place)?,
        }
        write!(f, ": {}{}", self.errno.desc(), in_brackets(&self.text))
    }
}

/// What became of commands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// So many commands were sent.
    pub commands: usize,
    /// In so many datagrams.
    pub datagrams: usize,
    /// With so many bytes.
    pub bytes: usize,
    /// Those that were refused, in their order.
    pub refused: Vec<Refusal>,
}

/// A socket to IPVS of the network namespace that it was opened in.
#[derive(Debug)]
pub struct Ipvs {
    conversation: Conversation,
    /// The type of IPVS's messages.
    family: u16,
}

impl Ipvs {
    /// Opens it. A kernel with modules loads IPVS at that, where it finds the module.
    ///
    /// # Errors
    /// [`IpvsError::Absent`] when the kernel has no IPVS; otherwise when no socket is to be had (it needs CAP_NET_ADMIN).
    pub fn open() -> Result<Self, IpvsError> {
        let mut conversation = Conversation::open(NETLINK_GENERIC)?;
        let (family, answer) = resolve(&mut conversation, FAMILY_NAME)?;
        match family {
            Some(family) => Ok(Self { conversation, family }),
            None if answer.errno == Errno::ENOENT as i32 => Err(IpvsError::Absent),
            None => Err(refused("the question for its number", answer.errno, answer.text)),
        }
    }

    /// Does all of these in their order, and goes on when some are refused. They are sent in datagrams of some thousand,
    /// and never held all at once, so that a full sync needs no more memory than a small change.
    ///
    /// # Errors
    /// When the socket failed: then it is not known how far the kernel got.
    pub fn run(&mut self, commands: impl IntoIterator<Item = Command>) -> Result<Outcome, IpvsError> {
        let mut outcome = Outcome::default();
        let mut batch = self.batch();
        for command in commands {
            if batch.is_full() {
                let full = std::mem::replace(&mut batch, Batch::new(self.family, 0));
                self.send(full, &mut outcome)?;
                batch = self.batch();
            }
            batch.push(&command);
        }
        if !batch.is_empty() {
            self.send(batch, &mut outcome)?;
        }
        Ok(outcome)
    }

    /// Every virtual service of TCP, UDP, SCTP or a mark, whoever made it, each once, in the order of their keys. While
    /// others come and go, one may be missing (see [`super`]).
    ///
    /// # Errors
    /// When the kernel refused or the socket failed.
    pub fn services(&mut self) -> Result<Vec<ServiceState>, IpvsError> {
        let mut found = Vec::new();
        self.ask("listing its services", Question::Services, |message| {
            found.extend(answer::service_state(message));
        })?;
        found.sort_unstable_by_key(|state| state.service.key);
        found.dedup_by_key(|state| state.service.key);
        Ok(found)
    }

    /// One virtual service, or none.
    ///
    /// # Errors
    /// When the kernel refused or the socket failed.
    pub fn service(&mut self, key: &ServiceKey) -> Result<Option<ServiceState>, IpvsError> {
        let mut found = None;
        let asked = self.ask("the question for a service", Question::Service(key), |message| {
            found = answer::service_state(message);
        });
        match asked {
            Err(IpvsError::Refused { source, .. }) if source.raw_os_error() == Some(Errno::ESRCH as i32) => {
                Ok(None)
            }
            other => other.map(|()| found),
        }
    }

    /// The destinations of a service, in the order of their addresses; none when there is no such service.
    ///
    /// # Errors
    /// When the kernel refused or the socket failed.
    pub fn destinations(&mut self, key: &ServiceKey) -> Result<Vec<DestinationState>, IpvsError> {
        let mut found = Vec::new();
        self.ask(
            "listing the destinations of a service",
            Question::Destinations(key),
            |message| found.extend(answer::destination_state(message, key.family())),
        )?;
        found.sort_unstable_by_key(|state| state.destination.address);
        found.dedup_by_key(|state| state.destination.address);
        Ok(found)
    }

    /// The timeouts of connections.
    ///
    /// # Errors
    /// When the kernel refused or the socket failed.
    pub fn timeouts(&mut self) -> Result<Timeouts, IpvsError> {
        let mut found = None;
        self.ask("the question for its timeouts", Question::Timeouts, |message| {
            found = answer::timeouts(message);
        })?;
        Ok(found.unwrap_or_default())
    }

    /// What IPVS says of itself.
    ///
    /// # Errors
    /// When the kernel refused or the socket failed.
    pub fn information(&mut self) -> Result<Information, IpvsError> {
        let mut found = None;
        self.ask("the question for its version", Question::Information, |message| {
            found = answer::information(message);
        })?;
        Ok(found.unwrap_or_default())
    }

    /// An empty batch whose numbers were not used yet.
    fn batch(&mut self) -> Batch {
        Batch::new(self.family, self.conversation.number())
    }

    fn send(&mut self, batch: Batch, outcome: &mut Outcome) -> Result<(), IpvsError> {
        let datagram = batch.finish();
        let refused = self.conversation.tell(&datagram)?;
        outcome
            .refused
            .extend(refusals(&datagram, refused, outcome.commands));
        outcome.commands += datagram.len() as usize;
        outcome.datagrams += 1;
        outcome.bytes += datagram.bytes().len();
        Ok(())
    }

    fn ask(
        &mut self,
        what: &'static str,
        of: Question<'_>,
        each: impl FnMut(&Message<'_>),
    ) -> Result<(), IpvsError> {
        let sequence = self.conversation.number();
        let request = question(self.family, of, sequence);
        let answer = self.conversation.ask(&request, sequence, each)?;
        match answer.errno {
            0 => Ok(()),
            errno => Err(refused(what, errno, answer.text)),
        }
    }
}

fn refused(what: &'static str, errno: i32, text: String) -> IpvsError {
    IpvsError::Refused {
        what,
        source: io::Error::from_raw_os_error(errno),
        text,
    }
}

/// What was refused, by the bytes that were sent: no name is kept of the thousands that are not. Both are in their
/// order, so that the datagram is walked once.
fn refusals(datagram: &Datagram, refused: Vec<Refused>, before: usize) -> Vec<Refusal> {
    if refused.is_empty() {
        return Vec::new();
    }
    let mut messages = Messages(datagram.bytes());
    let mut next = 0;
    let named = refused.into_iter().map(|refused| {
        let place = refused.place as usize;
        let message = place.checked_sub(next).and_then(|skip| messages.nth(skip));
        next = next.max(place + 1);
        Refusal {
            place: before + place,
            request: message.and_then(|message| Request::read(&message)),
            errno: Errno::from_raw(refused.errno),
            text: refused.text,
        }
    });
    named.collect()
}

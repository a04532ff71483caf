//! Who changes the node's nf_tables ruleset.
//!
//! The kernel tells every listener of the group `NFNLGRP_NFTABLES` what a transaction changed, and ends it with one
//! `NFT_MSG_NEWGEN` that names who sent it (`nf_tables_gen_notify`). Of the others only the table's name is read here.
//! A transaction may take several datagrams, but the kernel sends them before the next one begins
//! (`nf_tables_commit_notify`, under the commit mutex). iptables' legacy variant is another part of the kernel, which
//! tells nobody.

use std::{
    collections::{BTreeSet, VecDeque},
    io,
    sync::{Mutex, PoisonError},
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::attribute::{Message, Messages};
use super::nftables::{NEWGEN, SUBSYSTEM, nfproto};
use crate::model::Family;

const NFNLGRP_NFTABLES: u32 = 7;
const NFTA_GEN_PROC_PID: u16 = 2;
const NFTA_GEN_PROC_NAME: u16 = 3;
/// A flush of a large table tells of every rule; there is room for some 10,000.
const RECEIVE_BUFFER: usize = 4 << 20;
/// How many of our programs are remembered: a notification comes while its program still runs or right after.
const REMEMBERED: usize = 32;
/// A transaction that touches more tables than this may have touched any.
const TABLES: usize = 64;

/// The programs of ours that write rules, by process id.
static OURS: Mutex<VecDeque<u32>> = Mutex::new(VecDeque::new());

/// Notes that a process, or the netlink port of a socket, is ours, before it can change anything. The newest 32 are
/// remembered.
pub fn note_ours(process: u32) {
    let mut ours = OURS.lock().unwrap_or_else(PoisonError::into_inner);
    ours.retain(|known| *known != process);
    if ours.len() == REMEMBERED {
        ours.pop_front();
    }
    ours.push_back(process);
}

/// Tables of which something changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// Any: the kernel had to drop notifications, or there were too many.
    Any,
    /// These: family as nf_tables has it (`NFPROTO_*`), and name.
    Tables(BTreeSet<(u8, String)>),
}

impl Default for Touched {
    fn default() -> Self {
        Self::Tables(BTreeSet::new())
    }
}

impl Touched {
    /// Whether something of a table by this name may have changed.
    #[must_use]
    pub fn has(&self, family: Family, table: &str) -> bool {
        let number = nfproto(family);
        match self {
            Self::Any => true,
            Self::Tables(tables) => tables.iter().any(|(of, name)| *of == number && name == table),
        }
    }

    /// Takes in what else was touched.
    pub fn merge(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Tables(tables), Self::Tables(more)) => {
                tables.extend(more);
                if tables.len() > TABLES {
                    *self = Self::Any;
                }
            }
            _ => *self = Self::Any,
        }
    }
}

/// A transaction that changed the ruleset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Netlink port of the sender: by default its process id, as its own process namespace has it.
    pub port: u32,
    /// Process id of the sender, as the machine's first process namespace has it.
    pub process: Option<u32>,
    /// Its name, at most 15 characters (`comm`).
    pub name: String,
    /// What it changed.
    pub touched: Touched,
}

impl Transaction {
    /// Whether a program of ours sent it. In a container only the port tells, on the host both do.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        let ours = OURS.lock().unwrap_or_else(PoisonError::into_inner);
        ours.contains(&self.port) || self.process.is_some_and(|process| ours.contains(&process))
    }
}

/// Listens to changes of the ruleset of the network namespace that it was opened in.
#[derive(Debug)]
pub struct Watch {
    socket: Socket,
    reader: Reader,
}

impl Watch {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the kernel has no nf_tables, or the process may not listen (it needs CAP_NET_ADMIN).
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.set_rx_buf_sz(RECEIVE_BUFFER)?;
        socket.add_membership(NFNLGRP_NFTABLES)?;
        Ok(Self {
            socket,
            reader: Reader::default(),
        })
    }

    /// Waits for transactions that are not ours and returns them. An empty list means that the kernel had to drop
    /// notifications: anything may have changed.
    ///
    /// # Errors
    /// When the socket broke.
    pub fn foreign(&mut self) -> io::Result<Vec<Transaction>> {
        loop {
            let datagram = match self.socket.recv_from_full() {
                Ok((datagram, _)) => datagram,
                Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => {
                    self.reader.lost();
                    return Ok(Vec::new());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let mut foreign = self.reader.read(&datagram);
            foreign.retain(|change| !change.is_ours());
            if !foreign.is_empty() {
                return Ok(foreign);
            }
        }
    }
}

/// Puts transactions together from datagrams.
#[derive(Debug, Default)]
pub struct Reader {
    /// What the transaction that has not ended yet has touched so far.
    touched: Touched,
}

impl Reader {
    /// The transactions that end in a datagram. What cannot be read is passed over; a change whose table cannot be told
    /// counts as one of any table.
    pub fn read(&mut self, datagram: &[u8]) -> Vec<Transaction> {
        let mut ended = Vec::new();
        for message in Messages(datagram) {
            if message.kind == (SUBSYSTEM << 8) | NEWGEN {
                ended.push(transaction(&message, std::mem::take(&mut self.touched)));
            } else if message.kind >> 8 == SUBSYSTEM {
                self.touched.merge(table(&message));
            }
        }
        ended
    }

    /// Takes note that notifications are missing: what ends next may have touched anything.
    pub fn lost(&mut self) {
        self.touched = Touched::Any;
    }
}

/// The table of a notification: its family is in `struct nfgenmsg`, its name is attribute 1 of every kind of object.
fn table(message: &Message<'_>) -> Touched {
    let family = message.payload.first();
    match family.zip(message.attributes().text(1)) {
        Some((family, name)) => Touched::Tables(BTreeSet::from([(*family, name.to_owned())])),
        None => Touched::Any,
    }
}

fn transaction(message: &Message<'_>, touched: Touched) -> Transaction {
    let attributes = message.attributes();
    let name = attributes.get(NFTA_GEN_PROC_NAME).unwrap_or_default();
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Transaction {
        port: message.port,
        process: attributes.u32(NFTA_GEN_PROC_PID),
        // It need not be UTF-8, as it ends after 15 bytes.
        name: String::from_utf8_lossy(name).into_owned(),
        touched,
    }
}

#[cfg(test)]
mod tests;

//! Who changes the node's nf_tables ruleset.
//!
//! The kernel tells every listener of the group `NFNLGRP_NFTABLES` what a transaction changed, and ends it with one
//! `NFT_MSG_NEWGEN` that names who sent it (`nf_tables_gen_notify`). Only that message is read here. iptables' legacy
//! variant is another part of the kernel, which tells nobody.

use std::{
    collections::VecDeque,
    io,
    sync::{Mutex, PoisonError},
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::attribute::{Message, Messages};
use super::nftables::{NEWGEN, SUBSYSTEM};

const NFNLGRP_NFTABLES: u32 = 7;
const NFTA_GEN_PROC_PID: u16 = 2;
const NFTA_GEN_PROC_NAME: u16 = 3;
/// A flush of a large table tells of every rule; there is room for some 10,000.
const RECEIVE_BUFFER: usize = 4 << 20;
/// How many of our programs are remembered: a notification comes while its program still runs or right after.
const REMEMBERED: usize = 32;

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

/// A transaction that changed the ruleset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Netlink port of the sender: by default its process id, as its own process namespace has it.
    pub port: u32,
    /// Process id of the sender, as the machine's first process namespace has it.
    pub process: Option<u32>,
    /// Its name, at most 15 characters (`comm`).
    pub name: String,
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
        Ok(Self { socket })
    }

    /// Waits for transactions that are not ours and returns them. An empty list means that the kernel had to drop
    /// notifications: anything may have changed.
    ///
    /// # Errors
    /// When the socket broke.
    pub fn foreign(&self) -> io::Result<Vec<Transaction>> {
        loop {
            let datagram = match self.socket.recv_from_full() {
                Ok((datagram, _)) => datagram,
                Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => {
                    return Ok(Vec::new());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let foreign: Vec<_> = transactions(&datagram)
                .into_iter()
                .filter(|change| !change.is_ours())
                .collect();
            if !foreign.is_empty() {
                return Ok(foreign);
            }
        }
    }
}

/// The ends of transactions in a datagram. What cannot be read is passed over.
#[must_use]
pub fn transactions(datagram: &[u8]) -> Vec<Transaction> {
    Messages(datagram)
        .filter(|message| message.kind == (SUBSYSTEM << 8) | NEWGEN)
        .map(|message| transaction(&message))
        .collect()
}

fn transaction(message: &Message<'_>) -> Transaction {
    let attributes = message.attributes();
    let name = attributes.get(NFTA_GEN_PROC_NAME).unwrap_or_default();
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Transaction {
        port: message.port,
        process: attributes.u32(NFTA_GEN_PROC_PID),
        // It need not be UTF-8, as it ends after 15 bytes.
        name: String::from_utf8_lossy(name).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::attribute::{HEADER, aligned};
    use super::*;

    /// A message with this type and these attributes, as the kernel lays it out.
    fn message(kind: u16, port: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut payload = vec![0, 0, 0, 0];
        for (kind, value) in attributes {
            payload.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
            payload.extend(kind.to_ne_bytes());
            payload.extend_from_slice(value);
            payload.resize(aligned(payload.len()), 0);
        }
        let mut message = u32::try_from(HEADER + payload.len())
            .unwrap()
            .to_ne_bytes()
            .to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 6]);
        message.extend(port.to_ne_bytes());
        message.extend(payload);
        message
    }

    #[test]
    fn the_end_of_a_transaction_names_who_sent_it() {
        let mut datagram = message((10 << 8) | 6, 1, &[(1, b"rule")]);
        datagram.extend(message(
            (10 << 8) | 15,
            42,
            &[(1, &[0, 0, 0, 9]), (2, &[0, 0, 1, 0]), (3, b"nft\0")],
        ));
        let expected = Transaction {
            port: 42,
            process: Some(256),
            name: "nft".to_owned(),
        };
        assert_eq!(transactions(&datagram), [expected]);
    }

    #[test]
    fn our_own_programs_are_told_apart() {
        let transaction = |port, process| Transaction {
            port,
            process: Some(process),
            name: String::new(),
        };
        note_ours(4_000_001);
        assert!(transaction(4_000_001, 7).is_ours() && transaction(7, 4_000_001).is_ours());
        assert!(!transaction(7, 8).is_ours());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = transactions(&bytes);
            let mut framed = message((10 << 8) | 15, 1, &[]);
            framed.extend(&bytes);
            let length = u32::try_from(framed.len()).unwrap();
            framed[..4].copy_from_slice(&length.to_ne_bytes());
            prop_assert_eq!(transactions(&framed).len(), 1);
        }
    }
}

//! When the node's nf_tables ruleset changed, as the kernel tells it.
//!
//! Every transaction ends with one NFT_MSG_NEWGEN to the listeners of NFNLGRP_NFTABLES, sent after the new rules are
//! in force (`nf_tables_gen_notify`). The messages before it, one for each object, are dropped in the kernel by a
//! filter on the socket: a full sync has hundreds of thousands, and reading them would take time from the program
//! that is measured.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use pointsman_dataplane::netlink::ruleset::Reader;
use socket2::{SockFilter, SockRef};

use super::interrupt;
use crate::Netns;

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_NEWGEN`, as a message's type.
const NEWGEN: u16 = (10 << 8) | 15;
/// How soon the thread notices that it is to end.
const BEAT: Duration = Duration::from_millis(100);

/// The end of a transaction.
#[derive(Clone, Debug)]
pub struct Commit {
    /// When the notification was read, on CLOCK_MONOTONIC: a thread's wake-up after the kernel sent it.
    pub at: Instant,
    /// The program that sent the transaction.
    pub program: String,
}

/// Listens in a network namespace from when it was made until it is dropped.
#[derive(Debug)]
pub struct Commits {
    heard: Arc<Heard>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Heard {
    commits: Mutex<Vec<Commit>>,
    problem: Mutex<Option<io::Error>>,
    stopped: AtomicBool,
}

impl Commits {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the kernel has no nf_tables, or without CAP_NET_ADMIN.
    pub fn listen(namespace: &Netns) -> Result<Self> {
        let socket = namespace.run(open)?;
        let socket = socket.context("listening to changes of nf_tables (it needs root)")?;
        let heard = Arc::new(Heard::default());
        let ours = Arc::clone(&heard);
        let thread = thread::Builder::new()
            .name("commits".to_owned())
            .spawn(move || ours.follow(&socket))
            .context("starting a thread")?;
        Ok(Self {
            heard,
            thread: Some(thread),
        })
    }

    /// The commits that were read since then.
    ///
    /// # Errors
    /// When some were lost or the socket broke: then nothing is known.
    pub fn since(&self, then: Instant) -> Result<Vec<Commit>> {
        let mut problem = lock(&self.heard.problem);
        if let Some(error) = problem.take() {
            return Err(error).context("listening to changes of nf_tables");
        }
        let commits = lock(&self.heard.commits);
        let first = commits.partition_point(|commit| commit.at < then);
        Ok(commits.get(first..).unwrap_or_default().to_vec())
    }

    /// Waits for a commit after `then`, and until none followed for `quiet`. Returns all since `then`.
    ///
    /// # Errors
    /// When `limit` passes first.
    pub fn settled(&self, then: Instant, quiet: Duration, limit: Duration) -> Result<Vec<Commit>> {
        let began = Instant::now();
        loop {
            let commits = self.since(then)?;
            if commits.last().is_some_and(|last| last.at.elapsed() >= quiet) {
                return Ok(commits);
            }
            if began.elapsed() > limit {
                bail!(
                    "{} commits, and none was the last within {limit:?}",
                    commits.len()
                );
            }
            interrupt::check()?;
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Heard {
    fn follow(&self, socket: &Socket) {
        let mut reader = Reader::default();
        while !self.stopped.load(Ordering::Relaxed) {
            match socket.recv_from_full() {
                Ok((datagram, _)) => {
                    let at = Instant::now();
                    let commits = reader.read(&datagram).into_iter().map(|transaction| Commit {
                        at,
                        program: transaction.name,
                    });
                    lock(&self.commits).extend(commits);
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => {
                    let is_overrun = error.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32);
                    *lock(&self.problem) = Some(error);
                    if !is_overrun {
                        return;
                    }
                }
            }
        }
    }
}

impl Drop for Commits {
    fn drop(&mut self) {
        self.heard.stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    let reference = SockRef::from(&socket);
    reference.attach_filter(&only_ends())?;
    reference.set_read_timeout(Some(BEAT))?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.add_membership(GROUP)?;
    Ok(socket)
}

/// A classic BPF program that lets a datagram pass when its first message is a NEWGEN: the kernel sends that one in a
/// datagram of its own.
fn only_ends() -> [SockFilter; 4] {
    /// Where `nlmsg_type` is.
    const TYPE: u32 = 4;
    const LOAD_HALF: u16 = 0x28;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    [
        SockFilter::new(LOAD_HALF, 0, 0, TYPE),
        // A half word is loaded as if it came from the network; a message's type is in the machine's order.
        SockFilter::new(JUMP_EQUAL, 0, 1, u32::from(NEWGEN.to_be())),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

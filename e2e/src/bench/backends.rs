//! The servers behind probe Services: two pods, each with a port for every probe, that say one byte.

use std::{
    io::Write as _,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use socket2::SockRef;

use crate::{NodeNet, Pod};

/// How many Services are probes, when there are that many.
pub const PROBES: usize = 10;

const FIRST_PORT: u16 = 7000;

/// One of the two servers that a probe Service alternates between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backend {
    /// The one that all probes begin with.
    A,
    /// The other one.
    B,
}

impl Backend {
    /// What it says to every connection.
    #[must_use]
    pub fn byte(self) -> u8 {
        match self {
            Self::A => b'A',
            Self::B => b'B',
        }
    }

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// Where the two servers are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    /// The node that they are on.
    pub node: String,
    /// Their addresses.
    pub addresses: [Ipv4Addr; 2],
}

impl Places {
    /// The address of a server.
    #[must_use]
    pub fn address(&self, backend: Backend) -> Ipv4Addr {
        match backend {
            Backend::A => self.addresses[0],
            Backend::B => self.addresses[1],
        }
    }
}

/// Both servers, on a node of their own. Every probe has a port of its own, so that no two Services mean the same
/// endpoints: a backend that shares what means the same must not look better than it is.
#[derive(Debug)]
pub struct Backends {
    places: Places,
    pods: [Pod; 2],
    listeners: Vec<Listener>,
}

impl Backends {
    /// Starts them.
    ///
    /// # Errors
    /// When a pod or a socket cannot be made.
    pub fn start(node: &NodeNet) -> Result<Self> {
        let pods = [node.add_pod("backend-a")?, node.add_pod("backend-b")?];
        let places = Places {
            node: node.name().to_owned(),
            addresses: pods.each_ref().map(|pod| pod.addresses().v4),
        };
        let mut started = Self {
            places,
            pods,
            listeners: Vec::new(),
        };
        for backend in [Backend::A, Backend::B] {
            for probe in 0..PROBES {
                let at = SocketAddr::from((started.places.address(backend), Self::port(probe)));
                let listener = Listener::start(started.pod(backend), at, backend.byte())?;
                started.listeners.push(listener);
            }
        }
        Ok(started)
    }

    /// Where they are.
    #[must_use]
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// The port that both have for a probe.
    #[must_use]
    pub fn port(probe: usize) -> u16 {
        FIRST_PORT + u16::try_from(probe).unwrap_or(0)
    }

    fn pod(&self, backend: Backend) -> &Pod {
        match backend {
            Backend::A => &self.pods[0],
            Backend::B => &self.pods[1],
        }
    }
}

/// A port that answers from one thread, without one for each connection as [`crate::traffic::serve`] has: that
/// costs more than what is measured.
#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    fn start(pod: &Pod, at: SocketAddr, byte: u8) -> Result<Self> {
        let context = || format!("listening on {at} in the pod {}", pod.name());
        let socket = pod
            .namespace()
            .run(|| TcpListener::bind(at))?
            .with_context(context)?;
        let (ours, stopped) = (
            socket.try_clone().with_context(context)?,
            Arc::new(AtomicBool::new(false)),
        );
        let stop = Arc::clone(&stopped);
        let thread = thread::spawn(move || {
            for connection in ours.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // A client that is gone has counted its loss itself.
                let _ = connection.and_then(|mut connection| connection.write_all(&[byte]));
            }
        });
        Ok(Self {
            socket,
            stopped,
            thread: Some(thread),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        // Wakes the thread in accept().
        let _ = SockRef::from(&self.socket).shutdown(Shutdown::Read);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

//! A door from the test's own namespace into another one: connections to a loopback port come out inside.
//!
//! With it a test's `kube::Client`, a person's kubectl, or helm reach the API server from any thread and any
//! process, and nothing else has to know about namespaces. What runs on nodes does not use it: that goes over
//! the wire.

use std::{
    io,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context, Result};

use crate::Netns;

/// A listening port; closed when dropped.
#[derive(Debug)]
pub struct Relay {
    /// Where it listens; none is this process' own namespace.
    from: Option<Netns>,
    address: SocketAddr,
    closed: Arc<AtomicBool>,
}

impl Relay {
    /// Listens on a free loopback port here and connects to `target` inside `namespace` for each connection.
    ///
    /// # Errors
    /// When no port can be opened.
    pub fn start(namespace: &Netns, target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("opening a loopback port")?;
        Self::serve(None, listener, namespace, target)
    }

    /// Listens at an address of another namespace: so hosts of two fabrics reach one API server.
    ///
    /// # Errors
    /// When the port cannot be opened there.
    pub fn between(from: &Netns, at: SocketAddr, namespace: &Netns, target: SocketAddr) -> Result<Self> {
        let listener = from.run(|| TcpListener::bind(at))?;
        let listener = listener.with_context(|| format!("opening {at}"))?;
        Self::serve(Some(from.clone()), listener, namespace, target)
    }

    fn serve(
        from: Option<Netns>,
        listener: TcpListener,
        namespace: &Netns,
        target: SocketAddr,
    ) -> Result<Self> {
        let address = listener.local_addr().context("asking for the listening port")?;
        let closed = Arc::new(AtomicBool::new(false));
        let (namespace, stop) = (namespace.clone(), Arc::clone(&closed));
        thread::spawn(move || {
            for outside in listener.incoming().flatten() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                // A target that does not answer is a stopped API server: the client sees its connection end.
                if let Ok(Ok(inside)) = namespace.run(|| TcpStream::connect(target)) {
                    let _ = join(outside, inside);
                }
            }
        });
        Ok(Self {
            from,
            address,
            closed,
        })
    }

    /// The port to connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
        // Wakes the listening thread, which then sees that it is over.
        let wake = || drop(TcpStream::connect(self.address));
        match &self.from {
            Some(namespace) => drop(namespace.run(wake)),
            None => wake(),
        }
    }
}

fn join(outside: TcpStream, inside: TcpStream) -> io::Result<()> {
    outside.set_nodelay(true)?;
    inside.set_nodelay(true)?;
    let (outside_too, inside_too) = (outside.try_clone()?, inside.try_clone()?);
    thread::spawn(move || forward(outside, inside));
    thread::spawn(move || forward(inside_too, outside_too));
    Ok(())
}

fn forward(mut from: TcpStream, mut to: TcpStream) {
    let copied = io::copy(&mut from, &mut to);
    // An end is passed on as an end; a failure ends both directions, so that no client hangs.
    let how = if copied.is_ok() {
        Shutdown::Write
    } else {
        Shutdown::Both
    };
    let _ = to.shutdown(how);
    if copied.is_err() {
        let _ = from.shutdown(Shutdown::Both);
    }
}

//! Servers that say their name.

use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use socket2::{Domain, SockRef, Socket, Type};

use super::Protocol;
use crate::Netns;

/// How long a UDP server that is dropped may take to notice.
const UDP_BEAT: Duration = Duration::from_millis(10);

/// A running server. Dropping it closes its port and every connection that it still has.
#[derive(Debug)]
pub struct Server {
    name: String,
    address: SocketAddr,
    shared: Arc<Shared>,
    listener: Option<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stopped: AtomicBool,
    answered: AtomicU64,
    connections: Mutex<HashMap<u64, TcpStream>>,
}

/// Starts a server. It answers each TCP connection (and then echoes lines until the client closes) or each UDP
/// datagram with `<name> <client ip:port>`. Port 0 takes a free one. Give a UDP server one address, not the
/// unspecified one: its answers could leave with another source than the client sent to.
///
/// # Errors
/// When the address is not the namespace's, or the port is taken.
pub fn serve(namespace: &Netns, protocol: Protocol, address: SocketAddr, name: &str) -> Result<Server> {
    let context = || {
        format!(
            "serving {protocol:?} on {address} in the namespace of {}",
            namespace.name()
        )
    };
    let shared = Arc::<Shared>::default();
    let (name, for_thread) = (name.to_owned(), (name.to_owned(), Arc::clone(&shared)));
    let (address, listener, thread) = match protocol {
        Protocol::Tcp => {
            let listener = namespace.run(|| listen(address))?.with_context(context)?;
            let address = listener.local_addr().with_context(context)?;
            let ours = listener.try_clone().with_context(context)?;
            (
                address,
                Some(listener),
                thread::spawn(move || accept(&ours, &for_thread.0, &for_thread.1)),
            )
        }
        Protocol::Udp => {
            let socket = namespace
                .run(|| UdpSocket::bind(address))?
                .with_context(context)?;
            socket.set_read_timeout(Some(UDP_BEAT)).with_context(context)?;
            let address = socket.local_addr().with_context(context)?;
            (
                address,
                None,
                thread::spawn(move || answer_datagrams(&socket, &for_thread.0, &for_thread.1)),
            )
        }
    };
    Ok(Server {
        name,
        address,
        shared,
        listener,
        thread: Some(thread),
    })
}

impl Server {
    /// The name that it answers with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections or datagrams it has answered.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        if let Some(listener) = &self.listener {
            // Wakes the thread in accept(), which returns EINVAL.
            let _ = SockRef::from(listener).shutdown(Shutdown::Read);
        }
        if let Some(thread) = self.thread.take() {
            // A panicked server has already failed the client's test.
            let _ = thread.join();
        }
        for connection in self.shared.connections().values() {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn connections(&self) -> std::sync::MutexGuard<'_, HashMap<u64, TcpStream>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    // A flood must not overrun the queue while the machine is busy with something else.
    socket.listen(4096)?;
    Ok(socket.into())
}

fn accept(listener: &TcpListener, name: &str, shared: &Arc<Shared>) {
    for number in 0.. {
        let accepted = listener.accept();
        if shared.stopped.load(Ordering::Relaxed) {
            return;
        }
        let Ok((connection, client)) = accepted else {
            continue;
        };
        let Ok(for_drop) = connection.try_clone() else {
            continue;
        };
        shared.connections().insert(number, for_drop);
        let (line, shared) = (format!("{name} {client}\n"), Arc::clone(shared));
        thread::spawn(move || {
            // However the connection ends, it is the client that tells.
            let _ = answer_and_echo(&connection, &line, &shared.answered);
            shared.connections().remove(&number);
        });
    }
}

fn answer_and_echo(mut connection: &TcpStream, line: &str, answered: &AtomicU64) -> io::Result<()> {
    connection.set_nodelay(true)?;
    connection.write_all(line.as_bytes())?;
    answered.fetch_add(1, Ordering::Relaxed);
    let mut lines = BufReader::new(connection);
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        connection.write_all(line.as_bytes())?;
        line.clear();
    }
    Ok(())
}

fn answer_datagrams(socket: &UdpSocket, name: &str, shared: &Shared) {
    let mut datagram = [0; 2048];
    while !shared.stopped.load(Ordering::Relaxed) {
        if let Ok((_, client)) = socket.recv_from(&mut datagram) {
            // A client that is gone already does not miss the answer.
            let sent = socket.send_to(format!("{name} {client}\n").as_bytes(), client);
            shared
                .answered
                .fetch_add(u64::from(sent.is_ok()), Ordering::Relaxed);
        }
    }
}

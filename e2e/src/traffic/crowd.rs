//! Many servers of one namespace in one thread.

use std::{net::SocketAddr, thread::JoinHandle};

use anyhow::{Context as _, Result, anyhow};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, UdpSocket},
    runtime,
    sync::oneshot,
    task::JoinSet,
};

use super::Protocol;
use crate::Netns;

/// Servers that answer each connection and each datagram with one line, `<own ip:port> <client ip:port>`, and then
/// close. They end when this is dropped.
#[derive(Debug)]
pub struct Crowd {
    _stop: oneshot::Sender<()>,
    _thread: JoinHandle<()>,
}

impl Crowd {
    /// Serves all of these. Returns when every one of them listens.
    ///
    /// # Errors
    /// When an address is not the namespace's, or a port is taken.
    pub fn start(namespace: &Netns, servers: Vec<(Protocol, SocketAddr)>) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let (inside, name) = (namespace.clone(), namespace.name().to_owned());
        let thread = std::thread::spawn(move || {
            let started = inside.enter().and_then(|()| {
                let runtime = runtime::Builder::new_current_thread().enable_io().build();
                let runtime = runtime.context("a runtime for servers")?;
                let tasks = runtime.block_on(listen(servers))?;
                Ok((runtime, tasks))
            });
            match started {
                Ok((runtime, _tasks)) => {
                    let _ = tell.send(Ok(()));
                    // The sender says nothing; it is dropped.
                    let _ = runtime.block_on(stopped);
                }
                Err(error) => drop(tell.send(Err(error))),
            }
        });
        let started = told.recv();
        started
            .map_err(|_| anyhow!("the thread of the servers panicked"))?
            .with_context(|| format!("serving in the namespace of {name}"))?;
        Ok(Self {
            _stop: stop,
            _thread: thread,
        })
    }
}

async fn listen(servers: Vec<(Protocol, SocketAddr)>) -> Result<JoinSet<()>> {
    let mut tasks = JoinSet::new();
    for (protocol, address) in servers {
        let context = || format!("listening on {address} ({protocol:?})");
        match protocol {
            Protocol::Tcp => {
                let listener = TcpListener::bind(address).await.with_context(context)?;
                tasks.spawn(async move {
                    loop {
                        // However a connection ends, it is the client that tells.
                        if let Ok((mut connection, client)) = listener.accept().await {
                            let line = format!("{address} {client}\n");
                            let _ = connection.write_all(line.as_bytes()).await;
                        }
                    }
                });
            }
            Protocol::Udp => {
                let socket = UdpSocket::bind(address).await.with_context(context)?;
                tasks.spawn(async move {
                    let mut datagram = [0; 64];
                    loop {
                        if let Ok((_, client)) = socket.recv_from(&mut datagram).await {
                            let line = format!("{address} {client}\n");
                            let _ = socket.send_to(line.as_bytes(), client).await;
                        }
                    }
                });
            }
        }
    }
    Ok(tasks)
}

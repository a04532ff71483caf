//! One plain HTTP request from inside a namespace: health checks and metrics.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::Netns;

/// Asks `http://<address><path>` and returns the status and the body.
///
/// # Errors
/// When nobody listens there, or nothing comes within two seconds.
pub fn get(namespace: &Netns, address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let answer = namespace.run(|| request(address, path))?;
    let answer = answer.with_context(|| format!("GET http://{address}{path} in {}", namespace.name()))?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("an HTTP answer without an end of its head")?;
    let status = head
        .split_whitespace()
        .nth(1)
        .and_then(|status| status.parse().ok());
    Ok((
        status.with_context(|| format!("an HTTP answer without a status: {head}"))?,
        body.to_owned(),
    ))
}

fn request(address: SocketAddr, path: &str) -> io::Result<String> {
    let limit = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    // HTTP/1.0: the answer ends with the connection, and comes in one piece.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

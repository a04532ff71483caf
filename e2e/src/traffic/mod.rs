//! Real servers and clients, with sockets made inside the namespaces, that say who answered whom.
//!
//! A server answers each TCP connection and each UDP datagram with one line, `<name> <client ip:port>`: so a
//! client knows which endpoint it reached and which source address arrived there.

mod client;
mod crowd;
mod flood;
mod held;
mod outcome;
mod server;
mod socket;
mod tally;
mod volley;

pub use client::Client;
pub use crowd::Crowd;
pub use flood::Flood;
pub use held::{Held, UdpFlow};
pub use outcome::{Answer, Outcome};
pub use server::{Server, serve};
pub(crate) use socket::connect;
pub use tally::Tally;
pub use volley::{Shot, volley};

/// The protocol of a server or of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

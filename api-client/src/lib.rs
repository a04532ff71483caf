//! How Pointsman's programs talk to the API server: a client that notices a dead connection within seconds, and
//! watches that use streaming lists where the server has them.

mod chain;
mod connection;
mod watch;

pub use chain::chain;
pub use connection::{ConnectError, DEAD_CONNECTION_LIMIT, connect};
pub use watch::{Heard, ListStrategy, follow, list_strategy};

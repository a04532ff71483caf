//! The agent of one node: it watches what is to be forwarded, programs the kernel, checks its work and reports.
//!
//! `source` tells what is, `index` keeps it compactly, `engine` brings the kernel there, `report` and `server` say
//! how it goes. See ARCHITECTURE.md for the threads.

pub mod args;
pub mod engine;
pub mod index;
pub mod logging;
pub mod metrics;
pub mod report;
pub mod run;
pub mod server;
pub mod service_health;
pub mod settings;
pub mod source;
pub mod state;

//! Ctrl-C ends the bench in an orderly way: everything that was started is dropped as after a failure.

use std::{
    process,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, bail};
use tokio::runtime;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Begins to listen for Ctrl-C. The second one ends the process at once; children and namespaces go with it.
///
/// # Errors
/// When no thread or runtime can be made.
pub fn listen() -> Result<()> {
    static LISTENING: OnceLock<()> = OnceLock::new();
    if LISTENING.set(()).is_err() {
        return Ok(());
    }
    let runtime = runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("a runtime to listen for Ctrl-C with")?;
    let listen = move || {
        while runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            if INTERRUPTED.swap(true, Ordering::Relaxed) {
                process::exit(130);
            }
            eprintln!("interrupted: cleaning up (Ctrl-C again: at once)");
        }
    };
    thread::Builder::new()
        .name("ctrl-c".to_owned())
        .spawn(listen)
        .context("starting a thread")?;
    Ok(())
}

/// Whether Ctrl-C was pressed.
#[must_use]
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Fails once Ctrl-C was pressed.
///
/// # Errors
/// See above.
pub fn check() -> Result<()> {
    if is_interrupted() {
        bail!("interrupted");
    }
    Ok(())
}

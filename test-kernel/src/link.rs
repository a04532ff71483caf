//! The conversation with a guest: what it said of its processes, and the end of its console.

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io::{self, Read, Write},
    os::unix::{net::UnixStream, process::ExitStatusExt as _},
    path::Path,
    process::ExitStatus,
    sync::{Condvar, Mutex, MutexGuard, PoisonError, mpsc::Receiver},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::frame::{Frame, Kind, WINDOW};

/// The guest says every second that it goes on. One processor that commits a large table is silent for long.
const SILENCE: Duration = Duration::from_secs(180);
/// How long the console is read after the guest ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How much of what the kernel says is kept.
const CONSOLE: usize = 64 << 10;

/// What the host knows of a guest; two threads of [`crate::Kernel`] keep it.
pub(crate) struct Shared {
    line: Mutex<UnixStream>,
    state: Mutex<State>,
    changed: Condvar,
    console: Mutex<VecDeque<u8>>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) ready: bool,
    /// How many bytes the guest has not read yet.
    on_their_way: usize,
    pub(crate) last: u32,
    pub(crate) processes: HashMap<u32, Running>,
    /// Why nothing more is to be expected of it.
    pub(crate) gone: Option<String>,
}

/// What the reading thread knows of a process.
pub(crate) struct Running {
    pub(crate) streams: Streams,
    pub(crate) end: Option<End>,
}

pub(crate) enum End {
    Exited(ExitStatus),
    Failed(String),
}

/// Where goes what a program in the guest writes.
#[derive(Debug)]
pub enum Streams {
    /// To this process' own stdout and stderr, as it comes.
    Inherit,
    /// Both into one file of this machine, as it comes.
    File(File),
    /// Kept until [`GuestProcess::output`](crate::GuestProcess::output).
    Captured {
        /// So far.
        out: Vec<u8>,
        /// So far.
        err: Vec<u8>,
    },
}

impl Streams {
    /// Nothing written yet.
    #[must_use]
    pub fn captured() -> Self {
        Self::Captured {
            out: Vec::new(),
            err: Vec::new(),
        }
    }

    /// At the end of a log file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn log(path: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(path);
        Ok(Self::File(
            file.with_context(|| format!("opening {}", path.display()))?,
        ))
    }

    fn take(&mut self, kind: Kind, bytes: &[u8]) -> io::Result<()> {
        match (self, kind) {
            (Self::Inherit, Kind::Out) => {
                let mut out = io::stdout().lock();
                out.write_all(bytes)?;
                out.flush()
            }
            (Self::Inherit, _) => io::stderr().lock().write_all(bytes),
            (Self::File(file), _) => file.write_all(bytes),
            (Self::Captured { out, .. }, Kind::Out) => out.write_all(bytes),
            (Self::Captured { err, .. }, _) => err.write_all(bytes),
        }
    }
}

impl Shared {
    pub(crate) fn new(line: UnixStream) -> Self {
        Self {
            line: Mutex::new(line),
            state: Mutex::default(),
            changed: Condvar::new(),
            console: Mutex::default(),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn send(&self, frame: &Frame) -> Result<()> {
        let bytes = frame.encode().context("telling the test kernel")?;
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        for part in bytes.chunks(WINDOW) {
            let room = |state: &State| (state.on_their_way + part.len() <= WINDOW).then_some(());
            if self.wait(Some(Instant::now() + SILENCE), room)?.is_none() {
                bail!(
                    "the test kernel hears nobody; the end of its console:\n{}",
                    self.console()
                );
            }
            self.state().on_their_way += part.len();
            if let Err(error) = line.write_all(part) {
                // The reading thread sees it as well, and waits for the last words.
                self.wait(Some(Instant::now() + 2 * LAST_WORDS), |_| None::<()>)?;
                bail!("{}; the end of its console:\n{}", lost(&error), self.console());
            }
        }
        Ok(())
    }

    /// Waits until `look` finds something; none when the time is over first.
    pub(crate) fn wait<T>(
        &self,
        until: Option<Instant>,
        look: impl Fn(&State) -> Option<T>,
    ) -> Result<Option<T>> {
        let mut state = self.state();
        loop {
            if let Some(found) = look(&state) {
                return Ok(Some(found));
            }
            if let Some(gone) = &state.gone {
                let gone = gone.clone();
                drop(state);
                bail!("{gone}; the end of its console:\n{}", self.console());
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(None);
            }
            let left = left.unwrap_or(SILENCE);
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Follows what the guest says until it ends.
    pub(crate) fn read(&self, mut line: UnixStream, all_said: &Receiver<()>) {
        // Nothing is read in parts: a limit that passes within a message means a guest that hangs.
        let limited = line.set_read_timeout(Some(SILENCE));
        let gone = match limited {
            Err(error) => format!("the test kernel cannot be read from: {error}"),
            Ok(()) => loop {
                match Frame::read(&mut line) {
                    Ok(frame) => self.take(frame),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        break format!("the test kernel hangs: nothing was heard of it for {SILENCE:?}");
                    }
                    Err(error) => break lost(&error),
                }
            },
        };
        // What it said at its end is most likely the reason. A guest that hangs says nothing more.
        let _ = all_said.recv_timeout(LAST_WORDS);
        self.state().gone = Some(gone);
        self.changed.notify_all();
    }

    fn take(&self, frame: Frame) {
        let mut state = self.state();
        let process = state.processes.get_mut(&frame.process);
        match (frame.kind, process) {
            (Kind::Ready, _) => state.ready = true,
            (Kind::Took, _) => {
                let took = frame.payload.try_into().map(u32::from_le_bytes);
                state.on_their_way = state.on_their_way.saturating_sub(took.unwrap_or(0) as usize);
            }
            (Kind::Out | Kind::Err, Some(process)) => {
                // Whom we write to may have closed; what the program does counts all the same.
                let _ = process.streams.take(frame.kind, &frame.payload);
                return;
            }
            (Kind::Ended, Some(process)) => {
                let status = frame.payload.try_into().map(i32::from_le_bytes);
                process.end = Some(match status {
                    Ok(status) => End::Exited(ExitStatus::from_raw(status)),
                    Err(_) => End::Failed("the guest sent no exit status".to_owned()),
                });
            }
            (Kind::Failed, Some(process)) => {
                let why = String::from_utf8_lossy(&frame.payload).into_owned();
                process.end = Some(End::Failed(why));
            }
            (Kind::Failed, None) => {
                state.gone = Some(String::from_utf8_lossy(&frame.payload).into_owned());
            }
            // Of a process that nobody waits for any more; or a word that it goes on.
            _ => return,
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Keeps the end of the console.
    pub(crate) fn keep(&self, mut pipe: impl Read, copy: bool) {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = pipe.read(&mut buffer) {
            let bytes = &buffer[..length];
            if copy {
                let _ = io::stderr().lock().write_all(bytes);
            }
            let mut console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
            console.extend(bytes);
            let excess = console.len().saturating_sub(CONSOLE);
            console.drain(..excess);
        }
    }

    pub(crate) fn console(&self) -> String {
        let console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = console.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

/// What it means that the line to the guest cannot be read or written.
fn lost(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            "the test kernel ended".to_owned()
        }
        _ => format!("the test kernel cannot be understood: {error}"),
    }
}

//! A booted kernel, and the programs that run in it.

use std::{
    collections::{HashMap, VecDeque},
    ffi::OsStr,
    fmt,
    fs::File,
    io::{self, Read, Write},
    os::unix::{net::UnixStream, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::{
    Options, cache, cargo,
    frame::{Frame, Kind, Start, WINDOW},
    machine::{self, Machine},
};

/// A boot takes half a second on an idle machine.
const BOOT: Duration = Duration::from_secs(120);
/// The guest says every second that it goes on. One processor that commits a large table is silent for long.
const SILENCE: Duration = Duration::from_secs(180);
/// How long the guest may take to write its files and power off.
const POWER_OFF: Duration = Duration::from_secs(10);
/// How long the console is read after the guest ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How much of what the kernel says is kept.
const CONSOLE: usize = 64 << 10;

/// A kernel that runs. Dropping it powers it off; when this process dies, it dies as well.
pub struct Kernel {
    shared: Arc<Shared>,
    child: Mutex<Child>,
    group: Pid,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Kernel")
            .field("pid", &self.group)
            .finish()
    }
}

struct Shared {
    line: Mutex<UnixStream>,
    state: Mutex<State>,
    changed: Condvar,
    console: Mutex<VecDeque<u8>>,
}

#[derive(Default)]
struct State {
    ready: bool,
    /// How many bytes the guest has not read yet.
    on_their_way: usize,
    last: u32,
    processes: HashMap<u32, Running>,
    /// Why nothing more is to be expected of it.
    gone: Option<String>,
}

/// What the reading thread knows of a process.
struct Running {
    streams: Streams,
    end: Option<End>,
}

enum End {
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
    /// Kept until [`GuestProcess::output`].
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

impl Kernel {
    /// Boots a kernel, which is built first when it is missing.
    ///
    /// # Errors
    /// With the end of what the kernel said, when it does not come up.
    pub fn boot(options: &Options) -> Result<Self> {
        let Machine {
            mut child,
            line,
            folder,
        } = machine::start(options)?;
        let group = Pid::from_raw(i32::try_from(child.id()).context("a process id that is no process id")?);
        let reading = line.try_clone().context("sharing the guest's serial line")?;
        let shared = Arc::new(Shared {
            line: Mutex::new(line),
            state: Mutex::default(),
            changed: Condvar::new(),
            console: Mutex::default(),
        });
        let says: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|pipe| Box::new(pipe) as _),
            child.stderr.take().map(|pipe| Box::new(pipe) as _),
        ];
        // From here on dropping it ends the guest.
        let kernel = Self {
            shared: Arc::clone(&shared),
            child: Mutex::new(child),
            group,
        };
        let (said, all_said) = mpsc::channel();
        for pipe in says.into_iter().flatten() {
            let (shared, copy, said) = (Arc::clone(&shared), options.console, said.clone());
            thread::spawn(move || {
                shared.keep(pipe, copy);
                drop(said);
            });
        }
        drop(said);
        thread::spawn(move || shared.read(reading, &all_said));
        kernel
            .shared
            .wait(Some(Instant::now() + BOOT), |state| state.ready.then_some(()))?
            .with_context(|| format!("the test kernel has not booted after {BOOT:?}; {}", kernel.said()))?;
        drop(folder);
        for folder in shares(&options.shared)? {
            let path = folder.into_os_string().into_encoded_bytes();
            kernel.shared.send(&Frame::new(Kind::Share, 0, path))?;
        }
        Ok(kernel)
    }

    /// Starts a program in the guest. Of `command` counts: the program, the arguments, the folder (this process' own when it
    /// names none) and the variables that it sets; PATH, HOME and TERM are there anyway.
    ///
    /// # Errors
    /// When the guest is gone. A program that does not exist is told by what waits for it.
    pub fn spawn(&self, command: &Command, streams: Streams) -> Result<GuestProcess> {
        self.begin(command, streams, None)
    }

    /// The same on a terminal of so many rows and columns.
    ///
    /// # Errors
    /// As [`Kernel::spawn`].
    pub fn spawn_on_terminal(&self, command: &Command, rows: u16, columns: u16) -> Result<GuestProcess> {
        self.begin(command, Streams::Inherit, Some((rows, columns)))
    }

    /// Runs a program in the guest to its end.
    ///
    /// # Errors
    /// When it does not exist, or the guest is gone.
    pub fn output(&self, command: &Command) -> Result<Output> {
        self.spawn(command, Streams::captured())?.output()
    }

    /// The end of what the kernel said on its console.
    #[must_use]
    pub fn console(&self) -> String {
        self.shared.console()
    }

    /// The process group of the kernel and of all that runs in it, as the machine sees them.
    #[must_use]
    pub fn process_group(&self) -> Pid {
        self.group
    }

    fn begin(
        &self,
        command: &Command,
        streams: Streams,
        terminal: Option<(u16, u16)>,
    ) -> Result<GuestProcess> {
        let folder = match command.get_current_dir() {
            Some(folder) => std::path::absolute(folder).context("the program's folder")?,
            None => std::env::current_dir().context("asking for the current folder")?,
        };
        let set = |(name, value): (&OsStr, Option<&OsStr>)| Some((name.to_owned(), value?.to_owned()));
        let start = Start {
            terminal,
            folder: folder.into_os_string(),
            words: std::iter::once(command.get_program())
                .chain(command.get_args())
                .map(OsStr::to_owned)
                .collect(),
            environment: command.get_envs().filter_map(set).collect(),
        };
        let id = {
            let mut state = self.shared.state();
            state.last += 1;
            let id = state.last;
            state.processes.insert(id, Running { streams, end: None });
            id
        };
        // Dropping it forgets the process again.
        let process = GuestProcess {
            shared: Arc::clone(&self.shared),
            name: command.get_program().to_string_lossy().into_owned(),
            id,
        };
        self.shared.send(&Frame::new(Kind::Start, id, start.encode()))?;
        Ok(process)
    }

    fn said(&self) -> String {
        format!("the end of its console:\n{}", self.console())
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let asked = self.shared.send(&Frame::new(Kind::PowerOff, 0, []));
        if asked.is_ok() {
            let off = |state: &State| state.gone.is_some().then_some(());
            // Both answers are the same here: it is gone.
            let _ = self.shared.wait(Some(Instant::now() + POWER_OFF), off);
        }
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        // The processes of the guest are its children, in its group: they die with it (PR_SET_PDEATHSIG, and
        // PTRACE_O_EXITKILL) and are asked to once more. It may all be gone already.
        let _ = killpg(self.group, Signal::SIGKILL);
        let _ = child.wait();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, frame: &Frame) -> Result<()> {
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
    fn wait<T>(&self, until: Option<Instant>, look: impl Fn(&State) -> Option<T>) -> Result<Option<T>> {
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
    fn read(&self, mut line: UnixStream, all_said: &Receiver<()>) {
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
    fn keep(&self, mut pipe: impl Read, copy: bool) {
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

    fn console(&self) -> String {
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

/// A program that runs in the guest. Dropping it kills it.
pub struct GuestProcess {
    shared: Arc<Shared>,
    name: String,
    id: u32,
}

impl fmt::Debug for GuestProcess {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "GuestProcess({}, {})", self.id, self.name)
    }
}

impl GuestProcess {
    /// Waits until it ends.
    ///
    /// # Errors
    /// When it could not be started, or the guest is gone.
    pub fn wait(&self) -> Result<ExitStatus> {
        let ended = self.wait_until(None)?;
        ended.with_context(|| format!("waiting for {}", self.name))
    }

    /// Waits until it ends, at most so long; none when it goes on.
    ///
    /// # Errors
    /// When it could not be started, or the guest is gone.
    pub fn wait_for(&self, limit: Duration) -> Result<Option<ExitStatus>> {
        self.wait_until(Some(Instant::now() + limit))
    }

    /// Waits until it ends and gives what it wrote, as far as that was [`Streams::Captured`].
    ///
    /// # Errors
    /// When it could not be started, or the guest is gone.
    pub fn output(self) -> Result<Output> {
        let status = self.wait()?;
        let running = self.shared.state().processes.remove(&self.id);
        let (stdout, stderr) = match running.map(|running| running.streams) {
            Some(Streams::Captured { out, err }) => (out, err),
            _ => Default::default(),
        };
        Ok(Output {
            status,
            stdout,
            stderr,
        })
    }

    /// Sends it a signal. One that has ended gets none.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn kill(&self, signal: Signal) -> Result<()> {
        let number = (signal as i32).to_le_bytes();
        self.shared.send(&Frame::new(Kind::Signal, self.id, number))
    }

    /// Gives it input. Nothing (`b""`) ends its input.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn write(&self, input: &[u8]) -> Result<()> {
        self.shared.send(&Frame::new(Kind::Input, self.id, input))
    }

    fn wait_until(&self, until: Option<Instant>) -> Result<Option<ExitStatus>> {
        let ended = self.shared.wait(until, |state| {
            let Some(running) = state.processes.get(&self.id) else {
                return Some(Err(anyhow!("{} is nobody's any more", self.name)));
            };
            match running.end.as_ref()? {
                End::Exited(status) => Some(Ok(*status)),
                End::Failed(why) => Some(Err(anyhow!("starting {} in the test kernel: {why}", self.name))),
            }
        })?;
        ended.transpose()
    }
}

impl Drop for GuestProcess {
    fn drop(&mut self) {
        let running = self.shared.state().processes.remove(&self.id);
        if running.is_some_and(|running| running.end.is_none()) {
            // A guest that is gone has no processes.
            let _ = self.kill(Signal::SIGKILL);
        }
    }
}

/// What the guest may write to. A folder within another is there with it.
fn shares(wanted: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut all = vec![PathBuf::from(cargo::WORKSPACE), cache::target_directory()?];
    all.extend(wanted.iter().cloned());
    let mut shares: Vec<PathBuf> = Vec::new();
    for folder in all {
        let real = folder
            .canonicalize()
            .with_context(|| format!("sharing {} with the test kernel", folder.display()))?;
        ensure!(
            real != Path::new("/"),
            "the test kernel gets no whole machine to write to"
        );
        if !shares.iter().any(|other| real.starts_with(other)) {
            shares.push(real);
        }
    }
    // What is within one that came later would be hidden by it.
    shares.sort();
    Ok(shares)
}

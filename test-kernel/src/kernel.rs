//! A booted kernel, and the programs that run in it.

use std::{
    ffi::OsStr,
    fmt,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::{
    Options, Streams, cache, cargo,
    frame::{Frame, Kind, Start},
    link::{End, Running, Shared, State},
    machine::{self, Machine},
};

/// A boot takes half a second on an idle machine.
const BOOT: Duration = Duration::from_secs(120);
/// How long the guest may take to write its files and power off.
const POWER_OFF: Duration = Duration::from_secs(10);
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
        let shared = Arc::new(Shared::new(line));
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

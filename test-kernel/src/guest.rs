//! The first process of the guest: mounts what a Linux system has, starts and ends programs as the host says, and powers off.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    pty::{Winsize, openpty},
    sys::{
        reboot::{RebootMode, reboot},
        signal::{Signal, kill, killpg},
        termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::{Pid, sync},
};

use crate::{
    INSIDE,
    frame::{Frame, Kind, Start},
    furniture,
};

const LINE: &str = "/dev/ttyS0";
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Whether this process is the guest's first.
#[must_use]
pub fn is_first_process() -> bool {
    std::process::id() == 1 && std::env::var_os(INSIDE).is_some()
}

/// Does all of it. Returns only when the guest cannot be powered off.
pub fn run() {
    if let Err(error) = serve() {
        // The console, which the host shows when the guest ends unasked.
        eprintln!("the test kernel's first process: {error:#}");
    }
    sync();
    let _ = reboot(RebootMode::RB_POWER_OFF);
}

fn serve() -> Result<()> {
    furniture::prepare()?;
    let line = File::options()
        .read(true)
        .write(true)
        .open(LINE)
        .with_context(|| format!("opening {LINE}"))?;
    let mut settings = tcgetattr(&line).context("reading the line's settings")?;
    cfmakeraw(&mut settings);
    tcsetattr(&line, SetArg::TCSANOW, &settings).context("making the line carry bytes as they are")?;
    let orders = line.try_clone().context("sharing the line")?;
    let guest = Arc::new(Guest {
        line: Mutex::new(line),
        processes: Mutex::default(),
        started: Condvar::new(),
    });
    let mut orders = Orders {
        line: orders,
        guest: Arc::clone(&guest),
    };
    guest.send(Kind::Ready, 0, []);
    for work in [Guest::say_alive, Guest::reap] {
        let guest = Arc::clone(&guest);
        thread::spawn(move || work(&guest));
    }
    loop {
        // The line ends when the host does.
        let order = Frame::read(&mut orders).context("hearing the host")?;
        let done = match order.kind {
            Kind::PowerOff => return Ok(()),
            Kind::Share => furniture::share(&order.payload),
            Kind::Start => guest.start(order.process, &order.payload),
            Kind::Input => {
                guest.input(order.process, order.payload);
                Ok(())
            }
            Kind::Signal => guest.signal(order.process, &order.payload),
            kind => bail!("the host said {kind:?}"),
        };
        if let Err(error) = done {
            let why = format!("{error:#}");
            guest.send(Kind::Failed, order.process, why);
        }
    }
}

/// What the host says. It is told what was read, and sends no more than the line can hold.
struct Orders {
    line: File,
    guest: Arc<Guest>,
}

impl Read for Orders {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.line.read(buffer)?;
        // Never more than the line holds.
        let took = u32::try_from(length).unwrap_or(u32::MAX);
        self.guest.send(Kind::Took, 0, took.to_le_bytes());
        Ok(length)
    }
}

struct Guest {
    line: Mutex<File>,
    processes: Mutex<HashMap<u32, Process>>,
    started: Condvar,
}

struct Process {
    pid: Pid,
    input: Input,
    /// Says so for each stream that is read to its end.
    read: Receiver<()>,
    streams: usize,
}

/// What is to be given to a process, by a thread of its own: one that does not read keeps nobody else waiting.
enum Input {
    /// Closed by being dropped.
    Pipe(Option<Sender<Vec<u8>>>),
    Terminal(Sender<Vec<u8>>),
}

/// Writes what comes. A program need not read all of it.
fn feed(mut to: impl Write + Send + 'static) -> Sender<Vec<u8>> {
    let (sender, parts) = mpsc::channel::<Vec<u8>>();
    thread::spawn(move || parts.into_iter().try_for_each(|part| to.write_all(&part)));
    sender
}

impl Guest {
    fn send(&self, kind: Kind, process: u32, payload: impl Into<Vec<u8>>) {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        // A host that is gone ends the other direction as well, and with it the guest.
        let _ = Frame::new(kind, process, payload).write(&mut *line);
    }

    fn processes(&self) -> MutexGuard<'_, HashMap<u32, Process>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say_alive(&self) {
        loop {
            thread::sleep(Duration::from_secs(1));
            self.send(Kind::Alive, 0, []);
        }
    }

    fn start(self: &Arc<Self>, id: u32, order: &[u8]) -> Result<()> {
        let order = Start::decode(order).context("the host's order is not understood")?;
        let [program, arguments @ ..] = order.words.as_slice() else {
            bail!("a program without a name")
        };
        let mut command = match order.terminal {
            None => Command::new(find(program, &order)?),
            Some(_) => {
                // Makes its stdin the controlling terminal and becomes the program.
                let mut command = Command::new("/usr/bin/setsid");
                command.arg("--ctty").arg(find(program, &order)?);
                command
            }
        };
        command.args(arguments).current_dir(&order.folder).env_clear();
        command.envs([("PATH", PATH), ("HOME", "/root"), ("TERM", "linux")]);
        command.envs(order.environment.iter().map(|(name, value)| (name, value)));
        command.env(INSIDE, "1");
        // Of the machine's folders the guest can write to few.
        command.env_remove("TMPDIR");
        let (told, read) = mpsc::channel();
        // Held until it is known who it is: it may end before that.
        let mut processes = self.processes();
        let (pid, input, streams) = match order.terminal {
            None => {
                command
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped());
                command.process_group(0);
                let mut child = command.spawn()?;
                let output = child.stdout.take().context("no output")?;
                let errors = child.stderr.take().context("no errors")?;
                self.forward(Kind::Out, id, output, told.clone());
                self.forward(Kind::Err, id, errors, told);
                (child.id(), Input::Pipe(child.stdin.take().map(feed)), 2)
            }
            Some((rows, columns)) => {
                let size = Winsize {
                    ws_row: rows,
                    ws_col: columns,
                    ws_xpixel: 0,
                    ws_ypixel: 0,
                };
                let ends = openpty(Some(&size), None).context("making a terminal")?;
                let slave = || -> Result<OwnedFd> { ends.slave.try_clone().context("sharing a terminal") };
                command.stdin(slave()?).stdout(slave()?).stderr(slave()?);
                let child = command.spawn()?;
                let master = File::from(ends.master);
                self.forward(
                    Kind::Out,
                    id,
                    master.try_clone().context("sharing a terminal")?,
                    told,
                );
                (child.id(), Input::Terminal(feed(master)), 1)
            }
        };
        let pid = Pid::from_raw(i32::try_from(pid).context("a process id that is no process id")?);
        processes.insert(
            id,
            Process {
                pid,
                input,
                read,
                streams,
            },
        );
        self.started.notify_all();
        Ok(())
    }

    /// Sends on what a process writes. Reading a terminal fails when nobody has its other end any more.
    fn forward(
        self: &Arc<Self>,
        kind: Kind,
        id: u32,
        mut from: impl Read + Send + 'static,
        told: Sender<()>,
    ) {
        let guest = Arc::clone(self);
        thread::spawn(move || {
            let mut buffer = [0; 16 << 10];
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                guest.send(kind, id, &buffer[..length]);
            }
            // Nobody waits when the process was forgotten.
            let _ = told.send(());
        });
    }

    fn input(&self, id: u32, input: Vec<u8>) {
        if let Some(process) = self.processes().get_mut(&id) {
            // The thread ends when the program takes no more.
            let _ = match &mut process.input {
                Input::Pipe(pipe) if input.is_empty() => {
                    *pipe = None;
                    Ok(())
                }
                Input::Pipe(Some(pipe)) => pipe.send(input),
                Input::Pipe(None) => Ok(()),
                // The terminal's own end of input.
                Input::Terminal(master) if input.is_empty() => master.send(b"\x04".into()),
                Input::Terminal(master) => master.send(input),
            };
        }
    }

    fn signal(&self, id: u32, number: &[u8]) -> Result<()> {
        let number = number
            .try_into()
            .map(i32::from_le_bytes)
            .context("a signal without a number")?;
        let signal = Signal::try_from(number).with_context(|| format!("signal {number}"))?;
        // While the map is held nobody reaps, so the process id cannot mean another one.
        if let Some(process) = self.processes().get(&id) {
            match kill(process.pid, signal) {
                Err(Errno::ESRCH) | Ok(()) => (),
                Err(error) => return Err(error).context("sending a signal"),
            }
        }
        Ok(())
    }

    /// Takes the status of everything that ends, orphans too, which is what a first process is there for.
    fn reap(&self) {
        loop {
            // Looked at only, until the map is held.
            let ended = waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
            let mut processes = self.processes();
            let pid = match ended {
                Ok(status) => status.pid(),
                Err(Errno::ECHILD) if processes.is_empty() => {
                    let waiting = self.started.wait(processes);
                    drop(waiting.unwrap_or_else(PoisonError::into_inner));
                    continue;
                }
                Err(_) => continue,
            };
            let Some(pid) = pid else { continue };
            let Ok(status) = waitpid(pid, None) else { continue };
            let whose = processes.iter().find(|(_, process)| process.pid == pid);
            let Some(id) = whose.map(|(id, _)| *id) else {
                continue;
            };
            let Some(process) = processes.remove(&id) else {
                continue;
            };
            drop(processes);
            self.end(id, &process, status);
        }
    }

    fn end(&self, id: u32, process: &Process, status: WaitStatus) {
        // What it left running must not keep its output open.
        let _ = killpg(process.pid, Signal::SIGKILL);
        for _ in 0..process.streams {
            // Unless somebody left its group and holds them: then this much is enough.
            let _ = process.read.recv_timeout(Duration::from_secs(2));
        }
        let raw = match status {
            WaitStatus::Exited(_, code) => (code & 0xff) << 8,
            WaitStatus::Signaled(_, signal, _) => signal as i32,
            // waitpid without flags gives no others.
            _ => 0xff << 8,
        };
        self.send(Kind::Ended, id, raw.to_le_bytes());
    }
}

/// The program's path: with a name alone, where PATH leads. Command would search the guest's own, empty PATH.
fn find(program: &std::ffi::OsStr, order: &Start) -> Result<PathBuf> {
    let named = Path::new(program);
    if named.components().count() > 1 {
        return Ok(named.to_owned());
    }
    let set = order.environment.iter().find(|(name, _)| name == "PATH");
    let path = set.map_or(PATH.into(), |(_, value)| value.clone());
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join(named))
        .find(|candidate| candidate.is_file());
    found.with_context(|| format!("no program {} in {}", named.display(), path.display()))
}

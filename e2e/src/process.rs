//! A long-lived child process with a log file, which dies with this process at the latest.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use pointsman_test_kernel::child;

/// A running program. Dropping it kills it; when that happens because a test failed, the end of its log is
/// printed first.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    pid: Pid,
    child: Mutex<Child>,
}

/// Processor time that a program has used, from /proc.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// Of the program itself, user and system.
    pub own: Duration,
    /// Of the children that it has waited for: for kube-proxy these are iptables-restore and nft.
    pub children: Duration,
}

impl CpuTime {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.own + self.children
    }
}

impl Process {
    /// Starts `command`, made by [`crate::Netns::command`] or [`crate::NodeNet::command`], with everything that
    /// it writes going to the end of `log`.
    ///
    /// # Errors
    /// When the program is missing or the log cannot be written.
    pub fn start(name: &str, mut command: Command, log: PathBuf) -> Result<Self> {
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("opening {}, the log of {name}", log.display()))?;
        command.stdin(Stdio::null());
        command.stdout(
            file.try_clone()
                .context("sharing a log between stdout and stderr")?,
        );
        command.stderr(file);
        let program = command.get_program().to_owned();
        let child = child::spawn(command)
            .with_context(|| format!("starting {name} ({})", program.to_string_lossy()))?;
        let pid = Pid::from_raw(i32::try_from(child.id()).context("a process id that is no process id")?);
        Ok(Self {
            name: name.to_owned(),
            log,
            pid,
            child: Mutex::new(child),
        })
    }

    /// What the process is called in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> Pid {
        self.pid
    }

    /// Where it writes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Whether it has not ended yet.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.child().try_wait(), Ok(None))
    }

    /// Sends a signal: SIGSTOP and SIGCONT to freeze and thaw, SIGHUP to reload.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // While the lock is held nobody reaps the process, so its id cannot mean another one.
        let mut child = self.child();
        if let Some(status) = child
            .try_wait()
            .with_context(|| format!("looking after {}", self.name))?
        {
            bail!(
                "{} is gone ({status}), so {signal} has nobody to go to",
                self.name
            );
        }
        kill(self.pid, signal).with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// Asks it to end with SIGTERM, and makes it end when it has not after `limit`. Returns whether it ended by
    /// itself.
    ///
    /// # Errors
    /// When it can be neither signalled nor waited for.
    pub fn stop(&self, limit: Duration) -> Result<bool> {
        if !self.is_running() {
            return Ok(true);
        }
        self.signal(Signal::SIGTERM)?;
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if !self.is_running() {
                return Ok(true);
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.kill9()?;
        Ok(false)
    }

    /// Kills it as the out-of-memory killer would, and waits until it is gone.
    ///
    /// # Errors
    /// When it can be neither killed nor waited for.
    pub fn kill9(&self) -> Result<()> {
        let mut child = self.child();
        child
            .kill()
            .and_then(|()| child.wait())
            .with_context(|| format!("killing {}", self.name))?;
        Ok(())
    }

    /// The most resident memory it ever had (VmHWM), in bytes. Ask before it ends.
    ///
    /// # Errors
    /// When it has ended.
    pub fn peak_memory(&self) -> Result<u64> {
        let status = self.proc_file("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        Ok(kib.with_context(|| format!("no VmHWM in /proc of {}: has it ended?", self.name))? * 1024)
    }

    /// The processor time it has used so far. Ask before it ends.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu_time(&self) -> Result<CpuTime> {
        let stat = self.proc_file("stat")?;
        // The name, in parentheses, may contain spaces; state is the first field after it.
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
        let (Some(user), Some(system), Some(child_user), Some(child_system)) =
            (ticks(11), ticks(12), ticks(13), ticks(14))
        else {
            bail!("/proc/{}/stat is not as proc(5) has it: {stat}", self.pid)
        };
        // USER_HZ, which is 100 on every architecture that this runs on.
        let time = |ticks: u64| Duration::from_millis(ticks * 10);
        Ok(CpuTime {
            own: time(user + system),
            children: time(child_user + child_system),
        })
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Calls `ready` every 10 ms until it says yes.
    ///
    /// # Errors
    /// With the end of the log, when the process ends or `limit` passes first.
    pub fn wait_until(&self, what: &str, limit: Duration, ready: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !ready() {
            let problem = match self.is_running() {
                false => "it ended".to_owned(),
                true if Instant::now() > deadline => format!("not after {limit:?}"),
                true => {
                    thread::sleep(Duration::from_millis(10));
                    continue;
                }
            };
            bail!(
                "waiting for {} to {what}: {problem}; the end of its log:\n{}",
                self.name,
                self.log_tail(30)
            );
        }
        Ok(())
    }

    fn proc_file(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.pid);
        fs::read_to_string(&path).with_context(|| format!("reading {path}: has {} ended?", self.name))
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Child> {
        // A panic while it was held left nothing half done: Child keeps its own state.
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!(
                "---- the end of the log of {} ({}):\n{}",
                self.name,
                self.log.display(),
                self.log_tail(20)
            );
        }
        // It may have ended already; in every other case the parent-death signal is what is left.
        let _ = self.kill9();
    }
}

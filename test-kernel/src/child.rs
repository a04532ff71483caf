//! What a child process does between fork and exec, and the thread that all long-lived children come from.
//!
//! The kernel sends the parent-death signal when the *thread* that forked ends, not the process
//! (prctl(2), PR_SET_PDEATHSIG). A server started by a test's own thread would die with that thread, so
//! long-lived children are forked by one thread that lives as long as the process.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command},
    sync::{
        Arc, OnceLock,
        mpsc::{self, Sender},
    },
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::{
        prctl,
        resource::{Resource, setrlimit},
        signal::Signal,
    },
    unistd::{Pid, getppid},
};

/// Makes `command`'s child enter the network namespace (when there is one) and die with its parent.
pub fn bind_to_parent(command: &mut Command, namespace: Option<Arc<OwnedFd>>) {
    let parent = Pid::this();
    let prepare = move || -> io::Result<()> {
        if let Some(namespace) = &namespace {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
        }
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // A parent that died before the line above sends no signal any more.
        if getppid() != parent {
            return Err(io::Error::other("the parent is gone"));
        }
        Ok(())
    };
    before_exec(command, prepare);
}

#[allow(
    unsafe_code,
    reason = "CommandExt::pre_exec is the only hook between fork and exec; the closures given to it make system calls only"
)]
fn before_exec(command: &mut Command, prepare: impl FnMut() -> io::Result<()> + Send + Sync + 'static) {
    // SAFETY: `prepare` runs in the forked child, where only async-signal-safe functions are allowed. It calls
    // setns, prctl, getppid and setrlimit, which are plain system calls, and allocates nothing on its way to success.
    unsafe { command.pre_exec(prepare) };
}

/// Makes `command`'s child leave no core file when it aborts.
pub fn without_core_file(command: &mut Command) {
    before_exec(command, || {
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        Ok(())
    });
}

/// Starts `command` from the thread that lives as long as this process.
///
/// # Errors
/// When it cannot be started.
pub fn spawn(mut command: Command) -> io::Result<Child> {
    type Order = Box<dyn FnOnce() + Send>;
    static SPAWNER: OnceLock<Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::spawn(move || inbox.into_iter().for_each(|order| order()));
        orders
    });
    let gone = || io::Error::other("the thread that starts processes is gone");
    let (reply, answer) = mpsc::channel();
    spawner
        .send(Box::new(move || {
            // Nobody waits for the answer only when the asking thread panicked; the child is then dropped
            // like any other and dies with this process.
            let _ = reply.send(command.spawn());
        }))
        .map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

//! Network namespaces without a name: held open by a file descriptor, so the kernel removes them, and every
//! interface in them, when the test process ends in whatever way.

use std::{
    fs::{self, File},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Weak},
    thread,
};

use anyhow::{Context, Result, anyhow, bail};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

use pointsman_test_kernel::child;

use crate::{ip, requirements};

/// A network namespace. Clones mean the same namespace, which lives until the last of them is dropped and the
/// last process in it has ended.
#[derive(Clone, Debug)]
pub struct Netns {
    name: Arc<str>,
    handle: Arc<OwnedFd>,
}

impl Netns {
    /// Makes a namespace whose loopback interface is up. The name is for messages only.
    ///
    /// # Errors
    /// When the kernel refuses: not root, or no network namespaces in this kernel.
    pub fn new(name: &str) -> Result<Self> {
        let handle = thread::scope(|scope| {
            scope
                .spawn(|| -> Result<OwnedFd> {
                    unshare(CloneFlags::CLONE_NEWNET)
                        .context("unshare(CLONE_NEWNET); it needs root (CAP_SYS_ADMIN)")?;
                    // Not /proc/self: that is the main thread, which stayed where it was.
                    let file = File::open("/proc/thread-self/ns/net").context("opening the new namespace")?;
                    Ok(file.into())
                })
                .join()
        })
        .map_err(|_| anyhow!("the thread that makes a namespace panicked"))?
        .with_context(|| format!("making the network namespace of {name}"))?;
        let namespace = Self {
            name: name.into(),
            handle: Arc::new(handle),
        };
        ip::batch(&namespace, ["link set lo up"])?;
        Ok(namespace)
    }

    /// What the namespace is called in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a fresh thread inside the namespace. Sockets made there stay in the namespace wherever
    /// they are used afterwards, and `/proc/sys/net` is the namespace's own.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or when `work` panicked.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter()?;
                Ok(work())
            });
            inside
                .join()
                .unwrap_or_else(|_| Err(anyhow!("work inside the namespace {} panicked", self.name)))
        })
    }

    /// Moves the calling thread into the namespace, for good. For threads that were made for it: a runtime's
    /// workers (`tokio::runtime::Builder::on_thread_start`), a client's.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(&self) -> Result<()> {
        setns(self.handle.as_fd(), CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("entering the network namespace of {}; it needs root", self.name))
    }

    /// A command that will run inside the namespace and is killed when the *thread* that starts it ends. Right
    /// for what is waited for (`output`, `status`); for servers use [`crate::Process::start`].
    #[must_use]
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.env("PATH", requirements::search_path());
        child::bind_to_parent(&mut command, Some(Arc::clone(&self.handle)));
        command
    }

    /// A path that means this namespace to other programs, as in `nsenter --net=<path>` or `ip link set netns
    /// <path>`. Valid while this process lives.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.handle.as_raw_fd()).into()
    }

    /// Gives the namespace a name that `ip netns exec <name>` knows. It then stays until [`Published`] is
    /// dropped, also when this process is killed: for demos that a person looks into, not for tests.
    ///
    /// # Errors
    /// When the name is taken, or the kernel refuses the mount.
    pub fn publish(&self, name: &str) -> Result<Published> {
        let folder = Path::new("/run/netns");
        fs::create_dir_all(folder).context("making /run/netns")?;
        let target = folder.join(name);
        if target.exists() {
            bail!(
                "{} exists; remove it with: ip netns delete {name}",
                target.display()
            );
        }
        File::create(&target).with_context(|| format!("making {}", target.display()))?;
        mount(
            Some(&self.path()),
            &target,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .with_context(|| format!("mounting the namespace of {} at {}", self.name, target.display()))
        .inspect_err(|_| drop(fs::remove_file(&target)))?;
        Ok(Published { target })
    }

    /// What stands for this namespace.
    pub(crate) fn handle(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.handle)
    }

    pub(crate) fn downgrade(&self) -> WeakNetns {
        WeakNetns {
            name: Arc::clone(&self.name),
            handle: Arc::downgrade(&self.handle),
        }
    }
}

/// A namespace known by name in /run/netns; the name goes when this is dropped.
#[derive(Debug)]
pub struct Published {
    target: PathBuf,
}

impl Published {
    /// Leaves the name in place; `ip netns delete <name>` removes it.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        // Nothing sensible can be done about a failure here; the name can still be deleted by hand.
        let _ = umount2(&self.target, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(&self.target);
    }
}

/// Remembers a namespace without keeping it alive.
#[derive(Clone, Debug)]
pub(crate) struct WeakNetns {
    name: Arc<str>,
    handle: Weak<OwnedFd>,
}

impl WeakNetns {
    pub(crate) fn upgrade(&self) -> Option<Netns> {
        Some(Netns {
            name: Arc::clone(&self.name),
            handle: self.handle.upgrade()?,
        })
    }
}

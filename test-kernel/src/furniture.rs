//! What the guest's programs find: the machine's files, and what is a kernel's own.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};
use nix::{
    mount::{MsFlags, mount},
    sys::resource::{Resource, setrlimit},
    unistd::sethostname,
};

use crate::guest;

/// Everything of the machine is to be seen and nothing to be changed, but for what is a kernel's own.
pub(crate) fn prepare() -> Result<()> {
    let mounts = [
        ("proc", "/proc", "proc", ""),
        ("sysfs", "/sys", "sysfs", ""),
        ("devpts", "/dev/pts", "devpts", "ptmxmode=0666"),
        ("tmpfs", "/dev/shm", "tmpfs", ""),
        ("tmpfs", "/run", "tmpfs", ""),
        // Private: locks do not reach through hostfs, so whoever sweeps up folders that nobody holds would sweep up
        // the machine's.
        ("tmpfs", "/tmp", "tmpfs", "mode=1777"),
        ("tmpfs", "/sys/fs/cgroup", "tmpfs", "mode=755"),
    ];
    for (what, path, kind, options) in mounts {
        if path.starts_with("/dev/") {
            fs::create_dir_all(path).with_context(|| format!("making {path}"))?;
        }
        mount(Some(what), path, Some(kind), MsFlags::empty(), Some(options))
            .with_context(|| format!("mounting {kind} at {path}"))?;
    }
    let cgroup = "/sys/fs/cgroup/unified";
    fs::create_dir_all(cgroup).with_context(|| format!("making {cgroup}"))?;
    mount(
        Some("cgroup2"),
        cgroup,
        Some("cgroup2"),
        MsFlags::empty(),
        None::<&str>,
    )
    .context("mounting cgroup2")?;
    // As it is found where udev runs.
    for (name, target) in [
        ("fd", "self/fd"),
        ("stdin", "self/fd/0"),
        ("stdout", "self/fd/1"),
        ("stderr", "self/fd/2"),
    ] {
        let link = Path::new("/dev").join(name);
        if !link.exists() {
            std::os::unix::fs::symlink(Path::new("/proc").join(target), &link)
                .with_context(|| format!("making {}", link.display()))?;
        }
    }
    // The kernel takes so little memory for a machine that tracks 8192 connections, and the tests of flows make more. These are
    // what it takes with 4 GB.
    for (name, value) in [("nf_conntrack_buckets", "65536"), ("nf_conntrack_max", "262144")] {
        let path = Path::new("/proc/sys/net/netfilter").join(name);
        fs::write(&path, value).with_context(|| format!("writing {}", path.display()))?;
    }
    // A kernel alone gives 4096, and a thousand to begin with.
    setrlimit(Resource::RLIMIT_NOFILE, 65_536, 1_048_576).context("raising the limit of open files")?;
    sethostname("test-kernel").context("setting the host's name")?;
    Command::new("ip")
        .env("PATH", guest::PATH)
        .args(["link", "set", "lo", "up"])
        .status()
        .context("starting `ip`; is the package iproute2 installed?")?;
    Ok(())
}

/// Mounts a folder of the machine at its own path, writable.
pub(crate) fn share(path: &[u8]) -> Result<()> {
    let path = String::from_utf8(path.to_vec()).context("a folder whose name is not UTF-8")?;
    if !Path::new(&path).is_dir() {
        // Within /tmp.
        fs::create_dir_all(&path).with_context(|| format!("making {path}"))?;
    }
    mount(
        Some("hostfs"),
        path.as_str(),
        Some("hostfs"),
        MsFlags::empty(),
        Some(path.as_str()),
    )
    .with_context(|| format!("mounting {path}"))
}

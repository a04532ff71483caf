//! The machine that the kernel thinks it runs on: its memory, network cards, console and the line to its first process.

use std::{
    env,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::statvfs::{FsFlags, statvfs};
use tempfile::TempDir;

use crate::{INSIDE, cargo, child, program};

/// How to boot.
#[derive(Clone, Debug)]
pub struct Options {
    /// The guest's memory, in MiB. The machine gives only what the guest has used.
    pub memory_mib: u32,
    /// Folders that the guest may write to beside the workspace and the target folder. A folder of /tmp that is not among
    /// them is not to be seen.
    pub shared: Vec<PathBuf>,
    /// Tap devices that exist in `namespace`: the first is the guest's vec0.
    pub taps: Vec<String>,
    /// The network namespace of the tap devices; that of this process when there is none.
    pub namespace: Option<Arc<OwnedFd>>,
    /// Copies what the kernel says to stderr.
    pub console: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            memory_mib: 1024,
            shared: Vec::new(),
            taps: Vec::new(),
            namespace: None,
            console: false,
        }
    }
}

/// A kernel that has been started.
pub(crate) struct Machine {
    pub(crate) child: Child,
    /// The other end of the guest's serial line.
    pub(crate) line: UnixStream,
    /// What the kernel keeps until it has booted: its process id, for tools that nobody uses here.
    pub(crate) folder: TempDir,
}

pub(crate) fn start(options: &Options) -> Result<Machine> {
    let kernel = program::kernel()?;
    let init = init()?;
    let folder = tempfile::Builder::new()
        .prefix("pointsman-kernel.")
        .tempdir()
        .context("making a folder")?;
    let (line, guest_end) = UnixStream::pair().context("making the guest's serial line")?;
    let mut command = Command::new(&kernel);
    command
        .arg(format!("mem={}M", options.memory_mib))
        .args(["rootfstype=hostfs", "rootflags=/", "ro"])
        .arg(format!("init=\"{}\"", plain(&init)?))
        .args(["con=null", "con0=null,fd:1", "ssl=null", "ssl0=fd:0"])
        .arg(format!("uml_dir={}", plain(folder.path())?))
        .arg(format!("{INSIDE}=1"));
    for (number, tap) in options.taps.iter().enumerate() {
        command.arg(format!("vec{number}:transport=tap,ifname={tap},depth=128,gro=1"));
    }
    command.env_clear();
    command.env("TMPDIR", room_for(options.memory_mib)?);
    command.stdin(OwnedFd::from(guest_end));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    // A kernel that panics sends SIGTERM to its process group (os_dump_core), which must not be ours.
    command.process_group(0);
    child::without_core_file(&mut command);
    child::bind_to_parent(&mut command, options.namespace.clone());
    let child = child::spawn(command).with_context(|| format!("starting {}", kernel.display()))?;
    Ok(Machine { child, line, folder })
}

/// This crate's own program, which is the guest's first process.
fn init() -> Result<PathBuf> {
    let own = env::current_exe().context("asking where this program is")?;
    let name = "test-kernel";
    if own.file_name().is_some_and(|file| file == name) {
        return Ok(own);
    }
    let target = crate::cache::target_directory()?;
    cargo::build(&target, false, &["pointsman-test-kernel"])?;
    let path = target.join("debug").join(name);
    ensure!(
        path.is_file(),
        "cargo built no {}: is --target-dir set elsewhere?",
        path.display()
    );
    Ok(path)
}

/// Where this crate's own program is, built when needed.
pub(crate) fn command_line() -> Result<PathBuf> {
    init()
}

/// A path as it can stand on the kernel's command line.
fn plain(path: &Path) -> Result<&str> {
    path.to_str()
        .filter(|path| !path.contains(['"', '\n']))
        .with_context(|| {
            format!(
                "{} cannot be given to a kernel: it has strange characters",
                path.display()
            )
        })
}

/// A folder whose files can hold the guest's memory, and be mapped as code: it is a deleted file.
fn room_for(memory_mib: u32) -> Result<PathBuf> {
    let needed = u64::from(memory_mib) << 20;
    let candidates = [PathBuf::from("/dev/shm"), env::temp_dir(), PathBuf::from("/tmp")];
    for folder in &candidates {
        let Ok(system) = statvfs(folder) else { continue };
        let free = system.blocks_available() * system.fragment_size();
        if free >= needed && !system.flags().contains(FsFlags::ST_NOEXEC) {
            return Ok(folder.clone());
        }
    }
    bail!(
        "none of {candidates:?} has {memory_mib} MiB free on a file system that programs can be run from; a test kernel \
         keeps its memory there: set TMPDIR to one that has"
    )
}

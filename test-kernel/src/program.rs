//! Builds the kernel as a program, from Debian's source package and `kernel.config`.

use std::{
    env,
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::cache;

/// The name of the program in `<target>/e2e/bin`.
pub const NAME: &str = "linux-ipvs";

const SOURCES: &str = "/usr/src/linux-source-6.12.tar.xz";
const CONFIG: &str = include_str!("../kernel.config");
/// How many files the compiler gets, for the progress: it differs a little between versions.
const FILES: usize = 1030;
const PROGRESS: Duration = Duration::from_secs(15);

/// The path of the kernel, which is built first when it is missing, or when the sources or the configuration have changed.
///
/// # Errors
/// When the sources or a tool are missing or the build fails: says what to do, with the end of make's log.
pub fn kernel() -> Result<PathBuf> {
    let bin = cache::bin()?;
    // User-mode Linux 6.12 is there for x86 only.
    ensure!(
        env::consts::ARCH == "x86_64",
        "the test kernel can be built on x86_64 only, and this is {}",
        env::consts::ARCH
    );
    cache::program(&bin, NAME, &fingerprint()?, |path| {
        let folder = bin.with_file_name("kernel");
        build(&folder, path).context("building the kernel that tests of IPVS run on")
    })
}

/// Of the sources the size and the time, which Debian's package sets.
fn fingerprint() -> Result<String> {
    let sources = fs::metadata(SOURCES).with_context(|| {
        format!("{SOURCES} is missing: install linux-source-6.12, or run e2e/packages.sh")
    })?;
    let mut hash = Sha256::new();
    hash.update(sources.len().to_le_bytes());
    hash.update(sources.mtime().to_le_bytes());
    hash.update(CONFIG);
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn build(folder: &Path, path: &Path) -> Result<()> {
    let started = Instant::now();
    let say = |what: &str| eprintln!("the test kernel, {} s: {what}", started.elapsed().as_secs());
    say("unpacking the sources (the build takes 5 to 8 min on two cores, the first time only)");
    clear(folder)?;
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let make = Make::new(folder)?;
    make.unpack()?;
    say("configuring");
    make.run("defconfig", |_| ())?;
    let configuration = folder.join(".config");
    File::options()
        .append(true)
        .open(&configuration)
        .and_then(|mut file| file.write_all(CONFIG.as_bytes()))
        .with_context(|| format!("adding to {}", configuration.display()))?;
    make.run("olddefconfig", |_| ())?;
    let configured = fs::read_to_string(&configuration).context("reading the kernel's configuration")?;
    let refused = refused(&configured);
    ensure!(
        refused.is_empty(),
        "this kernel does not take these lines of test-kernel/kernel.config: {}",
        refused.join(", ")
    );
    let (mut compiled, mut told) = (0, Instant::now());
    make.run("linux", |line| {
        compiled += usize::from(line.trim_start().starts_with("CC "));
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            say(&format!("{compiled} of about {FILES} files compiled"));
        }
    })?;
    let unfinished = path.with_extension("unfinished");
    fs::copy(folder.join("linux"), &unfinished).context("copying the kernel out of its sources")?;
    fs::rename(&unfinished, path).with_context(|| format!("putting {} in place", path.display()))?;
    say(&format!("built, {compiled} files"));
    // The sources and objects are 2 GB.
    clear(folder)
}

/// The lines of `kernel.config` that are not so in what olddefconfig made of them.
fn refused(configured: &str) -> Vec<&'static str> {
    let wanted = CONFIG.lines().filter(|line| line.starts_with("CONFIG_"));
    wanted
        .filter(|line| match line.strip_suffix("=n") {
            Some(off) => configured
                .lines()
                .any(|has| has.strip_prefix(off).is_some_and(|rest| rest.starts_with('='))),
            None => !configured.lines().any(|has| has == *line),
        })
        .collect()
}

fn clear(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// make in the folder of the sources, with a log beside it.
struct Make<'a> {
    folder: &'a Path,
    log: PathBuf,
    jobs: usize,
}

impl<'a> Make<'a> {
    fn new(folder: &'a Path) -> Result<Self> {
        let jobs = thread::available_parallelism()
            .context("counting processors")?
            .get();
        let log = folder.with_extension("log");
        File::create(&log).with_context(|| format!("making {}", log.display()))?;
        Ok(Self { folder, log, jobs })
    }

    fn unpack(&self) -> Result<()> {
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--strip-components=1", "--file", SOURCES]);
        tar.arg("--directory").arg(self.folder);
        // A good part of the files, and nothing that user-mode Linux is made of.
        tar.args(["--exclude=*/Documentation/[a-z]*", "--exclude=*/tools/testing"]);
        tar.args(["--exclude=*/drivers/gpu/drm/amd/include"]);
        self.follow(tar, "tar", |_| ())
    }

    fn run(&self, target: &str, see: impl FnMut(&str)) -> Result<()> {
        let mut make = Command::new("make");
        make.current_dir(self.folder);
        make.arg(format!("--jobs={}", self.jobs))
            .args(["ARCH=um", target]);
        // What a make around this one, or cargo, has set is not meant for this build.
        for name in [
            "MAKEFLAGS",
            "MFLAGS",
            "MAKELEVEL",
            "GNUMAKEFLAGS",
            "CARGO_MAKEFLAGS",
            "CFLAGS",
            "CROSS_COMPILE",
            "O",
            "KBUILD_OUTPUT",
        ] {
            make.env_remove(name);
        }
        self.follow(make, "make", see)
    }

    fn follow(&self, mut command: Command, program: &str, mut see: impl FnMut(&str)) -> Result<()> {
        let log = File::options().append(true).open(&self.log);
        let mut log = log.with_context(|| format!("opening {}", self.log.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(log.try_clone().context("sharing a log")?);
        crate::child::bind_to_parent(&mut command, None);
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {program}; is it installed? run e2e/packages.sh"))?;
        let output = child.stdout.take().context("a pipe that is not there")?;
        for line in BufReader::new(output).split(b'\n') {
            let line = line.with_context(|| format!("reading what {program} says"))?;
            let line = String::from_utf8_lossy(&line);
            writeln!(log, "{line}").with_context(|| format!("writing {}", self.log.display()))?;
            see(&line);
        }
        let status = child.wait().with_context(|| format!("waiting for {program}"))?;
        if !status.success() {
            let said = fs::read(&self.log).unwrap_or_default();
            let said = String::from_utf8_lossy(&said);
            let lines: Vec<&str> = said.lines().collect();
            bail!(
                "{program} failed ({status}); are the packages of e2e/packages.sh installed? The end of {}:\n{}",
                self.log.display(),
                lines[lines.len().saturating_sub(30)..].join("\n")
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_olddefconfig_dropped_is_named() {
        let all: String = CONFIG
            .lines()
            .filter(|line| line.starts_with("CONFIG_") && !line.ends_with("=n"))
            .map(|line| format!("{line}\n"))
            .collect();
        assert_eq!(refused(&all), Vec::<&str>::new());
        assert_eq!(refused(&all.replace("CONFIG_IP_VS=y", "")), ["CONFIG_IP_VS=y"]);
        let modular = all.replace("CONFIG_IP_VS_MH=y", "CONFIG_IP_VS_MH=m");
        assert_eq!(refused(&modular), ["CONFIG_IP_VS_MH=y"]);
        assert_eq!(refused(&format!("{all}CONFIG_MODULES=y\n")), ["CONFIG_MODULES=n"]);
    }
}

//! Builds the real programs from their Go modules (e2e/tools), once, into `<target>/e2e/bin`.

use std::{
    fmt, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use pointsman_test_kernel::cache;
pub use pointsman_test_kernel::cache::target_directory;
use sha2::{Digest, Sha256};

/// A program that the harness builds. Listed in the order in which they are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The store.
    Etcd,
    /// The API server.
    KubeApiserver,
    /// The command line client.
    Kubectl,
    /// Service accounts, garbage collection, endpoint slices.
    KubeControllerManager,
    /// The peer.
    KubeProxy,
    /// Installs charts.
    Helm,
}

impl Program {
    /// All of them, what is needed first coming first.
    pub const ALL: [Self; 6] = [
        Self::Etcd,
        Self::KubeApiserver,
        Self::Kubectl,
        Self::KubeControllerManager,
        Self::KubeProxy,
        Self::Helm,
    ];

    /// The name of the binary.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::KubeApiserver => "kube-apiserver",
            Self::Kubectl => "kubectl",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::KubeProxy => "kube-proxy",
            Self::Helm => "helm",
        }
    }

    /// The folder in e2e/tools whose go.mod has it.
    fn module(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Helm => "helm",
            Self::KubeApiserver | Self::Kubectl | Self::KubeControllerManager | Self::KubeProxy => {
                "kubernetes"
            }
        }
    }

    fn package(self) -> String {
        match self {
            Self::Etcd => "go.etcd.io/etcd/server/v3".to_owned(),
            Self::Helm => "helm.sh/helm/v4/cmd/helm".to_owned(),
            _ => format!("k8s.io/kubernetes/cmd/{}", self.name()),
        }
    }

    /// How long a build takes with cold Go caches on two cores.
    fn cold_build(self) -> &'static str {
        match self {
            Self::Etcd => "30 s",
            Self::KubeApiserver => "2 to 6 min",
            Self::Kubectl => "30 s",
            Self::KubeControllerManager => "1 min",
            Self::KubeProxy => "10 s",
            Self::Helm => "1 min",
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Where the programs are, or will be.
#[derive(Clone, Debug)]
pub struct Toolchain {
    modules: PathBuf,
    bin: PathBuf,
}

impl Toolchain {
    /// Finds the Go modules and the target directory. Builds nothing yet.
    ///
    /// # Errors
    /// When the target directory cannot be told or written.
    pub fn locate() -> Result<Self> {
        Ok(Self {
            modules: Path::new(env!("CARGO_MANIFEST_DIR")).join("tools"),
            bin: cache::bin()?,
        })
    }

    /// The path of a program, which is built first when it is missing or when its go.mod, go.sum or flags
    /// have changed since. Tests that need the same program at the same time wait for one build.
    ///
    /// # Errors
    /// When Go is missing or the build fails: says which program and what to try.
    pub fn program(&self, program: Program) -> Result<PathBuf> {
        let flags = self.flags(program)?;
        let wanted = self.fingerprint(program, &flags)?;
        cache::program(&self.bin, program.name(), &wanted, |path| {
            self.build(program, &flags, path)
        })
    }

    fn build(&self, program: Program, flags: &[String], path: &Path) -> Result<()> {
        let version = self.version(program)?;
        let cold = program.cold_build();
        eprintln!("building {program} {version} (the first time takes about {cold} on two cores) ...");
        let started = Instant::now();
        let unfinished = self.bin.join(format!("{program}.unfinished"));
        let built = Command::new("go")
            .arg("build")
            .args(flags)
            .arg("-o")
            .arg(&unfinished)
            .arg(program.package())
            .current_dir(self.modules.join(program.module()))
            .env("CGO_ENABLED", "0")
            .output();
        let output = match built {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("`go` not found: install Go 1.26 or later (https://go.dev/dl) and put it into PATH")
            }
            built => built.with_context(|| format!("starting `go build` for {program}"))?,
        };
        if !output.status.success() {
            bail!(
                "building {program} {version} failed; try `go build {}` in e2e/tools/{}. Go said:\n{}",
                program.package(),
                program.module(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        fs::rename(&unfinished, path).with_context(|| format!("putting {} in place", path.display()))?;
        eprintln!("built {program} {version} in {} s", started.elapsed().as_secs());
        Ok(())
    }

    /// The flags are part of the fingerprint.
    fn flags(&self, program: Program) -> Result<Vec<String>> {
        let mut link = "-s -w".to_owned();
        if program.module() == "kubernetes" {
            // Without these the server says that it is v0.0.0, and clients that check versions refuse it.
            let version = self.version(program)?;
            let mut numbers = version.trim_start_matches('v').split('.');
            let (major, minor) = (
                numbers.next().unwrap_or_default(),
                numbers.next().unwrap_or_default(),
            );
            for (name, value) in [
                ("gitVersion", version.as_str()),
                ("gitMajor", major),
                ("gitMinor", minor),
            ] {
                link.push_str(&format!(" -X k8s.io/component-base/version.{name}={value}"));
            }
        }
        // readonly: a go.mod that needs a change is a mistake to be seen, not to be repaired on the way.
        Ok(vec![
            "-mod=readonly".into(),
            "-trimpath".into(),
            "-ldflags".into(),
            link,
        ])
    }

    fn fingerprint(&self, program: Program, flags: &[String]) -> Result<String> {
        let mut hash = Sha256::new();
        for file in ["go.mod", "go.sum"] {
            hash.update(self.module_file(program, file)?);
        }
        hash.update(flags.join(" "));
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The version that the go.mod requires of the module that the program is in.
    fn version(&self, program: Program) -> Result<String> {
        let package = program.package();
        let go_mod = self.module_file(program, "go.mod")?;
        let required = go_mod
            .lines()
            .map(|line| line.trim().trim_start_matches("require "))
            .find_map(|line| {
                // What only tools need is marked by a comment after the version.
                let mut words = line.split_whitespace();
                let (module, version) = (words.next()?, words.next()?);
                (version.starts_with('v') && package.starts_with(module)).then(|| version.to_owned())
            });
        required.with_context(|| format!("e2e/tools/{}/go.mod requires no {package}", program.module()))
    }

    fn module_file(&self, program: Program, file: &str) -> Result<String> {
        let path = self.modules.join(program.module()).join(file);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }
}

//! Reading and writing the kernel's parameters through `/proc/sys`.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::error::missing_hint;
use super::{Error, Name, value};

/// Which boot of the machine this is. Not below the root of [`ProcSys`], which may be a mount of `net` alone.
pub(super) fn boot_id() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let id = id.trim();
    (!id.is_empty() && id.chars().all(|c| c.is_ascii_hexdigit() || c == '-')).then(|| id.to_owned())
}

/// `/proc/sys`, or what stands for it.
#[derive(Debug)]
pub(super) struct ProcSys {
    root: PathBuf,
}

impl ProcSys {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// A parameter's value, with one space between its fields.
    pub(super) fn read(&self, name: &Name) -> Result<String, Error> {
        match fs::read_to_string(name.file(&self.root)) {
            Ok(text) => Ok(value::normal(&text)),
            Err(source) if is_absent(&source) => Err(self.missing(name)),
            Err(source) if source.kind() == ErrorKind::PermissionDenied => Err(Error::Denied { source }),
            Err(source) => Err(Error::Io {
                doing: "read",
                source,
            }),
        }
    }

    /// Writes a value in one `write`: the kernel takes each call for a whole value.
    pub(super) fn write(&self, name: &Name, value: &str) -> Result<(), Error> {
        let file = name.file(&self.root);
        // Never creates a file: in a test's folder that would hide a misspelt name.
        let opened = OpenOptions::new().write(true).truncate(true).open(&file);
        let mut opened = opened.map_err(|source| self.not_opened(name, &file, source))?;
        // The line end makes the empty value (of ip_local_reserved_ports) a write of something.
        opened
            .write_all(format!("{value}\n").as_bytes())
            .map_err(|source| match source.kind() {
                ErrorKind::InvalidInput => Error::Refused {
                    value: value.to_owned(),
                    source,
                },
                ErrorKind::PermissionDenied => Error::Denied { source },
                _ => Error::Io {
                    doing: "written",
                    source,
                },
            })
    }

    fn not_opened(&self, name: &Name, file: &Path, source: io::Error) -> Error {
        match source.kind() {
            ErrorKind::ReadOnlyFilesystem => Error::ReadOnly {
                root: self.root.clone(),
            },
            // Parameters of the machine lose their write bits in other namespaces
            // (nf_conntrack_standalone_init_sysctl and the like); a process without rights sees them set.
            ErrorKind::PermissionDenied if !has_write_bit(file) => Error::OtherNamespace,
            ErrorKind::PermissionDenied => Error::Denied { source },
            _ if is_absent(&source) => self.missing(name),
            _ => Error::Io {
                doing: "written",
                source,
            },
        }
    }

    fn missing(&self, name: &Name) -> Error {
        let hint = if self.root.join("net").is_dir() {
            missing_hint(name, self.root.join("net/ipv4/vs").is_dir())
        } else {
            "there are no network parameters at all where the agent looks for them; is /proc mounted?"
        };
        Error::Missing { hint }
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory
    )
}

fn has_write_bit(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|file| file.permissions().mode() & 0o222 != 0)
}

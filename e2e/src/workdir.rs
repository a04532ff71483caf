//! Folders for a run's data and logs that go away with the run, at the latest when the next one starts.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use pointsman_test_kernel::within;
use tempfile::TempDir;

/// Set to keep the folders (etcd's data, logs, kubeconfigs) of this run for a look.
pub const KEEP: &str = "POINTSMAN_E2E_KEEP";

/// A folder that is removed when dropped. A killed process drops nothing, so a folder is also marked as in use
/// by a lock on a file in it, and whoever makes the next one removes those that nobody holds.
#[derive(Debug)]
pub struct WorkDir {
    folder: TempDir,
    _in_use: File,
}

impl WorkDir {
    /// Makes a folder whose name starts with `name`.
    ///
    /// # Errors
    /// When the temporary folder ($TMPDIR, else /tmp) cannot be written.
    pub fn new(name: &str) -> Result<Self> {
        // In the test kernel folders of the machine may be seen here, and their locks may not.
        let parent = match within::is_inside() {
            true => "pointsman-e2e-inside",
            false => "pointsman-e2e",
        };
        let parent = std::env::temp_dir().join(parent);
        fs::create_dir_all(&parent).with_context(|| format!("making {}", parent.display()))?;
        // Held while folders come and go, or a sweep could see one that is made but not locked yet.
        let gate = File::create(parent.join(".lock")).context("opening the lock of the work folders")?;
        gate.lock().context("locking the work folders")?;
        sweep(&parent);
        let mut folder = tempfile::Builder::new()
            .prefix(&format!("{name}."))
            .tempdir_in(&parent)
            .with_context(|| format!("making a folder in {}", parent.display()))?;
        folder.disable_cleanup(std::env::var_os(KEEP).is_some());
        let in_use = File::create(folder.path().join(".lock")).context("making a work folder's lock")?;
        in_use.lock().context("locking a work folder")?;
        Ok(Self {
            folder,
            _in_use: in_use,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The path of a file in it.
    #[must_use]
    pub fn file(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// Writes a file in it and says where.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.file(name);
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

/// Removes what killed runs left behind. Failures are left to the next sweep.
fn sweep(parent: &Path) {
    if std::env::var_os(KEEP).is_some() {
        return;
    }
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let Ok(lock) = File::open(entry.path().join(".lock")) else {
            continue;
        };
        if !matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

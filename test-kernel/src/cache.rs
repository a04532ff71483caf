//! Programs that are built once and kept in the target directory.

use std::{
    env,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// Where the programs are kept.
///
/// # Errors
/// When the target directory cannot be told or written.
pub fn bin() -> Result<PathBuf> {
    let bin = target_directory()?.join("e2e/bin");
    fs::create_dir_all(&bin).with_context(|| format!("making {}", bin.display()))?;
    Ok(bin)
}

/// The path of the program `name` in the folder `bin`. `build` makes it when it is missing or was built of something else
/// than `wanted` says. Processes that need a program at the same time wait for one build; of different programs too, because a
/// build uses all cores.
///
/// # Errors
/// When the build fails or the folder cannot be written.
pub fn program(
    bin: &Path,
    name: &str,
    wanted: &str,
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let path = bin.join(name);
    let stamp = bin.join(format!("{name}.stamp"));
    let up_to_date = || path.exists() && fs::read_to_string(&stamp).is_ok_and(|stamp| stamp == wanted);
    if up_to_date() {
        return Ok(path);
    }
    let lock = File::create(bin.join(".lock")).context("opening the lock of the builds")?;
    lock.lock().context("waiting for another process to build")?;
    if !up_to_date() {
        // Without its stamp a binary is not taken for finished if this build is interrupted.
        remove_if_there(&stamp)?;
        build(&path)?;
        fs::write(&stamp, wanted).with_context(|| format!("writing {}", stamp.display()))?;
    }
    Ok(path)
}

/// Cargo's target directory: what CARGO_TARGET_DIR says, else the one that the running program is in.
///
/// # Errors
/// When the program is in none (it was copied): set CARGO_TARGET_DIR.
pub fn target_directory() -> Result<PathBuf> {
    if let Some(folder) = env::var_os("CARGO_TARGET_DIR") {
        return std::path::absolute(folder).context("CARGO_TARGET_DIR");
    }
    let program = env::current_exe().context("asking where this program is")?;
    // Cargo marks the directory itself with this file; between it and the program may be a profile, a target
    // triple and `deps`.
    let marked = program
        .ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").is_file());
    let folder = marked.with_context(|| {
        format!(
            "{} is in no cargo target directory; set CARGO_TARGET_DIR",
            program.display()
        )
    })?;
    Ok(folder.to_owned())
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

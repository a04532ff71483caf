//! The memory of what parameters were, in a file that the next process reads.
//!
//! The file is text, one parameter a line, fields separated by tabs:
//!
//! ```text
//! pointsman sysctls 1
//! boot    9f421933-ec06-48e1-a227-8ef9ef7eaf24
//! net.netfilter.nf_conntrack_udp_timeout    30    10    10
//! end    1
//! ```
//!
//! The values of a parameter are the one that was found, the one that was asked for, and the one that the kernel
//! held last. Parameters are sorted by name. The last line counts them, so that a file that was cut off is told from a short one.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use super::{BadName, Error, Name, value};

const HEADER: &str = "pointsman sysctls 1";
/// No state of any policy comes near this; a file that does is not ours.
const MAX_FILE: u64 = 1 << 20;

/// What is remembered of every parameter that is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    boot: Option<String>,
    entries: BTreeMap<Name, Entry>,
}

/// What is remembered of a parameter. Fields of values are separated by one space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// What it was before the first write.
    pub found: String,
    /// What was asked for last; perhaps not written yet.
    pub asked: String,
    /// What the kernel held after the last look at it or write of ours.
    pub held: String,
}

/// What is wrong with the text of a [`State`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// It does not begin as it should.
    #[error("it does not begin with \"{HEADER}\"")]
    Header,
    /// A line has not the fields that it should have.
    #[error("line {0} does not have its fields")]
    Fields(usize),
    /// A line names no parameter.
    #[error("line {0}: the name {1}")]
    Name(usize, BadName),
    /// A line has a value that was not written by this code.
    #[error("line {0} has a value with something unprintable in it")]
    Value(usize),
    /// Its name does not come after that of the line before.
    #[error("line {0} names a parameter that does not come after the one before it")]
    Order(usize),
    /// The count at the end is missing or wrong.
    #[error("its end is missing")]
    CutOff,
    /// It is larger than any state can be, or no text.
    #[error("it is no text, or larger than 1 MiB")]
    NotText,
}

impl State {
    /// Reads the text of a state.
    ///
    /// # Errors
    /// When it is not exactly what [`State::to_text`] writes.
    pub fn parse(text: &str) -> Result<Self, Corrupt> {
        let mut state = Self::default();
        let Some(body) = text.strip_suffix('\n') else {
            return Err(if text.starts_with(HEADER) {
                Corrupt::CutOff
            } else {
                Corrupt::Header
            });
        };
        let mut lines = body.split('\n').zip(1..);
        if lines.next().is_none_or(|(line, _)| line != HEADER) {
            return Err(Corrupt::Header);
        }
        let (boot, _) = lines.next().ok_or(Corrupt::CutOff)?;
        let boot = boot.strip_prefix("boot\t").ok_or(Corrupt::Fields(2))?;
        state.boot = (!boot.is_empty()).then(|| boot.to_owned());
        if !is_printable(boot) {
            return Err(Corrupt::Value(2));
        }
        while let Some((line, number)) = lines.next() {
            if let Some(count) = line.strip_prefix("end\t") {
                let whole = count == state.entries.len().to_string() && lines.next().is_none();
                return if whole { Ok(state) } else { Err(Corrupt::CutOff) };
            }
            let fields: Vec<&str> = line.split('\t').collect();
            let &[name, found, asked, held] = fields.as_slice() else {
                return Err(Corrupt::Fields(number));
            };
            let name = Name::parse(name).map_err(|bad| Corrupt::Name(number, bad))?;
            if [found, asked, held]
                .iter()
                .any(|value| !is_printable(value) || value::normal(value) != **value)
            {
                return Err(Corrupt::Value(number));
            }
            let entry = Entry {
                found: found.to_owned(),
                asked: asked.to_owned(),
                held: held.to_owned(),
            };
            if state
                .entries
                .last_key_value()
                .is_some_and(|(last, _)| *last >= name)
            {
                return Err(Corrupt::Order(number));
            }
            state.entries.insert(name, entry);
        }
        Err(Corrupt::CutOff)
    }

    /// The text of the state.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("{HEADER}\nboot\t{}\n", self.boot.as_deref().unwrap_or_default());
        for (name, Entry { found, asked, held }) in &self.entries {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name}\t{found}\t{asked}\t{held}");
        }
        let _ = writeln!(text, "end\t{}", self.entries.len());
        text
    }

    /// Forgets everything when the machine has booted since.
    pub(super) fn begin_boot(&mut self, boot: Option<&str>) {
        let Some(boot) = boot else { return };
        if self.boot.as_deref().is_some_and(|remembered| remembered != boot) {
            self.entries.clear();
        }
        self.boot = Some(boot.to_owned());
    }

    pub(super) fn get(&self, name: &Name) -> Option<&Entry> {
        self.entries.get(name)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&Name, &Entry)> {
        self.entries.iter()
    }

    /// The entry of a parameter; a new one has found `present`.
    pub(super) fn remember(&mut self, name: &Name, present: &str) -> &mut Entry {
        self.entries.entry(name.clone()).or_insert_with(|| Entry {
            found: present.to_owned(),
            asked: present.to_owned(),
            held: present.to_owned(),
        })
    }

    /// Notes what the kernel holds after a write.
    pub(super) fn holds(&mut self, name: &Name, now: &str) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.held = now.to_owned();
        }
    }

    pub(super) fn forget(&mut self, name: &Name) {
        self.entries.remove(name);
    }

    #[cfg(test)]
    pub(super) fn with(boot: Option<String>, entries: BTreeMap<Name, Entry>) -> Self {
        Self { boot, entries }
    }
}

fn is_printable(value: &str) -> bool {
    value.chars().all(|c| c == ' ' || c.is_ascii_graphic())
}

/// The file of a [`State`].
#[derive(Debug)]
pub(super) struct StateFile {
    path: PathBuf,
}

impl StateFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The state; an empty one when there is no file. A damaged file is put aside first.
    pub(super) fn read(&self) -> Result<State, Error> {
        let failed = |source| Error::State {
            file: self.path.clone(),
            doing: "read",
            source,
        };
        let text = match fs::metadata(&self.path) {
            Err(source) if source.kind() == ErrorKind::NotFound => return Ok(State::default()),
            Err(source) => return Err(failed(source)),
            Ok(file) if file.len() > MAX_FILE => Err(Corrupt::NotText),
            Ok(_) => {
                let bytes = fs::read(&self.path).map_err(failed)?;
                String::from_utf8(bytes).map_err(|_| Corrupt::NotText)
            }
        };
        text.and_then(|text| State::parse(&text)).map_err(|source| {
            let aside = self.beside(".corrupt");
            let kept = match fs::rename(&self.path, &aside) {
                Ok(()) => format!("it was moved to {}", aside.display()),
                Err(error) => format!("it could not be moved to {}: {error}", aside.display()),
            };
            Error::Corrupt {
                file: self.path.clone(),
                source,
                kept,
            }
        })
    }

    /// Replaces the file in one step that also a power cut leaves whole; removes it when nothing is remembered.
    pub(super) fn write(&self, state: &State) -> Result<(), Error> {
        let written = if state.entries.is_empty() {
            self.remove()
        } else {
            self.replace(&state.to_text())
        };
        written.map_err(|source| Error::State {
            file: self.path.clone(),
            doing: "written",
            source,
        })
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        fs::create_dir_all(self.folder())?;
        let new = self.beside(".new");
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        File::open(self.folder())?.sync_all()
    }

    fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            removed => removed?,
        }
        File::open(self.folder())?.sync_all()
    }

    fn folder(&self) -> &Path {
        match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        }
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = OsString::from(&self.path);
        path.push(suffix);
        path.into()
    }
}

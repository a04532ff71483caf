//! What came of setting parameters.

use std::fmt;

use super::{Error, Name};

/// What [`super::Sysctls::apply`] did and could not do.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Parameters that were written and hold what they are to hold.
    pub changed: Vec<Change>,
    /// Parameters that are not as wanted, each with the reason and what to do about it.
    pub failed: Vec<Failure>,
    /// Parameters that are no longer wanted and were not put back, because they are somebody else's now.
    pub left: Vec<Left>,
    /// What is wrong with the memory of found values, when something is.
    pub state: Option<Error>,
}

impl Outcome {
    /// Whether every parameter is as wanted and will be put back.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.failed.is_empty() && self.state.is_none()
    }

    pub(super) fn fail(&mut self, name: &str, error: Error) {
        self.failed.push(Failure {
            name: name.to_owned(),
            error,
        });
    }
}

/// Why a parameter was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It was not wanted before, or not with this value.
    Set,
    /// It had been as wanted, and somebody changed it.
    Drift,
    /// It is no longer wanted: it has the value again that was found.
    Restored,
}

/// A parameter that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its name.
    pub name: Name,
    /// Its value before.
    pub before: String,
    /// What was written.
    pub wanted: String,
    /// What the kernel made of it: differs from `wanted` where the kernel is known to round.
    pub now: String,
    /// Why.
    pub why: Why,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            before,
            wanted,
            now,
            why,
        } = self;
        match why {
            Why::Set => write!(f, "{name} set to {now} (was {before:?})")?,
            Why::Drift => write!(
                f,
                "{name} set to {now} again: somebody had changed it to {before:?}"
            )?,
            Why::Restored => write!(f, "{name} put back to {now:?} (was {before})")?,
        }
        if *why != Why::Restored && now != wanted {
            write!(f, "; the kernel made {now} of {wanted}")?;
        }
        Ok(())
    }
}

/// A parameter that is not as wanted.
#[derive(Debug)]
pub struct Failure {
    /// Its name as it was asked for, which may be none.
    pub name: String,
    /// Why, and what to do.
    pub error: Error,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name.escape_default(), self.error)
    }
}

/// A parameter that is no longer wanted and was left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Its name.
    pub name: Name,
    /// Its value, which somebody else gave it.
    pub present: String,
    /// The value that was found before the first write.
    pub found: String,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, present, found } = self;
        write!(
            f,
            "{name} stays at {present:?}: somebody else has set it since; before Pointsman it was {found:?}"
        )
    }
}

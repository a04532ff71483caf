//! Names of kernel parameters, and the files that they mean.

use std::fmt;
use std::path::{Path, PathBuf};

/// The longest name that is taken. The kernel's own are far shorter.
const MAX_LENGTH: usize = 255;

/// The name of a parameter below `net.`, such as `net.netfilter.nf_conntrack_max`.
///
/// Only lower-case letters, digits, `_`, `-` and the dots between components: a name is a path below `/proc/sys`
/// and must not lead out of it. `sysctl`'s second notation, with `/` between the components for interfaces whose
/// own name has a dot, is not supported; such an interface cannot be named.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// Why something is no [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// It does not begin with `net.`.
    #[error("is not set: only parameters whose name begins with \"net.\" can be")]
    NotNet,
    /// It has a character that it may not have.
    #[error(
        "is not set: {0:?} may not be in the name; use lower-case letters, digits, _ and -, with dots between \
         (interfaces with a dot in their name cannot be named)"
    )]
    Character(char),
    /// Two dots in a row, or a dot at the end.
    #[error("is not set: the name has an empty part between its dots")]
    EmptyComponent,
    /// Longer than 255 bytes.
    #[error("is not set: the name is longer than 255 characters")]
    TooLong,
}

impl Name {
    /// Checks a name.
    ///
    /// # Errors
    /// When it is none, or none that may be set.
    pub fn parse(text: &str) -> Result<Self, BadName> {
        if !text.starts_with("net.") {
            return Err(BadName::NotNet);
        }
        if text.len() > MAX_LENGTH {
            return Err(BadName::TooLong);
        }
        let allowed = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '_' | '-' | '.');
        if let Some(c) = text.chars().find(|&c| !allowed(c)) {
            return Err(BadName::Character(c));
        }
        if text.split('.').any(str::is_empty) {
            return Err(BadName::EmptyComponent);
        }
        Ok(Self(text.to_owned()))
    }

    /// The name, with dots.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its file below `root`.
    pub(super) fn file(&self, root: &Path) -> PathBuf {
        root.join(self.0.replace('.', "/"))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

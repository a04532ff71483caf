//! How many attempts ended how.

use std::{collections::BTreeMap, fmt};

use super::Outcome;

/// Counts of outcomes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Answers by the name of who gave them.
    pub answered: BTreeMap<String, u64>,
    /// All other outcomes, in words.
    pub failed: BTreeMap<String, u64>,
}

impl Tally {
    /// Counts one outcome.
    pub fn add(&mut self, outcome: &Outcome) {
        let count = match outcome.by() {
            Some(by) => self.answered.entry(by.to_owned()).or_default(),
            None => self.failed.entry(outcome.to_string()).or_default(),
        };
        *count += 1;
    }

    /// How many were answered by anyone.
    #[must_use]
    pub fn ok(&self) -> u64 {
        self.answered.values().sum()
    }

    /// How many were not answered.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.failed.values().sum()
    }

    /// How many were answered by the server of this name.
    #[must_use]
    pub fn by(&self, name: &str) -> u64 {
        self.answered.get(name).copied().unwrap_or_default()
    }

    /// The names of those who answered.
    #[must_use]
    pub fn answerers(&self) -> Vec<&str> {
        self.answered.keys().map(String::as_str).collect()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} answered {:?}, {} lost {:?}",
            self.ok(),
            self.answered,
            self.lost(),
            self.failed
        )
    }
}

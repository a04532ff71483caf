//! When a write that failed may be tried again: each object by itself, so that one that is refused every time
//! neither holds up the others nor hammers the API server.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::fleet::Kind;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// An object: its kind and name.
pub type Target = (Kind, String);

/// The objects whose last write failed.
#[derive(Debug, Default)]
pub struct Retries(BTreeMap<Target, Retry>);

#[derive(Debug)]
struct Retry {
    failures: u32,
    at: Instant,
}

impl Retries {
    /// Forgets the objects that nothing is to be written to any more.
    pub fn keep(&mut self, planned: &BTreeSet<Target>) {
        self.0.retain(|target, _| planned.contains(target));
    }

    /// Whether the object may be written now.
    #[must_use]
    pub fn allows(&self, target: &Target, now: Instant) -> bool {
        self.0.get(target).is_none_or(|retry| retry.at <= now)
    }

    /// Notes that a write succeeded.
    pub fn succeeded(&mut self, target: &Target) {
        self.0.remove(target);
    }

    /// Notes that a write failed.
    pub fn failed(&mut self, target: Target, now: Instant) {
        let retry = self.0.entry(target).or_insert(Retry { failures: 0, at: now });
        let pause = FIRST
            .saturating_mul(2_u32.saturating_pow(retry.failures))
            .min(LONGEST);
        retry.failures = retry.failures.saturating_add(1);
        retry.at = now + pause;
    }

    /// When the next object may be tried again.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.0.values().map(|retry| retry.at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_object_waits_for_itself_and_longer_every_time() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let target = |name: &str| (Kind::NodeProxy, name.to_owned());
        let mut retries = Retries::default();
        assert_eq!(retries.next(), None);
        retries.failed(target("a"), start);
        assert!(!retries.allows(&target("a"), start) && retries.allows(&target("b"), start));
        assert!(retries.allows(&target("a"), after(1)));
        retries.failed(target("a"), after(1));
        assert_eq!(retries.next(), Some(after(3)));
        for _ in 0..40 {
            retries.failed(target("a"), start);
        }
        assert_eq!(retries.next(), Some(start + LONGEST));
        retries.failed(target("b"), start);
        retries.succeeded(&target("a"));
        assert_eq!(retries.next(), Some(after(1)));
        retries.keep(&BTreeSet::new());
        assert_eq!(retries.next(), None);
    }
}

//! When endpoints changed, as their slices tell it, until the kernel forwards by it: for
//! `kubeproxy_network_programming_duration_seconds`.

use std::{collections::HashMap, time::SystemTime};

use pointsman_dataplane::model::{Family, ServiceName};

/// A kernel that takes nothing for long must not make them pile up.
const LIMIT: usize = 10_000;

/// Times of changes that are on their way to the kernel.
#[derive(Debug)]
pub(super) struct Triggers {
    /// What changed earlier is not counted: the time would be that of the agent's absence.
    began: SystemTime,
    /// Not in the table yet.
    waiting: HashMap<ServiceName, Vec<(Family, SystemTime)>>,
    /// In the table, and not in the kernel yet.
    compiled: Vec<(Family, SystemTime)>,
    count: usize,
}

impl Default for Triggers {
    fn default() -> Self {
        Self {
            began: SystemTime::now(),
            waiting: HashMap::new(),
            compiled: Vec::new(),
            count: 0,
        }
    }
}

impl Triggers {
    /// A slice of the Service is different, because of something that happened at this time.
    pub(super) fn note(&mut self, service: &ServiceName, family: Family, at: SystemTime) {
        if at > self.began && self.count < LIMIT {
            self.waiting
                .entry(service.clone())
                .or_default()
                .push((family, at));
            self.count += 1;
        }
    }

    /// A slice of the Service is gone, which says nothing of when that began: its other times are not to be relied
    /// on either (`EndpointsChangeTracker`).
    pub(super) fn forget(&mut self, service: &ServiceName) {
        if let Some(times) = self.waiting.remove(service) {
            self.count -= times.len();
        }
    }

    /// Everything that waits is in the table now.
    pub(super) fn compiled(&mut self) {
        self.compiled
            .extend(self.waiting.drain().flat_map(|(_, times)| times));
    }

    /// The kernel holds the table in this family: the times of what it did not hold before.
    pub(super) fn written(&mut self, family: Family) -> impl Iterator<Item = SystemTime> {
        let (written, left) = self.compiled.drain(..).partition(|(of, _)| *of == family);
        self.compiled = left;
        let written: Vec<_> = written;
        self.count -= written.len();
        written.into_iter().map(|(_, at)| at)
    }

    /// Nothing is written any more.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.compiled.clear();
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn name(name: &str) -> ServiceName {
        ServiceName::new("default", name)
    }

    #[test]
    fn a_time_is_told_once_when_its_family_is_written() {
        let mut triggers = Triggers::default();
        let at = SystemTime::now() + Duration::from_secs(1);
        triggers.note(&name("web"), Family::V4, at);
        triggers.note(&name("web"), Family::V6, at);
        assert_eq!(triggers.written(Family::V4).count(), 0, "not in the table yet");
        triggers.compiled();
        assert_eq!(triggers.written(Family::V4).collect::<Vec<_>>(), [at]);
        assert_eq!(triggers.written(Family::V4).count(), 0);
        assert_eq!(
            triggers.written(Family::V6).count(),
            1,
            "the other family failed before"
        );
        assert_eq!(triggers.count, 0);
    }

    #[test]
    fn what_was_before_the_agent_or_is_removed_is_not_told() {
        let mut triggers = Triggers::default();
        triggers.note(&name("old"), Family::V4, triggers.began - Duration::from_secs(1));
        let at = triggers.began + Duration::from_secs(1);
        triggers.note(&name("gone"), Family::V4, at);
        triggers.note(&name("kept"), Family::V4, at);
        triggers.forget(&name("gone"));
        triggers.compiled();
        assert_eq!(triggers.written(Family::V4).count(), 1);
    }

    #[test]
    fn they_do_not_pile_up() {
        let mut triggers = Triggers::default();
        let at = triggers.began + Duration::from_secs(1);
        for _ in 0..2 * LIMIT {
            triggers.note(&name("web"), Family::V4, at);
            triggers.compiled();
        }
        assert_eq!(triggers.written(Family::V4).count(), LIMIT);
    }
}

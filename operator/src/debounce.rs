//! Gathers events: a pass begins when it has been quiet for a moment, and at the latest after a second.

use std::time::Duration;

use tokio::time::Instant;

const QUIET: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(1);

/// The events since the last pass.
#[derive(Debug, Default)]
pub struct Debounce(Option<Pending>);

#[derive(Clone, Copy, Debug)]
struct Pending {
    first: Instant,
    last: Instant,
}

impl Debounce {
    /// Notes that something changed.
    pub fn note(&mut self, now: Instant) {
        let first = self.0.map_or(now, |pending| pending.first);
        self.0 = Some(Pending { first, last: now });
    }

    /// When a pass is due; `None` when nothing changed.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.0
            .map(|pending| (pending.last + QUIET).min(pending.first + LONGEST))
    }

    /// Writes have ended: what they changed comes back through the watches in a moment, so what is pending waits
    /// for that once more rather than being decided from what was.
    pub fn restart(&mut self, now: Instant) {
        if self.0.take().is_some() {
            self.note(now);
        }
    }

    /// A pass begins.
    pub fn clear(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_one_pass_and_a_stream_of_events_cannot_put_it_off() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let mut debounce = Debounce::default();
        assert_eq!(debounce.due(), None);
        debounce.note(start);
        debounce.note(after(60));
        assert_eq!(debounce.due(), Some(after(160)));
        for millis in (60..5_000).step_by(50) {
            debounce.note(after(millis));
        }
        assert_eq!(debounce.due(), Some(after(1_000)));
        debounce.restart(after(6_000));
        assert_eq!(debounce.due(), Some(after(6_100)));
        debounce.clear();
        assert_eq!(debounce.due(), None);
        debounce.restart(after(7_000));
        assert_eq!(debounce.due(), None);
    }
}

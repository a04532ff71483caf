//! What is to be compared with the entries, and when. Pure.
//!
//! A change waits until its rules are in: an entry that goes earlier may come back by the old ones. And what a walk
//! finds is compared once more with what has changed since the walk began, before anything is deleted: an endpoint
//! that came in the meantime is good, though the walk does not know it. For this, a change is told before it is written.
//! What is stale by the newest word as well goes at once, so that a Service that changes all the time is cleaned, too.

use super::entry::Entry;
use super::stale::{Allowed, Review, Subject};
use crate::model::{Family, Protocol};

/// When more frontends than this wait for their rules, they are forgotten: what they wait for is a full sync, and
/// everything is compared after it.
const WAITING: usize = 200_000;

/// Changes that wait for their rules, and those that wait for a walk. A frontend is in one of them at most.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Review,
    due: Review,
    /// Whether a walk is under way, so that also what nobody has to look for counts as news.
    walking: bool,
    /// Whether everything was forgotten since that walk began.
    forgotten: bool,
}

impl Queue {
    /// Rules are about to change.
    pub(super) fn changing(&mut self, review: Review) {
        for key in review.subjects.keys() {
            if let Some(older) = self.due.subjects.remove(key) {
                self.waiting.put(*key, older);
            }
        }
        for (address, answers) in &self.due.node_addresses {
            self.waiting.node_addresses.entry(*address).or_insert(*answers);
        }
        self.waiting.merge(review);
        if self.waiting.subjects.len() > WAITING {
            self.waiting = Review::default();
        }
    }

    /// The rules of a family are in.
    pub(super) fn written(&mut self, family: Family) {
        self.due.merge(self.waiting.take_family(family));
        self.forget_unneeded();
    }

    /// All rules of a family are in, and `all` says what they are; what was before may have been anything.
    pub(super) fn written_all(&mut self, family: Family, all: Review) {
        self.written(family);
        for (key, subject) in &mut self.due.subjects {
            if key.family == family && !all.subjects.contains_key(key) {
                let allowed = match key.protocol {
                    Protocol::Udp => Allowed::Gone,
                    Protocol::Tcp | Protocol::Sctp => Allowed::Anybody,
                };
                *subject = Subject {
                    allowed,
                    suspect: true,
                };
            }
        }
        self.due.merge(all);
    }

    /// What a walk is to look for now; none when there is no need of one. A walk is to be followed by
    /// [`Queue::walked`] or [`Queue::put_back`].
    pub(super) fn take(&mut self) -> Option<Review> {
        let due = std::mem::take(&mut self.due);
        self.walking = due.is_needed();
        self.walking.then_some(due)
    }

    /// A walk is over.
    pub(super) fn walked(&mut self) {
        self.walking = false;
        self.forgotten = false;
        self.forget_unneeded();
    }

    fn forget_unneeded(&mut self) {
        if !self.walking && !self.due.is_needed() {
            self.due = Review::default();
        }
    }

    /// Whether a walk is due.
    pub(super) fn is_due(&self) -> bool {
        self.due.is_needed()
    }

    /// Whether an entry that a walk found stale still is, by all that has become known since the walk began.
    pub(super) fn confirms(&mut self, entry: &Entry) -> bool {
        let by_both = [self.waiting.confirms(entry), self.due.confirms(entry)];
        !self.forgotten && by_both == [true, true]
    }

    /// Forgets everything, and lets a walk that is under way delete nothing more.
    pub(super) fn forget(&mut self) {
        *self = Self {
            walking: self.walking,
            forgotten: self.walking,
            ..Self::default()
        };
    }

    /// Puts back what a walk failed to look for, behind what has become known since.
    pub(super) fn put_back(&mut self, failed: Review) {
        if self.forgotten {
            self.walked();
            return;
        }
        self.walking = false;
        let newer = std::mem::replace(&mut self.due, failed);
        for (key, subject) in &mut self.waiting.subjects {
            if let Some(older) = self.due.subjects.remove(key) {
                subject.suspect |= older.suspect;
            }
        }
        self.due.merge(newer);
    }
}

#[cfg(test)]
mod tests;

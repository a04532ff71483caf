//! What a watch has shown so far, by name: the state that decisions are made from.

use std::collections::BTreeMap;

use kube::runtime::watcher::Event;

/// The objects of one kind.
///
/// A new list replaces the old objects only when it is complete: during a re-list nothing seems to be deleted.
#[derive(Clone, Debug)]
pub struct Mirror<T> {
    current: BTreeMap<String, T>,
    incoming: Option<BTreeMap<String, T>>,
    complete: bool,
}

impl<T> Default for Mirror<T> {
    fn default() -> Self {
        Self {
            current: BTreeMap::new(),
            incoming: None,
            complete: false,
        }
    }
}

impl<T: PartialEq> Mirror<T> {
    /// Takes an event over, `read` turning its object into a name and what is kept of it.
    ///
    /// Returns whether a decision may now be different: an event that changes nothing that is kept (a node's
    /// heartbeat) is not worth a pass.
    pub fn observe<K>(&mut self, event: Event<K>, read: impl FnOnce(K) -> (String, T)) -> bool {
        match event {
            Event::Init => {
                self.incoming = Some(BTreeMap::new());
                false
            }
            Event::InitApply(object) => {
                let (name, kept) = read(object);
                self.incoming.get_or_insert_default().insert(name, kept);
                false
            }
            Event::InitDone => {
                let incoming = self.incoming.take().unwrap_or_default();
                let changed = !self.complete || incoming != self.current;
                self.current = incoming;
                self.complete = true;
                changed
            }
            Event::Apply(object) => {
                let (name, kept) = read(object);
                if self.current.get(&name) == Some(&kept) {
                    return false;
                }
                self.current.insert(name, kept);
                true
            }
            Event::Delete(object) => {
                let (name, _) = read(object);
                self.current.remove(&name).is_some()
            }
        }
    }
}

impl<T> Mirror<T> {
    /// Whether a list has been seen to its end since the start.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The objects, by name.
    #[must_use]
    pub fn objects(&self) -> &BTreeMap<String, T> {
        &self.current
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observe(mirror: &mut Mirror<i32>, event: Event<(&str, i32)>) -> bool {
        mirror.observe(event, |(name, value)| (name.to_owned(), value))
    }

    #[test]
    fn a_list_counts_when_it_is_complete() {
        let mut mirror = Mirror::default();
        assert!(!observe(&mut mirror, Event::Init));
        assert!(!observe(&mut mirror, Event::InitApply(("a", 1))));
        assert!(!mirror.is_complete() && mirror.objects().is_empty());
        assert!(observe(&mut mirror, Event::InitDone));
        assert!(mirror.is_complete() && mirror.objects().len() == 1);

        // A re-list that breaks off and begins again takes nothing away.
        observe(&mut mirror, Event::Init);
        assert_eq!(mirror.objects().len(), 1);
        observe(&mut mirror, Event::Init);
        observe(&mut mirror, Event::InitApply(("a", 1)));
        assert!(!observe(&mut mirror, Event::InitDone), "nothing is different");
        observe(&mut mirror, Event::Init);
        assert!(observe(&mut mirror, Event::InitDone), "a is gone");
    }

    #[test]
    fn only_what_changes_counts() {
        let mut mirror = Mirror::default();
        assert!(
            observe(&mut mirror, Event::InitDone),
            "an empty list is news once"
        );
        assert!(observe(&mut mirror, Event::Apply(("a", 1))));
        assert!(!observe(&mut mirror, Event::Apply(("a", 1))));
        assert!(observe(&mut mirror, Event::Apply(("a", 2))));
        assert!(observe(&mut mirror, Event::Delete(("a", 0))));
        assert!(!observe(&mut mirror, Event::Delete(("a", 0))));
    }
}

//! Words that many objects have the same: namespaces, names of ports.

use std::collections::VecDeque;
use std::sync::Arc;

/// How many are remembered: looking through them costs less than another copy of each.
const REMEMBERED: usize = 64;

/// The words that were asked for last, so that objects share the memory of theirs.
#[derive(Debug, Default)]
pub(super) struct Words(VecDeque<Arc<str>>);

impl Words {
    /// Gives a word the memory of the same one, where that is remembered.
    pub(super) fn share(&mut self, word: &mut Arc<str>) {
        if let Some(known) = self.0.iter().find(|known| *known == word) {
            *word = Arc::clone(known);
            return;
        }
        self.0.truncate(REMEMBERED - 1);
        self.0.push_front(Arc::clone(word));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_shared_and_no_more_are_kept() {
        let mut words = Words::default();
        let mut share = |text: &str| {
            let mut word: Arc<str> = text.into();
            words.share(&mut word);
            word
        };
        let first = share("http");
        assert!(Arc::ptr_eq(&first, &share("http")));
        for other in 0..REMEMBERED {
            share(&other.to_string());
        }
        assert!(!Arc::ptr_eq(&first, &share("http")));
        assert_eq!(words.0.len(), REMEMBERED);
    }
}

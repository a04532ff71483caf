//! One walk over the connections: how it is filtered, and what goes.

use std::{
    collections::BTreeMap,
    io,
    time::{Duration, Instant},
};

use nix::libc;

use super::ctnetlink::{Ctnetlink, DELETED_AT_ONCE, Progress};
use super::entry::Entry;
use super::request::Filter;
use super::stale::Review;
use crate::model::{Family, Protocol};

/// Up to so many entries the kernel filters.
///
/// The kernel fills one answer with soft interrupts off (`ctnetlink_dump_table`), and what it leaves out does not fill
/// it. So a filter that lets little through walks the whole table in one go, and until then the packets that this CPU
/// is to receive wait, or are lost. Measured on Linux 6.18 with 262,144 slots in the table:
///
/// | entries | filtered, few fit: CPU, longest call | everything: CPU, longest call |
/// |---|---|---|
/// | 0 | 9 ms, 9 ms | 9 ms, 9 ms |
/// | 10,000 | 10 ms, 8 ms | 27 ms, 0.5 ms |
/// | 100,000 | 29 ms, 22 ms | 210 ms, 0.4 ms |
/// | 1,000,000 | 338 ms, 282 ms | 2.2 s, 0.6 ms |
///
/// (`tests/conntrack_scale.rs` measures it. A family that has few entries is such a filter as well: 336 ms in one call.)
///
/// Hence a filter saves most of the work where it costs hardly more than an empty table does, and is not used where it
/// would hold up packets: there the work is done on the walk's own thread, which nobody waits for.
const FILTERED: u32 = 16_384;
/// How often a walk that was disturbed is begun again.
const PASSES: usize = 3;

/// What a walk came to.
#[derive(Debug, Default)]
pub struct Cleaned {
    /// How many entries are gone, for each family that was looked at.
    pub deleted: BTreeMap<Family, u64>,
    /// How many stale entries the kernel kept, and why it kept the last of them.
    pub kept: (u64, Option<io::Error>),
    /// How many entries the kernel told of.
    pub seen: u64,
    /// How long it took.
    pub took: Duration,
    /// The longest time that one answer of the kernel took.
    pub longest: Duration,
}

/// Looks at the entries and deletes the stale ones, but for those that `spare` takes out of the list. It may, when
/// something became known since `review` was made.
///
/// # Errors
/// When the kernel does not let the process look at its connections, or the conversation broke.
pub fn clean(review: &Review, spare: impl FnMut(&mut Vec<Entry>)) -> io::Result<Cleaned> {
    let begin = Instant::now();
    let mut requests = Ctnetlink::open()?;
    let entries = requests.entries()?;
    let families = review.scope().into_keys().map(|family| (family, 0));
    let mut walk = Walk {
        review,
        spare,
        requests,
        stale: Vec::new(),
        cleaned: Cleaned {
            deleted: families.collect(),
            ..Cleaned::default()
        },
    };
    for filter in filters(review, entries) {
        match walk.through(&filter) {
            Err(error) if is_refusal(&error) => walk.through(&unfiltered(&filter))?,
            other => other?,
        }
    }
    walk.cleaned.took = begin.elapsed();
    Ok(walk.cleaned)
}

struct Walk<'a, S> {
    review: &'a Review,
    spare: S,
    /// Not the socket that the entries come through: in the midst of them there is no room for other answers.
    requests: Ctnetlink,
    stale: Vec<Entry>,
    cleaned: Cleaned,
}

impl<S: FnMut(&mut Vec<Entry>)> Walk<'_, S> {
    /// Walks over what a filter lets through, again when something disturbed it.
    fn through(&mut self, filter: &Filter) -> io::Result<()> {
        for _ in 0..PASSES {
            let mut table = Ctnetlink::open()?;
            table.walk(filter)?;
            let interrupted = loop {
                let progress = self.receive(&mut table)?;
                if progress != Progress::Goes || self.stale.len() >= DELETED_AT_ONCE {
                    self.delete()?;
                }
                if let Progress::Ended { interrupted } = progress {
                    break interrupted;
                }
            };
            if !interrupted {
                return Ok(());
            }
        }
        Err(io::Error::other(
            "the walk over the connections was disturbed again and again",
        ))
    }

    fn receive(&mut self, table: &mut Ctnetlink) -> io::Result<Progress> {
        let call = Instant::now();
        let progress = table.receive(|entry| {
            self.cleaned.seen += 1;
            if self.review.is_stale(&entry) {
                self.stale.push(entry);
            }
        });
        self.cleaned.longest = self.cleaned.longest.max(call.elapsed());
        progress
    }

    /// Deletes what was found.
    fn delete(&mut self) -> io::Result<()> {
        (self.spare)(&mut self.stale);
        for family in Family::ALL {
            let of_family = self.stale.iter().filter(|entry| entry.family() == family);
            let gone = self.requests.delete(&of_family.copied().collect::<Vec<_>>())?;
            if gone.deleted > 0 {
                *self.cleaned.deleted.entry(family).or_default() += gone.deleted;
            }
            self.cleaned.kept.0 += gone.kept;
            if gone.why.is_some() {
                self.cleaned.kept.1 = gone.why;
            }
        }
        self.stale.clear();
        Ok(())
    }
}

/// Whether the kernel does not have what a filter asks for.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}

/// What every kernel can do of a filter.
fn unfiltered(filter: &Filter) -> Filter {
    Filter {
        family: filter.family,
        ..Filter::default()
    }
}

/// The walks that a review takes.
fn filters(review: &Review, entries: u32) -> Vec<Filter> {
    if entries > FILTERED {
        return vec![Filter::default()];
    }
    // The kernel filters by protocol within one family only.
    let filter = |(family, protocols): (Family, Vec<Protocol>)| Filter {
        family: Some(family),
        protocol: match protocols.as_slice() {
            [one] => Some(*one),
            _ => None,
        },
        // A TCP connection that is not translated is never stale.
        translated: protocols.iter().all(|protocol| *protocol == Protocol::Tcp),
    };
    review.scope().into_iter().map(filter).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::stale::{Allowed, Subject};
    use super::*;
    use crate::model::{Destination, FrontendKey};

    #[test]
    fn a_walk_asks_for_no_more_than_it_needs_where_that_holds_up_nobody() {
        let review = |families: &[(Family, Protocol)]| {
            let mut review = Review::default();
            for &(family, protocol) in families {
                let key = FrontendKey {
                    family,
                    destination: Destination::NodePort,
                    protocol,
                    port: 30_000,
                };
                let allowed = Allowed::Existing(Arc::default());
                review.put(
                    key,
                    Subject {
                        allowed,
                        suspect: true,
                    },
                );
            }
            review
        };
        let filter = |family, protocol, translated| Filter {
            family: Some(family),
            protocol,
            translated,
        };
        let (udp, tcp) = ((Family::V4, Protocol::Udp), (Family::V4, Protocol::Tcp));
        assert_eq!(
            filters(&review(&[udp]), 10),
            [filter(Family::V4, Some(Protocol::Udp), false)]
        );
        assert_eq!(
            filters(&review(&[tcp]), 10),
            [filter(Family::V4, Some(Protocol::Tcp), true)]
        );
        assert_eq!(
            filters(&review(&[udp, tcp]), 10),
            [filter(Family::V4, None, false)]
        );
        assert_eq!(filters(&review(&[udp, (Family::V6, Protocol::Udp)]), 10).len(), 2);
        assert_eq!(filters(&review(&[udp, tcp]), 1_000_000), [Filter::default()]);
        assert!(filters(&review(&[]), 10).is_empty());
    }
}

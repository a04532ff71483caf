//! The number that a packet carries from one lookup to the next, in its priority.
//!
//! ```text
//! a frontend's          | flags: 7 bits          | 5 bits, 0 | pool or restriction: 20 bits |
//! behind map pools      | class: 12 bits                     | pool: 20 bits                |
//! behind map stable     | member of the pool: 12 bits        | pool: 20 bits                |
//! ```
//!
//! A register does not survive into the next rule, and nft 1.0.6 aborts when it lists two lookups in one, so the number
//! has to be kept in the packet. Its priority is read by traffic control only, the routing code of forwarded packets
//! sets it anew (`ip_forward`), and the last chain sets it back for what the node sends itself. Its mark, the other place,
//! is read by policy routing and by network plugins.

use crate::model::Family;

/// Which bits are a pool's, or a restriction's.
pub(super) const ID: u32 = 0x000f_ffff;
/// Which bits are a class's.
pub(super) const CLASS: u32 = 0xfff0_0000;

/// A frontend's source address becomes the node's own.
pub(super) const MASQUERADE: u32 = 1 << 31;
/// The same, if it is not a pod's of this node.
pub(super) const MASQUERADE_NON_LOCAL: u32 = 1 << 30;
/// External policy Local: the pool is for what comes from this node; map `outside` has the pool for all others.
pub(super) const EXTERNAL: u32 = 1 << 29;
/// Not a pool but a restriction: map `restricted` has the number for the sources that set `sources` allows.
pub(super) const RESTRICTED: u32 = 1 << 28;

/// IPVS: the virtual service is the one of the packet's address, not one of its pool's mark.
pub(super) const BY_ADDRESS: u32 = 1 << 27;
/// IPVS: the source address becomes the node's own when the packet leaves.
pub(super) const OWN_SOURCE: u32 = 1 << 26;
/// IPVS: the packet passed, and is IPVS's.
pub(super) const ADMITTED: u32 = 1 << 25;

/// IPVS: the mark by which the virtual service of a pool is found is this and the pool. Another one for each family, because
/// `/proc/net/ip_vs` does not tell the family of a mark.
const MARKS: [(Family, u32); 2] = [(Family::V4, 0x7060_0000), (Family::V6, 0x7070_0000)];

/// IPVS: the mark by which a pool's virtual service is found.
pub(crate) fn mark_of(family: Family, pool: u32) -> u32 {
    let [(_, v4), (_, v6)] = MARKS;
    let base = match family {
        Family::V4 => v4,
        Family::V6 => v6,
    };
    base | (pool & ID)
}

/// The family of pools that have such marks; none for a mark that is none of ours.
pub(crate) fn family_of_mark(mark: u32) -> Option<Family> {
    let known = MARKS.into_iter().find(|(_, base)| mark & !ID == *base);
    known.map(|(family, _)| family)
}

/// The pool of a mark of ours.
pub(crate) fn pool_of_mark(mark: u32) -> u32 {
    mark & ID
}

/// The pool that refuses.
pub(super) const REFUSE: u32 = 1;
/// The pool that drops.
pub(super) const DROP: u32 = 2;
/// The first that has endpoints.
pub(super) const FIRST_POOL: u32 = 16;
/// The class of pool [`REFUSE`].
pub(super) const REFUSE_CLASS: u16 = 1;
/// The class of pool [`DROP`].
pub(super) const DROP_CLASS: u16 = 2;
/// The first class that picks endpoints.
pub(super) const FIRST_CLASS: u16 = 16;
/// The last class.
pub(super) const LAST_CLASS: u16 = 0xfff;
/// The last member of a pool with affinity.
pub(super) const LAST_MEMBER: u16 = 0xfff;

/// What map `pools` has for a pool.
pub(super) const fn of_class(class: u16, pool: u32) -> u32 {
    ((class as u32) << 20) | pool
}

/// A member of a pool: what affinity remembers. Built like [`of_class`].
pub(super) fn of_member(member: u16, pool: u32) -> u32 {
    of_class(member, pool)
}

/// The upper part of a number: a class or a member.
pub(super) fn upper(number: u32) -> u16 {
    u16::try_from(number >> 20).unwrap_or(0)
}

/// Identifiers: handed out in order, and taken again in the order in which they came back, as late as possible, since
/// a packet may still carry one.
#[derive(Debug)]
pub(super) struct Identifiers {
    next: u32,
    last: u32,
    free: std::collections::VecDeque<u32>,
}

impl Identifiers {
    pub(super) fn new(first: u32, last: u32) -> Self {
        Self {
            next: first,
            last,
            free: std::collections::VecDeque::new(),
        }
    }

    /// None when all are in use.
    pub(super) fn take(&mut self) -> Option<u32> {
        if self.next <= self.last {
            self.next += 1;
            return Some(self.next - 1);
        }
        self.free.pop_front()
    }

    pub(super) fn give_back(&mut self, id: u32) {
        self.free.push_back(id);
    }

    /// Takes note of those that are in use already, sorted.
    pub(super) fn adopt(&mut self, in_use: &[u32]) {
        let first = in_use.last().map_or(self.next, |last| (last + 1).max(self.next));
        let used: std::collections::HashSet<u32> = in_use.iter().copied().collect();
        self.free.extend(self.next..first);
        self.free.retain(|id| !used.contains(id));
        self.next = first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_taken_again_as_late_as_possible() {
        let mut ids = Identifiers::new(1, 3);
        assert_eq!((ids.take(), ids.take()), (Some(1), Some(2)));
        ids.give_back(1);
        assert_eq!((ids.take(), ids.take(), ids.take()), (Some(3), Some(1), None));
    }

    #[test]
    fn identifiers_in_use_are_not_handed_out() {
        let mut ids = Identifiers::new(1, 6);
        ids.adopt(&[2, 4]);
        let taken: Vec<_> = std::iter::from_fn(|| ids.take()).collect();
        assert_eq!(taken, [5, 6, 1, 3]);
        // Told in parts.
        let mut ids = Identifiers::new(1, 6);
        ids.adopt(&[4]);
        ids.adopt(&[2]);
        let taken: Vec<_> = std::iter::from_fn(|| ids.take()).collect();
        assert_eq!(taken, [5, 6, 1, 3]);
    }

    #[test]
    fn a_mark_tells_family_and_pool() {
        for family in Family::ALL {
            for pool in [FIRST_POOL, ID] {
                let mark = mark_of(family, pool);
                assert_eq!((family_of_mark(mark), pool_of_mark(mark)), (Some(family), pool));
            }
        }
        assert_eq!(family_of_mark(0x4000), None);
    }

    #[test]
    fn the_parts_of_a_number_do_not_overlap() {
        assert_eq!(of_class(LAST_CLASS, ID), u32::MAX);
        assert_eq!(CLASS & ID, 0);
        assert_eq!(
            (MASQUERADE | MASQUERADE_NON_LOCAL | EXTERNAL | RESTRICTED) & ID,
            0
        );
        assert_eq!((BY_ADDRESS | OWN_SOURCE | ADMITTED) & ID, 0);
        assert_eq!(upper(of_member(7, 9)), 7);
    }
}

//! What has to be done with a parameter: pure, from what the kernel has, what is remembered and what is wanted.

use super::state::Entry;
use super::value::{Wanted, same};
use super::{Name, Why};

/// The limit of tracked connections. One for the machine; every namespace's count is compared with it.
pub(super) const CONNTRACK_MAX: &str = "net.netfilter.nf_conntrack_max";
/// How many connections this namespace tracks.
pub(super) const CONNTRACK_COUNT: &str = "net.netfilter.nf_conntrack_count";
/// Slots of the hash table of connections.
pub(super) const CONNTRACK_BUCKETS: &str = "net.netfilter.nf_conntrack_buckets";

/// What to do with a parameter that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It is as wanted.
    Keep,
    /// It is to be written.
    Write { value: String, why: Why },
}

/// What to do with a parameter that is no longer wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Release {
    /// It has the value that was found.
    Forget,
    /// It has a value of ours: the one that was found is put back.
    Restore,
    /// Somebody else has set it since.
    Leave,
}

pub(super) fn decide(name: &Name, present: &str, entry: Option<&Entry>, wanted: &Wanted) -> Decision {
    let value = wanted.text();
    let asked_before = entry.filter(|entry| same(&entry.asked, &value));
    // The kernel made another value of the same wish before: writing it again would change nothing.
    let rounded =
        asked_before.is_some_and(|entry| same(&entry.held, present) && is_accepted(name, &value, present));
    if wanted.is_met_by(present) || rounded {
        return Decision::Keep;
    }
    let held = asked_before
        .is_some_and(|entry| wanted.is_met_by(&entry.held) || is_accepted(name, &value, &entry.held));
    Decision::Write {
        value,
        why: if held { Why::Drift } else { Why::Set },
    }
}

pub(super) fn release(present: &str, entry: &Entry) -> Release {
    if same(present, &entry.found) {
        Release::Forget
    } else if same(present, &entry.held) || same(present, &entry.asked) {
        // `asked` as well: a process that was killed between its write and its note of it left only that.
        Release::Restore
    } else {
        Release::Leave
    }
}

/// Whether `now` is what the kernel is expected to make of `wanted`. The slots of the hash table fill whole
/// pages (`nf_ct_alloc_hashtable` rounds up); nothing else on the allow-list is rounded.
pub(super) fn is_accepted(name: &Name, wanted: &str, now: &str) -> bool {
    if same(wanted, now) {
        return true;
    }
    // 64 KiB, the largest page of any architecture with nodes, holds 8192 slots.
    const SLOTS_PER_PAGE: u64 = 8192;
    let rounded_up = |wanted: u64, now: u64| now > wanted && now - wanted < SLOTS_PER_PAGE;
    name.as_str() == CONNTRACK_BUCKETS
        && matches!((wanted.parse(), now.parse()), (Ok(wanted), Ok(now)) if rounded_up(wanted, now))
}

/// Whether a limit of `value` instead of `present` would make the kernel refuse new connections at once. 0 is no
/// limit.
pub(super) fn chokes(present: u64, value: u64, connections: u64) -> bool {
    let lowered = value != 0 && (present == 0 || value < present);
    lowered && value <= connections
}

/// Parameters are written in this order and put back in the opposite one.
///
/// The switches of forwarding come first: the kernel sets others along with them (`inet_forward_change`). By name
/// the hash table's slots come before the limit of connections: the table grows before it is filled and shrinks
/// after. Neither changes the other's value (`nf_conntrack_hash_resize`), so no order loses one.
pub(super) fn order(name: &Name) -> (bool, &Name) {
    let switch = matches!(
        name.as_str(),
        "net.ipv4.ip_forward" | "net.ipv6.conf.all.forwarding"
    );
    (!switch, name)
}

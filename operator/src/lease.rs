//! Who leads: the decision over a `coordination.k8s.io/v1` Lease. Pure.
//!
//! As client-go's leaderelection does it: a holder counts as alive for the Lease's duration after *we* saw its
//! record change. The times in the record are for people; another machine's clock is never compared with ours.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

/// How long a holder that is not heard of keeps the Lease.
pub const DURATION: Duration = Duration::from_secs(15);
/// How long a leader acts after its last renewal that succeeded. Shorter than [`DURATION`]: it has stopped before
/// another one begins.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// How often a leader renews.
pub const RENEW_EVERY: Duration = Duration::from_secs(5);
/// How often everyone else looks, and a leader whose renewal failed tries again.
pub const RETRY_EVERY: Duration = Duration::from_secs(2);

/// What to do about the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// There is none: make it.
    Create,
    /// Nobody holds it, or its holder has not been heard of for too long: take it.
    Acquire,
    /// We hold it: renew it.
    Renew,
    /// Somebody else holds it, for this much longer at least.
    Wait(Duration),
}

/// Decides, from the Lease as it was read last and since when it has been seen to say that.
#[must_use]
pub fn decide(me: &str, lease: Option<&LeaseSpec>, since: Instant, now: Instant) -> Decision {
    let Some(lease) = lease else {
        return Decision::Create;
    };
    match lease.holder_identity.as_deref() {
        None | Some("") => Decision::Acquire,
        Some(holder) if holder == me => Decision::Renew,
        Some(_) => {
            let granted = lease
                .lease_duration_seconds
                .and_then(|seconds| u64::try_from(seconds).ok())
                .map_or(DURATION, Duration::from_secs);
            let left = granted.saturating_sub(now.saturating_duration_since(since));
            if left.is_zero() {
                Decision::Acquire
            } else {
                Decision::Wait(left)
            }
        }
    }
}

/// The record after `me` has taken or renewed the Lease.
#[must_use]
pub fn held(me: &str, before: Option<&LeaseSpec>, now: Timestamp) -> LeaseSpec {
    let mine = before.is_some_and(|lease| lease.holder_identity.as_deref() == Some(me));
    let transitions = before.and_then(|lease| lease.lease_transitions).unwrap_or(0);
    let acquired = before
        .filter(|_| mine)
        .and_then(|lease| lease.acquire_time.clone());
    LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: Some(acquired.unwrap_or(MicroTime(now))),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(transitions.saturating_add(i32::from(before.is_some() && !mine))),
        ..LeaseSpec::default()
    }
}

/// The record after its holder has given the Lease up: anyone may take it at once.
#[must_use]
pub fn released(before: &LeaseSpec, now: Timestamp) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(String::new()),
        lease_duration_seconds: Some(1),
        renew_time: Some(MicroTime(now)),
        ..before.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: Option<&str>, seconds: Option<i32>) -> LeaseSpec {
        LeaseSpec {
            holder_identity: holder.map(str::to_owned),
            lease_duration_seconds: seconds,
            lease_transitions: Some(4),
            // A holder whose clock is a century off: it must not matter.
            renew_time: Some(MicroTime("2126-01-01T00:00:00Z".parse().unwrap())),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn the_holder_keeps_the_lease_until_it_was_silent_for_its_duration() {
        let seen = Instant::now();
        let after = |seconds| seen + Duration::from_secs(seconds);
        for (lease, now, expected) in [
            (None, seen, Decision::Create),
            (Some(lease(None, Some(15))), seen, Decision::Acquire),
            (Some(lease(Some(""), Some(1))), seen, Decision::Acquire),
            (Some(lease(Some("me"), Some(15))), after(100), Decision::Renew),
            (
                Some(lease(Some("you"), Some(15))),
                seen,
                Decision::Wait(Duration::from_secs(15)),
            ),
            (
                Some(lease(Some("you"), Some(15))),
                after(14),
                Decision::Wait(Duration::from_secs(1)),
            ),
            (Some(lease(Some("you"), Some(15))), after(15), Decision::Acquire),
            (
                Some(lease(Some("you"), Some(60))),
                after(15),
                Decision::Wait(Duration::from_secs(45)),
            ),
            (
                Some(lease(Some("you"), None)),
                after(14),
                Decision::Wait(Duration::from_secs(1)),
            ),
            (Some(lease(Some("you"), Some(-5))), after(15), Decision::Acquire),
        ] {
            assert_eq!(decide("me", lease.as_ref(), seen, now), expected, "{lease:?}");
        }
    }

    #[test]
    fn a_leader_stops_before_anyone_else_may_begin() {
        assert!(RENEW_EVERY + RETRY_EVERY < DEADLINE && DEADLINE < DURATION);
    }

    #[test]
    fn the_record_counts_changes_of_hands() {
        let now = |second| Timestamp::from_second(second).unwrap();
        let first = held("me", None, now(10));
        assert_eq!(
            (first.lease_transitions, first.acquire_time.clone()),
            (Some(0), Some(MicroTime(now(10))))
        );
        let renewed = held("me", Some(&first), now(20));
        assert_eq!(
            (renewed.lease_transitions, renewed.acquire_time.clone()),
            (Some(0), Some(MicroTime(now(10))))
        );
        assert_eq!(renewed.renew_time, Some(MicroTime(now(20))));
        let taken = held("you", Some(&released(&renewed, now(25))), now(30));
        assert_eq!(
            (taken.lease_transitions, taken.acquire_time.clone()),
            (Some(1), Some(MicroTime(now(30))))
        );
    }
}

//! When rules of a kube-proxy are looked for, and what was found last.

use std::time::{Duration, Instant};

use pointsman_dataplane::leftover::{Found, Leftover};
use pointsman_dataplane::model::Family;
use pointsman_dataplane::netlink::ruleset::Touched;

use super::{CHECK_SHARE, LookForLeftovers, families};

/// Tables that kube-proxy has rules in: its own, and in the nf_tables variant those of iptables.
const TABLES: [&str; 3] = ["kube-proxy", "nat", "filter"];
/// After a change of those, more of them are waited for: a kube-proxy that runs, or a network plugin, makes many.
const SETTLE: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(super) struct Leftovers {
    found: Option<Found>,
    look_at: Option<Instant>,
    /// However often tables are touched, the next look does not come before.
    rest_until: Option<Instant>,
}

impl Leftovers {
    pub(super) fn found(&self) -> Option<&Found> {
        self.found.as_ref()
    }

    pub(super) fn look_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// The agent has something to do on this node from now on. Its first table does not wait for a look.
    pub(super) fn begin(&mut self, now: Instant) {
        self.look_at.get_or_insert(now + SETTLE);
    }

    /// Somebody changed these tables.
    pub(super) fn touched(&mut self, touched: &Touched, now: Instant) {
        let has = |family| TABLES.iter().any(|table| touched.has(family, table));
        if Family::ALL.into_iter().any(has) {
            let soon = self.rest_until.map_or(now, |rest| rest.max(now)) + SETTLE;
            self.look_at = self.look_at.map(|at| at.min(soon));
        }
    }

    /// Looks, and again after `period` at the latest, or later when it takes long.
    pub(super) fn look(&mut self, look: &mut LookForLeftovers, period: Duration) {
        let began = Instant::now();
        let found = look(&families());
        let now = Instant::now();
        let rest = (now - began) * CHECK_SHARE;
        self.rest_until = Some(now + rest);
        self.look_at = Some(now + period.max(rest));
        if self.found.as_ref() != Some(&found) {
            self.say(&found);
        }
        self.found = Some(found);
    }

    fn say(&self, found: &Found) {
        for why in &found.unread {
            tracing::warn!("kube-proxy's rules could not be looked for everywhere: {why}");
        }
        let before = self.found.as_ref().map_or(&[][..], |found| &found.rules);
        for leftover in found.rules.iter().filter(|leftover| !before.contains(leftover)) {
            let removal = leftover.removal();
            match leftover.outranks() {
                true => {
                    tracing::warn!(
                        removal,
                        "kube-proxy's rules drop packets that are not theirs: {leftover}"
                    )
                }
                false => tracing::info!(removal, "kube-proxy has rules here: {leftover}"),
            }
        }
        let place = |leftover: &Leftover| (leftover.family, leftover.place);
        for gone in before
            .iter()
            .filter(|old| !found.rules.iter().any(|new| place(new) == place(old)))
        {
            tracing::info!("no longer there: {gone}");
        }
    }
}

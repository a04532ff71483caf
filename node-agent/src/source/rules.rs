//! The kernel's own word that somebody else changed rules.

use pointsman_dataplane::netlink::ruleset::Watch;
use tokio::sync::mpsc::Sender;

use super::Event;

/// Tells of every change of the node's nf_tables ruleset that is not ours, on the calling thread, for as long as
/// `events` is open. Where the kernel cannot tell, the slow check has to find out.
pub fn follow(events: &Sender<Event>) {
    let watch = match Watch::open() {
        Ok(watch) => watch,
        Err(error) => {
            tracing::warn!(%error, "the kernel does not tell of changed rules: only the slow check finds them");
            return;
        }
    };
    while !events.is_closed() {
        let by = match watch.foreign() {
            Ok(transactions) => transactions
                .into_iter()
                .next_back()
                .map(|transaction| transaction.name),
            Err(error) => {
                tracing::warn!(%error, "the kernel no longer tells of changed rules: only the slow check finds them");
                return;
            }
        };
        if events.blocking_send(Event::RulesTouched(by)).is_err() {
            return;
        }
    }
}

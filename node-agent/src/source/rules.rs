//! The kernel's own word that somebody else changed rules.

use pointsman_dataplane::netlink::ruleset::{Touched, Watch};
use tokio::sync::mpsc::Sender;

use super::Event;

/// Tells of every change of the node's nf_tables ruleset that is not ours, on the calling thread, for as long as
/// `events` is open. Where the kernel cannot tell, the slow check has to find out.
pub fn follow(events: &Sender<Event>) {
    let mut watch = match Watch::open() {
        Ok(watch) => watch,
        Err(error) => {
            tracing::warn!(%error, "the kernel does not tell of changed rules: only the slow check finds them");
            return;
        }
    };
    while !events.is_closed() {
        let mut heard: Vec<_> = match watch.foreign() {
            Ok(transactions) => transactions
                .into_iter()
                .map(|transaction| (Some(transaction.name), transaction.touched))
                .collect(),
            Err(error) => {
                tracing::warn!(%error, "the kernel no longer tells of changed rules: only the slow check finds them");
                return;
            }
        };
        if heard.is_empty() {
            heard.push((None, Touched::Any));
        }
        for (by, touched) in heard {
            if events.blocking_send(Event::RulesTouched { by, touched }).is_err() {
                return;
            }
        }
    }
}

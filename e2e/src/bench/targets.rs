//! What mode NFTables is to reach, and whether it did.

use serde::Serialize;

use super::{Run, alone::Alone};

/// One target.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Target {
    /// What is asked for.
    pub asked: &'static str,
    /// What was measured, in the unit of the target.
    pub measured: f64,
    /// The bound.
    pub bound: f64,
    /// Whether it holds.
    pub holds: bool,
}

impl Target {
    pub(super) fn at_most(asked: &'static str, measured: f64, bound: f64) -> Self {
        Self {
            asked,
            measured,
            bound,
            holds: measured <= bound,
        }
    }
}

/// The targets that these runs can tell of: those of 10,000 Services need a run of that size, and the one of first
/// packets a run of 100 beside it.
#[must_use]
pub fn of(runs: &[Run], alone: &[Alone]) -> Vec<Target> {
    let with = |services: usize| {
        runs.iter()
            .find(|run| run.mode == "NFTables" && (run.services, run.endpoints_per_service) == (services, 10))
    };
    let mut targets = Vec::new();
    if let Some(large) = with(10_000) {
        of_large(large, with(100), &mut targets);
    }
    let largest = alone
        .iter()
        .find(|alone| (alone.services, alone.endpoints_per_service) == (50_000, 5));
    if let Some(sync) = largest.and_then(|alone| alone.own_metric_ms) {
        targets.push(Target::at_most("full sync of 50,000 x 5, ms", sync, 5000.0));
    }
    targets
}

fn of_large(large: &Run, small: Option<&Run>, targets: &mut Vec<Target>) {
    let ours = &large.ours;
    if let Some(sync) = ours.full_sync.own_metric_ms {
        targets.push(Target::at_most("full sync of 10,000 x 10, ms", sync, 1000.0));
    }
    if let Some(commits) = &ours.change_commit_ms {
        targets.push(Target::at_most(
            "change to commit p99 at 10,000 x 10, ms",
            commits.p99,
            10.0,
        ));
    }
    let (cpu, peer) = (ours.cpu_ms_per_change, large.peer.cpu_ms_per_change);
    targets.push(Target::at_most(
        "CPU per change at 10,000 x 10, ms (kube-proxy's / 100)",
        cpu,
        peer / 100.0,
    ));
    targets.push(Target::at_most(
        "peak memory at 10,000 x 10, MB",
        // The figure is in MiB, the target in MB.
        ours.peak_rss_mb * f64::from(1 << 20) / 1e6,
        40.0,
    ));
    let p50 = ours.first_packet_us.p50;
    if let Some(small) = small {
        targets.push(Target::at_most(
            "first packet p50 at 10,000, us (1.2 x that at 100)",
            p50,
            1.2 * small.ours.first_packet_us.p50,
        ));
    }
    targets.push(Target::at_most(
        "first packet p50 at 10,000, us (kube-proxy's)",
        p50,
        large.peer.first_packet_us.p50,
    ));
}

/// A line for each target.
#[must_use]
pub fn render(targets: &[Target]) -> String {
    let line = |target: &Target| {
        format!(
            "{} {}: {:.3}, at most {:.3}",
            if target.holds { "holds " } else { "MISSED" },
            target.asked,
            target.measured,
            target.bound
        )
    };
    targets.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_holds_at_its_bound() {
        assert!(Target::at_most("a", 10.0, 10.0).holds);
        let missed = Target::at_most("b", 10.1, 10.0);
        assert!(!missed.holds);
        assert!(render(&[missed]).starts_with("MISSED b"));
        assert_eq!(of(&[super::super::report::tests::a_run()], &[]), []);
    }
}

//! A run as a table to read.

use std::fmt::Write as _;

use super::{Run, Side, alone::Alone};

/// The figures side by side, a line each.
#[must_use]
pub fn render(run: &Run) -> String {
    let Run {
        ours, peer, ratios, ..
    } = run;
    let rows: &[Row] = &[
        Row("full sync, ms", |side| side.full_sync_ms, ratios.full_sync_ms),
        Row("  of it CPU, ms", |side| side.full_sync.cpu_ms, None),
        Row(
            "change to kernel p50, ms",
            |side| side.change_ms.p50,
            ratios.change_ms_p50,
        ),
        Row(
            "change to kernel p99, ms",
            |side| side.change_ms.p99,
            ratios.change_ms_p99,
        ),
        Row(
            "change to commit p50, ms",
            |side| side.change_commit_ms.map_or(f64::NAN, |commit| commit.p50),
            ratios.change_commit_ms_p50,
        ),
        Row(
            "change to commit p99, ms",
            |side| side.change_commit_ms.map_or(f64::NAN, |commit| commit.p99),
            None,
        ),
        Row(
            "10 to 250 endpoints p50, ms",
            |side| side.scale_up_commit_ms.map_or(f64::NAN, |commit| commit.p50),
            ratios.scale_up_commit_ms_p50,
        ),
        Row(
            "CPU per change, ms",
            |side| side.cpu_ms_per_change,
            ratios.cpu_ms_per_change,
        ),
        Row(
            "  of it programs it runs, ms",
            |side| side.children_cpu_ms_per_change,
            None,
        ),
        Row("CPU when idle, ms/s", |side| side.idle_cpu_ms_per_s, None),
        Row(
            "peak memory (RSS), MiB",
            |side| side.peak_rss_mb,
            ratios.peak_rss_mb,
        ),
        Row(
            "  of a program it runs, MiB",
            |side| side.full_sync.children_peak_rss_mb,
            None,
        ),
        Row("rules", |side| side.rules as f64, ratios.rules),
        Row("chains", |side| side.chains as f64, None),
        Row(
            "first packet p50, us",
            |side| side.first_packet_us.p50,
            ratios.first_packet_us_p50,
        ),
        Row(
            "first packet p99, us",
            |side| side.first_packet_us.p99,
            ratios.first_packet_us_p99,
        ),
        Row(
            "  not to a Service p50, us",
            |side| side.direct_first_packet_us.p50,
            None,
        ),
        Row(
            "  without any rules p50, us",
            |side| side.bare_first_packet_us.p50,
            None,
        ),
        Row(
            "new connections/s",
            |side| side.connections_per_second,
            ratios.connections_per_second,
        ),
        Row(
            "connections that failed",
            |side| side.connections_failed as f64,
            None,
        ),
        Row(
            "  while changes were made",
            |side| side.lost_in_changes as f64,
            None,
        ),
    ];
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "{} Services x {} endpoints, {}, iptables {}; {} and {} changes",
        run.services,
        run.endpoints_per_service,
        run.mode,
        run.variant,
        ours.change_ms.samples,
        peer.change_ms.samples
    );
    let _ = writeln!(
        out,
        "{:<30}{:>14}{:>14}{:>9}",
        "", "Pointsman", "kube-proxy", "ratio"
    );
    for Row(name, figure, ratio) in rows {
        let ratio = ratio.map_or_else(String::new, |ratio| format!("{ratio:.1}x"));
        if figure(ours).is_nan() {
            continue;
        }
        let (ours, peer) = (number(figure(ours)), number(figure(peer)));
        let _ = writeln!(out, "{name:<30}{ours:>14}{peer:>14}{ratio:>9}");
    }
    if let (Some(bytes), Some(objects)) = (ours.kernel_bytes_per_change, ours.kernel_objects_per_change) {
        let _ = writeln!(
            out,
            "Pointsman hands {bytes:.0} bytes ({objects:.1} objects) to the kernel for a change"
        );
    }
    let disturbed = ours.load_average.max(peer.load_average);
    if disturbed > 1.5 {
        let _ = writeln!(
            out,
            "the machine was busy with something else (load average up to {disturbed:.1}): measure again when it is quiet"
        );
    }
    out
}

/// Ours alone, in lines.
#[must_use]
pub fn render_alone(alone: &Alone) -> String {
    format!(
        "{} Services x {} endpoints, Pointsman alone from files: full sync {:.0} ms (with start and reading {:.0} ms, {} \
         commits), change p50 {:.1} ms and p99 {:.1} ms (of it 20 ms for the file to be quiet), CPU per change {:.2} ms, \
         peak memory {:.1} MiB, {} rules, {} chains",
        alone.services,
        alone.endpoints_per_service,
        alone.own_metric_ms.unwrap_or_default(),
        alone.start_to_last_commit_ms,
        alone.commits,
        alone.change_ms.p50,
        alone.change_ms.p99,
        alone.cpu_ms_per_change,
        alone.peak_rss_mb,
        alone.rules,
        alone.chains
    )
}

/// A figure that is not a number was not measured in this mode.
struct Row<'a>(&'a str, fn(&Side) -> f64, Option<f64>);

/// As many decimals as the size calls for.
pub(super) fn number(value: f64) -> String {
    let is_whole = value == value.trunc();
    let decimals = if is_whole || value >= 100.0 { 0 } else { 2 };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_both_sides_and_the_ratio() {
        let table = render(&super::super::report::tests::a_run());
        let line = table.lines().find(|line| line.starts_with("full sync"));
        let words: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
        assert_eq!(words, ["full", "sync,", "ms", "100", "300", "3.0x"]);
    }

    #[test]
    fn numbers_have_the_decimals_that_their_size_calls_for() {
        assert_eq!(
            [0.0, 7.0, 1.234, 99.999, 1234.56].map(number),
            ["0", "7", "1.23", "100.00", "1235"]
        );
    }
}

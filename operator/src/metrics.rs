//! What Prometheus is told. The names are part of the interface: dashboards and alerts use them.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::fleet::Kind;
use crate::pass::Totals;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    kind: &'static str,
    verb: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
}

/// The metrics of one operator process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reconcile: Histogram,
    writes: Family<WriteLabels, Counter>,
    policies: Gauge,
    nodes: Family<StateLabel, Gauge>,
    leader: Gauge,
    undecodable: Family<KindLabel, Counter>,
    watch_errors: Family<KindLabel, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("pointsman_operator");
        // From a look that finds nothing to do to 5,000 NodeProxies written to a busy API server.
        let buckets = [
            0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
        ];
        let reconcile = Histogram::new(buckets);
        let help = "Time from looking at the whole fleet to its last write being answered";
        registry.register("reconcile_duration_seconds", help, reconcile.clone());
        let writes = Family::default();
        registry.register("writes", "Writes to the API server", writes.clone());
        let policies = Gauge::default();
        registry.register(
            "policies",
            "ProxyPolicies that can be read; on the leader only",
            policies.clone(),
        );
        let nodes = Family::default();
        let help = "Nodes: unassigned, assigned (follow a policy), and of these updated, ready, failed; on the leader only";
        registry.register("nodes", help, nodes.clone());
        let leader = Gauge::default();
        registry.register("leader", "1 on the replica that leads", leader.clone());
        let undecodable = Family::default();
        let help = "Times that an object was seen which this version cannot read";
        registry.register("undecodable_objects", help, undecodable.clone());
        let watch_errors = Family::default();
        registry.register("watch_errors", "Errors of watches", watch_errors.clone());
        let build: Family<BuildLabels, Gauge<u64, AtomicU64>> = Family::default();
        build
            .get_or_create(&BuildLabels {
                version: env!("CARGO_PKG_VERSION"),
            })
            .set(1);
        registry.register("build_info", "The version that runs", build);
        Self {
            registry,
            reconcile,
            writes,
            policies,
            nodes,
            leader,
            undecodable,
            watch_errors,
        }
    }
}

impl Metrics {
    /// A pass was made, and its writes are done.
    pub fn reconciled(&self, took: Duration) {
        self.reconcile.observe(took.as_secs_f64());
    }

    /// A write was answered, or was not.
    pub fn wrote(&self, kind: Kind, verb: &'static str, result: &'static str) {
        self.writes
            .get_or_create(&WriteLabels {
                kind: kind.resource(),
                verb,
                result,
            })
            .inc();
    }

    /// The figures of a pass.
    pub fn totals(&self, totals: &Totals) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.policies.set(number(totals.policies));
        for (state, count) in [
            ("unassigned", totals.unassigned),
            ("assigned", totals.assigned),
            ("updated", totals.updated),
            ("ready", totals.ready),
            ("failed", totals.failed),
        ] {
            self.nodes.get_or_create(&StateLabel { state }).set(number(count));
        }
    }

    /// This replica leads, or does not.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// An object cannot be read.
    pub fn undecodable(&self, kind: Kind) {
        self.undecodable
            .get_or_create(&KindLabel {
                kind: kind.resource(),
            })
            .inc();
    }

    /// A watch had an error.
    pub fn watch_error(&self, kind: Kind) {
        self.watch_errors
            .get_or_create(&KindLabel {
                kind: kind.resource(),
            })
            .inc();
    }

    /// Everything in the OpenMetrics text format.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        if text::encode(&mut out, &self.registry).is_err() {
            // Writing to a String does not fail.
            out.clear();
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_what_dashboards_use() {
        let metrics = Metrics::default();
        metrics.reconciled(Duration::from_millis(7));
        metrics.wrote(Kind::NodeProxy, "apply", "ok");
        metrics.totals(&Totals {
            policies: 2,
            ready: 3,
            ..Totals::default()
        });
        metrics.leads(true);
        metrics.undecodable(Kind::ProxyPolicy);
        metrics.watch_error(Kind::Node);
        let text = metrics.text();
        for line in [
            "pointsman_operator_reconcile_duration_seconds_count 1",
            "pointsman_operator_writes_total{kind=\"nodeproxies\",verb=\"apply\",result=\"ok\"} 1",
            "pointsman_operator_policies 2",
            "pointsman_operator_nodes{state=\"ready\"} 3",
            "pointsman_operator_leader 1",
            "pointsman_operator_undecodable_objects_total{kind=\"proxypolicies\"} 1",
            "pointsman_operator_watch_errors_total{kind=\"nodes\"} 1",
        ] {
            assert!(text.lines().any(|is| is == line), "{line} is not in\n{text}");
        }
    }
}

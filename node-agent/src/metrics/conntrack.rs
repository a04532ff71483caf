//! What looking for stale connection entries comes to, as kube-proxy counts it.

use pointsman_dataplane::conntrack::Cleaned;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::registry::{Registry, Unit};

use super::kube_proxy::{Durations, sync_buckets};
use super::labels::IpFamily;

/// The metrics of the walks over connection entries.
#[derive(Debug)]
pub(super) struct ConntrackMetrics {
    deleted: Labelled<IpFamily, Counter>,
    duration: Durations,
}

impl Default for ConntrackMetrics {
    fn default() -> Self {
        Self {
            deleted: Labelled::default(),
            duration: Labelled::new_with_constructor(sync_buckets),
        }
    }
}

impl ConntrackMetrics {
    /// Registers them below kube-proxy's prefix.
    pub(super) fn register(&self, registry: &mut Registry) {
        let proxy = registry.sub_registry_with_prefix("kubeproxy");
        proxy.register(
            "conntrack_reconciler_deleted_entries",
            "Stale connection entries that were deleted",
            self.deleted.clone(),
        );
        proxy.register_with_unit(
            "conntrack_reconciler_sync_duration",
            "How long a walk over the connection entries took",
            Unit::Seconds,
            self.duration.clone(),
        );
    }

    /// A walk is over. One that was about both families counts for each.
    pub(super) fn cleaned(&self, cleaned: &Cleaned) {
        for (&family, &deleted) in &cleaned.deleted {
            let labels = IpFamily::from(family);
            self.deleted.get_or_create(&labels).inc_by(deleted);
            self.duration
                .get_or_create(&labels)
                .observe(cleaned.took.as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pointsman_dataplane::model::Family;

    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn walks_are_counted_under_kube_proxys_names() {
        let metrics = Metrics::default();
        let cleaned = Cleaned {
            deleted: [(Family::V4, 3), (Family::V6, 0)].into(),
            took: Duration::from_millis(3),
            ..Cleaned::default()
        };
        metrics.cleaned(&cleaned);
        metrics.cleaned(&cleaned);
        let text = metrics.text();
        for line in [
            "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"} 6",
            "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv6\"} 0",
            "kubeproxy_conntrack_reconciler_sync_duration_seconds_bucket{le=\"0.004\",ip_family=\"IPv4\"} 2",
            "kubeproxy_conntrack_reconciler_sync_duration_seconds_bucket{le=\"16.384\",ip_family=\"IPv6\"} 2",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is not in\n{text}"
            );
        }
    }
}

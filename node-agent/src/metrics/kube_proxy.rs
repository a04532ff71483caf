//! The metrics that kube-proxy has as well: its names, labels and buckets (`pkg/proxy/metrics` of Kubernetes 1.36), so
//! that dashboards and alerts go on working. docs/operations.md lists those that have no meaning here.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::labels::{Code, IpFamily, IptablesTable, Policy};

pub(super) type Durations = Labelled<IpFamily, Histogram, fn() -> Histogram>;
type Seconds = Gauge<f64, AtomicU64>;

/// 1 ms to 16 s.
pub(super) fn sync_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// 0.25 s to 5 min, and 0, which kube-proxy has, too.
fn programming_buckets() -> Histogram {
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    Histogram::new([0.0, 0.25, 0.5].into_iter().chain(seconds.map(f64::from)))
}

#[derive(Debug)]
pub(super) struct KubeProxyMetrics {
    pub(super) network_programming: Durations,
    pub(super) sync: Durations,
    pub(super) sync_full: Durations,
    pub(super) sync_partial: Durations,
    pub(super) last_sync: Labelled<IpFamily, Seconds>,
    pub(super) last_queued: Labelled<IpFamily, Seconds>,
    pub(super) service_changes: Counter,
    pub(super) services_pending: Gauge,
    pub(super) slice_changes: Counter,
    pub(super) slices_pending: Gauge,
    pub(super) rules_total: Labelled<IptablesTable, Gauge>,
    pub(super) rules_last: Labelled<IptablesTable, Gauge>,
    pub(super) restore_failures: Labelled<IpFamily, Counter>,
    pub(super) partial_failures: Labelled<IpFamily, Counter>,
    pub(super) nftables_failures: Labelled<IpFamily, Counter>,
    pub(super) without_local: Labelled<Policy, Gauge>,
    pub(super) invalid_dropped: Counter,
    pub(super) healthz: Labelled<Code, Counter>,
    pub(super) livez: Labelled<Code, Counter>,
}

impl Default for KubeProxyMetrics {
    fn default() -> Self {
        Self {
            network_programming: Labelled::new_with_constructor(programming_buckets),
            sync: Labelled::new_with_constructor(sync_buckets),
            sync_full: Labelled::new_with_constructor(sync_buckets),
            sync_partial: Labelled::new_with_constructor(sync_buckets),
            last_sync: Labelled::default(),
            last_queued: Labelled::default(),
            service_changes: Counter::default(),
            services_pending: Gauge::default(),
            slice_changes: Counter::default(),
            slices_pending: Gauge::default(),
            rules_total: Labelled::default(),
            rules_last: Labelled::default(),
            restore_failures: Labelled::default(),
            partial_failures: Labelled::default(),
            nftables_failures: Labelled::default(),
            without_local: Labelled::default(),
            invalid_dropped: Counter::default(),
            healthz: Labelled::default(),
            livez: Labelled::default(),
        }
    }
}

impl KubeProxyMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let proxy = registry.sub_registry_with_prefix("kubeproxy");
        let seconds = Unit::Seconds;
        proxy.register_with_unit(
            "network_programming_duration",
            "From the change of a pod or Service until the kernel forwards by it, as EndpointSlices tell its time",
            seconds.clone(),
            self.network_programming.clone(),
        );
        proxy.register_with_unit(
            "sync_proxy_rules_duration",
            "How long writing to the kernel took",
            seconds.clone(),
            self.sync.clone(),
        );
        proxy.register_with_unit(
            "sync_full_proxy_rules_duration",
            "How long writing everything to the kernel took",
            seconds.clone(),
            self.sync_full.clone(),
        );
        proxy.register_with_unit(
            "sync_partial_proxy_rules_duration",
            "How long writing changes to the kernel took",
            seconds.clone(),
            self.sync_partial.clone(),
        );
        proxy.register_with_unit(
            "sync_proxy_rules_last_timestamp",
            "When the kernel last held everything that was known",
            seconds.clone(),
            self.last_sync.clone(),
        );
        proxy.register_with_unit(
            "sync_proxy_rules_last_queued_timestamp",
            "When the last change came in",
            seconds,
            self.last_queued.clone(),
        );
        proxy.register(
            "sync_proxy_rules_service_changes",
            "Services that were different",
            self.service_changes.clone(),
        );
        proxy.register(
            "sync_proxy_rules_service_changes_pending",
            "Services that are different and not compiled yet",
            self.services_pending.clone(),
        );
        proxy.register(
            "sync_proxy_rules_endpoint_changes",
            "EndpointSlices that were different",
            self.slice_changes.clone(),
        );
        proxy.register(
            "sync_proxy_rules_endpoint_changes_pending",
            "Services whose EndpointSlices are different and not compiled yet",
            self.slices_pending.clone(),
        );
        proxy.register(
            "sync_proxy_rules_iptables_total",
            "Rules in our chains",
            self.rules_total.clone(),
        );
        proxy.register(
            "sync_proxy_rules_iptables_last",
            "Rules that the last write had",
            self.rules_last.clone(),
        );
        proxy.register(
            "sync_proxy_rules_iptables_restore_failures",
            "Writes of everything that failed",
            self.restore_failures.clone(),
        );
        proxy.register(
            "sync_proxy_rules_iptables_partial_restore_failures",
            "Writes of changes that failed and were followed by a write of everything",
            self.partial_failures.clone(),
        );
        proxy.register(
            "sync_proxy_rules_nftables_sync_failures",
            "Writes of any kind that failed in mode NFTables",
            self.nftables_failures.clone(),
        );
        proxy.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "Service ports with a Local traffic policy that have endpoints, but none on this node",
            self.without_local.clone(),
        );
        proxy.register(
            "iptables_ct_state_invalid_dropped_packets",
            "Packets that were dropped because conntrack calls them invalid, as of the last slow check",
            self.invalid_dropped.clone(),
        );
        proxy.register(
            "proxy_healthz",
            "Answers of /healthz by status code",
            self.healthz.clone(),
        );
        proxy.register(
            "proxy_livez",
            "Answers of /livez by status code",
            self.livez.clone(),
        );
    }
}

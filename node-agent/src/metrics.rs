//! What the agent counts, under kube-proxy's names where it means the same, so that dashboards go on working.

use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pointsman_dataplane::backend::Report;
use pointsman_dataplane::model::Family;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;

use crate::index::Changes;
use crate::source::Kind;

/// How much of the table a write was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncKind {
    /// Everything.
    Full,
    /// What changed.
    Partial,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IpFamily {
    ip_family: IpFamilyValue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum IpFamilyValue {
    IPv4,
    IPv6,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Watched {
    kind: WatchedKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum WatchedKind {
    Service,
    EndpointSlice,
    Node,
    NodeProxy,
    ServiceCIDR,
}

type Durations = Labelled<IpFamily, Histogram, fn() -> Histogram>;

/// Every metric of the agent.
pub struct Metrics {
    registry: Registry,
    sync: Durations,
    sync_full: Durations,
    sync_partial: Durations,
    last_sync: Gauge<f64, AtomicU64>,
    last_queued: Gauge<f64, AtomicU64>,
    service_changes: Counter,
    slice_changes: Counter,
    counted: Mutex<Changes>,
    restore_failures: Labelled<IpFamily, Counter>,
    partial_failures: Labelled<IpFamily, Counter>,
    objects_written: Labelled<IpFamily, Counter>,
    bytes_written: Labelled<IpFamily, Counter>,
    drifts: Labelled<IpFamily, Counter>,
    healthz: Labelled<Code, Counter>,
    livez: Labelled<Code, Counter>,
    watch_failures: Labelled<Watched, Counter>,
    status_writes: Counter,
    status_failures: Counter,
}

fn labels(family: Family) -> IpFamily {
    IpFamily {
        ip_family: match family {
            Family::V4 => IpFamilyValue::IPv4,
            Family::V6 => IpFamilyValue::IPv6,
        },
    }
}

/// kube-proxy's buckets: 1 ms to 16 s.
fn sync_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            sync: Labelled::new_with_constructor(sync_buckets),
            sync_full: Labelled::new_with_constructor(sync_buckets),
            sync_partial: Labelled::new_with_constructor(sync_buckets),
            last_sync: Gauge::default(),
            last_queued: Gauge::default(),
            service_changes: Counter::default(),
            slice_changes: Counter::default(),
            counted: Mutex::default(),
            restore_failures: Labelled::default(),
            partial_failures: Labelled::default(),
            objects_written: Labelled::default(),
            bytes_written: Labelled::default(),
            drifts: Labelled::default(),
            healthz: Labelled::default(),
            livez: Labelled::default(),
            watch_failures: Labelled::default(),
            status_writes: Counter::default(),
            status_failures: Counter::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let proxy = self.registry.sub_registry_with_prefix("kubeproxy");
        let seconds = Unit::Seconds;
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
            "sync_proxy_rules_endpoint_changes",
            "EndpointSlices that were different",
            self.slice_changes.clone(),
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
            "proxy_healthz",
            "Answers of /healthz by status code",
            self.healthz.clone(),
        );
        proxy.register(
            "proxy_livez",
            "Answers of /livez by status code",
            self.livez.clone(),
        );
        let own = self.registry.sub_registry_with_prefix("pointsman_agent");
        own.register(
            "kernel_objects_written",
            "Rules and chains written or removed",
            self.objects_written.clone(),
        );
        own.register(
            "kernel_bytes_written",
            "Bytes handed to the kernel or its tools",
            self.bytes_written.clone(),
        );
        own.register(
            "drifts",
            "Checks that found rules changed by somebody else",
            self.drifts.clone(),
        );
        own.register(
            "watch_failures",
            "Watches of the API server that failed and were tried again",
            self.watch_failures.clone(),
        );
        own.register(
            "status_writes",
            "Writes of the NodeProxy's status",
            self.status_writes.clone(),
        );
        own.register(
            "status_write_failures",
            "Writes of the NodeProxy's status that failed",
            self.status_failures.clone(),
        );
    }

    /// A change came in.
    pub fn queued(&self) {
        self.last_queued.set(now());
    }

    /// The kernel holds everything that is known.
    pub fn synced(&self) {
        self.last_sync.set(now());
    }

    /// How many objects were different up to now.
    pub fn objects_changed(&self, total: Changes) {
        let mut counted = self
            .counted
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        self.service_changes.inc_by(total.services - counted.services);
        self.slice_changes.inc_by(total.slices - counted.slices);
        *counted = total;
    }

    /// A write to the kernel succeeded.
    pub fn applied(&self, kind: SyncKind, family: Family, took: Duration, report: Report) {
        let labels = labels(family);
        let by_kind = match kind {
            SyncKind::Full => &self.sync_full,
            SyncKind::Partial => &self.sync_partial,
        };
        self.sync.get_or_create(&labels).observe(took.as_secs_f64());
        by_kind.get_or_create(&labels).observe(took.as_secs_f64());
        self.objects_written
            .get_or_create(&labels)
            .inc_by(report.objects as u64);
        self.bytes_written
            .get_or_create(&labels)
            .inc_by(report.bytes as u64);
    }

    /// A write to the kernel failed.
    pub fn failed(&self, kind: SyncKind, family: Family) {
        let failures = match kind {
            SyncKind::Full => &self.restore_failures,
            SyncKind::Partial => &self.partial_failures,
        };
        failures.get_or_create(&labels(family)).inc();
    }

    /// A check found the kernel different.
    pub fn drifted(&self, family: Family) {
        self.drifts.get_or_create(&labels(family)).inc();
    }

    /// `/healthz` or `/livez` was answered.
    pub fn probed(&self, livez: bool, code: u16) {
        let answers = if livez { &self.livez } else { &self.healthz };
        answers.get_or_create(&Code { code }).inc();
    }

    /// A watch of the API server failed and is tried again.
    pub fn watch_failed(&self, kind: Kind) {
        let kind = match kind {
            Kind::Services => WatchedKind::Service,
            Kind::Slices => WatchedKind::EndpointSlice,
            Kind::Node => WatchedKind::Node,
            Kind::Assignment => WatchedKind::NodeProxy,
            Kind::ServiceCidrs => WatchedKind::ServiceCIDR,
        };
        self.watch_failures.get_or_create(&Watched { kind }).inc();
    }

    /// The status was written, or could not be.
    pub fn status_written(&self, succeeded: bool) {
        if succeeded {
            self.status_writes.inc()
        } else {
            self.status_failures.inc()
        };
    }

    /// Everything in Prometheus' text format.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

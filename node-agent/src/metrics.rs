//! What the agent counts, under kube-proxy's names where it means the same, so that dashboards go on working.

mod conntrack;
mod kube_proxy;
mod labels;
mod text;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pointsman_crds::Mode;
use pointsman_dataplane::backend::{FORGOTTEN, INVALID, MISSES, Report};
use pointsman_dataplane::conntrack::Cleaned;
use pointsman_dataplane::leftover::Found;
use pointsman_dataplane::model::{Family, ForwardingTable, TrafficSide};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::index::Changes;
use crate::source::Kind;
use kube_proxy::KubeProxyMetrics;
use labels::{Code, IpFamily, IptablesTable, Policy, TableValue, Watched};
pub use text::CONTENT_TYPE;

/// How much of the table a write was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncKind {
    /// Everything.
    Full,
    /// What changed.
    Partial,
}

/// Every metric of the agent.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    proxy: KubeProxyMetrics,
    counted: Mutex<Changes>,
    /// What the backends' counters in the kernel said last.
    kernel_seen: Mutex<HashMap<(Family, &'static str), u64>>,
    misses: Labelled<IpFamily, Counter>,
    forgotten: Labelled<IpFamily, Counter>,
    objects_written: Labelled<IpFamily, Counter>,
    bytes_written: Labelled<IpFamily, Counter>,
    drifts: Labelled<IpFamily, Counter>,
    ipvs_failures: Labelled<IpFamily, Counter>,
    leftovers: Labelled<IpFamily, Gauge>,
    watch_failures: Labelled<Watched, Counter>,
    status_writes: Counter,
    status_failures: Counter,
    conntrack: conntrack::ConntrackMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            proxy: KubeProxyMetrics::default(),
            counted: Mutex::default(),
            kernel_seen: Mutex::default(),
            misses: Labelled::default(),
            forgotten: Labelled::default(),
            objects_written: Labelled::default(),
            bytes_written: Labelled::default(),
            drifts: Labelled::default(),
            ipvs_failures: Labelled::default(),
            leftovers: Labelled::default(),
            watch_failures: Labelled::default(),
            status_writes: Counter::default(),
            status_failures: Counter::default(),
            conntrack: conntrack::ConntrackMetrics::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        self.proxy.register(&mut self.registry);
        self.conntrack.register(&mut self.registry);
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
            "ipvs_sync_failures",
            "Writes of mode IPVS that the kernel did not take",
            self.ipvs_failures.clone(),
        );
        own.register(
            "drifts",
            "Checks that found rules changed by somebody else",
            self.drifts.clone(),
        );
        own.register(
            "nftables_misses",
            "Connections dropped because they found no endpoint while a pool shrank",
            self.misses.clone(),
        );
        own.register(
            "nftables_affinity_full",
            "Connections whose client had no room to be remembered for session affinity",
            self.forgotten.clone(),
        );
        own.register(
            "leftover_rules",
            "Places where a kube-proxy has rules beside the agent's: its own table, each variant of iptables",
            self.leftovers.clone(),
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

    /// A change came in that both families have to look at.
    pub fn queued(&self) {
        for family in Family::ALL {
            self.proxy.last_queued.get_or_create(&family.into()).set(now());
        }
    }

    /// The kernel holds everything that is known of a family.
    pub fn synced(&self, family: Family) {
        self.proxy.last_sync.get_or_create(&family.into()).set(now());
    }

    /// The kernel forwards by endpoints that changed at this time.
    pub fn programmed(&self, family: Family, changed: SystemTime) {
        // Another machine's clock told the time: it may be ahead.
        let took = changed.elapsed().unwrap_or_default();
        let took = took.as_secs_f64();
        self.proxy
            .network_programming
            .get_or_create(&family.into())
            .observe(took);
    }

    /// How many objects are different and wait to be compiled.
    pub fn objects_pending(&self, pending: Changes) {
        let gauge = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.proxy.services_pending.set(gauge(pending.services));
        self.proxy.slices_pending.set(gauge(pending.slices));
    }

    /// How many objects were different up to now.
    pub fn objects_changed(&self, total: Changes) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        self.proxy
            .service_changes
            .inc_by(total.services - counted.services);
        self.proxy.slice_changes.inc_by(total.slices - counted.slices);
        *counted = total;
    }

    /// The table changed.
    pub fn compiled(&self, table: &ForwardingTable) {
        for family in Family::ALL {
            for side in [TrafficSide::Internal, TrafficSide::External] {
                let number = table.without_local(family, side);
                let gauge = self.proxy.without_local.get_or_create(&Policy::new(family, side));
                gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
            }
        }
    }

    /// A write to the kernel succeeded.
    pub fn applied(&self, kind: SyncKind, family: Family, took: Duration, report: Report) {
        let labels = family.into();
        let by_kind = match kind {
            SyncKind::Full => &self.proxy.sync_full,
            SyncKind::Partial => &self.proxy.sync_partial,
        };
        self.proxy.sync.get_or_create(&labels).observe(took.as_secs_f64());
        by_kind.get_or_create(&labels).observe(took.as_secs_f64());
        self.objects_written
            .get_or_create(&labels)
            .inc_by(report.objects as u64);
        self.bytes_written
            .get_or_create(&labels)
            .inc_by(report.bytes as u64);
        let Some([nat, filter]) = report.iptables else {
            return;
        };
        for (table, rules) in [(TableValue::nat, nat), (TableValue::filter, filter)] {
            let labels = IptablesTable::new(family, table);
            let gauge = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
            self.proxy
                .rules_total
                .get_or_create(&labels)
                .set(gauge(rules.total));
            self.proxy
                .rules_last
                .get_or_create(&labels)
                .set(gauge(rules.written));
        }
    }

    /// A write to the kernel failed.
    pub fn failed(&self, mode: Mode, kind: SyncKind, family: Family) {
        let failures = match (mode, kind) {
            (Mode::NFTables, _) => &self.proxy.nftables_failures,
            (Mode::IPVS, _) => &self.ipvs_failures,
            (_, SyncKind::Full) => &self.proxy.restore_failures,
            (_, SyncKind::Partial) => &self.proxy.partial_failures,
        };
        failures.get_or_create(&family.into()).inc();
    }

    /// A check found the kernel different.
    pub fn drifted(&self, family: Family) {
        self.drifts.get_or_create(&family.into()).inc();
    }

    /// What a kube-proxy has in the kernel; none when nobody looks.
    pub fn leftovers(&self, found: Option<&Found>) {
        for family in Family::ALL {
            let rules = found.map_or(&[][..], |found| &found.rules);
            let places = rules.iter().filter(|leftover| leftover.family == family).count();
            self.leftovers
                .get_or_create(&family.into())
                .set(i64::try_from(places).unwrap_or(i64::MAX));
        }
    }

    /// What a counter of a backend in the kernel says by now. It begins anew with its rule or table.
    pub fn counted_by_kernel(&self, family: Family, counter: &'static str, packets: u64) {
        let mut seen = self.kernel_seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = seen.entry((family, counter)).or_default();
        let more = packets.checked_sub(*seen).unwrap_or(packets);
        *seen = packets;
        let own = |counters: &Labelled<IpFamily, Counter>| {
            counters.get_or_create(&family.into()).inc_by(more);
        };
        match counter {
            INVALID => {
                self.proxy.invalid_dropped.inc_by(more);
            }
            MISSES => own(&self.misses),
            FORGOTTEN => own(&self.forgotten),
            _ => {}
        }
    }

    /// `/healthz` or `/livez` was answered.
    pub fn probed(&self, livez: bool, code: u16) {
        let answers = if livez {
            &self.proxy.livez
        } else {
            &self.proxy.healthz
        };
        answers.get_or_create(&Code { code }).inc();
    }

    /// A watch of the API server failed and is tried again.
    pub fn watch_failed(&self, kind: Kind) {
        self.watch_failures.get_or_create(&kind.into()).inc();
    }

    /// A walk over the connection entries is over.
    pub fn cleaned(&self, cleaned: &Cleaned) {
        self.conntrack.cleaned(cleaned);
    }

    /// The status was written, or could not be.
    pub fn status_written(&self, succeeded: bool) {
        if succeeded {
            self.status_writes.inc()
        } else {
            self.status_failures.inc()
        };
    }

    /// Everything in Prometheus' text format, of the type [`CONTENT_TYPE`].
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut out, &self.registry);
        text::classic(&out)
    }
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_of_the_kernel_that_begins_anew_does_not_make_ours_smaller() {
        let metrics = Metrics::default();
        let count = |family, packets| {
            metrics.counted_by_kernel(family, INVALID, packets);
            metrics.proxy.invalid_dropped.get()
        };
        assert_eq!(count(Family::V4, 5), 5);
        assert_eq!(count(Family::V6, 2), 7);
        assert_eq!(count(Family::V4, 8), 10);
        assert_eq!(count(Family::V4, 8), 10);
        assert_eq!(count(Family::V4, 1), 11, "the rule was written anew");
        let name = "kubeproxy_iptables_ct_state_invalid_dropped_packets_total 11\n";
        assert!(metrics.text().contains(name));
        metrics.counted_by_kernel(Family::V6, MISSES, 3);
        metrics.counted_by_kernel(Family::V4, FORGOTTEN, 4);
        for line in [
            "pointsman_agent_nftables_misses_total{ip_family=\"IPv6\"} 3\n",
            "pointsman_agent_nftables_affinity_full_total{ip_family=\"IPv4\"} 4\n",
        ] {
            assert!(metrics.text().contains(line), "{line}");
        }
    }
}

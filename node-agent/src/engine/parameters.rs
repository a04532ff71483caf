//! The node's kernel parameters, as the policy wants them.

use std::path::Path;

use pointsman_crds::{Conntrack, Settings};
use pointsman_dataplane::conntrack::{self, Limits};
use pointsman_dataplane::sysctl::{Outcome, Sysctls};

/// Applies the policy's connection tracking limits and sysctls, and keeps what could not be done.
pub struct Parameters {
    sysctls: Sysctls,
    failures: Vec<String>,
}

impl Parameters {
    /// Writes below `proc_sys`, and remembers in `state_dir` what it found there.
    #[must_use]
    pub fn new(proc_sys: &Path, state_dir: &Path) -> Self {
        Self {
            sysctls: Sysctls::new(proc_sys.to_owned(), state_dir.join("sysctls")),
            failures: Vec::new(),
        }
    }

    /// Brings the kernel to what the settings ask for.
    pub(super) fn apply(&mut self, settings: &Settings) {
        let derived = limits(&settings.conntrack).sysctls(conntrack::cores());
        let outcome = self.sysctls.apply(&conntrack::merge(derived, &settings.sysctls));
        self.note(&outcome);
    }

    /// Puts back what was found.
    pub fn restore(&mut self) {
        let outcome = self.sysctls.restore_all();
        self.note(&outcome);
    }

    /// What does not have its value, each with why and what to do.
    #[must_use]
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    fn note(&mut self, outcome: &Outcome) {
        for change in &outcome.changed {
            tracing::info!("{change}");
        }
        for left in &outcome.left {
            tracing::warn!("{left}");
        }
        let failed = outcome.failed.iter().map(ToString::to_string);
        let failures: Vec<String> = failed
            .chain(outcome.state.as_ref().map(ToString::to_string))
            .collect();
        for failure in failures.iter().filter(|failure| !self.failures.contains(failure)) {
            tracing::warn!("{failure}");
        }
        self.failures = failures;
    }
}

fn limits(conntrack: &Conntrack) -> Limits {
    // Negative numbers were refused by `settings::check`.
    let number = |value: Option<i32>| value.and_then(|value| u32::try_from(value).ok());
    Limits {
        max_per_core: number(conntrack.max_per_core),
        min: number(conntrack.min),
        tcp_established_timeout_seconds: number(conntrack.tcp_established_timeout_seconds),
        tcp_close_wait_timeout_seconds: number(conntrack.tcp_close_wait_timeout_seconds),
        tcp_be_liberal: conntrack.tcp_be_liberal,
        udp_timeout_seconds: number(conntrack.udp_timeout_seconds),
        udp_stream_timeout_seconds: number(conntrack.udp_stream_timeout_seconds),
    }
}

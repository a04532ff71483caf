//! The node's kernel parameters, as the policy wants them.

use std::{collections::BTreeMap, path::Path};

use pointsman_crds::{Conntrack, Mode, Settings};
use pointsman_dataplane::conntrack::{self, Limits};
use pointsman_dataplane::ipvs::parameters;
use pointsman_dataplane::sysctl::{Outcome, Sysctls, Wanted};

/// Applies what modes need, the policy's connection tracking limits and its sysctls, and keeps what could not be done.
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

    /// Brings the kernel to what the settings ask for, and to what `modes` need: all that have something in the kernel, the
    /// one that is in force and one whose connections are still to end.
    pub(super) fn apply(&mut self, settings: &Settings, modes: &[Mode]) {
        let outcome = self.sysctls.apply(&wanted(settings, modes));
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

/// What a policy names outranks what a mode needs: who overrides it knows why.
fn wanted(settings: &Settings, modes: &[Mode]) -> BTreeMap<String, Wanted> {
    let mut derived = BTreeMap::new();
    if modes.contains(&Mode::IPVS) {
        derived.extend(parameters::sysctls(settings.ipvs.strict_arp));
    }
    derived.extend(limits(&settings.conntrack).sysctls(conntrack::cores()));
    conntrack::merge(derived, &settings.sysctls)
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

#[cfg(test)]
mod tests {
    use std::fs;

    use pointsman_crds::{Ipvs, ProxyPolicySpec};
    use tempfile::TempDir;

    use super::*;

    const REUSE: &str = "net.ipv4.vs.conn_reuse_mode";
    const NODEST: &str = "net.ipv4.vs.expire_nodest_conn";
    const IGNORE: &str = "net.ipv4.conf.all.arp_ignore";
    const FORWARD: &str = "net.ipv4.ip_forward";
    const UDP: &str = "net.netfilter.nf_conntrack_udp_timeout";

    /// A folder that stands for /proc/sys, with the values that a kernel begins with.
    struct Node(TempDir);

    impl Node {
        fn new() -> Self {
            let node = Self(TempDir::new().unwrap());
            let mut all = parameters::sysctls(true);
            all.insert(UDP.to_owned(), "30".into());
            for name in all.keys() {
                let file = node.file(name);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, if name == UDP { "30\n" } else { "0\n" }).unwrap();
            }
            node
        }

        fn file(&self, name: &str) -> std::path::PathBuf {
            self.0.path().join("sys").join(name.replace('.', "/"))
        }

        fn values<const N: usize>(&self, names: [&str; N]) -> [String; N] {
            names.map(|name| fs::read_to_string(self.file(name)).unwrap().trim().to_owned())
        }

        fn parameters(&self) -> Parameters {
            Parameters::new(&self.0.path().join("sys"), &self.0.path().join("state"))
        }
    }

    fn settings(strict_arp: bool, sysctls: &[(&str, &str)]) -> Settings {
        let text = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let spec = ProxyPolicySpec {
            ipvs: Some(Ipvs {
                strict_arp,
                ..Ipvs::default()
            }),
            conntrack: Some(Conntrack {
                udp_timeout_seconds: Some(60),
                ..Conntrack::default()
            }),
            sysctls: sysctls.iter().map(text).collect(),
            ..ProxyPolicySpec::default()
        };
        spec.settings()
    }

    #[test]
    fn what_mode_ipvs_needs_is_put_back_when_it_has_nothing_in_the_kernel_any_more() {
        let (node, names) = (Node::new(), [REUSE, NODEST, IGNORE, FORWARD, UDP]);
        let mut parameters = node.parameters();
        let (usual, strict) = (settings(false, &[]), settings(true, &[]));
        parameters.apply(&usual, &[Mode::NFTables]);
        assert_eq!(node.values(names), ["0", "0", "0", "0", "60"]);
        parameters.apply(&strict, &[Mode::IPVS]);
        assert_eq!(node.values(names), ["1", "1", "1", "1", "60"]);
        parameters.apply(&usual, &[Mode::IPVS]);
        assert_eq!(node.values(names), ["1", "1", "0", "1", "60"]);
        parameters.apply(&usual, &[Mode::NFTables, Mode::IPVS]);
        assert_eq!(
            node.values(names),
            ["1", "1", "0", "1", "60"],
            "connections of IPVS go on"
        );
        // An agent that is restarted then knows what to put back.
        drop(parameters);
        let mut parameters = node.parameters();
        parameters.apply(&usual, &[Mode::NFTables]);
        assert_eq!(
            node.values(names),
            ["0", "0", "0", "1", "60"],
            "pods rely on forwarding"
        );
        assert_eq!(parameters.failures(), Vec::<String>::new());
    }

    #[test]
    fn a_policy_overrides_what_a_mode_needs() {
        let (node, names) = (Node::new(), [REUSE, NODEST, FORWARD, UDP]);
        let mut parameters = node.parameters();
        let own = settings(false, &[(REUSE, "0"), (FORWARD, "0"), (UDP, "90")]);
        parameters.apply(&own, &[Mode::IPVS]);
        assert_eq!(node.values(names), ["0", "1", "0", "90"]);
        parameters.apply(&settings(false, &[]), &[Mode::IPVS]);
        assert_eq!(node.values(names), ["1", "1", "1", "60"]);
        parameters.restore();
        assert_eq!(node.values(names), ["0", "0", "1", "30"]);
    }

    #[test]
    fn a_node_without_ipvs_is_told_what_to_install() {
        let node = Node::new();
        fs::remove_dir_all(node.file("net.ipv4.vs")).unwrap();
        let mut parameters = node.parameters();
        parameters.apply(&settings(false, &[]), &[Mode::IPVS]);
        let failures = parameters.failures();
        assert_eq!(failures.len(), 4, "{failures:?}");
        assert!(
            failures[0].starts_with(REUSE) && failures[0].contains("modprobe ip_vs"),
            "{failures:?}"
        );
        assert_eq!(node.values([FORWARD, UDP]), ["1", "60"], "the rest is set");
    }
}

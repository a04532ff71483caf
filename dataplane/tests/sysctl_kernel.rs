//! Parameters of a real kernel, in a network namespace of the test's own. Needs root: run `make test` as root
//! (or `sudo -E cargo test -p pointsman-dataplane --test sysctl_kernel`). Without root it fails and says so.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends by failing")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use pointsman_dataplane::conntrack::{Limits, merge};
use pointsman_dataplane::sysctl::{Outcome, Sysctls, Wanted, Why};
use tempfile::TempDir;

const MAX: &str = "net.netfilter.nf_conntrack_max";
const UDP: &str = "net.netfilter.nf_conntrack_udp_timeout";
const RESERVED: &str = "net.ipv4.ip_local_reserved_ports";
const SYS: &str = "/proc/sys";

/// Runs `work` on a thread with a network and a mount namespace of its own; both end with it.
fn in_a_namespace(work: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            // CLONE_FS goes with CLONE_NEWNS on a thread: its root and folder are its own from then on.
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS)
                .expect("a network namespace of the test's own needs root: run the tests as root");
            mount(
                None::<&str>,
                "/",
                None::<&str>,
                MsFlags::MS_REC | MsFlags::MS_PRIVATE,
                None::<&str>,
            )
            .expect("keeping the test's mounts to itself");
            work();
        });
        if let Err(panic) = inside.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn read(name: &str) -> String {
    // Not /proc/self: what it shows is the main thread's. /proc/sys/net is the reader's.
    fs::read_to_string(Path::new(SYS).join(name.replace('.', "/")))
        .unwrap()
        .trim()
        .to_owned()
}

fn wanted<const N: usize>(values: [(&str, &str); N]) -> BTreeMap<String, Wanted> {
    values.map(|(name, value)| (name.to_owned(), value.into())).into()
}

fn sysctls(root: impl Into<PathBuf>, folder: &TempDir) -> Sysctls {
    Sysctls::new(root.into(), folder.path().join("sysctls"))
}

fn only_failure(outcome: &Outcome) -> String {
    assert_eq!(outcome.failed.len(), 1, "{outcome:?}");
    outcome.failed[0].to_string()
}

#[test]
fn timeouts_are_written_and_put_back() {
    let outside = read(UDP);
    in_a_namespace(|| {
        let folder = TempDir::new().unwrap();
        let limits = Limits {
            tcp_established_timeout_seconds: Some(86_399),
            tcp_close_wait_timeout_seconds: Some(3599),
            tcp_be_liberal: Some(true),
            udp_timeout_seconds: Some(11),
            udp_stream_timeout_seconds: Some(61),
            ..Limits::default()
        };
        // A machine that forwards has namespaces begin so.
        fs::write(Path::new(SYS).join("net/ipv4/ip_forward"), "0").unwrap();
        let by_name = [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into();
        let policy = merge(limits.sysctls(2), &by_name);
        let before: Vec<String> = policy.keys().map(|name| read(name)).collect();

        let outcome = sysctls(SYS, &folder).apply(&policy);
        assert!(outcome.is_clean(), "{outcome:?}");
        for (name, value) in &policy {
            assert_eq!(Wanted::from(read(name)), *value, "{name}");
        }
        assert_eq!(outcome.changed.len(), policy.len());
        assert!(
            sysctls(SYS, &folder).apply(&policy).changed.is_empty(),
            "a new process finds all in place"
        );

        assert!(sysctls(SYS, &folder).restore_all().is_clean());
        assert_eq!(policy.keys().map(|name| read(name)).collect::<Vec<_>>(), before);
    });
    assert_eq!(read(UDP), outside, "the machine's own namespace is not touched");
}

#[test]
fn the_limit_of_connections_belongs_to_the_machine() {
    let outside = read(MAX);
    in_a_namespace(|| {
        let folder = TempDir::new().unwrap();
        let mut sysctls = sysctls(SYS, &folder);
        let limits = Limits {
            max_per_core: Some(77_777),
            udp_timeout_seconds: Some(11),
            ..Limits::default()
        };
        let outcome = sysctls.apply(&limits.sysctls(3));
        let said = only_failure(&outcome);
        let expected = "cannot be written here: it belongs to the whole machine, and this is not the machine's \
                        first network namespace; set it on the host";
        assert!(said.starts_with(&format!("{MAX} {expected}")), "{said}");
        assert_eq!(read(UDP), "11", "the rest is set all the same");

        let outcome = sysctls.restore_all();
        assert!(outcome.is_clean() && outcome.left.is_empty(), "{outcome:?}");
        assert_eq!(read(UDP), "30");
    });
    assert_eq!(read(MAX), outside);
}

#[test]
fn lists_of_ports_come_back_sorted_and_empty() {
    in_a_namespace(|| {
        let folder = TempDir::new().unwrap();
        let mut sysctls = sysctls(SYS, &folder);
        let policy = wanted([(RESERVED, "30100,30005-30007,30008")]);
        let outcome = sysctls.apply(&policy);
        assert!(outcome.is_clean(), "{outcome:?}");
        assert_eq!(read(RESERVED), "30005-30008,30100");
        assert!(sysctls.apply(&policy).changed.is_empty());
        assert!(sysctls.restore_all().is_clean());
        assert_eq!(read(RESERVED), "", "it was empty");
    });
}

#[test]
fn what_the_kernel_refuses_is_named() {
    in_a_namespace(|| {
        let folder = TempDir::new().unwrap();
        let mut sysctls = sysctls(SYS, &folder);
        let said = only_failure(&sysctls.apply(&wanted([(UDP, "99999999999")])));
        assert!(
            said.starts_with(&format!("{UDP} is not set: the kernel refused \"99999999999\"")),
            "{said}"
        );
        let said = only_failure(&sysctls.apply(&wanted([("net.netfilter.nf_conntrack_no_such", "1")])));
        assert!(
            said.contains("does not exist") && said.contains("modprobe nf_conntrack"),
            "{said}"
        );
        assert_eq!(read(UDP), "30");
    });
}

#[test]
fn drift_in_the_kernel_is_undone() {
    in_a_namespace(|| {
        let folder = TempDir::new().unwrap();
        let mut sysctls = sysctls(SYS, &folder);
        sysctls.apply(&wanted([(UDP, "11")]));
        fs::write(Path::new(SYS).join(UDP.replace('.', "/")), "99").unwrap();
        let outcome = sysctls.apply(&wanted([(UDP, "11")]));
        assert_eq!(outcome.changed[0].why, Why::Drift);
        assert_eq!(read(UDP), "11");
    });
}

/// A container runtime mounts /proc/sys read-only. A mount of the host's /proc/sys/net elsewhere is writable and
/// still shows the namespace of whoever opens a file in it: so the chart needs no privileged container.
#[test]
fn a_mount_of_net_elsewhere_stands_in_for_a_read_only_proc_sys() {
    in_a_namespace(|| {
        let folder = TempDir::new().unwrap();
        let root = folder.path().join("host");
        fs::create_dir_all(root.join("net")).unwrap();
        let bind = |from: &Path, to: &Path, flags| {
            mount(
                Some(from),
                to,
                None::<&str>,
                MsFlags::MS_BIND | flags,
                None::<&str>,
            )
            .unwrap();
        };
        bind(Path::new("/proc/sys/net"), &root.join("net"), MsFlags::empty());
        bind(Path::new(SYS), Path::new(SYS), MsFlags::empty());
        bind(
            Path::new(SYS),
            Path::new(SYS),
            MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
        );

        let policy = wanted([(UDP, "11")]);
        let said = only_failure(&sysctls(SYS, &folder).apply(&policy));
        assert!(
            said.starts_with(&format!(
                "{UDP} cannot be written: /proc/sys is mounted read-only"
            )),
            "{said}"
        );

        let outcome = sysctls(root, &folder).apply(&policy);
        assert!(outcome.is_clean(), "{outcome:?}");
        assert_eq!(read(UDP), "11");
    });
}

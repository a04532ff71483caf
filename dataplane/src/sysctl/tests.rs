//! Parameters in a folder that stands for `/proc/sys`. The kernel's own behaviour is in `tests/sysctl_kernel.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::decision::{Decision, chokes, decide, is_accepted};
use super::state::Entry;
use super::value::same;
use super::*;

const UDP: &str = "net.netfilter.nf_conntrack_udp_timeout";
const STREAM: &str = "net.netfilter.nf_conntrack_udp_timeout_stream";
const PORTS: &str = "net.ipv4.ip_local_port_range";

/// A folder with parameters in it.
struct Node {
    folder: TempDir,
}

impl Node {
    fn new(parameters: &[(&str, &str)]) -> Self {
        let node = Self {
            folder: TempDir::new().unwrap(),
        };
        fs::create_dir_all(node.root().join("net")).unwrap();
        for (name, value) in parameters {
            let file = node.file(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, format!("{value}\n")).unwrap();
        }
        node
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("proc/sys")
    }

    fn state_file(&self) -> PathBuf {
        self.folder.path().join("state/sysctls")
    }

    fn sysctls(&self) -> Sysctls {
        Sysctls::new(self.root(), self.state_file())
    }

    fn file(&self, name: &str) -> PathBuf {
        Name::parse(name).unwrap().file(&self.root())
    }

    /// The value, byte for byte but for the line's end.
    fn value(&self, name: &str) -> String {
        fs::read_to_string(self.file(name))
            .unwrap()
            .trim_end_matches('\n')
            .to_owned()
    }

    fn set(&self, name: &str, value: &str) {
        fs::write(self.file(name), format!("{value}\n")).unwrap();
    }
}

fn wanted<const N: usize>(values: [(&str, &str); N]) -> BTreeMap<String, Wanted> {
    values.map(|(name, value)| (name.to_owned(), value.into())).into()
}

fn changes(outcome: &Outcome) -> Vec<(&str, &str, &str, Why)> {
    assert!(outcome.is_clean(), "{outcome:?}");
    let changes = outcome.changed.iter();
    changes
        .map(|c| (c.name.as_str(), c.before.as_str(), c.now.as_str(), c.why))
        .collect()
}

fn failures(outcome: &Outcome) -> Vec<String> {
    outcome.failed.iter().map(ToString::to_string).collect()
}

#[test]
fn sets_what_differs_and_puts_it_back() {
    let node = Node::new(&[(UDP, "30"), (STREAM, "120"), (PORTS, "32768\t60999")]);
    let mut sysctls = node.sysctls();
    let policy = wanted([(UDP, "10"), (STREAM, "120"), (PORTS, "1024 65000")]);

    let outcome = sysctls.apply(&policy);
    assert_eq!(
        changes(&outcome),
        [
            (PORTS, "32768 60999", "1024 65000", Why::Set),
            (UDP, "30", "10", Why::Set)
        ]
    );
    assert_eq!(
        outcome.changed[1].to_string(),
        format!("{UDP} set to 10 (was \"30\")")
    );
    assert_eq!(node.value(UDP), "10");
    let stored = fs::read_to_string(node.state_file()).unwrap();
    assert!(changes(&sysctls.apply(&policy)).is_empty());
    assert_eq!(fs::read_to_string(node.state_file()).unwrap(), stored);

    let outcome = sysctls.apply(&wanted([(UDP, "10")]));
    assert_eq!(
        changes(&outcome),
        [(PORTS, "1024 65000", "32768 60999", Why::Restored)]
    );
    assert_eq!(
        changes(&sysctls.restore_all()),
        [(UDP, "10", "30", Why::Restored)]
    );
    assert_eq!((node.value(UDP), node.value(STREAM)), ("30".into(), "120".into()));
    assert!(!node.state_file().exists(), "nothing left to remember");
}

#[test]
fn does_not_write_what_means_the_same() {
    let node = Node::new(&[(PORTS, "1024\t65000")]);
    assert!(changes(&node.sysctls().apply(&wanted([(PORTS, " 01024 65000")]))).is_empty());
    assert_eq!(node.value(PORTS), "1024\t65000");
}

#[test]
fn the_next_process_puts_back_what_the_first_one_found() {
    let node = Node::new(&[(UDP, "30")]);
    node.sysctls().apply(&wanted([(UDP, "10")]));
    assert_eq!(
        changes(&node.sysctls().apply(&wanted([(UDP, "11")]))),
        [(UDP, "10", "11", Why::Set)]
    );
    assert_eq!(
        changes(&node.sysctls().restore_all()),
        [(UDP, "11", "30", Why::Restored)]
    );
}

#[test]
fn a_process_that_was_killed_before_it_noted_its_write_is_cleaned_up_after() {
    for present in ["30", "10", "11"] {
        let node = Node::new(&[(UDP, "30")]);
        let mut sysctls = node.sysctls();
        sysctls.apply(&wanted([(UDP, "10")]));
        // The policy said 11, and that was stored; the write came, or did not.
        let mut state = sysctls.state.clone().unwrap();
        state.remember(&Name::parse(UDP).unwrap(), "").asked = "11".to_owned();
        fs::write(node.state_file(), state.to_text()).unwrap();
        node.set(UDP, present);
        let outcome = node.sysctls().restore_all();
        assert!(outcome.is_clean() && outcome.left.is_empty(), "{outcome:?}");
        assert_eq!(node.value(UDP), "30");
    }
}

#[test]
fn drift_is_undone_and_named() {
    let node = Node::new(&[(UDP, "30")]);
    let mut sysctls = node.sysctls();
    sysctls.apply(&wanted([(UDP, "10")]));
    node.set(UDP, "77");
    let outcome = sysctls.apply(&wanted([(UDP, "10")]));
    assert_eq!(changes(&outcome), [(UDP, "77", "10", Why::Drift)]);
    assert_eq!(
        outcome.changed[0].to_string(),
        format!("{UDP} set to 10 again: somebody had changed it to \"77\"")
    );
    sysctls.restore_all();
    assert_eq!(node.value(UDP), "30");
}

#[test]
fn what_somebody_else_has_set_since_is_left_to_them() {
    let node = Node::new(&[(UDP, "30"), (STREAM, "120")]);
    let mut sysctls = node.sysctls();
    sysctls.apply(&wanted([(UDP, "10"), (STREAM, "20")]));
    node.set(UDP, "77");
    let outcome = sysctls.restore_all();
    assert_eq!(changes(&outcome), [(STREAM, "20", "120", Why::Restored)]);
    let left: Vec<String> = outcome.left.iter().map(ToString::to_string).collect();
    let said = "stays at \"77\": somebody else has set it since; before Pointsman it was \"30\"";
    assert_eq!(left, [format!("{UDP} {said}")]);
    assert_eq!(node.value(UDP), "77");
    assert!(!node.state_file().exists());
}

#[test]
fn no_failure_stops_the_rest() {
    let node = Node::new(&[(UDP, "30")]);
    let policy = wanted([
        ("net.ipv4.vs.conntrack", "1"),
        ("net.ipv4.neigh.default.gc_thresh1", "1"),
        ("net.ipv6.conf.all.forwarding", "1"),
        ("net.ipv4.conf.eth0/100.rp_filter", "1"),
        ("kernel.core_pattern", "1"),
        (STREAM, "1\n2"),
        (UDP, "10"),
    ]);
    let outcome = node.sysctls().apply(&policy);
    assert_eq!(outcome.changed.len(), 1);
    assert_eq!(node.value(UDP), "10");
    let failures = failures(&outcome).join("\n");
    for said in [
        "net.ipv4.vs.conntrack does not exist: the kernel has no IPVS loaded; install the kernel's package that has the module ip_vs",
        "net.ipv4.neigh.default.gc_thresh1 does not exist: it exists only in the machine's first network namespace",
        "net.ipv6.conf.all.forwarding does not exist: this kernel has no IPv6",
        "net.ipv4.conf.eth0/100.rp_filter is not set: '/' may not be in the name",
        "kernel.core_pattern is not set: only parameters whose name begins with \"net.\"",
        "udp_timeout_stream is not set: \"1\\n2\" is no value",
    ] {
        assert!(failures.contains(said), "{said:?} is not in\n{failures}");
    }
}

#[test]
fn what_a_loaded_ipvs_lacks_is_told_from_an_ipvs_that_is_not_loaded() {
    let node = Node::new(&[("net.ipv4.vs.expire_nodest_conn", "0")]);
    let policy = wanted([
        ("net.ipv4.vs.conntrack", "1"),
        ("net.ipv4.vs.est_nice", "1"),
        ("net.ipv4.vs.expire_nodest_conn", "1"),
        ("net.ipv4.vs.lblcr_expiration", "1"),
    ]);
    let outcome = node.sysctls().apply(&policy);
    assert_eq!(node.value("net.ipv4.vs.expire_nodest_conn"), "1");
    let said = failures(&outcome);
    let expected = [
        "CONFIG_IP_VS_NFCT",
        "use a newer kernel",
        "modprobe ip_vs_lblc or ip_vs_lblcr",
    ];
    assert_eq!(said.len(), expected.len());
    for (said, expected) in said.iter().zip(expected) {
        assert!(said.contains(expected), "{expected:?} is not in {said:?}");
    }
}

#[test]
fn what_is_wanted_for_good_is_not_put_back() {
    let forward = "net.ipv4.ip_forward";
    let for_good = BTreeMap::from([(forward.to_owned(), Wanted::ForGood("1".to_owned()))]);
    let node = Node::new(&[(forward, "0")]);
    let mut sysctls = node.sysctls();
    assert_eq!(
        changes(&sysctls.apply(&for_good)),
        [(forward, "0", "1", Why::Set)]
    );
    assert!(!node.state_file().exists(), "nothing to remember");
    node.set(forward, "0");
    assert_eq!(
        changes(&sysctls.apply(&for_good)),
        [(forward, "0", "1", Why::Set)]
    );
    assert!(changes(&sysctls.restore_all()).is_empty());
    assert_eq!(node.value(forward), "1");

    // A policy that names it has it put back; not if it was wanted for good after that.
    node.set(forward, "0");
    sysctls.apply(&wanted([(forward, "1")]));
    assert_eq!(
        changes(&sysctls.restore_all()),
        [(forward, "1", "0", Why::Restored)]
    );
    sysctls.apply(&wanted([(forward, "1")]));
    sysctls.apply(&for_good);
    assert!(changes(&sysctls.restore_all()).is_empty());
    assert_eq!(node.value(forward), "1");
}

#[test]
fn without_proc_the_message_says_so() {
    let node = Node::new(&[]);
    fs::remove_dir_all(node.root()).unwrap();
    let outcome = node.sysctls().apply(&wanted([(UDP, "10")]));
    assert!(
        failures(&outcome)[0].ends_with("is /proc mounted?"),
        "{outcome:?}"
    );
}

#[test]
fn a_parameter_whose_module_is_gone_is_forgotten() {
    let node = Node::new(&[(UDP, "30")]);
    let mut sysctls = node.sysctls();
    sysctls.apply(&wanted([(UDP, "10")]));
    fs::remove_file(node.file(UDP)).unwrap();
    let outcome = sysctls.restore_all();
    assert!(outcome.is_clean() && outcome.changed.is_empty(), "{outcome:?}");
    assert!(!node.state_file().exists());
}

#[test]
fn nothing_is_written_that_could_not_be_remembered() {
    let node = Node::new(&[(UDP, "30")]);
    fs::write(node.folder.path().join("state"), "in the way of the folder").unwrap();
    let mut sysctls = node.sysctls();
    let outcome = sysctls.apply(&wanted([(UDP, "10")]));
    assert_eq!(node.value(UDP), "30");
    assert!(failures(&outcome)[0].contains("is not set: the value that it has could not be remembered in"));
    assert!(outcome.state.is_some());

    fs::remove_file(node.folder.path().join("state")).unwrap();
    assert_eq!(
        changes(&sysctls.apply(&wanted([(UDP, "10")]))),
        [(UDP, "30", "10", Why::Set)]
    );
}

#[test]
fn drift_is_undone_also_when_the_disk_is_full() {
    let node = Node::new(&[(UDP, "30")]);
    let mut sysctls = node.sysctls();
    sysctls.apply(&wanted([(UDP, "10")]));
    fs::remove_dir_all(node.folder.path().join("state")).unwrap();
    fs::write(node.folder.path().join("state"), "in the way of the folder").unwrap();
    node.set(UDP, "77");
    assert_eq!(
        changes(&sysctls.apply(&wanted([(UDP, "10")]))),
        [(UDP, "77", "10", Why::Drift)]
    );
}

#[test]
fn a_damaged_state_file_is_kept_aside_and_work_goes_on() {
    for damage in [
        &b"pointsman sysctls 1\nboot\t\nnet.ipv4"[..],
        b"",
        b"\xff\xfe",
        &[b'x'; (1 << 20) + 1],
    ] {
        let node = Node::new(&[(UDP, "30")]);
        fs::create_dir_all(node.folder.path().join("state")).unwrap();
        fs::write(node.state_file(), damage).unwrap();
        let outcome = node.sysctls().apply(&wanted([(UDP, "10")]));
        assert_eq!(outcome.changed.len(), 1);
        let said = outcome.state.unwrap().to_string();
        assert!(
            said.contains("is damaged") && said.contains("it was moved to"),
            "{said}"
        );
        let aside = node.folder.path().join("state/sysctls.corrupt");
        assert_eq!(fs::read(aside).unwrap(), damage);
        assert_eq!(
            changes(&node.sysctls().restore_all()),
            [(UDP, "10", "30", Why::Restored)]
        );
    }
}

#[test]
fn a_reboot_makes_what_was_found_before_it_worthless() {
    let node = Node::new(&[(UDP, "30")]);
    let entry = Entry {
        found: "5".into(),
        asked: "10".into(),
        held: "10".into(),
    };
    let before = State::with(
        Some("another-boot".into()),
        [(Name::parse(UDP).unwrap(), entry)].into(),
    );
    fs::create_dir_all(node.folder.path().join("state")).unwrap();
    fs::write(node.state_file(), before.to_text()).unwrap();
    let mut sysctls = node.sysctls();
    assert_eq!(
        changes(&sysctls.apply(&wanted([(UDP, "10")]))),
        [(UDP, "30", "10", Why::Set)]
    );
    assert_eq!(
        changes(&sysctls.restore_all()),
        [(UDP, "10", "30", Why::Restored)]
    );
}

#[test]
fn a_lower_bound_never_lowers() {
    let (buckets, at_least) = ("net.netfilter.nf_conntrack_buckets", |n| {
        BTreeMap::from([(
            "net.netfilter.nf_conntrack_buckets".to_owned(),
            Wanted::AtLeast(n),
        )])
    });
    let node = Node::new(&[(buckets, "4096")]);
    let mut sysctls = node.sysctls();
    assert!(changes(&sysctls.apply(&at_least(1024))).is_empty());
    assert_eq!(
        changes(&sysctls.apply(&at_least(8192))),
        [(buckets, "4096", "8192", Why::Set)]
    );
    assert!(changes(&sysctls.apply(&at_least(5000))).is_empty());
    node.set(buckets, "512");
    assert_eq!(
        changes(&sysctls.apply(&at_least(5000))),
        [(buckets, "512", "5000", Why::Drift)]
    );
    assert_eq!(
        changes(&sysctls.restore_all()),
        [(buckets, "5000", "4096", Why::Restored)]
    );
}

#[test]
fn the_limit_of_connections_is_not_lowered_below_their_number() {
    let (max, count) = (
        "net.netfilter.nf_conntrack_max",
        "net.netfilter.nf_conntrack_count",
    );
    let node = Node::new(&[(max, "262144"), (count, "9000")]);
    let mut sysctls = node.sysctls();
    let outcome = sysctls.apply(&wanted([(max, "8000")]));
    assert_eq!(node.value(max), "262144");
    let said = failures(&outcome).remove(0);
    assert!(
        said.starts_with(&format!(
            "{max} stays at 262144: 9000 connections are tracked now"
        )),
        "{said}"
    );

    node.set(count, "7000");
    assert_eq!(
        changes(&sysctls.apply(&wanted([(max, "8000")]))),
        [(max, "262144", "8000", Why::Set)]
    );
    assert!(!sysctls.apply(&wanted([(max, "6000")])).is_clean());
    assert_eq!(node.value(max), "8000");
    assert!(sysctls.restore_all().is_clean(), "raising is always possible");
    assert_eq!(node.value(max), "262144");

    for (present, value, connections, refused) in [
        (0, 0, 9, false),
        (10, 0, 9, false),
        (0, 9, 9, true),
        (10, 9, 9, true),
        (10, 10, 99, false),
        (10, 9, 8, false),
    ] {
        assert_eq!(
            chokes(present, value, connections),
            refused,
            "{present} -> {value} with {connections}"
        );
    }
}

#[test]
fn what_the_kernel_rounds_is_told_from_what_it_did_not_take() {
    let buckets = Name::parse("net.netfilter.nf_conntrack_buckets").unwrap();
    let udp = Name::parse(UDP).unwrap();
    for (name, wanted, now, accepted) in [
        (&buckets, "1000", "1024", true),
        (&buckets, "1000", "512", false),
        (&buckets, "1000", "65536", false),
        (&udp, "1000", "1024", false),
    ] {
        assert_eq!(is_accepted(name, wanted, now), accepted, "{name} {wanted} {now}");
    }
    let entry = Entry {
        found: "262144".into(),
        asked: "1000".into(),
        held: "1024".into(),
    };
    let decide = |present, wanted: &str| decide(&buckets, present, Some(&entry), &wanted.into());
    assert_eq!(decide("1024", "1000"), Decision::Keep);
    assert_eq!(
        decide("2048", "1000"),
        Decision::Write {
            value: "1000".into(),
            why: Why::Drift
        }
    );
    assert_eq!(
        decide("1024", "1001"),
        Decision::Write {
            value: "1001".into(),
            why: Why::Set
        }
    );
}

#[test]
fn forwarding_is_switched_first_and_back_last() {
    let names = [
        "net.ipv4.conf.all.rp_filter",
        "net.ipv4.ip_forward",
        "net.netfilter.nf_conntrack_max",
        UDP,
    ];
    let node = Node::new(&names.map(|name| (name, "0")));
    let mut sysctls = node.sysctls();
    let order = |outcome: Outcome| {
        outcome
            .changed
            .into_iter()
            .map(|c| c.name.to_string())
            .collect::<Vec<_>>()
    };
    let set = order(sysctls.apply(&wanted(names.map(|name| (name, "1")))));
    assert_eq!(set, [names[1], names[0], names[2], names[3]]);
    assert_eq!(
        order(sysctls.restore_all()),
        [names[3], names[2], names[0], names[1]]
    );
}

#[test]
fn names_lead_nowhere_else() {
    for (name, expected) in [
        (UDP, None),
        ("net.ipv4.conf.br-lan.rp_filter", None),
        ("kernel.panic", Some(BadName::NotNet)),
        ("", Some(BadName::NotNet)),
        ("net", Some(BadName::NotNet)),
        ("net.", Some(BadName::EmptyComponent)),
        ("net..ipv4", Some(BadName::EmptyComponent)),
        ("net....etc.passwd", Some(BadName::EmptyComponent)),
        ("net.ipv4/../../kernel", Some(BadName::Character('/'))),
        ("net.ipv4.IP_forward", Some(BadName::Character('I'))),
        ("net.ipv4.ip_forward\n", Some(BadName::Character('\n'))),
        ("net.ipv4.ip forward", Some(BadName::Character(' '))),
        ("net.ipv4.\0", Some(BadName::Character('\0'))),
    ] {
        assert_eq!(Name::parse(name).err(), expected, "{name:?}");
    }
    assert_eq!(
        Name::parse(&format!("net.{}", "a".repeat(252))),
        Err(BadName::TooLong)
    );
}

#[test]
fn values_are_compared_by_meaning() {
    for (a, b, expected) in [
        ("1024\t65000", "1024 65000", true),
        ("1024 65000", "1024 65001", false),
        ("1024", "1024 65000", false),
        ("", " \n", true),
        ("", "0", false),
        ("007", "7", true),
        ("-1", "-1", true),
        ("-1", "1", false),
        ("5-7,10", "10,5-7", true),
        ("5,6,7", "5-7", true),
        ("5-7", "5-8", false),
        ("65535,0-65534", "0-65535", true),
        ("7-5", "5-7", false),
        ("cubic", "cubic", true),
        ("cubic", "reno", false),
    ] {
        assert_eq!((same(a, b), same(b, a)), (expected, expected), "{a:?} {b:?}");
    }
}

#[derive(Clone, Debug)]
enum Event {
    Policy(Option<u8>, Option<u8>),
    Restart,
}

proptest! {
    // Every case syncs files to the disk many times.
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever policies come, and however often the process is replaced: in the end the node is as it was.
    #[test]
    fn in_the_end_the_node_is_as_it_was(events in proptest::collection::vec(prop_oneof![
        4 => (proptest::option::of(0_u8..4), proptest::option::of(0_u8..4)).prop_map(|(a, b)| Event::Policy(a, b)),
        1 => Just(Event::Restart),
    ], 0..12)) {
        let node = Node::new(&[(UDP, "2"), (STREAM, "3")]);
        let mut sysctls = node.sysctls();
        for event in events {
            match event {
                Event::Policy(udp, stream) => {
                    let policy = [(UDP, udp), (STREAM, stream)].into_iter().filter_map(|(name, value)| {
                        Some((name.to_owned(), Wanted::from(value?.to_string())))
                    }).collect();
                    let outcome = sysctls.apply(&policy);
                    prop_assert!(outcome.is_clean() && outcome.left.is_empty(), "{:?}", outcome);
                    for (name, value) in [(UDP, udp.unwrap_or(2)), (STREAM, stream.unwrap_or(3))] {
                        prop_assert_eq!(node.value(name), value.to_string());
                    }
                }
                Event::Restart => sysctls = node.sysctls(),
            }
        }
        sysctls.restore_all();
        prop_assert_eq!((node.value(UDP), node.value(STREAM)), ("2".to_owned(), "3".to_owned()));
    }
}

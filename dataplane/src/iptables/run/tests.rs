#![allow(clippy::unwrap_used, reason = "a test ends by failing")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::time::Instant;

use super::*;
use crate::iptables::names::Table;
use crate::iptables::programs::Programs;

/// Programs that are a shell script, for tests of how programs behave badly.
fn script(text: &str) -> (tempfile::TempDir, Programs) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("program");
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let programs = Programs {
        restore: path.clone(),
        save: path,
        lock_file: Some("/tmp/lock".into()),
        lock_wait: Duration::from_secs(3),
        time_limit: Duration::from_millis(300),
    };
    (folder, programs)
}

#[test]
fn a_program_that_is_not_there() {
    let (_folder, programs) = script("");
    let programs = Programs {
        restore: "/nowhere/iptables-restore".into(),
        ..programs
    };
    let error = programs.restore(&[]).unwrap_err();
    assert!(
        matches!(
            error,
            Error::MissingProgram {
                package: "iptables",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_program_that_does_not_end_is_stopped() {
    let (_folder, programs) = script("exec sleep 60");
    let begin = Instant::now();
    // More input than a pipe holds, which it never reads.
    let error = programs.restore(&[&"x".repeat(1 << 20)]).unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_failure_says_what_the_program_said() {
    let (_folder, programs) = script("echo \"line 3 failed: $*, $XTABLES_LOCKFILE\" >&2; exit 2");
    let error = programs.restore(&[&"x".repeat(1 << 20)]).unwrap_err();
    let Error::Failed { stderr, status, .. } = error else {
        unreachable!("{error}");
    };
    assert_eq!(stderr, "line 3 failed: --noflush --wait 3, /tmp/lock");
    assert!(status.contains('2'), "{status}");
}

#[test]
fn much_output_of_both_kinds_does_not_block() {
    let (_folder, programs) = script("head -c 300000 /dev/zero >&2; yes | head -c 300000");
    let programs = Programs {
        time_limit: Duration::from_secs(20),
        ..programs
    };
    let mut lines = 0;
    programs
        .save(Table::Nat, false, |line| lines += usize::from(line == "y"))
        .unwrap();
    assert_eq!(lines, 150_000);
}

#[test]
fn what_the_kernel_lacks_is_told_from_what_failed() {
    let status = ExitStatus::from_raw(256);
    for said in [
        "ip6tables-save v1.8.9 (legacy): can't initialize ip6tables table `nat': Table does not exist (do you need to insmod?)",
        "modprobe: FATAL: Module ip6_tables not found\nCan't initialize",
        "Warning: Extension MASQUERADE revision 0 not supported, missing kernel module?",
    ] {
        let error = failure("ip6tables-save".to_owned(), status, said.to_owned());
        assert!(matches!(error, Error::MissingKernelFeature { .. }), "{error}");
    }
    for said in [
        "iptables-save v1.8.9 (legacy): can't initialize iptables table `nat': Permission denied (you must be root)",
        "iptables-restore: line 3 failed",
    ] {
        let error = failure("iptables-save".to_owned(), status, said.to_owned());
        assert!(matches!(error, Error::Failed { .. }), "{error}");
    }
}

//! What the question for the kernel's abilities tells, and that it leaves nothing behind. Needs root and nftables;
//! without them it fails and says what to do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by failing"
)]
#![allow(dead_code, reason = "other tests use the rest of the support")]

#[path = "support/namespace.rs"]
mod namespace;

use std::process::Command;

use namespace::Namespace;
use pointsman_dataplane::model::Family;
use pointsman_dataplane::netlink::socket::Socket;
use pointsman_dataplane::nftables::probe::{Capability, missing, probe};

#[test]
fn this_kernel_has_it_all_and_keeps_nothing_of_the_question() {
    let node = Namespace::new();
    for family in Family::ALL {
        let generation = || Socket::open().unwrap().generation().unwrap();
        let (before, answer, lacks, after) = node.run(|| {
            (
                generation(),
                probe(family),
                missing(family).unwrap(),
                generation(),
            )
        });
        assert_eq!((answer, lacks), (Capability::Full, vec![]), "{family}");
        assert_eq!(before, after, "{family}: something was committed");
    }
    assert_eq!(node.program(&["nft", "list", "ruleset"], ""), "");
}

#[test]
fn a_table_that_is_in_the_way_says_nothing_of_the_kernel() {
    let node = Namespace::new();
    let theirs = "table ip pointsman-probe {\n\tmap frontends {\n\t\ttype ipv4_addr : verdict\n\t}\n}\n";
    node.program(&["nft", "-f", "-"], theirs);
    let answer = node.run(|| probe(Family::V4));
    // A set of another kind by the same name is in the way; that is no lack of the kernel's.
    assert!(matches!(answer, Capability::Undecided(_)), "{answer:?}");
    assert_eq!(node.program(&["nft", "list", "ruleset"], ""), theirs);
}

#[test]
fn without_rights_nothing_is_said_of_the_kernel() {
    if std::env::var_os("POINTSMAN_PROBE_WITHOUT_RIGHTS").is_some() {
        for family in Family::ALL {
            let answer = probe(family);
            assert!(matches!(answer, Capability::Undecided(_)), "{answer:?}");
        }
        return;
    }
    let ran = Command::new("setpriv")
        .args(["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "without_rights_nothing_is_said_of_the_kernel"])
        .env("POINTSMAN_PROBE_WITHOUT_RIGHTS", "1")
        .output()
        .expect("setpriv cannot be run: install Debian's package util-linux");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));
}

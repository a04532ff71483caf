#![allow(clippy::unwrap_used, reason = "a test ends by failing")]

use super::*;

/// A plan that writes one chain in nat and two, one of them there already, in filter.
fn plan() -> Plan {
    let mut plan = Plan::default();
    let rules = |rule: &str| Rules::of(&[rule]);
    plan.nat.write(Chain::Addresses(0x35), true, &rules("-j ACCEPT"));
    plan.filter
        .write(Chain::Addresses(0x35), true, &rules("-p tcp -j REJECT"));
    plan.filter
        .write(Chain::Addresses(0x36), false, &rules("-p udp -j REJECT"));
    plan.filter.remove("PM-VIP-37");
    plan
}

const NAT: &str = "*nat\n:PM-VIP-35 - [0:0]\n-A PM-VIP-35 -j ACCEPT\nCOMMIT\n";
const GROW: &str =
    "*filter\n:PM-VIP-36 - [0:0]\n-A PM-VIP-35 -p tcp -j REJECT\n-A PM-VIP-36 -p udp -j REJECT\nCOMMIT\n";
const SETTLE: &str = "*filter\n:PM-VIP-35 - [0:0]\n:PM-VIP-36 - [0:0]\n:PM-VIP-37 - [0:0]\n-A PM-VIP-35 -p tcp -j REJECT\n\
    -A PM-VIP-36 -p udp -j REJECT\n-X PM-VIP-37\nCOMMIT\n";

#[test]
fn refusals_come_before_and_go_after_translation() {
    let plan = plan();
    let text = |order| plan.input(order).unwrap().unwrap().1.pieces().concat();
    assert_eq!(text(FilterOrder::First), format!("{SETTLE}{NAT}"));
    assert_eq!(text(FilterOrder::Last), format!("{NAT}{SETTLE}"));
    assert_eq!(text(FilterOrder::FirstAndLast), format!("{GROW}{NAT}{SETTLE}"));
    assert_eq!(plan.careful_order(), FilterOrder::FirstAndLast);
    let report = plan.input(FilterOrder::First).unwrap().unwrap().0;
    assert_eq!(
        report,
        Report {
            objects: 7,
            bytes: SETTLE.len() + NAT.len(),
            iptables: None
        }
    );
}

#[test]
fn a_table_alone_is_one_transaction() {
    let mut plan = plan();
    plan.nat = Changes::default();
    assert_eq!(
        plan.input(FilterOrder::FirstAndLast)
            .unwrap()
            .unwrap()
            .1
            .pieces()
            .concat(),
        SETTLE
    );
    plan.filter = Changes::default();
    assert!(plan.input(FilterOrder::FirstAndLast).unwrap().is_none());
}

#[test]
fn jumps_move_in_one_transaction() {
    let mut plan = Plan::default();
    plan.nat.unhook("OUTPUT", "-j PM-OLD");
    plan.nat.remove("PM-OLD");
    plan.nat.hook("OUTPUT", "-j PM-SERVICES");
    assert_eq!(
        plan.input(FilterOrder::Last)
            .unwrap()
            .unwrap()
            .1
            .pieces()
            .concat(),
        "*nat\n:PM-OLD - [0:0]\n-D OUTPUT -j PM-OLD\n-I OUTPUT -j PM-SERVICES\n-X PM-OLD\nCOMMIT\n"
    );
}

#[test]
fn what_no_rule_has_is_not_sent() {
    for strange in ["\r", "\0", "\t", "\u{e9}", "\u{7f}"] {
        let mut plan = Plan::default();
        plan.nat.hook("OUTPUT", strange);
        assert!(plan.input(FilterOrder::Last).is_err(), "{strange:?}");
    }
}

#[test]
fn interface_names() {
    for good in ["cni0", "veth.1", "a-b_c@d", "eth0123456789ab"] {
        assert!(
            check_interface(&LocalTraffic::Interface(good.into())).is_ok(),
            "{good}"
        );
    }
    for bad in [
        "",
        "-j",
        "a b",
        "a\nCOMMIT",
        "a\"",
        "!",
        "a+",
        "eth0123456789abc",
        "a/b",
    ] {
        assert!(
            check_interface(&LocalTraffic::InterfacePrefix(bad.into())).is_err(),
            "{bad:?}"
        );
    }
}

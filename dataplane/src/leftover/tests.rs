use super::*;

fn of_iptables(anywhere: &[&str]) -> Leftover {
    let chains = KubeProxyChains {
        count: 3,
        anywhere: anywhere.iter().map(|rule| (*rule).to_owned()).collect(),
    };
    Leftover::of_iptables(Family::V6, Variant::Legacy, chains)
}

#[test]
fn what_is_said_names_the_place_and_what_cannot_be_outranked() {
    let harmless = Leftover::of_table(Family::V4, Verdicts::default());
    assert_eq!(harmless.to_string(), "table ip kube-proxy");
    assert!(!harmless.outranks());
    assert_eq!(harmless.removal(), "nft delete table ip kube-proxy");
    let rule = "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP";
    let drops = of_iptables(&[rule; 9]);
    assert!(drops.outranks());
    assert_eq!(drops.anywhere.len(), SPELLED_OUT);
    let said = drops.to_string();
    assert!(
        said.starts_with("KUBE- chains of iptables (legacy, IPv6)") && said.contains(rule),
        "{said}"
    );
    assert_eq!(of_iptables(&[]).removal(), "kube-proxy --cleanup");
}

#[test]
fn destinations_are_spelled_out_as_far_as_they_fit() {
    let said = |destinations: &[&str], more| {
        let leftover = Leftover {
            before: vec!["early".into()],
            destinations: destinations.iter().map(|name| (*name).to_owned()).collect(),
            more,
            ..Leftover::of_table(Family::V4, Verdicts::default())
        };
        let said = leftover.to_string();
        said.split_once("packets").unwrap().1.to_owned()
    };
    assert_eq!(said(&[], 0), "");
    assert_eq!(said(&["a", "b"], 0), " to a, b");
    assert_eq!(said(&["a", "b"], 7), " to a, b and 7 more");
    assert_eq!(said(&[], 7), " to 7 destinations");
}

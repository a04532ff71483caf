//! The flow tables (`tests/flows`) on the model: what `compile` and `trace` make of the files' objects and packets, in
//! both families.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by failing"
)]

mod support;

use pointsman_dataplane::model::{Destination, FrontendKey, Ingress, Packet, Verdict};

use support::flows::families::{Families, counterpart};
use support::flows::state::{Flow, State, said};
use support::flows::words::From;
use support::flows::{all, file, walk, world};

#[test]
fn the_model_answers_as_the_files_say() {
    let mut wrong = Vec::new();
    for named in all() {
        for families in [Families::Written, Families::Swapped] {
            wrong.extend(walk(&named, &mut State::new(families), |state, moment| {
                let mut wrong = moment.wrong.clone();
                wrong.extend(moment.flows.iter().filter_map(|flow| differs(state, flow)));
                wrong
            }));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What the model answers, where it is not what the file says.
fn differs(state: &State, flow: &Flow) -> Option<String> {
    let source = match flow.source.from {
        From::One(address) => address,
        From::Crowd(range) => range.addr(),
    };
    let packet = Packet {
        source,
        destination: flow.to.ip(),
        protocol: flow.protocol,
        port: flow.to.port(),
        ingress: world::interface(flow.source.place).map_or(Ingress::Host, Ingress::Interface),
    };
    let mut found = state.table.trace(&packet);
    if let Verdict::Balance(targets) = &mut found {
        targets.sort_unstable();
    }
    if found != flow.expect {
        return Some(format!(
            "{flow}: expected {}, found {}",
            said(&flow.expect),
            said(&found)
        ));
    }
    let remembers = remembers(state, flow);
    let several = matches!(&found, Verdict::Balance(targets) if targets.len() > 1);
    match (&flow.sticky, &flow.source.from, remembers) {
        (Some(_), _, false) => Some(format!("{flow}: the file expects affinity, the pool has none")),
        // Nobody could tell which of several a single client gets.
        (None, From::One(_), true) if several => Some(format!("{flow}: the pool has affinity: say `sticky`")),
        _ => None,
    }
}

/// Whether the pools behind a destination keep a client at its endpoint.
fn remembers(state: &State, flow: &Flow) -> bool {
    let key = |destination| FrontendKey {
        family: pointsman_dataplane::model::Family::of(flow.to.ip()),
        destination,
        protocol: flow.protocol,
        port: flow.to.port(),
    };
    [Destination::Address(flow.to.ip()), Destination::NodePort]
        .into_iter()
        .find_map(|destination| state.table.frontend(&key(destination)))
        .is_some_and(|frontend| {
            let mut pools = frontend.action.pools();
            pools.any(|pool| state.table.pool(pool).is_some_and(|pool| pool.affinity.is_some()))
        })
}

#[test]
fn a_malformed_file_is_refused_by_name_and_reason() {
    let head = "about: x\ncount: 0\n";
    let packet = |fields: &str| format!("{head}cases: [{{name: a, packets: [{{{fields}}}]}}]\n");
    for (text, reasons) in [
        (
            format!("{head}cases: []\nservice: {{}}\n"),
            vec!["bad.yaml", "service"],
        ),
        (
            format!("{head}cases: [{{name: a, slice: {{}}}}]\n"),
            vec!["slice"],
        ),
        ("count: 0\ncases: []\n".to_owned(), vec!["about"]),
        (
            packet("from: pod, to: 10.96.0.1:80, expect: REFUSE"),
            vec!["REFUSE", "REJECT"],
        ),
        (packet("from: pods, to: 10.96.0.1:80, expect: DROP"), vec!["pods"]),
        (
            packet("from: 9.9.9.9, to: 10.96.0.1:80, expect: DROP"),
            vec!["9.9.9.9"],
        ),
        (
            packet("from: pod, to: 10.96.0.1, expect: DROP"),
            vec!["10.96.0.1"],
        ),
        (
            packet("from: pod, to: 10.96.0.1:80, expect: DROP, masked: all"),
            vec!["masked"],
        ),
        (
            format!(
                "{head}slices: {{a: {{service: a, ports: [], endpoints: [10.244.1.5 dead]}}}}\ncases: []\n"
            ),
            vec!["dead", "terminating"],
        ),
        (
            format!("{head}cases: [{{name: a, then: [{{name: b, then: [{{name: c}}]}}]}}]\n"),
            vec!["a, then b"],
        ),
    ] {
        let error = file::read("bad", &text).expect_err(&text);
        for reason in reasons {
            assert!(
                error.contains(reason) && error.starts_with("bad.yaml: "),
                "{error}"
            );
        }
    }
}

#[test]
fn what_a_file_gets_wrong_fails_with_its_place() {
    let text = "
about: three mistakes
count: 2
services: {web: {clusterIPs: [10.96.0.1], ports: [{port: 80}]}}
cases:
  - {name: refused, packets: [{from: pod, to: 10.96.0.1:80, expect: DROP}]}
  - {name: unheard of, slices: {a: {service: other, ports: [], endpoints: []}}}
";
    let named = support::flows::Named {
        name: "wrong".to_owned(),
        file: file::read("wrong", text).unwrap(),
    };
    let wrong = walk(&named, &mut State::new(Families::Written), |state, moment| {
        moment
            .flows
            .iter()
            .filter_map(|flow| differs(state, flow))
            .collect()
    });
    assert_eq!(
        wrong,
        [
            "wrong.yaml (as written): refused: tcp from 10.244.1.9 (veth9) to 10.96.0.1:80: expected DROP, found REJECT",
            "wrong.yaml (as written): unheard of: slice a: there is no Service other",
            "wrong.yaml: it says that it has 2 packets, and has 1",
        ]
    );
}

#[test]
fn each_address_has_one_counterpart() {
    for address in ["10.96.0.1", "255.255.255.255", "127.0.0.1", "0.0.0.0"] {
        let address = address.parse().unwrap();
        assert_eq!(counterpart(counterpart(address).unwrap()).unwrap(), address);
    }
    assert_eq!(
        counterpart("10.96.0.20".parse().unwrap()).unwrap().to_string(),
        "fd00::10:96:0:20"
    );
    for address in ["fd00::ff", "2001:db8::1", "fd00::256"] {
        assert!(counterpart(address.parse().unwrap()).is_err(), "{address}");
    }
    let net = |text: &str| Families::Swapped.net(text.parse().unwrap());
    assert_eq!(net("10.244.1.0/24").unwrap().to_string(), "fd00::10:244:1:0/112");
    assert_eq!(net("fd00::10:244:1:0/112").unwrap().to_string(), "10.244.1.0/24");
    assert!(net("10.0.0.0/9").is_err());
}

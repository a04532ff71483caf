use super::*;

/// A table as it could be read.
#[derive(Default)]
struct Fake {
    rules: HashMap<&'static str, Vec<Course>>,
    maps: HashMap<&'static str, Vec<(Vec<u8>, Verdict)>>,
    asked: usize,
}

impl Rules for Fake {
    type Error = String;

    fn rules(&mut self, chain: &str) -> Result<Vec<Course>, String> {
        self.asked += 1;
        let numbered = chain.starts_with("firewall-") && !self.rules.contains_key(chain);
        match numbered {
            true => Ok(vec![about_some(drop())]),
            false => self.rules.get(chain).cloned().ok_or(format!("no {chain}")),
        }
    }

    fn elements(&mut self, map: &str) -> Result<Vec<(Vec<u8>, Verdict)>, String> {
        self.maps.get(map).cloned().ok_or(format!("no {map}"))
    }
}

fn base(name: &str, kind: &str, number: u32, priority: i32) -> (String, BaseRead) {
    let base = BaseRead {
        kind: kind.to_owned(),
        number,
        priority,
        accepts: true,
    };
    (name.to_owned(), base)
}

fn ends_with(verdict: Verdict) -> Course {
    Course {
        verdict: Some(verdict),
        ..Course::default()
    }
}

fn drop() -> Course {
    ends_with(Verdict::Drop)
}

fn jump(to: &str) -> Course {
    ends_with(Verdict::Jump(to.into()))
}

fn refuse() -> Course {
    Course {
        refuses: true,
        ..Course::default()
    }
}

fn looks_up(map: &str) -> Course {
    Course {
        reads_packet: true,
        map: Some(map.into()),
        ..Course::default()
    }
}

fn about_some(course: Course) -> Course {
    Course {
        reads_packet: true,
        ..course
    }
}

fn key(last: u8) -> Vec<u8> {
    vec![203, 0, 113, last, 6, 0, 0, 0, 0, 80, 0, 0]
}

/// As version 1.36 writes it.
fn kube_proxy() -> (Vec<(String, BaseRead)>, Fake) {
    let bases = vec![
        base("filter-prerouting-pre-dnat", "filter", 0, -110),
        base("filter-output-pre-dnat", "filter", 3, -110),
        base("filter-input", "filter", 1, 0),
        base("filter-forward", "filter", 2, 0),
        base("filter-output", "filter", 3, 0),
        base("nat-prerouting", "nat", 0, -100),
    ];
    let check = vec![jump("firewall-check")];
    let forward = vec![jump("service-endpoints-check"), jump("cluster-ips-check")];
    let fake = Fake {
        rules: HashMap::from([
            ("filter-prerouting-pre-dnat", check.clone()),
            ("filter-output-pre-dnat", check),
            ("firewall-check", vec![looks_up("firewall-ips")]),
            ("filter-input", vec![jump("service-endpoints-check")]),
            ("filter-forward", forward.clone()),
            ("filter-output", forward),
            ("service-endpoints-check", vec![looks_up("no-endpoint-services")]),
            (
                "cluster-ips-check",
                vec![about_some(refuse()), about_some(drop())],
            ),
            ("reject-chain", vec![refuse()]),
        ]),
        maps: HashMap::from([
            ("firewall-ips", vec![]),
            (
                "no-endpoint-services",
                vec![(key(1), Verdict::Goto("reject-chain".into()))],
            ),
        ]),
        asked: 0,
    };
    (bases, fake)
}

#[test]
fn what_comes_after_translation_and_is_about_service_addresses_counts_for_nothing() {
    let (bases, mut fake) = kube_proxy();
    let found = verdicts(Family::V4, &bases, &mut fake).unwrap();
    assert_eq!(found, Verdicts::default());
}

#[test]
fn restricted_load_balancer_addresses_are_named_with_the_chains() {
    let (bases, mut fake) = kube_proxy();
    let to = |chain: &str| Verdict::Goto(chain.into());
    fake.rules.insert("lets-pass", vec![ends_with(Verdict::Return)]);
    fake.maps.insert(
        "firewall-ips",
        vec![
            (key(9), to("firewall-web")),
            (key(7), Verdict::Drop),
            (key(5), to("lets-pass")),
            (vec![1, 2, 3], to("firewall-web")),
        ],
    );
    let found = verdicts(Family::V4, &bases, &mut fake).unwrap();
    let destinations: Vec<String> = found.destinations.iter().map(ToString::to_string).collect();
    assert_eq!(
        destinations,
        ["203.0.113.7 port 80/TCP", "203.0.113.9 port 80/TCP"]
    );
    assert_eq!(found.unnamed, 1, "two base chains lead to it");
    let before: Vec<&str> = found.before.iter().map(String::as_str).collect();
    assert_eq!(before, ["filter-output-pre-dnat", "filter-prerouting-pre-dnat"]);
    assert!(found.anywhere.is_empty());
}

#[test]
fn a_chain_for_each_of_very_many_addresses_is_not_read() {
    let (bases, mut fake) = kube_proxy();
    let many = (0..20_000_u16).map(|number| {
        let [high, low] = number.to_be_bytes();
        let key = vec![10, 0, high, low, 17, 0, 0, 0, 0, 53, 0, 0];
        (key, Verdict::Goto(format!("firewall-{number}")))
    });
    fake.maps.insert("firewall-ips", many.collect());
    let found = verdicts(Family::V4, &bases, &mut fake).unwrap();
    assert_eq!(found.destinations.len(), 20_000);
    assert!(fake.asked < CHAINS_READ + 50, "{}", fake.asked);
}

#[test]
fn a_drop_that_asks_for_no_destination_counts_wherever_it_hangs() {
    let cases: [(&str, BaseRead, Vec<Course>, bool, bool); 7] = [
        ("late", base("", "filter", 2, 0).1, vec![drop()], false, true),
        ("refused", base("", "filter", 1, 0).1, vec![refuse()], false, true),
        (
            "about some",
            base("", "filter", 2, 0).1,
            vec![about_some(drop())],
            false,
            false,
        ),
        (
            "early, about some",
            base("", "filter", 0, -300).1,
            vec![about_some(drop())],
            true,
            false,
        ),
        ("in nat", base("", "nat", 0, -100).1, vec![drop()], false, false),
        (
            "before routing, after translation",
            base("", "filter", 0, -90).1,
            vec![about_some(drop())],
            false,
            false,
        ),
        (
            "by policy",
            BaseRead {
                accepts: false,
                ..base("", "filter", 2, 0).1
            },
            vec![],
            false,
            true,
        ),
    ];
    for (what, base, rules, before, anywhere) in cases {
        let mut fake = Fake::default();
        fake.rules.insert("base", rules);
        let found = verdicts(Family::V4, &[("base".into(), base)], &mut fake).unwrap();
        assert_eq!(
            (found.before.len(), found.anywhere.len()),
            (usize::from(before), usize::from(anywhere)),
            "{what}"
        );
    }
}

#[test]
fn chains_that_lead_to_each_other_end() {
    let mut fake = Fake::default();
    fake.rules.insert("base", vec![jump("a"), looks_up("map")]);
    fake.rules.insert("a", vec![jump("b")]);
    fake.rules.insert("b", vec![jump("a"), jump("base")]);
    fake.maps.insert("map", vec![(key(1), Verdict::Goto("a".into()))]);
    let bases = [base("base", "filter", 0, -200)];
    assert_eq!(verdicts(Family::V4, &bases, &mut fake), Ok(Verdicts::default()));
    fake.rules.remove("b");
    assert_eq!(verdicts(Family::V4, &bases, &mut fake), Err("no b".into()));
}

#[test]
fn keys_are_read_in_both_families_and_others_are_none() {
    let mut v6 = vec![0x20, 1, 0x0d, 0xb8];
    v6.extend([0; 11]);
    v6.extend([9, 132, 0, 0, 0, 1, 187, 0, 0]);
    let read = Destination::read(Family::V6, &v6).unwrap();
    assert_eq!(read.to_string(), "2001:db8::9 port 443/SCTP");
    for length in 0..40 {
        let key = vec![1; length];
        assert_eq!(Destination::read(Family::V4, &key).is_some(), length == 12);
        assert_eq!(Destination::read(Family::V6, &key).is_some(), length == 24);
    }
}

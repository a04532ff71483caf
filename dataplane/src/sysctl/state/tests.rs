//! The text of the state file, whole and damaged.

use proptest::prelude::*;

use super::*;

const UDP: &str = "net.netfilter.nf_conntrack_udp_timeout";
const PORTS: &str = "net.ipv4.ip_local_port_range";

#[test]
fn every_kind_of_damage_is_named() {
    let line = format!("{UDP}\t30\t10\t10\n");
    let file = |lines: &str, end: &str| format!("pointsman sysctls 1\nboot\tb\n{lines}{end}");
    for (text, expected) in [
        (file(&line, "end\t1\n"), None),
        (file("", "end\t0\n"), None),
        (file(&format!("{PORTS}\t\t1 2\t1 2\n"), "end\t1\n"), None),
        (String::new(), Some(Corrupt::Header)),
        ("pointsman sysctls 2\nend\t0\n".into(), Some(Corrupt::Header)),
        ("pointsman sysctls 1\n".into(), Some(Corrupt::CutOff)),
        ("pointsman sysctls 1\nend\t0\n".into(), Some(Corrupt::Fields(2))),
        (file(&line, ""), Some(Corrupt::CutOff)),
        (file(&line, "end\t1"), Some(Corrupt::CutOff)),
        (file(&line, "end\t2\n"), Some(Corrupt::CutOff)),
        (file(&line, "end\t1\nmore\n"), Some(Corrupt::CutOff)),
        (file(&line.repeat(2), "end\t2\n"), Some(Corrupt::Order(4))),
        (file("net.a\t1\n", "end\t1\n"), Some(Corrupt::Fields(3))),
        (file("net.a\t1\t2\t3\t4\n", "end\t1\n"), Some(Corrupt::Fields(3))),
        (
            file("a.b\t1\t2\t3\n", "end\t1\n"),
            Some(Corrupt::Name(3, BadName::NotNet)),
        ),
        (file("net.a\t1\t\x01\t3\n", "end\t1\n"), Some(Corrupt::Value(3))),
        (file("net.a\t1\t 2\t3\n", "end\t1\n"), Some(Corrupt::Value(3))),
    ] {
        assert_eq!(State::parse(&text).err(), expected, "{text:?}");
    }
}

fn any_value() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        "[0-9]{1,6}( [0-9]{1,6}){0,2}",
        "[0-9]{1,3}(-[0-9]{1,3})?(,[0-9]{1,4}){0,3}"
    ]
}

fn any_state() -> impl Strategy<Value = State> {
    let name = "net\\.[a-z0-9_-]{1,8}(\\.[a-z0-9_-]{1,8}){0,3}".prop_map(|name| Name::parse(&name).unwrap());
    let entry =
        (any_value(), any_value(), any_value()).prop_map(|(found, asked, held)| Entry { found, asked, held });
    let entries = proptest::collection::btree_map(name, entry, 0..6);
    (proptest::option::of("[0-9a-f-]{1,36}"), entries).prop_map(|(boot, entries)| State::with(boot, entries))
}

proptest! {
    #[test]
    fn a_state_is_read_as_it_was_written(state in any_state()) {
        prop_assert_eq!(State::parse(&state.to_text()), Ok(state));
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}|pointsman sysctls 1\nboot\t\n(net\\.[a-z.]{0,5}[\t\n 0-9]{0,9}){0,4}end\t[0-9]\n") {
        if let Ok(state) = State::parse(&text) {
            prop_assert_eq!(state.to_text(), text);
        }
    }

    #[test]
    fn one_wrong_byte_never_passes_for_another_shape(state in any_state(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = state.to_text().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(text) = String::from_utf8(bytes) && let Ok(read) = State::parse(&text) {
            prop_assert_eq!(read.to_text(), text);
        }
    }

    #[test]
    fn a_state_that_was_cut_off_is_refused(state in any_state(), at in any::<prop::sample::Index>()) {
        let text = state.to_text();
        prop_assert!(State::parse(&text[..at.index(text.len())]).is_err());
    }
}

//! What the kernel may answer: every reader of netlink messages gets whatever bytes there are.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pointsman_dataplane::conntrack::Entry;
use pointsman_dataplane::model::Family;
use pointsman_dataplane::netlink::attribute::{HEADER, Message, Messages};
use pointsman_dataplane::netlink::expression::{Expression, Meta, Register, Verdict, is_rule};
use pointsman_dataplane::netlink::nftables::answer;
use pointsman_dataplane::netlink::{generic, ipvs, route, ruleset};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;

fuzz_target!(|bytes: &[u8]| {
    // As they are, and as what one message carries, whose length is right.
    Messages(bytes).for_each(|message| read(&message));
    let mut framed = u32::try_from(HEADER + bytes.len())
        .unwrap_or(0)
        .to_ne_bytes()
        .to_vec();
    framed.extend([0; HEADER - 4]);
    framed.extend_from_slice(bytes);
    Messages(&framed).for_each(|message| read(&message));
    // A line of /proc/net/ip_vs.
    let _ = pointsman_dataplane::ipvs::line(&String::from_utf8_lossy(bytes));
    // rtnetlink's answers are told apart by their types.
    for kind in [RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE] {
        Messages(&framed).for_each(|message| read_route(&Message { kind, ..message }));
    }
    let mut reader = ruleset::Reader::default();
    reader.read(bytes);
    reader.read(&framed);
});

fn read(message: &Message<'_>) {
    let rule = [
        Expression::MetaLoad(Meta::Priority, Register(0)),
        Expression::LookupVerdict {
            set: "classes".to_owned(),
            key: Register(0),
        },
        Expression::Verdict(Verdict::Goto("dispatch".to_owned())),
    ];
    let _ = message.error();
    let _ = answer::generation(message);
    let _ = answer::table(message);
    let _ = answer::chain(message);
    let _ = answer::set(message);
    let _ = answer::counter(message);
    if let Some(found) = answer::rule(message) {
        let _ = is_rule(&rule, found.expressions);
    }
    answer::elements(message, |element| drop(element));
    let _ = Entry::parse(message.attributes());
    let _ = generic::family_id(message);
    let _ = ipvs::answer::service_state(message);
    let _ = ipvs::answer::timeouts(message);
    let _ = ipvs::answer::information(message);
    for family in Family::ALL {
        let _ = ipvs::answer::destination_state(message, family);
    }
    if let Some(request) = ipvs::Request::read(message) {
        drop(request.to_string());
    }
    read_route(message);
}

fn read_route(message: &Message<'_>) {
    let _ = route::answer::link(message);
    for family in Family::ALL {
        let _ = route::answer::address(message, family);
        let _ = route::answer::local_route(message, family);
    }
}

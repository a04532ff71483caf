//! A kernel of maps: takes iptables-restore's input, refuses what the kernel refuses, and walks packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::iptables::names::Table;
use crate::iptables::observe::Saved;
use crate::iptables::plan::BothSaved;
use crate::model::{Ingress, Packet, Target, Verdict};

/// Where the rules leave a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Translated(Target),
    Refused,
    Dropped,
}

/// Both tables: the rules of each chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kernel(pub(super) [BTreeMap<String, Vec<String>>; 2]);

impl Kernel {
    pub(super) fn new() -> Self {
        let chains = |names: &[&str]| {
            names
                .iter()
                .map(|name| ((*name).to_owned(), Vec::new()))
                .collect()
        };
        Self([
            chains(&["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]),
            chains(&["INPUT", "FORWARD", "OUTPUT"]),
        ])
    }

    /// Does what the input says; gives what the kernel holds after each transaction.
    pub(super) fn restore(&mut self, input: &str) -> Vec<Self> {
        let mut states = Vec::new();
        let mut at = 0;
        for line in input.lines() {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
            let table = &mut self.0[at];
            let rules = table.get_mut(chain);
            match word {
                "*nat" => at = 0,
                "*filter" => at = 1,
                "-A" => rules.unwrap().push(rule.to_owned()),
                "-I" => rules.unwrap().insert(0, rule.to_owned()),
                "-D" => {
                    let rules = rules.unwrap();
                    let found = rules.iter().position(|found| found == rule).unwrap();
                    rules.remove(found);
                }
                "-X" => {
                    assert!(table.remove(chain).unwrap().is_empty(), "{line}: not empty");
                    let refers = |rule: &String| target(rule) == Some(chain);
                    assert!(!table.values().flatten().any(refers), "{line}: in use");
                }
                "COMMIT" => {
                    self.check();
                    states.push(self.clone());
                }
                declaration => {
                    let name = declaration.strip_prefix(':').unwrap();
                    table.insert(name.to_owned(), Vec::new());
                }
            }
        }
        states
    }

    fn check(&self) {
        for table in &self.0 {
            for rule in table.values().flatten() {
                let target = target(rule).unwrap();
                assert!(
                    !target.starts_with("PM-") || table.contains_key(target),
                    "{rule}: no such chain"
                );
            }
        }
    }

    /// What iptables-save would show.
    pub(super) fn saved(&self) -> BothSaved {
        Table::ALL.map(|table| {
            let mut saved = Saved::default();
            let chains = &self.0[table as usize];
            chains
                .keys()
                .for_each(|chain| saved.read(&format!(":{chain} - [0:0]")));
            for (chain, rules) in chains {
                rules
                    .iter()
                    .for_each(|rule| saved.read(&format!("-A {chain} {rule}")));
            }
            saved
        })
    }

    /// What becomes of a packet.
    pub(super) fn walk(&self, packet: &Packet) -> Verdict {
        let (nat, filter) = match packet.ingress {
            Ingress::Host => ("OUTPUT", "OUTPUT"),
            Ingress::Interface(_) => ("PREROUTING", "INPUT"),
        };
        let mut reached = BTreeSet::new();
        self.chain(Table::Nat, nat, packet, false, &mut reached);
        if reached.is_empty() {
            self.chain(Table::Filter, filter, packet, false, &mut reached);
        }
        let targets: Vec<Target> = reached
            .iter()
            .filter_map(|end| {
                if let End::Translated(target) = end {
                    Some(*target)
                } else {
                    None
                }
            })
            .collect();
        match (targets.is_empty(), reached.iter().next()) {
            (true, Some(End::Refused)) => Verdict::Reject,
            (true, Some(End::Dropped)) => Verdict::Drop,
            (true, _) => Verdict::Pass,
            (false, _) => {
                assert_eq!(targets.len(), reached.len(), "{packet:?}: {reached:?}");
                Verdict::Balance(targets)
            }
        }
    }

    /// Walks one chain. Gives the mark that the packet has when it comes back, or nothing when it does not. What a
    /// packet may reach by chance is all in `reached`.
    fn chain(
        &self,
        table: Table,
        chain: &str,
        packet: &Packet,
        mut marked: bool,
        reached: &mut BTreeSet<End>,
    ) -> Option<bool> {
        for rule in &self.0[table as usize][chain] {
            if !matches(rule, packet) {
                continue;
            }
            // A client that an endpoint remembers is one more way to get to it.
            let by_chance = rule.contains("--probability") || rule.contains("--rcheck");
            match target(rule).unwrap() {
                "RETURN" => return Some(marked),
                "MARK" => marked = true,
                "ACCEPT" => return None,
                "REJECT" => {
                    reached.insert(End::Refused);
                    return None;
                }
                "DROP" => {
                    reached.insert(End::Dropped);
                    return None;
                }
                "DNAT" => {
                    let address = rule.rsplit(' ').next().unwrap().parse().unwrap();
                    reached.insert(End::Translated(Target {
                        address,
                        masqueraded: marked,
                    }));
                    if !by_chance {
                        return None;
                    }
                }
                next => {
                    let back = self.chain(table, next, packet, marked, reached);
                    if !by_chance {
                        marked = back?;
                        if rule.contains(" -g ") {
                            return Some(marked);
                        }
                    }
                }
            }
        }
        Some(marked)
    }
}

fn target(rule: &str) -> Option<&str> {
    let mut words = rule.split(' ');
    words.find(|word| ["-j", "-g"].contains(word))?;
    words.next()
}

fn matches(rule: &str, packet: &Packet) -> bool {
    let rule = rule.split(" -m comment").next().unwrap();
    let words: Vec<&str> = rule.split(' ').collect();
    words.windows(2).all(|pair| match pair[0] {
        "-i" => {
            let is_in = match (&packet.ingress, pair[1].strip_suffix('+')) {
                (Ingress::Host, _) => false,
                (Ingress::Interface(name), None) => name == pair[1],
                (Ingress::Interface(name), Some(prefix)) => name.starts_with(prefix),
            };
            is_in != words.contains(&"!")
        }
        "--src-type" => packet.ingress == Ingress::Host,
        "-d" => within(packet.destination, pair[1]),
        "-s" => within(packet.source, pair[1]),
        "-p" => packet.protocol.as_str() == pair[1],
        "--dport" => {
            let (first, last) = pair[1].split_once(':').unwrap_or((pair[1], pair[1]));
            (first.parse().unwrap()..=last.parse().unwrap()).contains(&packet.port)
        }
        _ => true,
    })
}

fn within(address: IpAddr, range: &str) -> bool {
    if let Ok(range) = range.parse::<IpNet>() {
        return range.contains(&address);
    }
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let (wanted, mask) = range.split_once('/').unwrap();
    bits(address) & bits(mask.parse().unwrap()) == bits(wanted.parse().unwrap())
}

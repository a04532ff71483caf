//! A kernel of maps: takes iptables-restore's input, refuses what the kernel refuses, and walks packets.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::iptables::names::Table;
use crate::iptables::observe::Saved;
use crate::iptables::plan::BothSaved;
use crate::model::{Ingress, Packet, Target, Verdict};

/// Where the rules leave a packet. Shares are not known before all ways are.
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
        let mut reached = BTreeMap::new();
        self.chain(Table::Nat, nat, packet, (false, 1.0), &mut reached);
        if reached.is_empty() {
            self.chain(Table::Filter, filter, packet, (false, 1.0), &mut reached);
        }
        let chances: Vec<(Target, f64)> = reached
            .iter()
            .filter_map(|(end, chance)| match end {
                End::Translated(target) => Some((*target, *chance)),
                End::Refused | End::Dropped => None,
            })
            .collect();
        let targets = shares(&chances);
        match (targets.is_empty(), reached.keys().next()) {
            (true, Some(End::Refused)) => Verdict::Reject,
            (true, Some(End::Dropped)) => Verdict::Drop,
            (true, _) => Verdict::Pass,
            (false, _) => {
                assert_eq!(targets.len(), reached.len(), "{packet:?}: {reached:?}");
                Verdict::Balance(targets)
            }
        }
    }

    /// Walks one chain, with a packet that is marked or not and gets here by some chance. Gives the same when it comes
    /// back, or nothing when it does not. What it may reach is all in `reached`, with its chance.
    fn chain(
        &self,
        table: Table,
        chain: &str,
        packet: &Packet,
        (mut marked, mut chance): (bool, f64),
        reached: &mut BTreeMap<End, f64>,
    ) -> Option<(bool, f64)> {
        for rule in &self.0[table as usize][chain] {
            if !matches(rule, packet) {
                continue;
            }
            // A client that an endpoint remembers is one more way to get to it, but says nothing about others.
            let by_chance = rule.contains("--probability") || rule.contains("--rcheck");
            let taken = match rule.split_once("--probability ") {
                Some((_, rest)) => chance * rest.split(' ').next().unwrap().parse::<f64>().unwrap(),
                None if by_chance => 0.0,
                None => chance,
            };
            chance -= taken;
            match target(rule).unwrap() {
                "RETURN" => return Some((marked, taken)),
                "MARK" => (marked, chance) = (true, taken),
                "ACCEPT" => return None,
                "REJECT" => {
                    reached.insert(End::Refused, taken);
                    return None;
                }
                "DROP" => {
                    reached.insert(End::Dropped, taken);
                    return None;
                }
                "DNAT" => {
                    let address = rule.rsplit(' ').next().unwrap().parse().unwrap();
                    let target = Target {
                        address,
                        masqueraded: marked,
                        share: 0,
                    };
                    *reached.entry(End::Translated(target)).or_default() += taken;
                    if !by_chance {
                        return None;
                    }
                }
                next => {
                    let back = self.chain(table, next, packet, (marked, taken), reached);
                    if !by_chance {
                        (marked, chance) = back?;
                        if rule.contains(" -g ") {
                            return Some((marked, chance));
                        }
                    }
                }
            }
        }
        Some((marked, chance))
    }
}

/// The smallest whole numbers that are to each other as the chances are.
fn shares(chances: &[(Target, f64)]) -> Vec<Target> {
    let all: f64 = chances.iter().map(|(_, chance)| chance).sum();
    let whole = |number: f64| (number - number.round()).abs() < 1e-4;
    let sum = (1..2000_u16).find(|sum| {
        let share = |chance: f64| chance / all * f64::from(*sum);
        chances.iter().all(|(_, chance)| whole(share(*chance)))
    });
    let share = |chance: f64| (chance / all * f64::from(sum.unwrap())).round() as u8;
    let targets = chances.iter().map(|(target, chance)| Target {
        share: share(*chance),
        ..*target
    });
    targets.collect()
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

//! kube-proxy's chains in iptables' tables: whether there are any, and which of their rules end packets that ours would
//! forward. Only read: see [`crate::leftover`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::names::Table;
use super::observe::{rule_of, target, words};
use super::programs::{Programs, Variant};
use crate::model::Family;

/// Chains of kube-proxy's alone, of its modes iptables and ipvs. kubelet has some whose names begin with `KUBE-`, too,
/// `KUBE-FIREWALL` among them, and older ones share `KUBE-POSTROUTING` and `KUBE-MARK-MASQ` with kube-proxy.
const CHAINS: [&str; 10] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-NODE-PORT",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-LOAD-BALANCER",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];
/// What the names of its chains for a Service or endpoint begin with.
const PREFIXES: [&str; 6] = [
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-FW-",
    "KUBE-EXT-",
    "KUBE-SEP-",
    "KUBE-XLB-",
];
/// Where packets pass filter.
const BUILT_IN: [&str; 3] = ["INPUT", "FORWARD", "OUTPUT"];
/// Words of a rule that is about some destinations only.
const DESTINATION: [&str; 6] = [
    "-d",
    "--dport",
    "--dports",
    "--dst-type",
    "--match-set",
    "--ctorigdst",
];
/// How many rules are spelled out.
const SPELLED_OUT: usize = 8;

/// Whether a chain is one that kube-proxy alone makes.
pub(crate) fn is_kube_proxys(chain: &str) -> bool {
    CHAINS.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

/// kube-proxy's chains of one family and variant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KubeProxyChains {
    /// How many there are in the tables that were read.
    pub(crate) count: usize,
    /// Its rules that drop or refuse packets wherever they go, as iptables-save prints them.
    pub(crate) anywhere: Vec<String>,
}

/// The iptables tables of the legacy variant that the network namespace of the calling thread has. Reading another one
/// would make it.
pub(crate) fn legacy_tables(family: Family) -> Vec<&'static str> {
    let names = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    // Without the file the kernel has no legacy iptables.
    let names = fs::read_to_string(names).unwrap_or_default();
    Table::ALL
        .into_iter()
        .map(Table::as_str)
        .filter(|table| names.lines().any(|name| name == *table))
        .collect()
}

/// Reads kube-proxy's chains in these tables.
///
/// # Errors
/// With what to do, when they cannot be read.
pub(crate) fn read(family: Family, variant: Variant, tables: &[&str]) -> Result<KubeProxyChains, String> {
    let programs = programs(family, variant).ok_or_else(|| {
        let stem = Programs::find(family, Some(variant)).save;
        format!(
            "its rules cannot be read without {}: install the package iptables where the agent runs",
            stem.display()
        )
    })?;
    let mut reader = Reader::default();
    for table in Table::ALL
        .into_iter()
        .filter(|table| tables.contains(&table.as_str()))
    {
        reader.table = Some(table);
        programs
            .save(table, false, |line| reader.read(line))
            .map_err(|error| error.to_string())?;
    }
    Ok(reader.chains())
}

/// Programs of a variant, if there are any.
fn programs(family: Family, variant: Variant) -> Option<Programs> {
    let named = Programs::find(family, Some(variant));
    if named.save.is_file() {
        return Some(named);
    }
    // Before iptables 1.8 there were no variants in names.
    let plain = Programs::find(family, None);
    let is_it = plain.identify().is_ok_and(|(found, _)| found == variant);
    is_it.then_some(plain)
}

/// Reads what iptables-save prints.
#[derive(Debug, Default)]
struct Reader {
    table: Option<Table>,
    names: BTreeSet<(Table, String)>,
    /// In filter: jumps of rules that ask for no destination.
    jumps: BTreeMap<String, Vec<String>>,
    /// In filter: kube-proxy's rules that ask for no destination, and drop or refuse.
    ends: BTreeMap<String, Vec<String>>,
}

impl Reader {
    fn read(&mut self, line: &str) {
        let Some(table) = self.table else {
            return;
        };
        if let Some(declaration) = line.strip_prefix(':') {
            let name = declaration.split(' ').next().unwrap_or_default();
            if is_kube_proxys(name) {
                self.names.insert((table, name.to_owned()));
            }
            return;
        }
        let Some((chain, rule)) = rule_of(line).filter(|_| table == Table::Filter) else {
            return;
        };
        if words(rule).any(|word| DESTINATION.contains(&word)) {
            return;
        }
        match target(rule) {
            Some("DROP" | "REJECT") if is_kube_proxys(chain) => {
                let rules = self.ends.entry(chain.to_owned()).or_default();
                rules.push(format!("-A {chain} {rule}"));
            }
            Some(target) if is_kube_proxys(target) => {
                let targets = self.jumps.entry(chain.to_owned()).or_default();
                targets.push(target.to_owned());
            }
            _ => (),
        }
    }

    /// What a packet meets on its way from the built-in chains.
    fn chains(self) -> KubeProxyChains {
        let mut reached: BTreeSet<&str> = BTreeSet::from(BUILT_IN);
        let mut waiting = BUILT_IN.to_vec();
        while let Some(chain) = waiting.pop() {
            for to in self.jumps.get(chain).into_iter().flatten() {
                if reached.insert(to) {
                    waiting.push(to);
                }
            }
        }
        let ends = reached.iter().filter_map(|chain| self.ends.get(*chain));
        KubeProxyChains {
            count: self.names.len(),
            anywhere: ends.flatten().take(SPELLED_OUT).cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests;

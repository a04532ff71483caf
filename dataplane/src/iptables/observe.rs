//! What iptables-save prints, and how it compares with what is wanted.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use super::names::{COMMENT, JUMPS, PREFIX, Table};
use super::render::Rules;

/// What is remembered of a chain's rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fingerprint {
    /// How many there are.
    pub(super) rules: u32,
    hash: u64,
}

impl Fingerprint {
    /// That of rules as they are rendered.
    pub(super) fn of(rules: &Rules) -> Self {
        let mut fingerprint = Self::default();
        rules.lines().for_each(|rule| fingerprint.push(rule));
        fingerprint
    }

    /// Takes in the next rule.
    fn push(&mut self, rule: &str) {
        let mut hasher = DefaultHasher::new();
        (self.hash, rule).hash(&mut hasher);
        self.hash = hasher.finish();
        self.rules += 1;
    }
}

/// A rule of ours in a built-in chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hook {
    /// As iptables-save prints it.
    pub(super) rule: String,
    /// Whether a jump to one of kube-proxy's chains comes before it.
    pub(super) behind_kube_proxy: bool,
}

/// What one table holds.
#[derive(Debug, Default)]
pub(super) struct Saved {
    /// Our chains.
    pub(super) chains: HashMap<String, Fingerprint>,
    /// Our rules in built-in chains, and in anybody else's, in their order.
    pub(super) hooks: BTreeMap<String, Vec<Hook>>,
    /// Chains that jump to kube-proxy's, as far as read.
    kube_proxy: Vec<String>,
}

impl Saved {
    /// Takes in one line of iptables-save's output.
    pub(super) fn read(&mut self, line: &str) {
        if let Some(declaration) = line.strip_prefix(':') {
            let name = declaration.split(' ').next().unwrap_or_default();
            if name.starts_with(PREFIX) {
                self.chains.entry(name.to_owned()).or_default();
            }
        } else if let Some((chain, rule)) = rule_of(line) {
            if chain.starts_with(PREFIX) {
                let rule = normalise(rule);
                if let Some(fingerprint) = self.chains.get_mut(chain) {
                    fingerprint.push(&rule);
                } else {
                    self.chains.entry(chain.to_owned()).or_default().push(&rule);
                }
            } else {
                self.read_foreign(chain, rule);
            }
        }
    }

    fn read_foreign(&mut self, chain: &str, rule: &str) {
        if is_ours(rule) {
            let hook = Hook {
                rule: normalise(rule).into_owned(),
                behind_kube_proxy: self.kube_proxy.iter().any(|known| known == chain),
            };
            self.hooks.entry(chain.to_owned()).or_default().push(hook);
        } else if target(rule).is_some_and(|target| target.starts_with("KUBE-")) {
            self.kube_proxy.push(chain.to_owned());
        }
    }

    /// Whether our rules in this built-in chain are the wanted ones, in their order. In nat they must be in front
    /// of kube-proxy's: the first that translates wins. Elsewhere, and before other programs' rules, the place is
    /// not fought for: two programs that both want to be first would never rest.
    pub(super) fn is_hooked(&self, table: Table, chain: &str) -> bool {
        let found = self.hooks.get(chain).map(Vec::as_slice).unwrap_or_default();
        wanted_hooks(table, chain).eq(found.iter().map(|hook| hook.rule.as_str()))
            && !(table == Table::Nat && found.iter().any(|hook| hook.behind_kube_proxy))
    }
}

/// The rules that we want in a built-in chain, from the front.
pub(super) fn wanted_hooks(table: Table, chain: &str) -> impl Iterator<Item = &'static str> {
    JUMPS
        .iter()
        .rev()
        .filter(move |jump| jump.table == table && jump.from == chain)
        .map(|jump| jump.rule)
}

/// The built-in chains of a table that we jump from.
pub(super) fn hooked_chains(table: Table) -> &'static [&'static str] {
    match table {
        Table::Nat => &["PREROUTING", "OUTPUT", "POSTROUTING"],
        Table::Filter => &["INPUT", "OUTPUT", "FORWARD"],
    }
}

/// The chain and the rest of an `-A` line, with or without counters in front.
fn rule_of(line: &str) -> Option<(&str, &str)> {
    let line = match line.strip_prefix('[') {
        Some(counted) => counted.split_once("] ")?.1,
        None => line,
    };
    let rule = line.strip_prefix("-A ")?;
    Some(rule.split_once(' ').unwrap_or((rule, "")))
}

fn is_ours(rule: &str) -> bool {
    let by_comment = rule
        .split_once("--comment \"")
        .is_some_and(|(_, comment)| comment.starts_with(COMMENT));
    by_comment || target(rule).is_some_and(|target| target.starts_with(PREFIX))
}

/// The chain or target that a rule goes to.
fn target(rule: &str) -> Option<&str> {
    let (_, rest) = rule.rsplit_once(" -j ").or_else(|| rule.rsplit_once(" -g ")).or_else(|| {
        rule.strip_prefix("-j ").or_else(|| rule.strip_prefix("-g ")).map(|rest| ("", rest))
    })?;
    rest.split(' ').next()
}

/// Puts a rule into the words that we render rules in. Debian 12's iptables prints just those in both variants (the
/// packet tests hold it to that); what only looks different is made the same here, so that another version does not
/// make us write rules that are right.
pub(super) fn normalise(rule: &str) -> Cow<'_, str> {
    let mut rule = Cow::Borrowed(rule.trim_end());
    for (theirs, ours) in [
        ("  ", " "),
        ("--set-mark 0x4000/0x4000", "--set-xmark 0x4000/0x4000"),
        ("--or-mark 0x4000", "--set-xmark 0x4000/0x4000"),
        ("--xor-mark 0x4000", "--set-xmark 0x4000/0x0"),
    ] {
        while rule.contains(theirs) {
            rule = Cow::Owned(rule.replace(theirs, ours));
        }
    }
    match rule.split_once("--probability ") {
        Some((before, rest)) => {
            let (number, after) = rest.split_once(' ').unwrap_or((rest, ""));
            match number.parse::<f64>() {
                Ok(number) if number.is_finite() => {
                    let whole = f64::from(1_u32 << 31);
                    let number = (number * whole).round() / whole;
                    let text = format!("{before}--probability {number:.11} {after}");
                    if text == *rule { rule } else { Cow::Owned(text.trim_end().to_owned()) }
                }
                _ => rule,
            }
        }
        None => rule,
    }
}

#[cfg(test)]
mod tests;

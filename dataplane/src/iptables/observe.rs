//! What iptables-save prints, and how it compares with what is wanted.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use super::layout::ChainId;
use super::names::{COMMENT, JUMPS, PREFIX, Table};
use super::render::{INVALID, Rules};
use crate::backend::{self, Observed};

/// How many differences are spelled out.
const SPELLED_OUT: usize = 8;

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

    pub(super) fn count(self) -> usize {
        self.rules as usize
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
struct Hook {
    /// As iptables-save prints it.
    rule: String,
    /// Whether a jump to one of kube-proxy's chains comes before it.
    behind_kube_proxy: bool,
}

/// What one table holds.
#[derive(Debug, Default)]
pub(super) struct Saved {
    /// Our chains.
    pub(super) chains: HashMap<String, Fingerprint>,
    /// Our rules in built-in chains, and in anybody else's, in their order.
    hooks: BTreeMap<String, Vec<Hook>>,
    /// Chains that jump to kube-proxy's, as far as read.
    kube_proxy: Vec<String>,
    /// How many packets [`INVALID`] dropped, when it is there and counters are.
    invalid_dropped: Option<u64>,
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
                if rule == INVALID {
                    self.invalid_dropped = packets(line);
                }
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

    /// The names of our chains that are left here, sorted.
    pub(super) fn chain_names(&self) -> BTreeSet<&str> {
        self.chains.keys().map(String::as_str).collect()
    }

    /// All our rules in chains that are not ours, with the chain.
    pub(super) fn hooks(&self) -> impl Iterator<Item = (&str, &str)> {
        self.hooks
            .iter()
            .flat_map(|(chain, hooks)| hooks.iter().map(|hook| (chain.as_str(), hook.rule.as_str())))
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
fn wanted_hooks(table: Table, chain: &str) -> impl Iterator<Item = &'static str> {
    JUMPS
        .iter()
        .rev()
        .filter(move |jump| jump.table == table && jump.from == chain)
        .map(|jump| jump.rule)
}

/// What differs between what was written and what the kernel holds.
pub(super) fn compare(wanted: &HashMap<ChainId, Fingerprint>, mut saved: [Saved; 2]) -> Observed {
    let invalid = saved[Table::Filter as usize].invalid_dropped;
    let mut differences = Vec::new();
    for (&(of, chain), wanted) in wanted {
        let table = of.as_str();
        let difference = match saved[of as usize].chains.remove(&chain.to_string()) {
            Some(found) if found == *wanted => continue,
            Some(found) if found.rules == wanted.rules => "other rules than were written".to_owned(),
            Some(found) => format!("{} rules instead of {}", found.rules, wanted.rules),
            None => "gone".to_owned(),
        };
        differences.push(format!("{table} chain {chain}: {difference}"));
    }
    for (of, saved) in Table::ALL.into_iter().zip(&saved) {
        let table = of.as_str();
        for name in saved.chains.keys() {
            differences.push(format!(
                "{table} chain {name}: not one of those that were written"
            ));
        }
        let ours = JUMPS.iter().filter(|jump| jump.table == of).map(|jump| jump.from);
        let others = saved.hooks.keys().map(String::as_str);
        let chains: BTreeSet<&str> = ours.chain(others).collect();
        for chain in chains.into_iter().filter(|chain| !saved.is_hooked(of, chain)) {
            differences.push(if saved.hooks.contains_key(chain) {
                format!("{table} chain {chain}: our jumps are not as they should be")
            } else {
                format!("{table} chain {chain}: the jump to our chains is gone")
            });
        }
    }
    differences.sort_unstable();
    let more = differences.len().saturating_sub(SPELLED_OUT);
    differences.truncate(SPELLED_OUT);
    Observed {
        differences,
        more,
        counters: invalid
            .map(|packets| (backend::INVALID, packets))
            .into_iter()
            .collect(),
    }
}

/// The packets of a rule's counters: `[3:180] -A ...`.
fn packets(line: &str) -> Option<u64> {
    let (packets, _) = line.strip_prefix('[')?.split_once(':')?;
    packets.parse().ok()
}

/// The chain and the rest of an `-A` line, with or without counters in front.
pub(super) fn rule_of(line: &str) -> Option<(&str, &str)> {
    let line = match line.strip_prefix('[') {
        Some(counted) => counted.split_once("] ")?.1,
        None => line,
    };
    let rule = line.strip_prefix("-A ")?;
    Some(rule.split_once(' ').unwrap_or((rule, "")))
}

fn is_ours(rule: &str) -> bool {
    let by_comment = after(rule, &["--comment"]).is_some_and(|comment| {
        comment
            .strip_prefix('"')
            .is_some_and(|comment| comment.starts_with(COMMENT))
    });
    by_comment || target(rule).is_some_and(|target| target.starts_with(PREFIX))
}

/// The chain or target that a rule goes to.
pub(super) fn target(rule: &str) -> Option<&str> {
    after(rule, &["-j", "-g"])
}

/// The word behind one of these. Words in quotes are one: a comment may have anything in it.
fn after<'a>(rule: &'a str, options: &[&str]) -> Option<&'a str> {
    let mut words = words(rule);
    words.find(|word| options.contains(word))?;
    words.next()
}

/// The words of a rule as iptables-save prints it; quotes stay, and in them a backslash escapes.
pub(super) fn words(rule: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    rule.split(move |letter| {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            _ => (),
        }
        letter == ' ' && !quoted
    })
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
                    if text == *rule {
                        rule
                    } else {
                        Cow::Owned(text.trim_end().to_owned())
                    }
                }
                _ => rule,
            }
        }
        None => rule,
    }
}

#[cfg(test)]
mod tests;

//! The iptables rules of a node, to look at and to tamper with.

use std::{collections::BTreeMap, fmt::Write as _, process::Stdio};

use anyhow::{Context, Result, ensure};

use crate::NodeNet;

/// The family of a node's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// iptables.
    V4,
    /// ip6tables.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    fn program(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }
}

/// Runs iptables on a node, as somebody who is logged in there would. The words are separated by spaces.
///
/// # Errors
/// With what it said, when it fails.
pub fn iptables(node: &NodeNet, family: Family, words: &str) -> Result<()> {
    let program = family.program();
    let output = node
        .command(program)
        .arg("--wait")
        .args(words.split_whitespace())
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {words}: {}", said.trim());
    Ok(())
}

/// The chains and rules of the nat and filter tables of a node, without counters, chains sorted by name: the same
/// rules give the same text, in whatever order their chains were made.
///
/// # Errors
/// When iptables-save fails.
pub fn rules(node: &NodeNet, family: Family) -> Result<String> {
    rules_of(node, family, |_| true)
}

/// [`rules`] of the chains whose names satisfy `wanted`.
///
/// # Errors
/// When iptables-save fails.
pub fn rules_of(node: &NodeNet, family: Family, wanted: impl Fn(&str) -> bool) -> Result<String> {
    let program = format!("{}-save", family.program());
    let mut text = String::new();
    for table in ["nat", "filter"] {
        let output = node
            .command(&program)
            .args(["-t", table])
            .output()
            .with_context(|| format!("starting {program}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} -t {table}: {}", said.trim());
        let saved = String::from_utf8_lossy(&output.stdout);
        let mut chains: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for line in saved.lines() {
            if let Some(declaration) = line.strip_prefix(':') {
                let (name, rest) = declaration.split_once(' ').unwrap_or((declaration, ""));
                let policy = rest.split(' ').next().unwrap_or_default();
                chains.entry(name).or_default().insert(0, policy);
            } else if let Some((name, rule)) = line.strip_prefix("-A ").and_then(|rule| rule.split_once(' '))
            {
                chains.entry(name).or_default().push(rule);
            }
        }
        for (chain, rules) in chains.iter().filter(|(chain, _)| wanted(chain)) {
            writeln!(
                text,
                "{table} {chain} {}",
                rules.join(&format!("\n{table} {chain} "))
            )?;
        }
    }
    Ok(text)
}

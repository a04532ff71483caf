//! How much is in the kernel.

use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};

use crate::NodeNet;

/// How many chains and rules a node has, built-in chains among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Rules, of both families.
    pub rules: u64,
    /// Chains, of both families.
    pub chains: u64,
}

/// Counts what iptables-save and ip6tables-save of the node's variant show.
///
/// # Errors
/// When one of them fails.
pub fn iptables(node: &NodeNet) -> Result<Rules> {
    let mut rules = Rules::default();
    for program in ["iptables-save", "ip6tables-save"] {
        let mut save: Command = node.command(program);
        let output: Output = save.output().with_context(|| format!("running {program}"))?;
        ensure!(
            output.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        rules.count(&output.stdout);
    }
    Ok(rules)
}

impl Rules {
    fn count(&mut self, saved: &[u8]) {
        for line in saved.split(|byte| *byte == b'\n') {
            self.rules += u64::from(line.starts_with(b"-A "));
            self.chains += u64::from(line.starts_with(b":"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_and_chains_are_counted() {
        let mut rules = Rules::default();
        rules.count(
            b"# Generated\n*nat\n:PREROUTING ACCEPT [0:0]\n:PM-A - [0:0]\n-A PREROUTING -j PM-A\nCOMMIT\n",
        );
        assert_eq!(rules, Rules { rules: 1, chains: 2 });
    }
}

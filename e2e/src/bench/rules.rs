//! How much is in the kernel.

use std::process::{Command, Output};

use anyhow::{Context as _, Result, bail, ensure};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use pointsman_dataplane::netlink::attribute::{
    Messages, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, Writer,
};

use crate::{Netns, NodeNet};

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

/// Counts nf_tables' rules and chains of all families in a namespace. Over netlink: `nft list ruleset` takes minutes
/// for what kube-proxy makes of 10,000 Services.
///
/// # Errors
/// When the kernel refuses, or the ruleset changes meanwhile.
pub fn nftables(namespace: &Netns) -> Result<Rules> {
    /// `NFNL_SUBSYS_NFTABLES`, as the upper byte of a message's type.
    const SUBSYSTEM: u16 = 10 << 8;
    /// `NFT_MSG_GETCHAIN` and `NFT_MSG_GETRULE`.
    const CHAINS: u16 = SUBSYSTEM | 4;
    const RULES: u16 = SUBSYSTEM | 7;
    let counted = namespace.run(|| Ok::<_, anyhow::Error>((dumped(RULES)?, dumped(CHAINS)?)))?;
    let (rules, chains) = counted.context("counting nf_tables' rules and chains")?;
    Ok(Rules { rules, chains })
}

/// How many objects a dump has.
fn dumped(request: u16) -> Result<u64> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    let mut writer = Writer::default();
    let begun = writer.message(request, NLM_F_REQUEST | NLM_F_DUMP, 1, 0, 0);
    writer.end_message(begun);
    socket.send_to(writer.bytes(), &SocketAddr::new(0, 0), 0)?;
    let mut count = 0;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for message in Messages(&datagram) {
            ensure!(
                message.flags & NLM_F_DUMP_INTR == 0,
                "the ruleset changed meanwhile"
            );
            match message.kind {
                NLMSG_DONE => return Ok(count),
                NLMSG_ERROR => bail!("the kernel refused it with error {}", message.error()),
                _ => count += 1,
            }
        }
    }
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

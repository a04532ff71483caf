//! A node that cannot reach the API server.

use std::{io::Write as _, process::Stdio};

use anyhow::{Context, Result, ensure};

use crate::{Netns, NodeNet};

/// A node is cut off from the control plane, packets vanish in silence, until this is dropped. Everything else
/// on the wire goes on.
#[derive(Debug)]
#[must_use = "the cut heals when this is dropped"]
pub struct CutOff {
    control_plane: Netns,
    table: String,
}

impl CutOff {
    /// The rules are at the control plane's end: the node's own firewall is what is being tested.
    pub(super) fn start(control_plane: &Netns, node: &NodeNet) -> Result<Self> {
        let (addresses, pods) = (node.addresses(), node.pod_range());
        let [.., place] = addresses.v4.octets();
        let table = format!("cut_off_{place}");
        let v4 = format!("{{ {}, {} }}", addresses.v4, pods.v4);
        let v6 = format!("{{ {}, {} }}", addresses.v6, pods.v6);
        let cut = Self { control_plane: control_plane.clone(), table };
        cut.nft(&format!(
            "table inet {} {{
                chain from {{ type filter hook input priority raw; ip saddr {v4} drop; ip6 saddr {v6} drop; }}
                chain to {{ type filter hook output priority raw; ip daddr {v4} drop; ip6 daddr {v6} drop; }}
            }}",
            cut.table
        ))
        .with_context(|| format!("cutting {} off from the control plane", node.name()))?;
        Ok(cut)
    }

    fn nft(&self, commands: &str) -> Result<()> {
        let mut child = self
            .control_plane
            .command("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting nft; run e2e/packages.sh")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(commands.as_bytes()).context("writing to nft")?;
        }
        let output = child.wait_with_output().context("waiting for nft")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "nft failed: {}\n{commands}", said.trim());
        Ok(())
    }
}

impl Drop for CutOff {
    fn drop(&mut self) {
        // Should it fail, the test that goes on with a cut node says so itself.
        let _ = self.nft(&format!("delete table inet {}", self.table));
    }
}

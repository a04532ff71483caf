//! A node that cannot reach the API server.

use anyhow::{Context, Result};

use crate::{Netns, NodeNet, nft};

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
        let cut = Self {
            control_plane: control_plane.clone(),
            table,
        };
        let rules = format!(
            "table inet {} {{
                chain from {{ type filter hook input priority raw; ip saddr {v4} drop; ip6 saddr {v6} drop; }}
                chain to {{ type filter hook output priority raw; ip daddr {v4} drop; ip6 daddr {v6} drop; }}
            }}",
            cut.table
        );
        nft::run(control_plane, &rules)
            .with_context(|| format!("cutting {} off from the control plane", node.name()))?;
        Ok(cut)
    }
}

impl Drop for CutOff {
    fn drop(&mut self) {
        // Should it fail, the test that goes on with a cut node says so itself.
        let _ = nft::run(&self.control_plane, &format!("delete table inet {}", self.table));
    }
}

//! Leaves everything running for a person to look at.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::{commentary::Commentary, stage::Stage};

/// Says how to use what is running, and waits for Ctrl-C or SIGTERM.
pub fn until_interrupted(tell: &mut Commentary, stage: &Stage<'_>) -> Result<()> {
    let mut text = format!(
        "\nEverything goes on running until Ctrl-C. From another terminal, as root:\n\n  \
         export KUBECONFIG={}\n  export PATH={}:$PATH\n  kubectl get proxypolicy,nodeproxy\n  \
         kubectl edit proxypolicy fleet\n\n\
         Inside a node (nft list ruleset, conntrack -L, curl localhost:10256/healthz):\n\n",
        stage.control_plane.host_kubeconfig().display(),
        stage.tools.display()
    );
    for node in stage.nodes() {
        writeln!(
            text,
            "  nsenter --net={} bash    # {}; log: {}",
            node.namespace().path().display(),
            node.name(),
            node.folder().file("pointsman-agent.log").display()
        )?;
    }
    tell.title(&text)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("waiting for Ctrl-C")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted.context("waiting for Ctrl-C"),
            _ = terminate.recv() => Ok(()),
        }
    })?;
    tell.title("\nTaking everything down.")
}

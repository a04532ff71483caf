//! Which iptables a node has: the legacy variant or the one on nf_tables.

use std::{fs, os::unix::fs::symlink, path::Path};

use anyhow::{Context, Result};

use crate::requirements;

/// The two programs that call themselves iptables. They keep separate rules, and a node uses one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IptablesVariant {
    /// `xtables-legacy-multi`: the kernel's ip_tables.
    Legacy,
    /// `xtables-nft-multi`: iptables' words on nf_tables; Debian's default.
    #[default]
    Nft,
}

/// The names that kube-proxy and our agent call.
const NAMES: &[&str] = &[
    "iptables",
    "iptables-save",
    "iptables-restore",
    "ip6tables",
    "ip6tables-save",
    "ip6tables-restore",
];

impl IptablesVariant {
    /// The program behind all of the names.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Legacy => "xtables-legacy-multi",
            Self::Nft => "xtables-nft-multi",
        }
    }

    /// Makes `folder`, put first in PATH, mean this variant.
    ///
    /// # Errors
    /// When the package iptables is missing or the folder cannot be written.
    pub fn link_into(self, folder: &Path) -> Result<()> {
        let program = requirements::find(self.program())
            .with_context(|| format!("{} not found; run e2e/packages.sh", self.program()))?;
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        for name in NAMES {
            let link = folder.join(name);
            // Changing a node's variant finds the old link in the way; a first call finds nothing.
            let _ = fs::remove_file(&link);
            symlink(&program, &link).with_context(|| format!("linking {}", link.display()))?;
        }
        Ok(())
    }
}

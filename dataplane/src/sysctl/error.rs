//! Why a parameter is not as wanted, and what to do about it.

use std::io;
use std::path::PathBuf;

use super::state::Corrupt;
use super::{BadName, Name};

/// Why a parameter is not as wanted. The text reads on from the parameter's name, except that of the two
/// variants about the state file, which are about no single parameter.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no name of a parameter that may be set.
    #[error(transparent)]
    BadName(#[from] BadName),
    /// It is no value that a parameter can have.
    #[error("is not set: {value:?} is no value: use numbers as text, such as \"86400\" or \"1024 65000\"")]
    BadValue {
        /// The beginning of it.
        value: String,
    },
    /// The kernel has no such parameter.
    #[error("does not exist: {hint}")]
    Missing {
        /// What to do.
        hint: &'static str,
    },
    /// The parameter belongs to the machine, and this is not its first network namespace.
    #[error(
        "cannot be written here: it belongs to the whole machine, and this is not the machine's first network \
         namespace; set it on the host, or take it out of the policy"
    )]
    OtherNamespace,
    /// The file system is mounted read-only, as container runtimes do with `/proc/sys`.
    #[error(
        "cannot be written: {root} is mounted read-only; give the agent's container a writable mount of the \
         host's /proc/sys/net (the chart does), or run it privileged"
    )]
    ReadOnly {
        /// Where the parameters are.
        root: PathBuf,
    },
    /// The process may not write it.
    #[error(
        "cannot be written: {source}; the agent needs root and CAP_NET_ADMIN in the node's network namespace, and \
         no security module (SELinux, AppArmor) that forbids it"
    )]
    Denied {
        /// What the operating system said.
        source: io::Error,
    },
    /// The kernel did not take the value.
    #[error("is not set: the kernel refused {value:?} ({source}); is it within the parameter's range?")]
    Refused {
        /// The value.
        value: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel took the value and holds another one.
    #[error(
        "is {now:?} although the kernel took {wanted:?}: the value is out of the range that this kernel can hold, \
         or somebody else writes it at the same time"
    )]
    Different {
        /// What was written.
        wanted: String,
        /// What was read back.
        now: String,
    },
    /// The limit of connections would be lower than their number.
    #[error(
        "stays at {present}: {connections} connections are tracked now, and with a limit of {wanted} the kernel \
         would refuse every new one; it is tried again at every check, or choose a higher limit"
    )]
    InUse {
        /// The limit as it is.
        present: String,
        /// The limit as it is to be.
        wanted: String,
        /// The number of connections.
        connections: u64,
    },
    /// The value that it has could not be remembered, so it was not changed.
    #[error(
        "is not set: the value that it has could not be remembered in {file}, so it could not be put back later; \
         make that file's folder writable"
    )]
    NotRemembered {
        /// The state file.
        file: PathBuf,
    },
    /// Reading or writing the parameter failed.
    #[error("could not be {doing}: {source}")]
    Io {
        /// "read" or "written".
        doing: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// The state file makes no sense.
    #[error(
        "{file}, which remembers kernel parameters as they were, is damaged ({source}); {kept}. Parameters that \
         were set before keep their values when no policy names them any more: compare with the host's sysctl.d"
    )]
    Corrupt {
        /// The state file.
        file: PathBuf,
        /// What is wrong with it.
        source: Corrupt,
        /// What became of it.
        kept: String,
    },
    /// The state file could not be read or written.
    #[error("{file}, which remembers kernel parameters as they were, could not be {doing}: {source}")]
    State {
        /// The state file.
        file: PathBuf,
        /// "read" or "written".
        doing: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
}

/// What to do when a parameter does not exist. `has_ipvs`: whether others of IPVS do.
pub(super) fn missing_hint(name: &Name, has_ipvs: bool) -> &'static str {
    let name = name.as_str();
    let begins = |prefix: &str| name.starts_with(prefix);
    if begins("net.ipv4.vs.lblc") && has_ipvs {
        "its scheduler is not loaded; load it on the host (modprobe ip_vs_lblc or ip_vs_lblcr), or take it out of the \
         policy"
    } else if name == "net.ipv4.vs.conntrack" && has_ipvs {
        "the kernel's IPVS is built without CONFIG_IP_VS_NFCT, and nothing that IPVS forwards can be masqueraded; use a \
         kernel with it, or another mode"
    } else if begins("net.ipv4.vs.") && has_ipvs {
        "the kernel's IPVS is a version without it; use a newer kernel, or take it out of the policy"
    } else if begins("net.ipv4.vs.") {
        "the kernel has no IPVS loaded; install the kernel's package that has the module ip_vs and load it on the host \
         (modprobe ip_vs), or choose another mode and take it out of the policy"
    } else if begins("net.netfilter.") {
        "the kernel has no connection tracking loaded, or a version without this; load it on the host (modprobe \
         nf_conntrack), or take it out of the policy"
    } else if begins("net.bridge.") {
        "load its module on the host (modprobe br_netfilter), or take it out of the policy"
    } else if name.contains(".neigh.default.gc_") || name == "net.core.netdev_max_backlog" {
        "it exists only in the machine's first network namespace; set it on the host, or take it out of the policy"
    } else if begins("net.ipv6.") {
        "this kernel has no IPv6, or it was switched off at boot (ipv6.disable=1); take it out of the policy"
    } else {
        "this kernel has no parameter of this name; check the spelling, or take it out of the policy"
    }
}

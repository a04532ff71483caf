//! The command line.

use std::{net::SocketAddr, path::PathBuf};

use clap::Parser;

use crate::logging::LogFormat;

const EXAMPLES: &str = "\
Examples:
  In a pod of the DaemonSet:
    pointsman-agent --node-name $NODE_NAME
  On a node, with a kubeconfig:
    pointsman-agent --node-name worker-1 --kubeconfig /etc/pointsman/kubeconfig
  On a box without a cluster, from YAML files that hold Services, EndpointSlices, a Node and a ProxyPolicy:
    pointsman-agent --node-name box --manifests /etc/pointsman/manifests
  Remove everything that the agent ever made on this node, and exit:
    pointsman-agent --node-name worker-1 --cleanup";

/// Forwards Service traffic on this node as its ProxyPolicy says.
#[derive(Clone, Debug, Parser)]
#[command(name = "pointsman-agent", version, about, after_help = EXAMPLES)]
pub struct Args {
    /// The name of this node's Node object.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,

    /// File that says how to reach the API server. Without it the agent must run in a pod.
    #[arg(long, value_name = "FILE", conflicts_with = "manifests")]
    pub kubeconfig: Option<PathBuf>,

    /// Directory of YAML or JSON files to read Services, EndpointSlices, ServiceCIDRs, the Node and one ProxyPolicy
    /// from, instead of an API server. Changes to the files are followed.
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,

    /// Where /healthz and /livez are served.
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:10256")]
    pub healthz_bind_address: SocketAddr,

    /// Where /metrics, /proxyMode, /configz and /debug/flags/v are served.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:10249")]
    pub metrics_bind_address: SocketAddr,

    /// Directory that outlives the agent: what the kernel parameters were before a policy changed them.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/pointsman")]
    pub state_dir: PathBuf,

    /// Where the machine's kernel parameters are. A container that is not privileged sees /proc/sys read-only and has
    /// net/ of the host's mounted elsewhere.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/proc/sys",
        env = "POINTSMAN_PROC_SYS"
    )]
    pub proc_sys: PathBuf,

    /// How much is logged until a policy says so, on kube-proxy's scale: 0 warnings, 2 what changes, 4 every step.
    #[arg(long = "verbosity", short = 'v', value_name = "N", default_value_t = 2)]
    pub verbosity: i32,

    /// How a line of the log looks.
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,

    /// Remove every rule that the agent made, put kernel parameters back, and exit. Established connections through
    /// Services end when nothing else on the node needs connection tracking.
    #[arg(long)]
    pub cleanup: bool,
}

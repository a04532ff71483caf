//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgAction, Parser, ValueEnum};

/// Runs the service proxies of a cluster as one fleet: resolves ProxyPolicies into one NodeProxy for each node, and
/// tells in ProxyPolicy.status what the nodes report.
#[derive(Clone, Debug, Parser)]
#[command(name = "pointsman-operator", version, after_help = EXAMPLES)]
pub struct Args {
    /// File that says how to reach the API server [default: the service account of the pod].
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Namespace of the Lease [default: $POD_NAMESPACE, then the pod's or the kubeconfig's namespace].
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE", hide_env = true)]
    pub namespace: Option<String>,

    /// Whether several operators agree by a Lease which of them acts. Without it there must be only one.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub leader_elect: bool,

    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:8080")]
    pub bind_address: SocketAddr,

    /// How much is logged: 0 warnings, 2 changes, 4 every write, 6 and more what the libraries say as well.
    #[arg(short, long, value_name = "LEVEL", default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=10))]
    pub verbosity: u8,

    /// How log lines look, on stderr.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// Who this is, in the Lease [default: $POD_NAME, then the host's name with a random ending].
    #[arg(long, value_name = "NAME", env = "POD_NAME", hide_env = true)]
    pub identity: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  In a pod, with its service account (the Helm chart does this):
    pointsman-operator
  Against a cluster from outside, alone:
    pointsman-operator --kubeconfig ~/.kube/config --leader-elect=false --bind-address 127.0.0.1:8080
  How it goes:
    curl http://127.0.0.1:8080/readyz
    kubectl get proxypolicies,nodeproxies

Exit status: 0 after SIGTERM or SIGINT, 1 after an error or when the Lease was lost, 2 for a wrong command line.";

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object each.
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn leader_election_is_on_unless_it_is_turned_off() {
        for (arguments, expected) in [
            (&["pointsman-operator"][..], true),
            (&["pointsman-operator", "--leader-elect"], true),
            (&["pointsman-operator", "--leader-elect=true"], true),
            (&["pointsman-operator", "--leader-elect=false"], false),
        ] {
            assert_eq!(Args::try_parse_from(arguments).unwrap().leader_elect, expected);
        }
        let error = Args::try_parse_from(["pointsman-operator", "--bind-address", "8080"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }
}

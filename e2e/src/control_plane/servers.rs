//! The three servers' command lines.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Command,
};

use anyhow::Result;

use super::{API_PORT, Identity, Options, SERVICE_CIDRS};
use crate::{Netns, Process, Program, Toolchain, WorkDir, certificates::Certificates, network::Addresses};

/// Where etcd listens. Everything listens on fixed ports: the namespace is the control plane's alone.
pub(super) const ETCD: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 2379);

/// What every server is started with.
#[derive(Debug)]
pub(super) struct Servers {
    pub(super) namespace: Netns,
    pub(super) addresses: Addresses,
    pub(super) folder: WorkDir,
    pub(super) certificates: Certificates,
    pub(super) toolchain: Toolchain,
    pub(super) options: Options,
}

impl Servers {
    pub(super) fn etcd(&self) -> Result<Process> {
        let mut command = self.command(Program::Etcd)?;
        command
            .arg("--data-dir")
            .arg(self.folder.file("etcd"))
            // What a crash of the machine would lose is of no use after it.
            .arg("--unsafe-no-fsync")
            .arg(format!("--listen-client-urls=http://{ETCD}"))
            .arg(format!("--advertise-client-urls=http://{ETCD}"))
            .arg("--listen-peer-urls=http://127.0.0.1:2380")
            .arg("--quota-backend-bytes=8589934592")
            .arg("--log-level=warn");
        self.start(Program::Etcd, command)
    }

    pub(super) fn api_server(&self, identities: &std::path::Path) -> Result<Process> {
        let files = &self.certificates;
        let mut command = self.command(Program::KubeApiserver)?;
        command
            .arg(format!("--etcd-servers=http://{ETCD}"))
            // The unspecified IPv6 address takes both families.
            .arg("--bind-address=::")
            .arg(format!("--secure-port={API_PORT}"))
            .arg(format!("--advertise-address={}", self.addresses.v4))
            .arg("--tls-cert-file")
            .arg(&files.server)
            .arg("--tls-private-key-file")
            .arg(&files.server_key)
            .arg("--token-auth-file")
            .arg(identities)
            .arg("--authorization-mode=RBAC")
            .arg("--service-account-issuer=https://kubernetes.default.svc.cluster.local")
            .arg("--service-account-signing-key-file")
            .arg(&files.account_key)
            .arg("--service-account-key-file")
            .arg(&files.account_public)
            .arg(format!("--service-cluster-ip-range={}", SERVICE_CIDRS.join(",")))
            .arg("--allow-privileged=true")
            // It taints every new node as not ready, and who takes the taint away is left out (Options).
            .arg("--disable-admission-plugins=TaintNodesByCondition")
            // Or a stop waits for every watch, a minute or so.
            .arg("--shutdown-watch-termination-grace-period=1s")
            .arg("--profiling=false")
            .args(&self.options.api_server_flags);
        self.start(Program::KubeApiserver, command)
    }

    pub(super) fn controllers(&self, kubeconfig: &std::path::Path) -> Result<Process> {
        let mut command = self.command(Program::KubeControllerManager)?;
        command
            .arg("--kubeconfig")
            .arg(kubeconfig)
            // There is one, and a restarted one must not wait for the lease of the one before.
            .arg("--leader-elect=false")
            .arg(format!("--controllers={}", self.options.controllers.join(",")))
            .arg("--service-account-private-key-file")
            .arg(&self.certificates.account_key)
            .arg("--root-ca-file")
            .arg(&self.certificates.authority)
            // Its default of 20 requests a second would be what a bench with 10,000 Services measures.
            .arg("--kube-api-qps=1000")
            .arg("--kube-api-burst=2000")
            .arg("--secure-port=0");
        self.start(Program::KubeControllerManager, command)
    }

    /// The identities that the API server knows: `--token-auth-file`.
    pub(super) fn identities(identities: &[&Identity]) -> String {
        let line = |identity: &&Identity| {
            let Identity { token, user, groups } = identity;
            format!("{token},{user},{user},\"{}\"\n", groups.join(","))
        };
        identities.iter().map(line).collect()
    }

    fn command(&self, program: Program) -> Result<Command> {
        let mut command = self.namespace.command(self.toolchain.program(program)?);
        // Whatever a server writes beside what it is told to lands in the folder.
        command.current_dir(self.folder.path());
        Ok(command)
    }

    fn start(&self, program: Program, command: Command) -> Result<Process> {
        Process::start(
            program.name(),
            command,
            self.folder.file(format!("{program}.log")),
        )
    }
}

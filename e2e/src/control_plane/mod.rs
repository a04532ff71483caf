//! A real control plane: etcd, kube-apiserver and kube-controller-manager in one namespace on the wire.

mod access;
mod cut;
mod objects;
mod options;
mod servers;

use std::{
    net::TcpStream,
    ops::Deref,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};
use nix::sys::signal::Signal;

pub(crate) use self::access::Paths;
pub use self::{
    access::Access,
    cut::CutOff,
    options::{Options, SERVICE_CIDRS},
};
use self::{
    access::{Identity, write_kubeconfig},
    servers::Servers,
};
use crate::{
    Fabric, Netns, NodeNet, Process, Program, Toolchain, WorkDir, certificates::Certificates, relay::Relay,
};

/// The API server's port, on every address of the control plane.
pub const API_PORT: u16 = 6443;

/// The API server is ready after 4 s on two idle cores; a machine that builds at the same time is slower.
const START_LIMIT: Duration = Duration::from_secs(90);

/// How long an orderly stop may take before it is a kill.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A running control plane. All of it, data included, is gone when this is dropped.
#[derive(Debug)]
pub struct ControlPlane {
    // The fields drop in this order: who writes to the store ends before it.
    _relay: Relay,
    controllers: Process,
    api_server: Mutex<Process>,
    etcd: Process,
    identities: PathBuf,
    host_kubeconfig: PathBuf,
    access: Access,
    servers: Servers,
}

impl ControlPlane {
    /// Starts one and waits until it is ready: `/readyz` (which includes the RBAC bootstrap roles) and the
    /// service account `default`. Builds the programs first when they are not there yet.
    ///
    /// # Errors
    /// When a program cannot be built, or a server does not get ready: with the end of its log.
    pub fn start(toolchain: &Toolchain, fabric: &Fabric, options: Options) -> Result<Self> {
        let folder = WorkDir::new("control-plane")?;
        let (namespace, addresses) = fabric.control_plane_host()?;
        let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1", "10.96.0.1", "fd00:10:96::1"]
            .map(str::to_owned)
            .into();
        let dns = "kubernetes.default.svc.cluster.local";
        names.extend([dns.to_owned(), addresses.v4.to_string(), addresses.v6.to_string()]);
        names.extend(
            dns.match_indices('.')
                .take(3)
                .filter_map(|(end, _)| Some(dns.get(..end)?.to_owned())),
        );
        let certificates = Certificates::generate(&folder, names)?;
        let toolchain = toolchain.clone();
        let servers = Servers {
            namespace,
            addresses,
            folder,
            certificates,
            toolchain,
            options,
        };

        let admin = Identity::new("e2e-admin", &["system:masters"])?;
        let kube_proxy = Identity::new("system:kube-proxy", &["system:authenticated"])?;
        let identities = servers
            .folder
            .write("identities.csv", Servers::identities(&[&admin, &kube_proxy]))?;
        let api = servers.addresses.at_v4(API_PORT);
        let relay = Relay::start(&servers.namespace, api)?;
        let write = |name, server, identity: &Identity| {
            write_kubeconfig(
                servers.folder.path(),
                &servers.certificates.authority,
                name,
                server,
                &identity.token,
            )
        };
        let kubeconfig = write("admin.kubeconfig", api, &admin)?;
        let host_kubeconfig = write("host.kubeconfig", relay.address(), &admin)?;
        let kube_proxy_kubeconfig = write("kube-proxy.kubeconfig", api, &kube_proxy)?;

        let etcd = servers.etcd()?;
        etcd.wait_until("listen", START_LIMIT, || {
            listens(&servers.namespace, servers::ETCD)
        })?;
        let api_server = servers.api_server(&identities)?;
        let kubectl = servers.toolchain.program(Program::Kubectl)?;
        // It waits for the API server by itself, but for 10 s only: so it is built now and started when asked.
        servers.toolchain.program(Program::KubeControllerManager)?;
        api_server.wait_until("listen", START_LIMIT, || listens(&servers.namespace, api))?;
        let controllers = servers.controllers(&kubeconfig)?;
        let paths = Paths {
            folder: servers.folder.path().to_owned(),
            authority: servers.certificates.authority.clone(),
            kubeconfig,
            kube_proxy_kubeconfig,
            kubectl,
            api_server: api,
        };
        let control_plane = Self {
            _relay: relay,
            controllers,
            api_server: Mutex::new(api_server),
            etcd,
            identities,
            host_kubeconfig,
            access: Access::new(servers.namespace.clone(), paths),
            servers,
        };
        control_plane.wait_until_ready()?;
        control_plane
            .wait_for(
                &["get", "serviceaccount", "default", "--namespace", "default"],
                START_LIMIT,
            )
            .with_context(|| control_plane.logs("no service account `default`"))?;
        Ok(control_plane)
    }

    /// Stops the API server in an orderly way. Watches end; the store and the controllers stay.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub fn stop_api_server(&self) -> Result<()> {
        self.process().stop(STOP_LIMIT)?;
        Ok(())
    }

    /// Kills the API server as the out-of-memory killer would.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill_api_server(&self) -> Result<()> {
        self.process().kill9()
    }

    /// Starts the API server again after it was stopped or killed, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start_api_server(&self) -> Result<()> {
        let fresh = self.servers.api_server(&self.identities)?;
        *self.process() = fresh;
        self.wait_until_ready()
    }

    /// Freezes the API server (SIGSTOP): connections stay open and nothing answers, until the result is dropped.
    ///
    /// # Errors
    /// When it is not running.
    pub fn freeze_api_server(&self) -> Result<Frozen<'_>> {
        self.process().signal(Signal::SIGSTOP)?;
        Ok(Frozen { control_plane: self })
    }

    /// Cuts a node and its pods off from the control plane until the result is dropped.
    ///
    /// # Errors
    /// When nft refuses.
    pub fn cut_off(&self, node: &NodeNet) -> Result<CutOff> {
        CutOff::start(&self.servers.namespace, node)
    }

    /// The kubeconfig of an administrator for programs in the test's own namespace: helm, a person's
    /// kubectl. Works while this control plane lives.
    #[must_use]
    pub fn host_kubeconfig(&self) -> &Path {
        &self.host_kubeconfig
    }

    /// A client with an administrator's rights. It works on any thread: it goes through the [`crate::relay`].
    ///
    /// # Errors
    /// When the kubeconfig cannot be used. Nothing is sent yet.
    pub async fn client(&self) -> Result<kube::Client> {
        let kubeconfig = Kubeconfig::read_from(&self.host_kubeconfig).context("reading the kubeconfig")?;
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
        let config = config.context("making a client's configuration")?;
        kube::Client::try_from(config).context("making a client")
    }

    /// Its data, certificates, kubeconfigs and logs.
    #[must_use]
    pub fn folder(&self) -> &WorkDir {
        &self.servers.folder
    }

    fn wait_until_ready(&self) -> Result<()> {
        self.wait_for(&["get", "--raw=/readyz"], START_LIMIT)
            .with_context(|| self.logs("the API server does not get ready"))?;
        Ok(())
    }

    fn logs(&self, what: &str) -> String {
        let api_server = self.process();
        let tails = [&self.etcd, &*api_server, &self.controllers].map(|process| {
            format!(
                "the end of the log of {}:\n{}",
                process.name(),
                process.log_tail(15)
            )
        });
        format!("{what}; {}", tails.join("\n"))
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        // A panic while it was held left a process that is either running or not, as at any time.
        self.api_server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for ControlPlane {
    type Target = Access;

    fn deref(&self) -> &Access {
        &self.access
    }
}

/// The API server is frozen until this is dropped.
#[derive(Debug)]
#[must_use = "the API server goes on when this is dropped"]
pub struct Frozen<'a> {
    control_plane: &'a ControlPlane,
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // It may have been killed in between: then there is nothing to thaw.
        let _ = self.control_plane.process().signal(Signal::SIGCONT);
    }
}

fn listens(namespace: &Netns, address: std::net::SocketAddr) -> bool {
    matches!(namespace.run(|| TcpStream::connect(address)), Ok(Ok(_)))
}

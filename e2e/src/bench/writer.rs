//! The client that writes objects: on the wire, in the control plane's namespace, so that nothing stands between
//! it and the API server's answer.

use anyhow::{Context as _, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::runtime::{self, Runtime};

use crate::Access;

/// A client with a thread of its own in the control plane's namespace.
#[derive(Debug)]
pub struct Writer {
    runtime: Runtime,
    client: WriterClient,
}

/// `kube::Client` has no `Debug`.
struct WriterClient(kube::Client);

impl std::fmt::Debug for WriterClient {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Client")
    }
}

impl Writer {
    /// Makes a client with an administrator's rights.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used.
    pub fn new(access: &Access) -> Result<Self> {
        let namespace = access.namespace().clone();
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            // A thread that could not enter reaches no API server, and the first request says so.
            .on_thread_start(move || drop(namespace.enter()))
            .enable_all()
            .build()
            .context("a runtime for the writing client")?;
        let kubeconfig = Kubeconfig::read_from(access.kubeconfig()).context("reading the kubeconfig")?;
        let made = runtime.spawn(async move {
            let options = KubeConfigOptions::default();
            let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
            kube::Client::try_from(config.context("making a client's configuration")?)
                .context("making a client")
        });
        let client = runtime.block_on(made).context("making a client")??;
        Ok(Self {
            runtime,
            client: WriterClient(client),
        })
    }

    /// Runs requests to their end, on the thread that is in the namespace.
    ///
    /// # Errors
    /// Theirs.
    pub fn run<T, F>(&self, requests: impl FnOnce(kube::Client) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let requests = self.runtime.spawn(requests(self.client.0.clone()));
        self.runtime
            .block_on(requests)
            .context("the task that sends requests")?
    }
}

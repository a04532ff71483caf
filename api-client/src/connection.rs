//! The client.

use std::{path::Path, time::Duration};

use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioExecutor};
use kube::client::{ClientBuilder, ConfigExt as _, retry::RetryPolicy};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder, retry::RetryLayer};

/// A connection on which nothing comes back is given up after at most this long.
///
/// kube's own watch timer needs 295 s for it, and a proxy would keep sending traffic to dead endpoints all that
/// time. So the kernel probes idle connections and limits unacknowledged data.
pub const DEAD_CONNECTION_LIMIT: Duration = Duration::from_secs(14);

const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
const KEEPALIVE_PROBES: u32 = 3;
/// Each watch reads ahead this much, in bytes, which is also the most that a head of an answer may have. Without a limit a
/// long list makes it half a megabyte.
const READ_AHEAD: usize = 64 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig file cannot be used.
    #[error("kubeconfig {path}: {source}: check the file and its current-context")]
    Kubeconfig {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: kube::config::KubeconfigError,
    },
    /// Neither a file nor a pod's service account is there.
    #[error("no --kubeconfig was given, and this is no pod with a service account: {0}")]
    NotInCluster(#[source] kube::config::InClusterError),
    /// The client's settings cannot be used, certificates for example.
    #[error("setting up the connection to the API server: {0}")]
    Client(#[source] Box<kube::Error>),
}

/// A client of the API server that `kubeconfig` names, or of the cluster whose pod this is. Does not connect yet.
///
/// # Errors
/// When the file, the service account or a certificate cannot be used.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, ConnectError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let error = |source| ConnectError::Kubeconfig {
                path: path.display().to_string(),
                source,
            };
            let file = Kubeconfig::read_from(path).map_err(error)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(error)?
        }
        None => Config::incluster().map_err(ConnectError::NotInCluster)?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    build(config).map_err(|error| ConnectError::Client(Box::new(error)))
}

fn build(config: Config) -> kube::Result<Client> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_connect_timeout(config.connect_timeout);
    http.set_nodelay(true);
    http.set_keepalive(Some(KEEPALIVE_IDLE));
    http.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    http.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    // Without this the keepalive probes wait until unacknowledged data has been given up, which takes 15 minutes.
    http.set_tcp_user_timeout(Some(DEAD_CONNECTION_LIMIT));
    let https = config.rustls_https_connector_with_connector(http)?;
    let client = hyper_util::client::legacy::Builder::new(TokioExecutor::new())
        .http1_max_buf_size(READ_AHEAD)
        .build(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(RetryPolicy::server_retry()))
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(client);
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}

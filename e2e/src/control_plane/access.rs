//! Ways in: kubeconfigs, kubectl, tokens.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Netns;

/// Someone whom the API server knows by a token of its own, as if by a client certificate.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) token: String,
    pub(super) user: &'static str,
    pub(super) groups: &'static [&'static str],
}

impl Identity {
    pub(super) fn new(user: &'static str, groups: &'static [&'static str]) -> Result<Self> {
        // The relay's port is open to everyone on this machine, so the token must not be guessable.
        let token = fs::read_to_string("/proc/sys/kernel/random/uuid").context("making a random token")?;
        Ok(Self {
            token: token.trim().to_owned(),
            user,
            groups,
        })
    }
}

/// A way to an API server, with an administrator's rights. [`super::ControlPlane`] is one (it derefs to it); a program
/// in the test kernel has one to the control plane outside ([`crate::inside`]).
#[derive(Clone, Debug)]
pub struct Access {
    namespace: Netns,
    paths: Paths,
}

/// What there is to know of an API server, for another process as well.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Paths {
    pub(crate) folder: PathBuf,
    pub(crate) authority: PathBuf,
    pub(crate) kubeconfig: PathBuf,
    pub(crate) kube_proxy_kubeconfig: PathBuf,
    pub(crate) kubectl: PathBuf,
    pub(crate) api_server: SocketAddr,
}

impl Access {
    /// The way to a control plane from a namespace that is on its wire.
    pub(crate) fn new(namespace: Netns, paths: Paths) -> Self {
        Self { namespace, paths }
    }

    /// What another process needs to know of it.
    pub(crate) fn paths(&self) -> &Paths {
        &self.paths
    }

    /// The namespace that clients are in: the control plane's, or another one on the wire.
    #[must_use]
    pub fn namespace(&self) -> &Netns {
        &self.namespace
    }

    /// The kubeconfig of an administrator (system:masters) for programs on the wire: in a node's namespace or
    /// the control plane's.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.paths.kubeconfig
    }

    /// The kubeconfig of `system:kube-proxy`, whose rights are a bootstrap role of the API server's.
    #[must_use]
    pub fn kube_proxy_kubeconfig(&self) -> &Path {
        &self.paths.kube_proxy_kubeconfig
    }

    /// Where the API server listens on the wire.
    #[must_use]
    pub fn api_server(&self) -> SocketAddr {
        self.paths.api_server
    }

    /// Runs kubectl as the administrator and returns what it printed.
    ///
    /// # Errors
    /// With what it said, when it fails.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kubectl_as(&self.paths.kubeconfig, args, "")
    }

    /// [`Access::kubectl`] with something on its standard input (`-f -`).
    ///
    /// # Errors
    /// With what it said, when it fails.
    pub fn kubectl_with(&self, args: &[&str], input: &str) -> Result<String> {
        self.kubectl_as(&self.paths.kubeconfig, args, input)
    }

    /// Runs kubectl with another kubeconfig.
    ///
    /// # Errors
    /// With what it said, when it fails.
    pub fn kubectl_as(&self, kubeconfig: &Path, args: &[&str], input: &str) -> Result<String> {
        let mut child = self
            .namespace
            .command(&self.paths.kubectl)
            .arg("--kubeconfig")
            .arg(kubeconfig)
            // Its discovery cache; the test's user may have another cluster's.
            .env("HOME", &self.paths.folder)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting kubectl")?;
        if let Some(mut stdin) = child.stdin.take() {
            // Kubectl may fail before it has read everything; what it says then is below.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output().context("waiting for kubectl")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("kubectl {} failed: {}", args.join(" "), said.trim());
        }
        String::from_utf8(output.stdout).context("kubectl printed something that is not UTF-8")
    }

    /// Applies manifests (YAML or JSON), server-side.
    ///
    /// # Errors
    /// When the API server refuses one of them.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        self.kubectl_with(
            &["apply", "--server-side", "--force-conflicts", "-f", "-"],
            manifests,
        )
    }

    /// Waits until kubectl with these arguments succeeds, asking every 50 ms.
    ///
    /// # Errors
    /// With what it said last, when `limit` passes first.
    pub fn wait_for(&self, args: &[&str], limit: Duration) -> Result<String> {
        let started = Instant::now();
        loop {
            match self.kubectl(args) {
                Ok(output) => return Ok(output),
                Err(error) if started.elapsed() > limit => {
                    return Err(error.context(format!("not within {limit:?}")));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// A token of a service account, bound to a Node when one is given: it then carries the claim of being that
    /// node's, as the token of a pod on it does, and ends with the Node object.
    ///
    /// # Errors
    /// When the service account or the Node does not exist.
    pub fn token(&self, service_account: &str, namespace: &str, node: Option<&str>) -> Result<String> {
        let mut args = vec!["create", "token", service_account, "--namespace", namespace];
        if let Some(node) = node {
            args.extend(["--bound-object-kind", "Node", "--bound-object-name", node]);
        }
        Ok(self.kubectl(&args)?.trim().to_owned())
    }

    /// Writes a kubeconfig with this token, for programs on the wire.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn kubeconfig_for_token(&self, token: &str) -> Result<PathBuf> {
        // Named by the end of the token, its signature, which differs between tokens.
        let end = token.get(token.len().saturating_sub(16)..).unwrap_or("token");
        let name = format!("token-{end}.kubeconfig");
        write_kubeconfig(
            &self.paths.folder,
            &self.paths.authority,
            &name,
            self.api_server(),
            token,
        )
    }
}

/// Writes a kubeconfig. JSON is YAML.
pub(super) fn write_kubeconfig(
    folder: &Path,
    authority: &Path,
    name: &str,
    server: SocketAddr,
    token: &str,
) -> Result<PathBuf> {
    let kubeconfig: Value = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "e2e", "cluster": {
            "server": format!("https://{server}"),
            "certificate-authority": authority,
        }}],
        "users": [{"name": "e2e", "user": {"token": token}}],
        "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e"}}],
        "current-context": "e2e",
    });
    let path = folder.join(name);
    fs::write(&path, serde_json::to_vec_pretty(&kubeconfig)?)
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

//! Brings the answers of a pass to the API server: at most sixteen writes at once, each under a time limit, each
//! only while this replica leads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::core::PartialObjectMeta;
use kube::{Client, Error, Resource as _};
use pointsman_crds::{NodeProxy, ProxyPolicy, ProxyPolicyStatus};
use serde_json::json;
use tokio::sync::{OnceCell, watch};
use tokio::time::{Instant, timeout};
use tracing::debug;

use crate::elector::Leading;
use crate::fleet::Version;
use crate::metrics::Metrics;
use crate::node_proxy::Wanted;
use crate::pass::{Because, Write};
use pointsman_api_client::chain;

/// The field manager of NodeProxies.
pub const FIELD_MANAGER: &str = "pointsman-operator";
/// The field manager of policies' status, apart so that neither apply takes the other's fields away.
pub const STATUS_FIELD_MANAGER: &str = "pointsman-operator-status";

const AT_ONCE: usize = 16;
const LIMIT: Duration = Duration::from_secs(10);

/// How a write ended.
#[derive(Debug)]
pub enum Outcome {
    /// The API server has it.
    Done,
    /// There is nothing to write to any more.
    Gone,
    /// Not now: what was decided from is not what the API server has, or changed meanwhile.
    Postponed(&'static str),
    /// It was refused, or there was no answer.
    Failed(String),
    /// This replica does not lead any more.
    NotLeading,
}

impl Outcome {
    fn label(&self) -> &'static str {
        match self {
            Self::Done => "ok",
            Self::Gone => "gone",
            Self::Postponed(_) => "postponed",
            Self::Failed(_) => "error",
            Self::NotLeading => "not_leading",
        }
    }
}

/// Writes.
#[derive(Clone)]
pub struct Writer {
    policies: Api<ProxyPolicy>,
    policy_metadata: Api<PartialObjectMeta<ProxyPolicy>>,
    nodes: Api<PartialObjectMeta<Node>>,
    node_proxies: Api<NodeProxy>,
    leading: watch::Receiver<Leading>,
    metrics: Arc<Metrics>,
}

impl Writer {
    /// A writer that acts while `leading` says so.
    #[must_use]
    pub fn new(client: Client, leading: watch::Receiver<Leading>, metrics: Arc<Metrics>) -> Self {
        Self {
            policies: Api::all(client.clone()),
            policy_metadata: Api::all(client.clone()),
            nodes: Api::all(client.clone()),
            node_proxies: Api::all(client),
            leading,
            metrics,
        }
    }

    /// Writes everything; `basis` is what it was decided from.
    pub async fn write(self, writes: Vec<Write>, basis: BTreeMap<String, Version>) -> Vec<(Write, Outcome)> {
        let confirmation = Confirmation {
            basis,
            confirmed: OnceCell::new(),
        };
        stream::iter(writes)
            .map(|write| async {
                let outcome = self.write_one(&write, &confirmation).await;
                let (kind, name) = write.target();
                debug!(resource = %kind, name, verb = write.verb(), result = outcome.label(), "wrote");
                self.metrics.wrote(kind, write.verb(), outcome.label());
                (write, outcome)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await
    }

    async fn write_one(&self, write: &Write, confirmation: &Confirmation) -> Outcome {
        if self.leading.borrow().is_none_or(|until| until <= Instant::now()) {
            return Outcome::NotLeading;
        }
        let answer = async {
            match write {
                Write::Status { policy, uid, status } => self.status(policy, uid.as_deref(), status).await,
                Write::Apply { node, wanted } => self.apply(node, wanted).await,
                Write::Delete { node, uid, because } => {
                    if let Some(reason) = self.doubt(node, *because, confirmation).await? {
                        return Ok(Outcome::Postponed(reason));
                    }
                    self.delete(node, uid).await
                }
            }
        };
        match timeout(LIMIT, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(Error::Api(status))) if status.code == 409 => Outcome::Postponed("it changed meanwhile"),
            Ok(Err(Error::Api(status))) if status.code == 403 => Outcome::Failed(format!(
                "{}: check the operator's RBAC and admission policies",
                status.message
            )),
            Ok(Err(Error::Api(status))) => Outcome::Failed(status.message),
            Ok(Err(error)) => Outcome::Failed(chain(&error)),
            Err(_) => Outcome::Failed(format!("no answer from the API server in {} s", LIMIT.as_secs())),
        }
    }

    async fn status(
        &self,
        policy: &str,
        uid: Option<&str>,
        status: &ProxyPolicyStatus,
    ) -> Result<Outcome, Error> {
        // With the UID a policy of the same name that was made since is not taken for this one (409).
        let object = json!({
            "apiVersion": ProxyPolicy::api_version(&()), "kind": ProxyPolicy::kind(&()),
            "metadata": {"name": policy, "uid": uid}, "status": status,
        });
        let params = PatchParams::apply(STATUS_FIELD_MANAGER).force();
        match self
            .policies
            .patch_status(policy, &params, &Patch::Apply(object))
            .await
        {
            Err(Error::Api(status)) if status.code == 404 => Ok(Outcome::Gone),
            answer => answer.map(|_| Outcome::Done),
        }
    }

    async fn apply(&self, node: &str, wanted: &Wanted) -> Result<Outcome, Error> {
        let params = PatchParams::apply(FIELD_MANAGER).force();
        self.node_proxies
            .patch(node, &params, &Patch::Apply(wanted.object(node)))
            .await?;
        Ok(Outcome::Done)
    }

    async fn delete(&self, node: &str, uid: &str) -> Result<Outcome, Error> {
        let seen = Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        };
        match self
            .node_proxies
            .delete(node, &DeleteParams::default().preconditions(seen))
            .await
        {
            Err(Error::Api(status)) if status.code == 404 => Ok(Outcome::Gone),
            answer => answer.map(|_| Outcome::Done),
        }
    }

    /// Why a deletion should wait. It takes a node's rules down, and a watch may lag behind: so what it was
    /// decided from is read once more, from a quorum.
    async fn doubt(
        &self,
        node: &str,
        because: Because,
        confirmation: &Confirmation,
    ) -> Result<Option<&'static str>, Error> {
        match because {
            Because::NoNode => {
                let there = self.nodes.get_opt(node).await?.is_some();
                Ok(there.then_some("its node is there, which the watch has not shown yet"))
            }
            Because::NoPolicy => {
                let confirmed = confirmation.confirmed.get_or_try_init(|| async {
                    let policies = self.policy_metadata.list(&ListParams::default()).await?;
                    let now: BTreeMap<String, Version> = policies
                        .into_iter()
                        .map(|policy| {
                            let version = Version::of(&policy.metadata);
                            (policy.metadata.name.unwrap_or_default(), version)
                        })
                        .collect();
                    Ok::<bool, Error>(now == confirmation.basis)
                });
                let confirmed = *confirmed.await?;
                Ok((!confirmed).then_some("policies have changed, which the watch has not shown yet"))
            }
        }
    }
}

/// Whether the policies that a pass was decided from are the API server's; asked once, and only before deleting.
struct Confirmation {
    basis: BTreeMap<String, Version>,
    confirmed: OnceCell<bool>,
}

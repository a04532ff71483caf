//! Holds the Lease: takes it, renews it, gives it back.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::core::ObjectMeta;
use kube::{Client, Error};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use crate::lease::{DEADLINE, DURATION, Decision, RENEW_EVERY, RETRY_EVERY, decide, held, released};
use pointsman_api_client::chain;

/// The Lease's name.
pub const NAME: &str = "pointsman-operator";

/// Until when this process may act as the leader; `None`: it is not the leader.
///
/// Whoever writes looks at it before each write, so that a process that was frozen for a while does not go on
/// where it stopped.
pub type Leading = Option<Instant>;

/// Leadership is over, and another process may have begun: this one has to end and start anew.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// No renewal succeeded in time.
    #[error(
        "the Lease {NAME} could not be renewed in time: another replica takes over; this one ends, to start anew. Last error: {0}"
    )]
    NotRenewed(String),
    /// Another process holds the Lease.
    #[error("the Lease {NAME} is held by {0} now: this replica ends, to start anew")]
    Taken(String),
}

/// One candidate.
#[derive(Debug)]
pub struct Elector {
    api: Api<Lease>,
    me: String,
    /// The Lease as it was read or written last.
    lease: Option<Lease>,
    /// Since when it has been seen to say that.
    since: Instant,
}

impl Elector {
    /// A candidate of this name for the Lease in `namespace`.
    #[must_use]
    pub fn new(client: Client, namespace: &str, me: String) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            me,
            lease: None,
            since: Instant::now(),
        }
    }

    /// Waits for the Lease and keeps it. `leading` says how that stands.
    ///
    /// # Errors
    /// When the Lease was held and is lost. It ends in no other way.
    pub async fn lead(&mut self, leading: &watch::Sender<Leading>) -> Result<(), Lost> {
        let mut troubled = false;
        loop {
            let until = *leading.borrow();
            let asked = Instant::now();
            // A request that hangs must leave time for another try on a new connection before the deadline.
            let answer = match timeout(DEADLINE / 3, self.step()).await {
                Ok(answer) => answer,
                Err(_) => Err(Trouble::Silence),
            };
            let failed = answer.is_err();
            match (answer, until) {
                (Ok(true), before) => {
                    if before.is_none() {
                        info!(identity = self.me, "this replica leads");
                    }
                    leading.send_replace(Some(asked + DEADLINE));
                }
                (Ok(false), Some(_)) => return Err(Lost::Taken(self.holder().to_owned())),
                (Ok(false), None) => debug!(holder = self.holder(), "standing by"),
                (Err(error), Some(until)) if Instant::now() >= until => {
                    return Err(Lost::NotRenewed(chain(&error)));
                }
                (Err(error), _) if !troubled => {
                    warn!(
                        error = chain(&error),
                        "the Lease {NAME} cannot be read or written; trying on"
                    );
                }
                (Err(_), _) => {}
            }
            troubled = failed;
            let mut pause = if until.is_some() && !troubled {
                RENEW_EVERY
            } else {
                RETRY_EVERY
            };
            if let Some(until) = *leading.borrow() {
                pause = pause.min(until.saturating_duration_since(Instant::now()));
            }
            sleep(pause).await;
        }
    }

    /// Gives the Lease back, if it is ours, so that a replica that stands by need not wait.
    pub async fn release(mut self) {
        let Some(lease) = self.lease.take() else { return };
        let Some(spec) = lease
            .spec
            .as_ref()
            .filter(|spec| spec.holder_identity.as_deref() == Some(&self.me))
        else {
            return;
        };
        let spec = released(spec, Timestamp::now());
        match timeout(DEADLINE / 3, self.replace(&lease, spec)).await {
            Ok(Ok(_)) => info!("the Lease is given back"),
            Ok(Err(error)) => warn!(
                error = chain(&error),
                "the Lease could not be given back: it runs out in {DURATION:?}"
            ),
            Err(_) => warn!("the Lease could not be given back, no answer: it runs out in {DURATION:?}"),
        }
    }

    /// One try. Whether the Lease is ours now.
    async fn step(&mut self) -> Result<bool, Trouble> {
        if self.holder() != self.me {
            let lease = self.api.get_opt(NAME).await?;
            self.note(lease);
        }
        let spec = self.lease.as_ref().and_then(|lease| lease.spec.as_ref());
        let wanted = held(&self.me, spec, Timestamp::now());
        let written = match (decide(&self.me, spec, self.since, Instant::now()), &self.lease) {
            (Decision::Wait(_), _) => return Ok(false),
            (Decision::Acquire | Decision::Renew, Some(lease)) => self.replace(lease, wanted).await,
            (_, None) | (Decision::Create, _) => {
                // A Lease without a spec has to be filled in rather than created.
                match &self.lease {
                    Some(lease) => self.replace(lease, wanted).await,
                    None => self.create(wanted).await,
                }
            }
        };
        match written {
            Ok(lease) => {
                self.note(Some(lease));
                Ok(true)
            }
            // Somebody else was quicker, or the Lease was deleted: look again. Only what is read then counts.
            Err(Error::Api(status)) if matches!(status.code, 404 | 409) => {
                let lease = self.api.get_opt(NAME).await?;
                self.note(lease);
                match self.holder() {
                    "" => Err(Trouble::Gone),
                    holder if holder == self.me => Err(Trouble::Changed),
                    _ => Ok(false),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn create(&self, spec: LeaseSpec) -> Result<Lease, Error> {
        let metadata = ObjectMeta {
            name: Some(NAME.to_owned()),
            ..ObjectMeta::default()
        };
        self.api
            .create(
                &PostParams::default(),
                &Lease {
                    metadata,
                    spec: Some(spec),
                },
            )
            .await
    }

    /// Writes with the resourceVersion that was read: of two that try at once only one succeeds.
    async fn replace(&self, lease: &Lease, spec: LeaseSpec) -> Result<Lease, Error> {
        let wanted = Lease {
            metadata: lease.metadata.clone(),
            spec: Some(spec),
        };
        self.api.replace(NAME, &PostParams::default(), &wanted).await
    }

    fn note(&mut self, lease: Option<Lease>) {
        let spec = |lease: &Option<Lease>| lease.as_ref().and_then(|lease| lease.spec.clone());
        if spec(&lease) != spec(&self.lease) {
            self.since = Instant::now();
        }
        self.lease = lease;
    }

    fn holder(&self) -> &str {
        let spec = self.lease.as_ref().and_then(|lease| lease.spec.as_ref());
        spec.and_then(|spec| spec.holder_identity.as_deref())
            .unwrap_or_default()
    }
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Api(#[from] Error),
    #[error("no answer from the API server")]
    Silence,
    #[error("the Lease was deleted or given up")]
    Gone,
    #[error("the Lease was changed by somebody else")]
    Changed,
}

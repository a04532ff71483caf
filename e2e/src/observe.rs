//! What the API server holds, and waiting until it holds what it should.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::Access;

/// Between two looks. Each starts a kubectl, which takes as long as this.
const PAUSE: Duration = Duration::from_millis(50);

/// One condition of an object's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// "True", "False" or "Unknown"; empty when the object has no such condition.
    pub status: String,
    /// One word for machines.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

/// The condition of this type.
#[must_use]
pub fn condition(object: &Value, type_: &str) -> Condition {
    let all = object["status"]["conditions"].as_array();
    let ours = all
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == type_);
    let field = |name: &str| {
        let text = ours.and_then(|condition| condition[name].as_str());
        text.unwrap_or_default().to_owned()
    };
    Condition {
        status: field("status"),
        reason: field("reason"),
        message: field("message"),
    }
}

impl Access {
    /// An object, or none when there is none of this name.
    ///
    /// # Errors
    /// When kubectl fails for another reason.
    pub fn object(&self, kind: &str, name: &str) -> Result<Option<Value>> {
        let text = self.kubectl(&["get", kind, name, "--ignore-not-found", "-o", "json"])?;
        if text.is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&text).with_context(|| format!("reading {kind} {name}"))
    }

    /// Waits until the object is as `wanted`, and returns it. An API server that does not answer is waited for.
    ///
    /// # Errors
    /// With the object as it was last, when `limit` passes first.
    pub fn until(
        &self,
        kind: &str,
        name: &str,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let deadline = Instant::now() + limit;
        loop {
            let seen = self.object(kind, name);
            match seen {
                Ok(Some(object)) if wanted(&object) => return Ok(object),
                seen if Instant::now() > deadline => {
                    let seen = match seen {
                        Ok(Some(mut object)) => {
                            // Says nothing about the object and is most of it.
                            if let Some(metadata) = object["metadata"].as_object_mut() {
                                metadata.remove("managedFields");
                            }
                            format!("{object:#}")
                        }
                        Ok(None) => "it does not exist".to_owned(),
                        Err(error) => format!("{error:#}"),
                    };
                    bail!("{kind} {name} is not {what} after {limit:?}: {seen}");
                }
                _ => thread::sleep(PAUSE),
            }
        }
    }

    /// Waits until there is no such object.
    ///
    /// # Errors
    /// When it is still there after `limit`.
    pub fn until_gone(&self, kind: &str, name: &str, limit: Duration) -> Result<()> {
        eventually(&format!("{kind} {name} to be gone"), limit, || {
            Ok(self.object(kind, name)?.is_none())
        })
    }
}

/// Asks every 50 ms until the answer is yes. What cannot be asked is asked again.
///
/// # Errors
/// With the last error, if any, when `limit` passes first.
pub fn eventually(what: &str, limit: Duration, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        match is() {
            Ok(true) => return Ok(()),
            Ok(false) if Instant::now() > deadline => bail!("waited {limit:?} for {what}"),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("waited {limit:?} for {what}")));
            }
            _ => thread::sleep(PAUSE),
        }
    }
}

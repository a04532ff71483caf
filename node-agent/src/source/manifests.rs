//! A directory of manifests as a source: for a box without a cluster, and for benches without an API server.
//!
//! Every `*.yaml`, `*.yml` and `*.json` file of the directory may hold Services, EndpointSlices, the Node,
//! ServiceCIDRs and one ProxyPolicy. A file that changes is read anew, and only what it says is compared: the cost of a change follows
//! the file, not the directory. A file that cannot be read keeps what it said before.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use pointsman_crds::{ProxyPolicy, ProxyPolicySpec};
use serde_json::Value;
use tokio::sync::mpsc::Sender;

use super::objects::{SlimNode, SlimService, SlimServiceCidr, SlimSlice};
use super::{Assignment, Event, Kind, Parsed, SliceName};
use pointsman_dataplane::model::ServiceName;

/// Editors write a file in several steps; a file is read when it has been quiet for this long.
const SETTLE: Duration = Duration::from_millis(20);
/// In a directory that is never quiet, changes are read after this long all the same.
const GATHER: Duration = Duration::from_millis(200);
/// Directories that tell of no change (network file systems) are looked through this often.
const RESCAN: Duration = Duration::from_secs(10);

/// Follows `directory` on the calling thread for as long as `events` is open.
///
/// # Errors
/// When the directory cannot be read or watched at the start.
pub fn follow(directory: &Path, node: &str, events: &Sender<Event>) -> Result<()> {
    let notify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).context("opening inotify")?;
    let changes = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE;
    notify
        .add_watch(directory, changes)
        .with_context(|| format!("watching the directory of --manifests, {}", directory.display()))?;
    let mut reader = Reader::new(directory, node);
    for event in reader.first()? {
        if events.blocking_send(event).is_err() {
            return Ok(());
        }
    }
    while !events.is_closed() {
        // A name that is reported is read; when nothing is, or reports were lost, every file is looked at.
        let changed = wait(&notify)?;
        let found = match changed {
            Some(names) => reader.changed(names.into_iter().map(|name| directory.join(name)).collect()),
            None => reader.rescan(),
        };
        let found = found.unwrap_or_else(|error| {
            tracing::warn!(
                error = format!("{error:#}"),
                "reading the manifests failed: what they said before stays"
            );
            Vec::new()
        });
        for event in found {
            if events.blocking_send(event).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The names that changed; none when it is time to look at all of them.
fn wait(notify: &Inotify) -> Result<Option<HashSet<std::ffi::OsString>>> {
    let mut names = HashSet::new();
    let mut lost = false;
    let mut limit = RESCAN;
    let mut deadline = None;
    loop {
        let timeout = PollTimeout::try_from(limit.as_millis()).unwrap_or(PollTimeout::MAX);
        let ready = match poll(&mut [PollFd::new(notify.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other.context("waiting for changes in the directory of --manifests")?,
        };
        if ready == 0 {
            return Ok((!names.is_empty() && !lost).then_some(names));
        }
        for event in notify.read_events().unwrap_or_default() {
            lost |= event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
            names.extend(event.name);
        }
        let now = Instant::now();
        let deadline = *deadline.get_or_insert(now + GATHER);
        if deadline <= now {
            return Ok((!lost).then_some(names));
        }
        limit = SETTLE.min(deadline - now);
    }
}

/// When a file was written, and how long it is: what tells two states of it apart.
type Stamp = (SystemTime, u64);

/// What a file said when it was last read: the names of its objects with a digest of their content.
#[derive(Default)]
struct File {
    modified: Option<Stamp>,
    objects: BTreeMap<Id, u64>,
}

/// What tells objects apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Id {
    Service(ServiceName),
    Slice(SliceName),
    Node(String),
    ServiceCidr(String),
    Policy(String),
}

struct Reader {
    directory: PathBuf,
    node: String,
    files: HashMap<PathBuf, File>,
    /// Files that cannot be used, as they were when that was said.
    broken: BTreeMap<PathBuf, Stamp>,
    policies: BTreeMap<String, Value>,
    /// No policy was found at the start, but a file that may have it could not be read.
    policy_unknown: bool,
}

impl Reader {
    fn new(directory: &Path, node: &str) -> Self {
        Self {
            directory: directory.to_owned(),
            node: node.to_owned(),
            files: HashMap::new(),
            broken: BTreeMap::new(),
            policies: BTreeMap::new(),
            policy_unknown: false,
        }
    }

    /// Everything, as a source that begins.
    fn first(&mut self) -> Result<Vec<Event>> {
        let kinds = [
            Kind::Services,
            Kind::Slices,
            Kind::Node,
            Kind::ServiceCidrs,
            Kind::Assignment,
        ];
        let mut events: Vec<Event> = kinds.into_iter().map(Event::ListBegins).collect();
        events.extend(self.rescan()?);
        self.policy_unknown = self.policies.is_empty() && !self.broken.is_empty();
        if self.policy_unknown {
            // An agent that is restarted over a typing error must not take down what it forwarded before.
            let broken: Vec<_> = self
                .broken
                .keys()
                .map(|path| path.display().to_string())
                .collect();
            events.push(Event::AssignmentUnusable(format!(
                "no ProxyPolicy was found, but it may be in a manifest that cannot be used: mend {}",
                broken.join(", ")
            )));
        } else if self.policies.is_empty() {
            tracing::warn!(
                directory = %self.directory.display(),
                "no ProxyPolicy is in the directory of --manifests: nothing is forwarded until there is one"
            );
        }
        events.extend(kinds.into_iter().map(Event::ListEnds));
        Ok(events)
    }

    /// Looks at every file of the directory.
    fn rescan(&mut self) -> Result<Vec<Event>> {
        let entries = fs::read_dir(&self.directory).with_context(|| {
            format!(
                "reading the directory of --manifests, {}",
                self.directory.display()
            )
        })?;
        let mut paths: HashSet<PathBuf> = self.files.keys().chain(self.broken.keys()).cloned().collect();
        for entry in entries {
            paths.insert(entry.context("reading the directory of --manifests")?.path());
        }
        self.changed(paths)
    }

    /// What is different after these files may have changed.
    fn changed(&mut self, paths: HashSet<PathBuf>) -> Result<Vec<Event>> {
        let mut gone = Vec::new();
        // What an object says is kept, not the object, which takes many times as much. Policies are compared with each other.
        let mut told = Vec::new();
        let mut policies = Vec::new();
        for path in paths.into_iter().filter(|path| is_manifest(path)) {
            let state = fs::metadata(&path).ok().filter(fs::Metadata::is_file);
            let modified = state.and_then(|state| Some((state.modified().ok()?, state.len())));
            let known = self.files.get(&path).map(|file| file.modified);
            let broken = self.broken.get(&path).copied();
            if modified.is_some() && (known == Some(modified) || broken == modified) {
                continue;
            }
            let objects = if modified.is_some() {
                match read(&path) {
                    Ok(objects) => objects,
                    Err(error) => {
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "a manifest cannot be used: what it said before stays until it is mended"
                        );
                        self.broken.extend(modified.map(|modified| (path, modified)));
                        continue;
                    }
                }
            } else {
                BTreeMap::new()
            };
            self.broken.remove(&path);
            let old = self.files.remove(&path).unwrap_or_default().objects;
            gone.extend(old.keys().filter(|id| !objects.contains_key(id)).cloned());
            let mut digests = BTreeMap::new();
            for (id, object) in objects {
                let digest = digest(&object);
                if old.get(&id) != Some(&digest) {
                    match id {
                        Id::Policy(_) => policies.push((id.clone(), object)),
                        _ => told.extend(self.event(id.clone(), Some(object))),
                    }
                }
                digests.insert(id, digest);
            }
            if modified.is_some() {
                self.files.insert(
                    path,
                    File {
                        modified,
                        objects: digests,
                    },
                );
            }
        }
        // An object that moved from one file to another is not gone.
        gone.retain(|id| self.files.values().all(|file| !file.objects.contains_key(id)));
        let mut events = Vec::with_capacity(gone.len() + told.len() + policies.len());
        events.extend(gone.into_iter().filter_map(|id| self.event(id, None)));
        events.append(&mut told);
        let policies = policies.into_iter();
        events.extend(policies.filter_map(|(id, object)| self.event(id, Some(object))));
        if self.policy_unknown && (self.broken.is_empty() || !self.policies.is_empty()) {
            self.policy_unknown = false;
            if self.policies.is_empty() {
                events.push(Event::Assignment(None));
            }
        }
        Ok(events)
    }

    fn event(&mut self, id: Id, object: Option<Value>) -> Option<Event> {
        let unusable = |error: serde_json::Error| format!("{id:?}: {error}: mend the manifest");
        Some(match (&id, object) {
            (Id::Service(name), Some(object)) => {
                let parsed = serde_json::from_value(object).map(SlimService::parse);
                Event::Service(
                    name.clone(),
                    parsed.unwrap_or_else(|error| broken(unusable(error))),
                )
            }
            (Id::Service(name), None) => Event::Service(name.clone(), Parsed::gone()),
            (Id::Slice(name), Some(object)) => {
                let parsed = serde_json::from_value(object)
                    .map(|slice: SlimSlice| (slice.triggered(), slice.parse(&self.node)));
                let (triggered, parsed) = parsed.unwrap_or_else(|error| (None, broken(unusable(error))));
                Event::Slice(name.clone(), parsed, triggered)
            }
            (Id::Slice(name), None) => Event::Slice(name.clone(), Parsed::gone(), None),
            (Id::Node(name), _) if *name != self.node => return None,
            (Id::Node(_), Some(object)) => match serde_json::from_value(object).map(SlimNode::parse) {
                Ok(node) => Event::Node(Some(node)),
                Err(error) => {
                    tracing::warn!("{}", unusable(error));
                    return None;
                }
            },
            (Id::Node(_), None) => Event::Node(None),
            (Id::ServiceCidr(name), Some(object)) => {
                let parsed = serde_json::from_value(object).map(SlimServiceCidr::parse);
                Event::ServiceCidr(
                    name.clone(),
                    parsed.unwrap_or_else(|error| broken(unusable(error))),
                )
            }
            (Id::ServiceCidr(name), None) => Event::ServiceCidr(name.clone(), Parsed::gone()),
            (Id::Policy(name), object) => {
                match object {
                    Some(object) => self.policies.insert(name.clone(), object),
                    None => self.policies.remove(name),
                };
                self.policy()
            }
        })
    }

    /// The directory's one policy.
    fn policy(&self) -> Event {
        let mut policies = self.policies.iter();
        match (policies.next(), policies.next()) {
            (None, _) => Event::Assignment(None),
            (Some((name, value)), None) => match policy(value) {
                Ok(policy) => {
                    let settings = policy.spec.settings();
                    let revision = settings.revision();
                    Event::Assignment(Some(Arc::new(Assignment {
                        policy: name.clone(),
                        revision,
                        generation: None,
                        settings,
                    })))
                }
                Err(error) => Event::AssignmentUnusable(format!("ProxyPolicy {name}: {error:#}")),
            },
            (Some((first, _)), Some((second, _))) => Event::AssignmentUnusable(format!(
                "ProxyPolicies {first} and {second} are both in the directory of --manifests: leave one"
            )),
        }
    }
}

fn broken<T>(problem: String) -> Parsed<T> {
    Parsed {
        object: None,
        problems: vec![problem],
    }
}

fn digest(object: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    object.to_string().hash(&mut hasher);
    hasher.finish()
}

fn is_manifest(path: &Path) -> bool {
    let hidden = path
        .file_name()
        .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let known = path
        .extension()
        .is_some_and(|kind| kind == "yaml" || kind == "yml" || kind == "json");
    known && !hidden
}

/// A policy that passed the rules that the API server would have checked it by. Those come first: their messages
/// say what to write instead, and serde's do not.
fn policy(value: &Value) -> Result<ProxyPolicy> {
    if let Err(errors) = ProxyPolicySpec::validate_cel(value.get("spec").unwrap_or(&Value::Null), None) {
        bail!("{errors}");
    }
    serde_json::from_value(value.clone()).context("mend the manifest")
}

/// The objects of a file, those of other kinds left out.
fn read(path: &Path) -> Result<BTreeMap<Id, Value>> {
    let name = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("reading {name}"))?;
    let documents: Vec<Value> = if path.extension().is_some_and(|kind| kind == "json") {
        vec![serde_json::from_str(&text).with_context(|| format!("{name} is no JSON"))?]
    } else {
        yaml(&text).with_context(|| format!("{name} is no YAML"))?
    };
    let mut objects = BTreeMap::new();
    for document in documents {
        for object in items(document) {
            if let Some(id) =
                id(&object).with_context(|| format!("{name} has an object that cannot be used"))?
            {
                if objects.contains_key(&id) {
                    bail!("{name} has {id:?} twice: remove one");
                }
                objects.insert(id, object);
            }
        }
    }
    Ok(objects)
}

/// The documents of a YAML text. The parser's own limits (1,024 documents, 250,000 values) are too small for a
/// cluster in one file. Without aliases, which keep their limits, no text has more of anything than it has letters.
fn yaml(text: &str) -> Result<Vec<Value>, serde_saphyr::Error> {
    let letters = text.len();
    let limits = serde_saphyr::Budget::default();
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: limits.max_documents.max(letters),
            max_nodes: limits.max_nodes.max(letters),
            max_events: limits.max_events.max(letters.saturating_mul(2)),
            max_total_scalar_bytes: limits.max_total_scalar_bytes.max(letters),
        },
    };
    serde_saphyr::from_multiple_with_options(text, options)
}

/// The objects of a document: itself, or what `kubectl get -o yaml` lists.
fn items(document: Value) -> Vec<Value> {
    match document {
        Value::Null => Vec::new(),
        Value::Object(mut fields) if fields.get("kind").is_some_and(|kind| kind == "List") => {
            match fields.remove("items") {
                Some(Value::Array(items)) => items,
                _ => Vec::new(),
            }
        }
        object => vec![object],
    }
}

fn id(object: &Value) -> Result<Option<Id>> {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str);
    let (Some(version), Some(kind)) = (text("/apiVersion"), text("/kind")) else {
        bail!("it has no apiVersion or no kind");
    };
    let Some(name) = text("/metadata/name").filter(|name| !name.is_empty()) else {
        bail!("the {kind} has no metadata.name");
    };
    let namespaced = || ServiceName::new(text("/metadata/namespace").unwrap_or("default"), name);
    Ok(match (version, kind) {
        ("v1", "Service") => Some(Id::Service(namespaced())),
        ("discovery.k8s.io/v1", "EndpointSlice") => Some(Id::Slice(namespaced())),
        ("networking.k8s.io/v1", "ServiceCIDR") => Some(Id::ServiceCidr(name.to_owned())),
        ("v1", "Node") => Some(Id::Node(name.to_owned())),
        ("pointsman.dev/v1alpha1", "ProxyPolicy") => Some(Id::Policy(name.to_owned())),
        _ => None,
    })
}

#[cfg(test)]
mod tests;

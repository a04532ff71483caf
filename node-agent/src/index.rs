//! Services and their slices, compact, and which Services an event made different.

mod words;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use pointsman_dataplane::model::{Compiled, Context, EndpointSlice, Service, ServiceName, compile};

use crate::source::{Kind, Parsed, SliceName};
use words::Words;

/// All Services and slices that the sources told of.
#[derive(Debug, Default)]
pub struct Index {
    services: HashMap<ServiceName, Entry>,
    /// The Service of each slice; a slice may be given to another one.
    owners: HashMap<SliceName, ServiceName>,
    words: Words,
    /// The Services that are different, and whether they or their slices are.
    dirty: HashMap<ServiceName, Touched>,
    /// While a source lists, what it has named so far; the rest is gone when it ends.
    listing: HashMap<Kind, HashSet<ServiceName>>,
    /// What is wrong with objects, by kind and name.
    problems: BTreeMap<(bool, ServiceName), Vec<String>>,
    /// How many Services and slices were different.
    pub changes: Changes,
    /// How many of those are not compiled yet; several of one Service's slices count once.
    pub pending: Changes,
}

#[derive(Clone, Copy, Debug, Default)]
struct Touched {
    service: bool,
    slices: bool,
}

/// How many objects were different since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Services.
    pub services: u64,
    /// EndpointSlices.
    pub slices: u64,
}

/// Small: there is one for each Service, in a map that has room for more.
#[derive(Debug, Default)]
struct Entry {
    service: Option<Box<Service>>,
    slices: Slices,
}

/// The slices of one Service, sorted by name. Mostly there is one, and a list has room for no more than there are.
#[derive(Debug, Default)]
struct Slices(Vec<(SliceName, EndpointSlice)>);

impl Slices {
    fn place(&self, name: &SliceName) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| other.cmp(name))
    }

    /// Puts a slice in the place of what has its name, or takes that away; whether it is different.
    fn put(&mut self, name: &SliceName, slice: Option<EndpointSlice>) -> bool {
        match (self.place(name), slice) {
            (Ok(at), Some(slice)) => match self.0.get_mut(at) {
                Some((_, known)) if *known != slice => *known = slice,
                _ => return false,
            },
            (Err(at), Some(slice)) => {
                self.0.reserve_exact(1);
                self.0.insert(at, (name.clone(), slice));
            }
            (Ok(at), None) => {
                self.0.remove(at);
            }
            (Err(_), None) => return false,
        }
        true
    }

    fn iter(&self) -> impl Iterator<Item = &EndpointSlice> + Clone {
        self.0.iter().map(|(_, slice)| slice)
    }
}

impl Index {
    /// Takes in a Service as it is now.
    pub fn set_service(&mut self, name: ServiceName, mut parsed: Parsed<Service>) {
        let name = self.shared(name);
        if let Some(service) = &mut parsed.object {
            service.name = name.clone();
            let ports = service.ports.iter_mut();
            ports.for_each(|port| self.words.share(&mut port.name));
        }
        self.named(Kind::Services, &name);
        self.note_problems(true, &name, parsed.problems);
        let entry = self.services.entry(name.clone()).or_default();
        if entry.service.as_deref() != parsed.object.as_ref() {
            say_direct_access(entry.service.as_deref(), parsed.object.as_ref());
            entry.service = parsed.object.map(Box::new);
            self.changes.services += 1;
            let touched = self.dirty.entry(name.clone()).or_default();
            if !std::mem::replace(&mut touched.service, true) {
                self.pending.services += 1;
            }
        }
        self.forget_if_empty(&name);
    }

    /// Takes in a slice as it is now; gives the Service that is different by it.
    pub fn set_slice(
        &mut self,
        mut name: SliceName,
        parsed: Parsed<(ServiceName, EndpointSlice)>,
    ) -> Option<ServiceName> {
        self.named(Kind::Slices, &name);
        self.note_problems(false, &name, parsed.problems);
        let (owner, slice) = match parsed.object {
            Some((owner, mut slice)) => {
                let owner = self.shared(owner);
                let ports = slice.ports.iter_mut();
                ports.for_each(|port| self.words.share(&mut port.name));
                name.namespace = Arc::clone(&owner.namespace);
                (Some(owner), Some(slice))
            }
            None => (None, None),
        };
        let before = match &owner {
            Some(owner) => self.owners.insert(name.clone(), owner.clone()),
            None => self.owners.remove(&name),
        };
        let mut different = None;
        if let Some(before) = before.filter(|before| Some(before) != owner.as_ref()) {
            different = self.put_slice(&before, &name, None).then_some(before);
        }
        if let Some(owner) = owner
            && self.put_slice(&owner, &name, slice)
        {
            different = Some(owner);
        }
        different
    }

    /// The same name, in the memory that a Service of that name has already.
    fn shared(&mut self, mut name: ServiceName) -> ServiceName {
        if let Some((known, _)) = self.services.get_key_value(&name) {
            return known.clone();
        }
        self.words.share(&mut name.namespace);
        name
    }

    fn put_slice(&mut self, owner: &ServiceName, name: &SliceName, slice: Option<EndpointSlice>) -> bool {
        let entry = self.services.entry(owner.clone()).or_default();
        let differs = entry.slices.put(name, slice);
        if differs {
            self.changes.slices += 1;
            let touched = self.dirty.entry(owner.clone()).or_default();
            if !std::mem::replace(&mut touched.slices, true) {
                self.pending.slices += 1;
            }
        }
        self.forget_if_empty(owner);
        differs
    }

    /// A source begins to list a kind.
    pub fn list_begins(&mut self, kind: Kind) {
        self.listing.insert(kind, HashSet::new());
    }

    /// A source has listed a kind: objects that it did not name are gone.
    pub fn list_ends(&mut self, kind: Kind) {
        let Some(named) = self.listing.remove(&kind) else {
            return;
        };
        match kind {
            Kind::Services => {
                let known = self.services.iter().filter(|(_, entry)| entry.service.is_some());
                let gone: Vec<_> = known
                    .map(|(name, _)| name)
                    .filter(|name| !named.contains(name))
                    .cloned()
                    .collect();
                gone.into_iter()
                    .for_each(|name| self.set_service(name, Parsed::gone()));
            }
            Kind::Slices => {
                let gone: Vec<_> = self
                    .owners
                    .keys()
                    .filter(|name| !named.contains(name))
                    .cloned()
                    .collect();
                for name in gone {
                    self.set_slice(name, Parsed::gone());
                }
            }
            Kind::Node | Kind::Assignment | Kind::ServiceCidrs => return,
        }
        let services = kind == Kind::Services;
        self.problems
            .retain(|(of_service, name), _| *of_service != services || named.contains(name));
    }

    fn named(&mut self, kind: Kind, name: &ServiceName) {
        if let Some(named) = self.listing.get_mut(&kind) {
            named.insert(name.clone());
        }
    }

    fn note_problems(&mut self, of_service: bool, name: &ServiceName, problems: Vec<String>) {
        let key = (of_service, name.clone());
        if problems.is_empty() {
            self.problems.remove(&key);
        } else {
            for problem in &problems {
                tracing::warn!("{problem}");
            }
            self.problems.insert(key, problems);
        }
    }

    fn forget_if_empty(&mut self, name: &ServiceName) {
        if self
            .services
            .get(name)
            .is_some_and(|entry| entry.service.is_none() && entry.slices.0.is_empty())
        {
            self.services.remove(name);
        }
    }

    /// Whether a Service is different from what was last compiled.
    #[must_use]
    pub fn has_changes(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// The endpoints that slices name for Services that are not known here, or are no matter of a proxy's: headless
    /// ones, and those that another proxy looks after.
    pub fn foreign_endpoints(&self) -> impl Iterator<Item = IpAddr> {
        let foreign = self.services.values().filter(|entry| entry.service.is_none());
        let slices = foreign.flat_map(|entry| entry.slices.iter());
        slices.flat_map(|slice| slice.endpoints.iter().map(|endpoint| endpoint.address))
    }

    /// What is wrong with objects, as their sources told it.
    pub fn problems(&self) -> impl Iterator<Item = &str> {
        self.problems.values().flatten().map(String::as_str)
    }

    /// The Services that are different since the last call, compiled.
    pub fn compile_changes<'a>(&'a mut self, context: &'a Context) -> impl Iterator<Item = Compiled> + 'a {
        self.pending = Changes::default();
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_keys().map(|name| self.compile(name, context))
    }

    /// All Services, compiled.
    pub fn compile_all<'a>(&'a mut self, context: &'a Context) -> impl Iterator<Item = Compiled> + 'a {
        self.pending = Changes::default();
        // Services that are gone are compiled as well: to nothing.
        let gone: Vec<_> = self
            .dirty
            .drain()
            .map(|(name, _)| name)
            .filter(|name| !self.services.contains_key(name))
            .collect();
        let known: Vec<_> = self.services.keys().cloned().collect();
        gone.into_iter()
            .chain(known)
            .map(|name| self.compile(name, context))
    }

    fn compile(&self, name: ServiceName, context: &Context) -> Compiled {
        match self.services.get(&name) {
            Some(Entry {
                service: Some(service),
                slices,
            }) => compile(service, slices.iter(), context),
            _ => Compiled::nothing(name),
        }
    }
}

/// A Service whose addresses stop being balanced, or are again, is worth a line.
fn say_direct_access(before: Option<&Service>, after: Option<&Service>) {
    let was = before.is_some_and(|service| service.direct_access);
    match after {
        Some(service) if service.direct_access && !was => {
            tracing::info!(service = %service.name, "asks for direct access: its addresses are refused");
        }
        Some(service) if !service.direct_access && was => {
            tracing::info!(service = %service.name, "no longer asks for direct access");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;

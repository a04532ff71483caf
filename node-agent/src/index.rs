//! Services and their slices, compact, and which Services an event made different.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use pointsman_dataplane::model::{Compiled, Context, EndpointSlice, Service, ServiceName, compile};

use crate::source::{Kind, Parsed, SliceName};

/// All Services and slices that the sources told of.
#[derive(Debug, Default)]
pub struct Index {
    services: HashMap<ServiceName, Entry>,
    /// The Service of each slice; a slice may be given to another one.
    owners: HashMap<SliceName, ServiceName>,
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

#[derive(Debug, Default)]
struct Entry {
    service: Option<Service>,
    slices: BTreeMap<SliceName, EndpointSlice>,
}

impl Index {
    /// Takes in a Service as it is now.
    pub fn set_service(&mut self, name: ServiceName, parsed: Parsed<Service>) {
        self.named(Kind::Services, &name);
        self.note_problems(true, &name, parsed.problems);
        let entry = self.services.entry(name.clone()).or_default();
        if entry.service != parsed.object {
            say_direct_access(entry.service.as_ref(), parsed.object.as_ref());
            entry.service = parsed.object;
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
        name: SliceName,
        parsed: Parsed<(ServiceName, EndpointSlice)>,
    ) -> Option<ServiceName> {
        self.named(Kind::Slices, &name);
        self.note_problems(false, &name, parsed.problems);
        let (owner, slice) = match parsed.object {
            Some((owner, slice)) => (Some(owner), Some(slice)),
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

    fn put_slice(&mut self, owner: &ServiceName, name: &SliceName, slice: Option<EndpointSlice>) -> bool {
        let entry = self.services.entry(owner.clone()).or_default();
        let differs = entry.slices.get(name) != slice.as_ref();
        if differs {
            match slice {
                Some(slice) => entry.slices.insert(name.clone(), slice),
                None => entry.slices.remove(name),
            };
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
            .is_some_and(|entry| entry.service.is_none() && entry.slices.is_empty())
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
        let slices = foreign.flat_map(|entry| entry.slices.values());
        slices.flat_map(|slice| slice.endpoints.iter().map(|endpoint| endpoint.address))
    }

    /// What is wrong with objects, as their sources told it.
    pub fn problems(&self) -> impl Iterator<Item = &str> {
        self.problems.values().flatten().map(String::as_str)
    }

    /// The Services that are different since the last call, compiled.
    pub fn compile_changes(&mut self, context: &Context) -> Vec<Compiled> {
        self.pending = Changes::default();
        let dirty: Vec<_> = self.dirty.drain().collect();
        dirty
            .into_iter()
            .map(|(name, _)| self.compile(name, context))
            .collect()
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
            }) => compile(service, slices.values(), context),
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

//! The ranges that ClusterIPs are allocated from, as the ServiceCIDR objects have them.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::source::Parsed;

/// All ServiceCIDRs that the sources told of: a few.
#[derive(Debug, Default)]
pub(super) struct ServiceCidrs {
    known: BTreeMap<String, Parsed<Vec<IpNet>>>,
    /// While a source lists, what it has named so far; the rest is gone when it ends.
    listing: Option<BTreeSet<String>>,
}

impl ServiceCidrs {
    /// Takes in a ServiceCIDR as it is now.
    pub(super) fn set(&mut self, name: String, parsed: Parsed<Vec<IpNet>>) {
        if let Some(named) = &mut self.listing {
            named.insert(name.clone());
        }
        if parsed.object.is_none() && parsed.problems.is_empty() {
            self.known.remove(&name);
        } else if self.known.get(&name) != Some(&parsed) {
            for problem in &parsed.problems {
                tracing::warn!("{problem}");
            }
            self.known.insert(name, parsed);
        }
    }

    pub(super) fn list_begins(&mut self) {
        self.listing = Some(BTreeSet::new());
    }

    pub(super) fn list_ends(&mut self) {
        if let Some(named) = self.listing.take() {
            self.known.retain(|name, _| named.contains(name));
        }
    }

    /// The ranges of all of them, sorted, none twice.
    pub(super) fn ranges(&self) -> Vec<IpNet> {
        let all = self.known.values().filter_map(|parsed| parsed.object.as_ref());
        let all: BTreeSet<IpNet> = all.flatten().copied().collect();
        all.into_iter().collect()
    }

    /// What is wrong with them.
    pub(super) fn problems(&self) -> impl Iterator<Item = &str> {
        let problems = self.known.values().flat_map(|parsed| &parsed.problems);
        problems.map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidrs(ranges: &[&str]) -> Parsed<Vec<IpNet>> {
        Parsed {
            object: Some(ranges.iter().map(|range| range.parse().unwrap()).collect()),
            problems: Vec::new(),
        }
    }

    fn texts(cidrs: &ServiceCidrs) -> Vec<String> {
        cidrs.ranges().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ranges_of_several_objects_are_one_sorted_list() {
        let mut all = ServiceCidrs::default();
        all.set("kubernetes".into(), cidrs(&["10.96.0.0/16", "fd00::/112"]));
        all.set("more".into(), cidrs(&["10.80.0.0/16", "10.96.0.0/16"]));
        assert_eq!(texts(&all), ["10.80.0.0/16", "10.96.0.0/16", "fd00::/112"]);
        all.set("kubernetes".into(), Parsed::gone());
        assert_eq!(texts(&all), ["10.80.0.0/16", "10.96.0.0/16"]);
    }

    #[test]
    fn what_a_new_list_does_not_name_is_gone_when_it_ends() {
        let mut all = ServiceCidrs::default();
        all.set("kubernetes".into(), cidrs(&["10.96.0.0/16"]));
        all.set("more".into(), cidrs(&["10.80.0.0/16"]));
        all.list_begins();
        all.set("more".into(), cidrs(&["10.80.0.0/16"]));
        assert_eq!(all.ranges().len(), 2, "the list may not be complete yet");
        all.list_ends();
        assert_eq!(texts(&all), ["10.80.0.0/16"]);
    }
}

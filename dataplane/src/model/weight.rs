//! Weights: what an endpoint's follows from, and which shares of a pool's connections they come to. docs/services.md
//! says what users write.

use std::collections::BTreeMap;

use super::frontend::PoolEndpoint;

/// The largest weight. A canary can so have one connection in a hundred, and the shares of a dozen endpoints can be kept
/// exactly ([`share`]).
pub const MAX_WEIGHT: u8 = 100;

/// A pool's weights are kept exactly up to this sum, or four times the number of its endpoints where that is more:
/// mode NFTables has an element for each.
const EXACT: usize = 1024;

/// What the weight of an endpoint follows from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Its slice says it, 0 to [`MAX_WEIGHT`]; or nobody does, and it is 1.
    Given(Option<u8>),
    /// What the Service says of the workload that its pod is of: a pod's name without its last part.
    Workload(Box<str>),
}

impl Default for Weight {
    fn default() -> Self {
        Self::USUAL
    }
}

impl Weight {
    /// That of an endpoint of which nobody says anything.
    pub const USUAL: Self = Self::Given(None);
}

/// The weights that a Service gives to workloads, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Weights(BTreeMap<Box<str>, u8>);

impl Weights {
    /// Notes the weight of a workload; false if it has one already, which stays.
    pub fn add(&mut self, workload: &str, weight: u8) -> bool {
        if self.0.contains_key(workload) {
            return false;
        }
        self.0.insert(workload.into(), weight.min(MAX_WEIGHT));
        true
    }

    /// What an endpoint has; none where nobody says anything.
    pub(super) fn of(&self, weight: &Weight) -> Option<u8> {
        match weight {
            Weight::Given(weight) => weight.map(|weight| weight.min(MAX_WEIGHT)),
            Weight::Workload(workload) => self.of_workload(workload),
        }
    }

    /// A Deployment's pods are a ReplicaSet's, whose name begins with the Deployment's: the longest name counts that
    /// is the workload's, or what it begins with up to a hyphen.
    fn of_workload(&self, workload: &str) -> Option<u8> {
        if self.0.is_empty() {
            return None;
        }
        let mut name = workload;
        loop {
            if let Some(weight) = self.0.get(name) {
                return Some(*weight);
            }
            (name, _) = name.rsplit_once('-')?;
        }
    }
}

/// Turns weights into shares: the smallest whole numbers that are to each other as the weights are. Where their sum is
/// above [`EXACT`], weights are divided by the smallest whole number that makes them fit, and rounded, none to less than 1.
/// Gives the weight of a share of 1.
pub(super) fn share(endpoints: &mut [PoolEndpoint]) -> u8 {
    let common = common_divisor(endpoints);
    divide(endpoints, common, 0);
    let most = EXACT.max(endpoints.len().saturating_mul(4));
    let sum = |by: u8| -> usize {
        let divided = endpoints.iter().map(|it| divided(it.share, by, by / 2));
        divided.map(usize::from).sum()
    };
    let by = (1..=MAX_WEIGHT).find(|by| sum(*by) <= most);
    let by = by.unwrap_or(MAX_WEIGHT);
    if by <= 1 {
        return common;
    }
    divide(endpoints, by, by / 2);
    let again = common_divisor(endpoints);
    divide(endpoints, again, 0);
    common.saturating_mul(by).saturating_mul(again)
}

fn divide(endpoints: &mut [PoolEndpoint], by: u8, add: u8) {
    for endpoint in endpoints.iter_mut().filter(|_| by > 1) {
        endpoint.share = divided(endpoint.share, by, add);
    }
}

fn divided(share: u8, by: u8, add: u8) -> u8 {
    (share.saturating_add(add) / by.max(1)).max(1)
}

fn common_divisor(endpoints: &[PoolEndpoint]) -> u8 {
    let mut common = 0;
    for endpoint in endpoints {
        let mut other = endpoint.share;
        while other != 0 {
            (common, other) = (other, common % other);
        }
        if common == 1 {
            break;
        }
    }
    common.max(1)
}

#[cfg(test)]
mod tests;

//! The forwarding table: all frontends and pools of a node, and what changed in them.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use sha2::{Digest as _, Sha256};

use super::compile::{Compiled, HealthCheck};
use super::context::Context;
use super::frontend::{Action, Frontend, FrontendKey, FrontendKind, Pool, PoolKey, PortKey, TrafficSide};
use super::names::{Family, IpPort, ServiceName};

/// Everything that a node forwards.
///
/// [`ForwardingTable::set`] and [`ForwardingTable::remove`] change one Service and note in a [`Diff`] what that
/// means; their cost follows the Service, not the table. The same Services give the same table in whatever
/// order they came.
#[derive(Clone, Debug, Default)]
pub struct ForwardingTable {
    context: Context,
    services: HashMap<ServiceName, Box<Known>>,
    frontends: HashMap<FrontendKey, Frontend>,
    /// Claims to a key in `frontends` that lost to the frontend there.
    outranked: HashMap<FrontendKey, Vec<Frontend>>,
    pools: HashMap<PoolKey, Arc<Pool>>,
    existing: HashMap<PortKey, Arc<[IpPort]>>,
    /// ClusterIPs, each with how many Services have it: more than one only while one is going and another coming.
    cluster_ips: HashMap<IpAddr, usize>,
    /// Apart from the Services, so that looking at all of them costs as much as there are.
    health_checks: BTreeMap<(ServiceName, Family), HealthCheck>,
    health_checks_version: u64,
    without_local: BTreeMap<(Family, TrafficSide), usize>,
    direct_access: usize,
    endpoints: usize,
    digest: u128,
}

/// What the table has of one Service.
#[derive(Clone, Debug, Default)]
struct Known {
    created: i64,
    keys: Box<[FrontendKey]>,
    pools: Box<[PoolKey]>,
    existing: Box<[PortKey]>,
    cluster_ips: Box<[IpAddr]>,
    health_checks: Box<[(Family, HealthCheck)]>,
    without_local: Box<[(Family, TrafficSide)]>,
    direct_access: bool,
}

impl Known {
    fn is_empty(&self) -> bool {
        let counted = self.direct_access || !self.without_local.is_empty();
        self.keys.is_empty() && self.cluster_ips.is_empty() && self.health_checks.is_empty() && !counted
    }
}

/// A value before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<T> {
    /// Before the change; none when it is new.
    pub before: Option<T>,
    /// After the change; none when it is gone.
    pub after: Option<T>,
}

/// What changed between two states of a table. Several changes gather in one: only first and last count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// The table was empty before: all of it is new, and nothing of it is named below, or a node's first table would be
    /// held twice.
    pub all: bool,
    /// Settings or node facts changed: whatever depends on them has to be written again.
    pub context: bool,
    /// Frontends that differ.
    pub frontends: BTreeMap<FrontendKey, Change<Frontend>>,
    /// Pools that differ.
    pub pools: BTreeMap<PoolKey, Change<Arc<Pool>>>,
    /// Service ports whose slices name other addresses than before ([`super::Compiled::existing`]). Means nothing to
    /// new connections.
    pub existing: BTreeMap<PortKey, Change<Arc<[IpPort]>>>,
    /// ClusterIPs that came or went ([`ForwardingTable::cluster_ips`]).
    pub cluster_ips: BTreeMap<IpAddr, Change<()>>,
}

impl Diff {
    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.all
            && !self.context
            && self.frontends.is_empty()
            && self.pools.is_empty()
            && self.existing.is_empty()
            && self.cluster_ips.is_empty()
    }
}

/// Notes a change in a map of changes, unless `all` is new; one that comes back to where it began is forgotten.
fn note<K: Ord, T: PartialEq>(
    all: bool,
    changes: &mut BTreeMap<K, Change<T>>,
    key: K,
    before: Option<T>,
    after: Option<T>,
) {
    if all {
        return;
    }
    match changes.entry(key) {
        Entry::Vacant(vacant) => {
            if before != after {
                vacant.insert(Change { before, after });
            }
        }
        Entry::Occupied(mut occupied) => {
            occupied.get_mut().after = after;
            if occupied.get().before == occupied.get().after {
                occupied.remove();
            }
        }
    }
}

impl ForwardingTable {
    /// Settings and node facts.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Changes settings and node facts. The caller compiles every Service anew when what [`super::compile`]
    /// reads of them is different.
    pub fn set_context(&mut self, context: Context, diff: &mut Diff) {
        if self.context != context {
            self.context = context;
            diff.context = true;
        }
    }

    /// The frontend that has this key.
    #[must_use]
    pub fn frontend(&self, key: &FrontendKey) -> Option<&Frontend> {
        self.frontends.get(key)
    }

    /// All frontends, in no order.
    pub fn frontends(&self) -> impl Iterator<Item = (&FrontendKey, &Frontend)> {
        self.frontends.iter()
    }

    /// The pool of this name.
    #[must_use]
    pub fn pool(&self, key: &PoolKey) -> Option<&Arc<Pool>> {
        self.pools.get(key)
    }

    /// All pools, in no order.
    pub fn pools(&self) -> impl Iterator<Item = (&PoolKey, &Arc<Pool>)> {
        self.pools.iter()
    }

    /// The frontends that a Service has, in no order.
    pub fn frontends_of(&self, service: &ServiceName) -> impl Iterator<Item = (&FrontendKey, &Frontend)> {
        let keys = self.services.get(service).map(|known| &*known.keys);
        let frontends = keys
            .unwrap_or_default()
            .iter()
            .filter_map(|key| self.frontends.get_key_value(key));
        frontends.filter(move |(_, frontend)| frontend.owner.service == *service)
    }

    /// The addresses that slices name for a TCP port, sorted; none when it is not known
    /// ([`super::Settings::reset_removed`]).
    #[must_use]
    pub fn existing(&self, key: &PortKey) -> Option<&Arc<[IpPort]>> {
        self.existing.get(key)
    }

    /// The ClusterIPs of all Services, those apart that the policy leaves alone, in no order. What is addressed to one
    /// of them and to no frontend is refused: the port is none of its Service's.
    pub fn cluster_ips(&self) -> impl Iterator<Item = IpAddr> {
        self.cluster_ips.keys().copied()
    }

    /// Whether a Service has this ClusterIP.
    #[must_use]
    pub fn is_cluster_ip(&self, address: IpAddr) -> bool {
        self.cluster_ips.contains_key(&address)
    }

    /// What load balancers are told, for each Service with a `healthCheckNodePort`, by Service and family.
    pub fn health_checks(&self) -> impl Iterator<Item = (&ServiceName, Family, HealthCheck)> {
        let checks = self.health_checks.iter();
        checks.map(|((name, family), check)| (name, *family, *check))
    }

    /// Another number whenever a change touched [`ForwardingTable::health_checks`].
    #[must_use]
    pub fn health_checks_version(&self) -> u64 {
        self.health_checks_version
    }

    /// How many Service ports have endpoints, but none on this node that policy Local lets them use.
    #[must_use]
    pub fn without_local(&self, family: Family, side: TrafficSide) -> usize {
        self.without_local.get(&(family, side)).copied().unwrap_or(0)
    }

    /// How many Services ask for direct access ([`super::Service::direct_access`]).
    #[must_use]
    pub fn direct_access_count(&self) -> usize {
        self.direct_access
    }

    /// How many Services are in the table.
    #[must_use]
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// How many endpoints all pools have together.
    #[must_use]
    pub fn endpoint_count(&self) -> usize {
        self.endpoints
    }

    /// Digest of all frontends and pools. Tables that forward to the same endpoints have the same digest, on
    /// whatever node and in whatever order they were built.
    #[must_use]
    pub fn digest(&self) -> u128 {
        self.digest
    }

    /// The Services that are in the table.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.keys()
    }

    /// Puts a Service in, in place of what the table had of it.
    pub fn set(&mut self, compiled: Compiled, diff: &mut Diff) {
        let Compiled {
            service,
            created,
            frontends,
            pools,
            existing,
            cluster_ips,
            health_checks,
            without_local,
            direct_access,
            problems: _,
        } = compiled;
        let known = Known {
            created,
            keys: frontends.iter().map(|(key, _)| *key).collect(),
            pools: pools.iter().map(|(key, _)| key.clone()).collect(),
            existing: existing.iter().map(|(key, _)| key.clone()).collect(),
            cluster_ips: cluster_ips.into(),
            health_checks: health_checks.into(),
            without_local: without_local.into(),
            direct_access,
        };
        let old = *self.services.remove(&service).unwrap_or_default();
        self.set_health_checks(&service, &old.health_checks, &known.health_checks);
        self.count_known(&known, true, diff);
        self.count_known(&old, false, diff);
        if !known.is_empty() {
            self.services.insert(service.clone(), Box::new(known));
        }
        let gone: Vec<_> = old
            .pools
            .into_iter()
            .filter(|key| pools.iter().all(|(new, _)| new != key))
            .collect();
        for (key, pool) in pools {
            self.put_pool(key, Some(pool), diff);
        }
        for key in gone {
            self.put_pool(key, None, diff);
        }
        for key in old.existing {
            if existing.iter().all(|(new, _)| *new != key) {
                let before = self.existing.remove(&key);
                note(diff.all, &mut diff.existing, key, before, None);
            }
        }
        for (key, addresses) in existing {
            let before = self.existing.insert(key.clone(), Arc::clone(&addresses));
            note(diff.all, &mut diff.existing, key, before, Some(addresses));
        }
        for key in old.keys {
            if frontends.iter().all(|(new, _)| *new != key) {
                self.put_claim(key, &service, None, diff);
            }
        }
        for (key, frontend) in frontends {
            self.put_claim(key, &service, Some(frontend), diff);
        }
    }

    /// Takes a Service out.
    pub fn remove(&mut self, service: &ServiceName, diff: &mut Diff) {
        self.set(Compiled::nothing(service.clone()), diff);
    }

    fn set_health_checks(
        &mut self,
        service: &ServiceName,
        before: &[(Family, HealthCheck)],
        after: &[(Family, HealthCheck)],
    ) {
        if before == after {
            return;
        }
        for (family, _) in before {
            self.health_checks.remove(&(service.clone(), *family));
        }
        for &(family, check) in after {
            self.health_checks.insert((service.clone(), family), check);
        }
        self.health_checks_version += 1;
    }

    /// Counts in, or out, what a Service adds to the sums over all of them.
    fn count_known(&mut self, known: &Known, comes: bool, diff: &mut Diff) {
        let count = |number: &mut usize| {
            *number = if comes {
                *number + 1
            } else {
                number.saturating_sub(1)
            }
        };
        for &address in &known.cluster_ips {
            let number = self.cluster_ips.entry(address).or_default();
            let before = (*number > 0).then_some(());
            count(number);
            let after = (*number > 0).then_some(());
            if after.is_none() {
                self.cluster_ips.remove(&address);
            }
            note(diff.all, &mut diff.cluster_ips, address, before, after);
        }
        for what in &known.without_local {
            count(self.without_local.entry(*what).or_default());
        }
        if known.direct_access {
            count(&mut self.direct_access);
        }
    }

    fn put_pool(&mut self, key: PoolKey, pool: Option<Pool>, diff: &mut Diff) {
        let before = self.pools.get(&key).cloned();
        if before.as_deref() == pool.as_ref() {
            return;
        }
        let after = pool.map(Arc::new);
        for (pool, sign) in [(&before, false), (&after, true)] {
            if let Some(pool) = pool {
                self.count(pool_digest(&key, pool), sign);
                self.endpoints = if sign {
                    self.endpoints + pool.endpoints.len()
                } else {
                    self.endpoints - pool.endpoints.len()
                };
            }
        }
        match &after {
            Some(pool) => self.pools.insert(key.clone(), Arc::clone(pool)),
            None => self.pools.remove(&key),
        };
        note(diff.all, &mut diff.pools, key, before, after);
    }

    /// Replaces, adds or removes one Service's claim to a key, and settles who has it.
    fn put_claim(
        &mut self,
        key: FrontendKey,
        service: &ServiceName,
        claim: Option<Frontend>,
        diff: &mut Diff,
    ) {
        let before = self.frontends.remove(&key);
        let mut claims = self.outranked.remove(&key).unwrap_or_default();
        claims.extend(before.clone());
        claims.retain(|frontend| frontend.owner.service != *service);
        claims.extend(claim);
        let best = (0..claims.len()).min_by_key(|&at| self.rank(&claims[at]));
        let after = best.map(|at| claims.swap_remove(at));
        if !claims.is_empty() {
            self.outranked.insert(key, claims);
        }
        if let Some(frontend) = &after {
            self.frontends.insert(key, frontend.clone());
        }
        for (frontend, sign) in [(&before, false), (&after, true)] {
            if let Some(frontend) = frontend {
                self.count(frontend_digest(&key, frontend), sign);
            }
        }
        note(diff.all, &mut diff.frontends, key, before, after);
    }

    /// Who comes first when several claim a key: what the cluster's own controllers allocate before what a
    /// user wrote (nobody takes a ClusterIP over by `externalIPs`, CVE-2020-8554), then the older Service.
    fn rank<'a>(&self, frontend: &'a Frontend) -> (u8, i64, &'a ServiceName, &'a str) {
        let kind = match frontend.kind {
            FrontendKind::ClusterIP | FrontendKind::NodePort => 0,
            FrontendKind::LoadBalancerIP => 1,
            FrontendKind::ExternalIP => 2,
        };
        let service = &frontend.owner.service;
        let created = self.services.get(service).map_or(i64::MAX, |known| known.created);
        (kind, created, service, &frontend.owner.port)
    }

    /// Adds an entry's digest to the table's, or takes it away. A sum, so that order does not matter.
    fn count(&mut self, entry: u128, add: bool) {
        self.digest = if add {
            self.digest.wrapping_add(entry)
        } else {
            self.digest.wrapping_sub(entry)
        };
    }
}

fn frontend_digest(key: &FrontendKey, frontend: &Frontend) -> u128 {
    let Frontend {
        owner,
        kind: _,
        action,
        sources,
    } = frontend;
    let action = match action {
        Action::Balance { pool, masquerade } => format!("{:?} {:?} {masquerade:?}", pool.owner, pool.policy),
        Action::External { inside, outside } => {
            let outside = outside.as_ref().map(|pool| (&pool.owner, pool.policy));
            format!("{:?} {:?} else {outside:?}", inside.owner, inside.policy)
        }
        Action::Reject => "reject".to_owned(),
        Action::Drop => "drop".to_owned(),
    };
    digest(&format!("frontend {key:?} {owner:?} {action} {sources:?}"))
}

fn pool_digest(key: &PoolKey, pool: &Pool) -> u128 {
    let mut text = format!(
        "pool {:?} {} {:?} {:?}",
        key.owner, key.family, key.policy, pool.affinity
    );
    if let Some(scheduler) = pool.scheduler {
        text.push_str(&format!(" {scheduler}"));
    }
    if pool.unit != 1 {
        text.push_str(&format!(" x{}", pool.unit));
    }
    for endpoint in &pool.endpoints {
        text.push(' ');
        text.push_str(&endpoint.address.to_string());
        if endpoint.share != 1 {
            text.push_str(&format!("*{}", endpoint.share));
        }
    }
    digest(&text)
}

fn digest(text: &str) -> u128 {
    Sha256::digest(text)
        .iter()
        .take(16)
        .fold(0, |sum, byte| (sum << 8) | u128::from(*byte))
}

#[cfg(test)]
mod tests;

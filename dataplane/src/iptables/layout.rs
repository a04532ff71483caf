//! Which frontends share a chain, and which chains a change of the table touches.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use super::names::{Chain, PORTS_IN_BLOCK, Table};
use crate::model::{Action, Destination, Diff, Family, ForwardingTable, Frontend, FrontendKey};

/// A chain in its table.
pub(super) type ChainId = (Table, Chain);

/// The chains that are there whatever the table holds: their jumps and the chains that jump to them never change
/// with Services.
pub(super) const FIXED: [ChainId; 11] = [
    (Table::Nat, Chain::Services),
    (Table::Nat, Chain::NodeAddresses),
    (Table::Nat, Chain::NodePorts),
    (Table::Nat, Chain::NonLocal),
    (Table::Nat, Chain::Postrouting),
    (Table::Filter, Chain::Services),
    (Table::Filter, Chain::NodeAddresses),
    (Table::Filter, Chain::NodePorts),
    (Table::Filter, Chain::Forward),
    (Table::Filter, Chain::Refuse),
    (Table::Filter, Chain::Unallocated),
];

/// The frontends of one family by the bucket that they are in.
///
/// Buckets follow from the key alone (the last byte of the address; the block of a node port), so that the same
/// table gives the same chains whatever came before, and a new Service never moves another one.
#[derive(Debug, Default)]
pub(super) struct Layout {
    /// Sorted, so that a bucket's rules have one order.
    buckets: HashMap<Chain, Vec<FrontendKey>>,
    /// The ClusterIPs of those buckets, sorted: behind all frontends, the rest of a ClusterIP is refused.
    cluster_ips: HashMap<Chain, Vec<IpAddr>>,
    /// The buckets and the chains above them that have a rule in that table.
    live: BTreeSet<ChainId>,
}

impl Layout {
    /// The layout of a whole table.
    pub(super) fn of(table: &ForwardingTable, family: Family) -> Self {
        let mut layout = Self::default();
        for (key, _) in table.frontends().filter(|(key, _)| key.family == family) {
            layout.buckets.entry(bucket(key)).or_default().push(*key);
        }
        for address in table
            .cluster_ips()
            .filter(|address| Family::of(*address) == family)
        {
            layout
                .cluster_ips
                .entry(bucket_of(address))
                .or_default()
                .push(address);
        }
        layout.buckets.values_mut().for_each(|keys| keys.sort_unstable());
        layout
            .cluster_ips
            .values_mut()
            .for_each(|addresses| addresses.sort_unstable());
        let all: BTreeSet<Chain> = layout
            .buckets
            .keys()
            .chain(layout.cluster_ips.keys())
            .copied()
            .collect();
        for bucket in all {
            layout.settle(bucket, table);
        }
        layout
    }

    /// Takes in a change that `table` already contains. Gives the chains, pools' apart, whose rules it may have
    /// changed.
    pub(super) fn update(
        &mut self,
        table: &ForwardingTable,
        diff: &Diff,
        family: Family,
    ) -> BTreeSet<ChainId> {
        let mut touched = BTreeSet::new();
        if diff.context {
            touched.insert((Table::Nat, Chain::NonLocal));
            touched.insert((Table::Filter, Chain::Forward));
            touched.insert((Table::Filter, Chain::Unallocated));
            touched.extend(Table::ALL.map(|table| (table, Chain::NodeAddresses)));
            // What tells pods from others is in their own rules.
            let external = table.frontends().filter(|(key, frontend)| {
                key.family == family && matches!(frontend.action, Action::External { .. })
            });
            touched.extend(external.map(|(key, _)| (Table::Nat, bucket(key))));
        }
        let mut buckets = BTreeSet::new();
        for (address, change) in diff
            .cluster_ips
            .iter()
            .filter(|(address, _)| Family::of(**address) == family)
        {
            let bucket = bucket_of(*address);
            put_sorted(
                self.cluster_ips.entry(bucket).or_default(),
                *address,
                change.after.is_some(),
            );
            buckets.insert(bucket);
        }
        for (key, change) in diff.frontends.iter().filter(|(key, _)| key.family == family) {
            let bucket = bucket(key);
            put_sorted(
                self.buckets.entry(bucket).or_default(),
                *key,
                change.after.is_some(),
            );
            buckets.insert(bucket);
        }
        for bucket in buckets {
            self.settle(bucket, table);
            for table in Table::ALL {
                touched.extend(above(bucket).map(|chain| (table, chain)));
                touched.insert((table, bucket));
            }
        }
        touched
    }

    /// The chains that are there, pools' apart.
    pub(super) fn chains(&self) -> impl Iterator<Item = ChainId> {
        FIXED.into_iter().chain(self.live.iter().copied())
    }

    /// Whether a chain is there, pools' apart.
    pub(super) fn has(&self, id: ChainId) -> bool {
        self.is_live(id) || FIXED.contains(&id)
    }

    /// Whether this bucket, or chain above buckets, has a rule.
    pub(super) fn is_live(&self, id: ChainId) -> bool {
        self.live.contains(&id)
    }

    /// The blocks of node ports that have a rule.
    pub(super) fn port_blocks(&self, table: Table) -> impl Iterator<Item = Chain> {
        self.live
            .iter()
            .copied()
            .filter(move |(of, chain)| *of == table && matches!(chain, Chain::Ports(..)))
            .map(|(_, chain)| chain)
    }

    /// The frontends of a bucket, in the order of its rules.
    pub(super) fn frontends(&self, bucket: Chain) -> &[FrontendKey] {
        self.buckets.get(&bucket).map(Vec::as_slice).unwrap_or_default()
    }

    /// The ClusterIPs of a bucket, in the order of its rules.
    pub(super) fn cluster_ips(&self, bucket: Chain) -> &[IpAddr] {
        self.cluster_ips
            .get(&bucket)
            .map(Vec::as_slice)
            .unwrap_or_default()
    }

    /// Finds out in which tables a bucket, and what is above it, has rules.
    fn settle(&mut self, bucket: Chain, table: &ForwardingTable) {
        for of in Table::ALL {
            let mut frontends = self
                .frontends(bucket)
                .iter()
                .filter_map(|key| table.frontend(key));
            let refused = of == Table::Filter && !self.cluster_ips(bucket).is_empty();
            let used = refused || frontends.any(|frontend| has_rules(frontend, of));
            self.set_live((of, bucket), used);
            if let Chain::Addresses(low) = bucket {
                let nibble = low & 0xf;
                let used =
                    (0..16).any(|high| self.live.contains(&(of, Chain::Addresses((high << 4) | nibble))));
                self.set_live((of, Chain::Nibble(nibble)), used);
            }
        }
        if self.frontends(bucket).is_empty() {
            self.buckets.remove(&bucket);
        }
        if self.cluster_ips(bucket).is_empty() {
            self.cluster_ips.remove(&bucket);
        }
    }

    fn set_live(&mut self, id: ChainId, live: bool) {
        if live {
            self.live.insert(id);
        } else {
            self.live.remove(&id);
        }
    }
}

/// Whether a frontend has rules in a table: in nat what is balanced, in filter what is not.
pub(super) fn has_rules(frontend: &Frontend, table: Table) -> bool {
    match (&frontend.action, table) {
        (Action::Balance { .. } | Action::External { .. }, Table::Nat) => true,
        (Action::Reject | Action::Drop, Table::Nat) => false,
        (Action::Reject | Action::Drop | Action::External { outside: None, .. }, Table::Filter) => true,
        (Action::Balance { .. } | Action::External { .. }, Table::Filter) => frontend.sources.is_some(),
    }
}

/// Puts an item into a sorted list, or takes it out.
fn put_sorted<T: Ord>(list: &mut Vec<T>, item: T, is_there: bool) {
    match (list.binary_search(&item), is_there) {
        (Err(at), true) => list.insert(at, item),
        (Ok(at), false) => {
            list.remove(at);
        }
        _ => (),
    }
}

/// The chain that has a frontend's rules.
fn bucket(key: &FrontendKey) -> Chain {
    match key.destination {
        Destination::Address(address) => bucket_of(address),
        Destination::NodePort => Chain::Ports(key.protocol, key.port - key.port % PORTS_IN_BLOCK),
    }
}

fn bucket_of(address: IpAddr) -> Chain {
    match address {
        IpAddr::V4(address) => Chain::Addresses(address.octets()[3]),
        IpAddr::V6(address) => Chain::Addresses(address.octets()[15]),
    }
}

/// The chains on the way from the root to a bucket.
fn above(bucket: Chain) -> [Chain; 2] {
    match bucket {
        Chain::Addresses(low) => [Chain::Services, Chain::Nibble(low & 0xf)],
        _ => [Chain::NodePorts, Chain::NodePorts],
    }
}

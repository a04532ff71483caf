//! What the kernel holds as far as we know, and what a change of the model means for it. Pure.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque, hash_map};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::entry::{Class, Entry};
use super::layout::{Layout, Purpose};
use super::number::{
    BY_ADDRESS, DROP, DROP_CLASS, EXTERNAL, FIRST_CLASS, FIRST_POOL, ID, Identifiers, LAST_CLASS, MASQUERADE,
    MASQUERADE_NON_LOCAL, REFUSE, REFUSE_CLASS, RESTRICTED, mark_of, of_class,
};
use super::pool::{Slots, Stages};
use crate::model::{
    Action, Context, Destination, Diff, Family, ForwardingTable, Frontend, FrontendKey, Masquerade, Pool,
    PoolKey, ServicePortName,
};

/// What the table holds of Services.
#[derive(Debug)]
pub(super) struct State {
    pub(super) layout: Layout,
    pub(super) pools: HashMap<PoolKey, Slots>,
    pub(super) frontends: HashMap<FrontendKey, Written>,
    pub(super) classes: HashMap<Class, ClassInUse>,
    pub(super) outside: Counted<u32, u32>,
    pub(super) hairpins: Counted<IpAddr, ()>,
    pub(super) cluster_ips: HashSet<IpAddr>,
    pub(super) node_addresses: BTreeSet<IpAddr>,
    /// IPVS: pools that have a mark.
    pub(super) marks: Counted<u32, ()>,
    /// IPVS: Service addresses that the node has for its own one by one.
    pub(super) vips: Counted<IpAddr, ()>,
    /// IPVS: frontends whose address and port somebody else's virtual service has.
    pub(super) foreign: HashSet<FrontendKey>,
    /// IPVS: addresses that need not be among `vips`.
    own: OwnAddresses,
    /// IPVS: addresses and ports whose virtual service may be another one now.
    unsettled: BTreeSet<FrontendKey>,
    pub(super) pool_ids: Identifiers,
    pub(super) restriction_ids: Identifiers,
    pub(super) class_ids: Identifiers,
    /// Classes that no pool has, those first that have been so for longest, each with the change that made it so.
    pub(super) idle: VecDeque<(Class, u64)>,
    /// Counts changes.
    round: u64,
    /// Whether the classes of [`COMMON`] are there for good.
    has_common: bool,
}

/// Pools of up to so many endpoints find their class made. A new class costs more than a new element: the kernel walks
/// a whole map when a rule of a new chain looks it up (`nf_tables_bind_set`), 4 ms for 100,000 endpoints.
const COMMON: u32 = 64;
/// So many classes are kept beyond those although no pool has them: a pool that grows comes by them again.
const KEPT: usize = 64;

/// The pools that refuse and drop.
const REFUSE_AND_DROP: [Entry; 4] = [
    Entry::Class(REFUSE_CLASS, Class::Refuse),
    Entry::Class(DROP_CLASS, Class::Drop),
    Entry::Pool(REFUSE, of_class(REFUSE_CLASS, REFUSE)),
    Entry::Pool(DROP, of_class(DROP_CLASS, DROP)),
];

/// What was written for a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) number: u32,
    /// With external policy Local what map `outside` has for it; 0 otherwise.
    pub(super) outside: u32,
    pub(super) restriction: Option<Box<Restriction>>,
}

impl Written {
    /// Its number without the restriction in front.
    pub(super) fn behind(&self) -> u32 {
        self.restriction.as_ref().map_or(self.number, |it| it.behind)
    }

    /// IPVS: the pools that it finds by their marks.
    pub(super) fn marks(&self) -> impl Iterator<Item = u32> + use<> {
        let behind = self.behind();
        let is_external = behind & EXTERNAL != 0;
        let by_address = behind & BY_ADDRESS != 0;
        let own = (is_external || !by_address).then_some(behind & ID);
        let outside = (is_external && !by_address).then_some(self.outside);
        let marks = own.into_iter().chain(outside);
        marks.filter(|id| *id >= FIRST_POOL)
    }

    /// IPVS: the pool of its address.
    pub(super) fn address_pool(&self) -> Option<u32> {
        let behind = self.behind();
        let id = match behind & EXTERNAL {
            0 => behind & ID,
            _ => self.outside,
        };
        (behind & BY_ADDRESS != 0 && id >= FIRST_POOL).then_some(id)
    }

    /// Whether packets to it may get to an endpoint.
    fn balances(&self) -> bool {
        self.behind() & ID >= FIRST_POOL
    }
}

/// Addresses that are the node's without a route for each.
#[derive(Debug, Default, PartialEq, Eq)]
struct OwnAddresses {
    ranges: Vec<IpNet>,
    interfaces: Vec<IpAddr>,
}

impl OwnAddresses {
    fn have(&self, address: IpAddr) -> bool {
        self.interfaces.contains(&address) || self.ranges.iter().any(|range| range.contains(&address))
    }
}

/// Who may use a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Restriction {
    /// The number of the frontend without it.
    pub(super) behind: u32,
    pub(super) sources: Vec<IpNet>,
}

/// A class with its number and how many pools have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClassInUse {
    pub(super) number: u16,
    pub(super) pools: usize,
}

/// Elements that several things ask for.
#[derive(Debug)]
pub(super) struct Counted<K, V> {
    wanted: HashMap<K, (V, usize)>,
    pub(super) written: HashMap<K, V>,
    touched: HashSet<K>,
}

impl<K, V> Default for Counted<K, V> {
    fn default() -> Self {
        Self {
            wanted: HashMap::new(),
            written: HashMap::new(),
            touched: HashSet::new(),
        }
    }
}

impl<K: Copy + Eq + std::hash::Hash, V: Copy + PartialEq> Counted<K, V> {
    pub(super) fn add(&mut self, key: K, value: V) {
        let (known, count) = self.wanted.entry(key).or_insert((value, 0));
        *known = value;
        *count += 1;
        self.touched.insert(key);
    }

    fn remove(&mut self, key: K) {
        if let hash_map::Entry::Occupied(mut known) = self.wanted.entry(key) {
            if known.get().1 > 1 {
                known.get_mut().1 -= 1;
            } else {
                known.remove();
            }
        }
        self.touched.insert(key);
    }

    /// Nobody asks for any of them any more.
    fn forget(&mut self) {
        self.touched.extend(self.wanted.drain().map(|(key, _)| key));
    }

    /// Takes what was read from the kernel for what is written.
    pub(super) fn adopt(&mut self, written: HashMap<K, V>) {
        self.touched.extend(written.keys().copied());
        self.written = written;
    }

    /// What is different since the last time: each key with its value before and after.
    fn settle(&mut self) -> Vec<(K, Option<V>, Option<V>)> {
        let touched: Vec<K> = self.touched.drain().collect();
        let changes = touched.into_iter().map(|key| {
            let after = self.wanted.get(&key).map(|(value, _)| *value);
            let before = match after {
                Some(after) => self.written.insert(key, after),
                None => self.written.remove(&key),
            };
            (key, before, after)
        });
        changes.collect()
    }
}

/// What a change means for the kernel.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// Classes whose chains have to be made first.
    pub(super) new_classes: Vec<(Class, u16)>,
    pub(super) stages: Stages,
    /// Classes whose chains go last.
    pub(super) old_classes: Vec<(Class, u16)>,
    /// Timeouts that no class has any more: their maps go with the last of them.
    pub(super) old_timeouts: Vec<u32>,
    /// What has to be in IPVS when this is written.
    pub(super) asked: Asked,
}

/// What a change asks of IPVS: all that may be different, each once.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// What pools have now, by their number; none for one that is gone.
    pub(crate) pools: Vec<(u32, Option<AskedPool>)>,
    /// The pool that an address and port has; none where it has none any more.
    pub(crate) addresses: Vec<(FrontendKey, Option<u32>)>,
    /// Whether a pool is found by its mark.
    pub(crate) marks: Vec<(u32, bool)>,
    /// Whether an address is to be the node's by a route of its own.
    pub(crate) vips: Vec<(IpAddr, bool)>,
}

/// What IPVS has already that is none of the table's.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Frontends whose address and port somebody else's virtual service has.
    pub(crate) foreign: HashSet<FrontendKey>,
    /// Pools whose marks virtual services have, sorted.
    pub(crate) marked: Vec<u32>,
}

/// A pool that is asked for.
#[derive(Clone, Debug)]
pub(crate) struct AskedPool {
    /// Whose it is.
    pub(crate) owner: Arc<ServicePortName>,
    /// What is in it.
    pub(crate) pool: Arc<Pool>,
}

/// Why a change cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    #[error("more than 1,048,560 Service ports with endpoints")]
    Pools,
    #[error("more than 4,080 different sizes of pools, by endpoints and weights, and affinity timeouts")]
    Classes,
    #[error("more than 1,048,576 load balancer IPs and ports with source ranges")]
    Restrictions,
}

impl State {
    pub(super) fn new(layout: Layout) -> Self {
        Self {
            layout,
            pools: HashMap::new(),
            frontends: HashMap::new(),
            classes: HashMap::new(),
            outside: Counted::default(),
            hairpins: Counted::default(),
            cluster_ips: HashSet::new(),
            node_addresses: BTreeSet::new(),
            marks: Counted::default(),
            vips: Counted::default(),
            foreign: HashSet::new(),
            own: OwnAddresses::default(),
            unsettled: BTreeSet::new(),
            pool_ids: Identifiers::new(FIRST_POOL, ID),
            restriction_ids: Identifiers::new(1, ID),
            class_ids: Identifiers::new(FIRST_CLASS.into(), LAST_CLASS.into()),
            idle: VecDeque::new(),
            round: 0,
            has_common: false,
        }
    }

    /// One that holds nothing, and gives no pool a number of those that IPVS knows otherwise.
    pub(super) fn knowing(layout: Layout, known: Known) -> Self {
        let mut state = Self::new(layout);
        state.foreign = known.foreign;
        let marked = known.marked.into_iter();
        let marked: Vec<u32> = marked.filter(|id| (FIRST_POOL..=ID).contains(id)).collect();
        state.pool_ids.adopt(&marked);
        state
    }

    /// The elements that are always there: the pools that refuse and drop.
    pub(super) fn fixed(purpose: Purpose) -> &'static [Entry] {
        match purpose {
            Purpose::Translate => &REFUSE_AND_DROP,
            Purpose::Admit => &[],
        }
    }

    /// Takes in what a diff changes.
    pub(super) fn change(&mut self, table: &ForwardingTable, diff: &Diff) -> Result<Change, Full> {
        let family = self.layout.family;
        let pools = diff.pools.iter().filter(|(key, _)| key.family == family);
        let frontends = diff.frontends.iter().filter(|(key, _)| key.family == family);
        let addresses = diff
            .cluster_ips
            .iter()
            .filter(|(ip, _)| Family::of(**ip) == family);
        let mut change = Change::default();
        self.take_in(
            pools.map(|(key, change)| (key, change.after.as_ref())),
            frontends.map(|(key, change)| (key, change.after.as_ref())),
            addresses.map(|(ip, change)| (*ip, change.after.is_some())),
            diff.context,
            table,
            &mut change,
        )?;
        Ok(change)
    }

    /// All of a table, where the kernel has nothing of it: elements are in none of the change's stages, but all of
    /// [`State::of_services`]. This one holds nothing yet.
    pub(super) fn of_table(mut self, table: &ForwardingTable) -> Result<(Self, Change), Full> {
        let mut change = Change::default();
        change.stages.all = true;
        self.take_table(table, &mut change)?;
        Ok((self, change))
    }

    /// Takes in a whole table.
    pub(super) fn become_table(&mut self, table: &ForwardingTable) -> Result<Change, Full> {
        let mut change = Change::default();
        self.take_table(table, &mut change)?;
        Ok(change)
    }

    fn take_table(&mut self, table: &ForwardingTable, change: &mut Change) -> Result<(), Full> {
        let family = self.layout.family;
        let gone_pools: Vec<_> = self
            .pools
            .keys()
            .filter(|key| table.pool(key).is_none())
            .cloned()
            .collect();
        let gone: Vec<_> = self
            .frontends
            .keys()
            .filter(|key| table.frontend(key).is_none())
            .copied()
            .collect();
        let gone_addresses: Vec<_> = self
            .cluster_ips
            .iter()
            .filter(|ip| !table.is_cluster_ip(**ip))
            .copied()
            .collect();
        let pools = table.pools().filter(|(key, _)| key.family == family);
        let frontends = table.frontends().filter(|(key, _)| key.family == family);
        let addresses = table.cluster_ips().filter(|ip| Family::of(*ip) == family);
        self.take_in(
            pools
                .map(|(key, pool)| (key, Some(pool)))
                .chain(gone_pools.iter().map(|key| (key, None))),
            frontends
                .map(|(key, frontend)| (key, Some(frontend)))
                .chain(gone.iter().map(|key| (key, None))),
            addresses
                .map(|ip| (ip, true))
                .chain(gone_addresses.into_iter().map(|ip| (ip, false))),
            true,
            table,
            change,
        )
    }

    fn take_in<'a>(
        &mut self,
        pools: impl Iterator<Item = (&'a PoolKey, Option<&'a Arc<Pool>>)>,
        frontends: impl Iterator<Item = (&'a FrontendKey, Option<&'a Frontend>)>,
        cluster_ips: impl Iterator<Item = (IpAddr, bool)>,
        new_context: bool,
        table: &ForwardingTable,
        change: &mut Change,
    ) -> Result<(), Full> {
        self.round += 1;
        let admits = self.layout.purpose == Purpose::Admit;
        if admits && new_context {
            self.set_own(table.context());
        }
        if !self.has_common && !admits {
            for slots in 1..=COMMON {
                self.acquire(Class::Pick(slots), change)?;
            }
            self.has_common = true;
        }
        // Frontends need the pools that are there, and must leave those that go.
        let mut gone = Vec::new();
        let mut otherwise_found = BTreeSet::new();
        for (key, pool) in pools {
            match pool {
                Some(pool) if admits => {
                    if self.hold_pool(key, pool, change)? {
                        otherwise_found.insert(&key.owner.service);
                    }
                }
                Some(pool) => self.change_pool(key, pool, change)?,
                None => gone.push(key),
            }
        }
        for (key, frontend) in frontends {
            self.change_frontend(key, frontend, change)?;
        }
        for service in otherwise_found {
            for (key, frontend) in table.frontends_of(service) {
                if key.family == self.layout.family {
                    self.change_frontend(key, Some(frontend), change)?;
                }
            }
        }
        for key in gone {
            self.remove_pool(key, change);
        }
        for (ip, is_there) in cluster_ips {
            let changed = if is_there {
                self.cluster_ips.insert(ip)
            } else {
                self.cluster_ips.remove(&ip)
            };
            if changed {
                switch_set(is_there, Entry::ClusterIp(ip), &mut change.stages);
            }
        }
        if new_context {
            self.set_node_addresses(table.context(), change);
        }
        for key in std::mem::take(&mut self.unsettled) {
            change.asked.addresses.push((key, self.pool_at(&key)));
        }
        for (id, before, after) in self.outside.settle() {
            let entry = |value| Entry::Outside(id, value);
            change.stages.support(before.map(entry), after.map(entry));
        }
        for (id, before, after) in self.marks.settle() {
            let entry = |()| Entry::Mark(id, mark_of(self.layout.family, id));
            change.stages.support(before.map(entry), after.map(entry));
            change.asked.marks.push((id, after.is_some()));
        }
        for (ip, before, after) in self.vips.settle() {
            let entry = |()| Entry::Vip(ip);
            change.stages.switch(before.map(entry), after.map(entry));
            change.asked.vips.push((ip, after.is_some()));
        }
        for (ip, before, after) in self.hairpins.settle() {
            let entry = |()| Entry::Hairpin(ip);
            change.stages.support(before.map(entry), after.map(entry));
        }
        self.drop_idle(change);
        Ok(())
    }

    /// Takes a frontend that was read from the kernel for what is written.
    pub(super) fn adopt_frontend(&mut self, key: FrontendKey, written: Written) {
        if self.layout.purpose == Purpose::Admit {
            for id in written.marks() {
                self.marks.add(id, ());
            }
            if let Some(vip) = vip(&self.own, &key, &written) {
                self.vips.add(vip, ());
            }
        }
        self.frontends.insert(key, written);
    }

    /// Takes in which addresses are the node's without a route for each.
    fn set_own(&mut self, context: &Context) {
        let own = OwnAddresses {
            ranges: context.service_ranges(self.layout.family),
            interfaces: context.node.interface_addresses.clone(),
        };
        if self.own == own {
            return;
        }
        self.own = own;
        self.vips.forget();
        for (key, written) in &self.frontends {
            if let Some(vip) = vip(&self.own, key, written) {
                self.vips.add(vip, ());
            }
        }
    }

    /// Takes in what IPVS is to have of a pool. True when its frontends find it in another way than before.
    fn hold_pool(&mut self, key: &PoolKey, pool: &Arc<Pool>, change: &mut Change) -> Result<bool, Full> {
        let mut slots = self.take_pool(key)?;
        let had_affinity = slots.has_affinity();
        self.count_hairpins(&slots, false);
        slots.hold(Arc::clone(pool));
        self.count_hairpins(&slots, true);
        let asked = AskedPool {
            owner: Arc::clone(&key.owner),
            pool: Arc::clone(pool),
        };
        change.asked.pools.push((slots.id, Some(asked)));
        let differs = had_affinity != slots.has_affinity();
        self.pools.insert(key.clone(), slots);
        Ok(differs)
    }

    /// A pool as it is, or a new one.
    fn take_pool(&mut self, key: &PoolKey) -> Result<Slots, Full> {
        match self.pools.remove(key) {
            Some(slots) => Ok(slots),
            None => Ok(Slots::new(self.pool_ids.take().ok_or(Full::Pools)?)),
        }
    }

    fn change_pool(&mut self, key: &PoolKey, pool: &Arc<Pool>, change: &mut Change) -> Result<(), Full> {
        let mut slots = self.take_pool(key)?;
        let before = slots.class();
        self.count_hairpins(&slots, false);
        slots.change(Some(pool), &mut change.stages);
        self.count_hairpins(&slots, true);
        let after = slots.class();
        if before != after {
            let number =
                |class: Class, state: &Self| state.classes.get(&class).map_or(0, |known| known.number);
            let old = before.map(|class| slots.entry(number(class, self)));
            if let Some(class) = after {
                self.acquire(class, change)?;
            }
            let new = after.map(|class| slots.entry(number(class, self)));
            change.stages.support(old, new);
            if let Some(class) = before {
                self.release(class);
            }
        }
        self.pools.insert(key.clone(), slots);
        Ok(())
    }

    fn remove_pool(&mut self, key: &PoolKey, change: &mut Change) {
        let Some(mut slots) = self.pools.remove(key) else {
            return;
        };
        self.count_hairpins(&slots, false);
        if let Some(class) = slots.class() {
            let number = self.classes.get(&class).map_or(0, |known| known.number);
            change.stages.shrink.push(slots.entry(number));
            self.release(class);
        }
        slots.change(None, &mut change.stages);
        change.asked.pools.push((slots.id, None));
        self.pool_ids.give_back(slots.id);
    }

    fn count_hairpins(&mut self, slots: &Slots, comes: bool) {
        for ip in slots.local() {
            if comes {
                self.hairpins.add(ip, ());
            } else {
                self.hairpins.remove(ip);
            }
        }
    }

    fn acquire(&mut self, class: Class, change: &mut Change) -> Result<(), Full> {
        if let Some(known) = self.classes.get_mut(&class) {
            if known.pools == 0 {
                self.idle.retain(|(idle, _)| *idle != class);
            }
            known.pools += 1;
            return Ok(());
        }
        let number = self.class_ids.take().ok_or(Full::Classes)?;
        let number = u16::try_from(number).map_err(|_| Full::Classes)?;
        self.classes.insert(class, ClassInUse { number, pools: 1 });
        change.new_classes.push((class, number));
        Ok(())
    }

    fn release(&mut self, class: Class) {
        if let Some(known) = self.classes.get_mut(&class) {
            known.pools = known.pools.saturating_sub(1);
            if known.pools == 0 {
                self.idle.push_back((class, self.round));
            }
        }
    }

    /// Removes classes that have been idle for longest, but none that became so just now: a packet may still be on its
    /// way to it.
    fn drop_idle(&mut self, change: &mut Change) {
        while self.idle.len() > KEPT {
            let Some((class, _)) = self
                .idle
                .front()
                .copied()
                .filter(|(_, round)| *round < self.round)
            else {
                return;
            };
            self.idle.pop_front();
            let Some(known) = self.classes.remove(&class) else {
                continue;
            };
            self.class_ids.give_back(known.number.into());
            change.old_classes.push((class, known.number));
            if let Some(seconds) = class.seconds()
                && self.classes.keys().all(|other| other.seconds() != Some(seconds))
            {
                change.old_timeouts.push(seconds);
            }
        }
    }

    fn change_frontend(
        &mut self,
        key: &FrontendKey,
        frontend: Option<&Frontend>,
        change: &mut Change,
    ) -> Result<(), Full> {
        let before = self.frontends.remove(key);
        let behind = frontend.map(|frontend| self.number(key, frontend));
        if let Some(before) = &before {
            let number = before.behind();
            if number & EXTERNAL != 0 {
                self.outside.remove(number & ID);
            }
        }
        let mut outside = 0;
        if let (Some(number), Some(frontend)) = (behind, frontend)
            && let Action::External { outside: pool, .. } = &frontend.action
        {
            outside = pool.as_ref().map_or(DROP, |pool| self.id(pool));
            self.outside.add(number & ID, outside);
        }
        let after = match (behind, frontend) {
            (Some(behind), Some(frontend)) => Some(Written {
                outside,
                ..self.write_frontend(behind, frontend, before.as_ref(), change)?
            }),
            _ => None,
        };
        if self.layout.purpose == Purpose::Admit {
            self.ask(key, before.as_ref(), after.as_ref());
        }
        let gone = before.as_ref().filter(|before| {
            before.restriction.is_some() && after.as_ref().map(|after| after.number) != Some(before.number)
        });
        if let Some(Written {
            number,
            restriction: Some(restriction),
            ..
        }) = gone
        {
            change.stages.shrink.extend(restriction.entries(*number));
            self.restriction_ids.give_back(number & ID);
        }
        let entry = |written: &Written| Entry::Frontend(*key, written.number);
        change
            .stages
            .switch(before.as_ref().map(entry), after.as_ref().map(entry));
        if let Some(after) = after {
            self.frontends.insert(*key, after);
        }
        Ok(())
    }

    /// What IPVS is to have for a frontend.
    fn ask(&mut self, key: &FrontendKey, before: Option<&Written>, after: Option<&Written>) {
        for id in before.iter().flat_map(|written| written.marks()) {
            self.marks.remove(id);
        }
        for id in after.iter().flat_map(|written| written.marks()) {
            self.marks.add(id, ());
        }
        if let Some(vip) = before.and_then(|written| vip(&self.own, key, written)) {
            self.vips.remove(vip);
        }
        if let Some(vip) = after.and_then(|written| vip(&self.own, key, written)) {
            self.vips.add(vip, ());
        }
        for written in before.iter().chain(&after) {
            self.unsettle(key, written);
        }
    }

    /// Notes the addresses and ports by which a frontend finds its pool.
    fn unsettle(&mut self, key: &FrontendKey, written: &Written) {
        if written.address_pool().is_none() {
            return;
        }
        match key.destination {
            Destination::Address(_) => {
                self.unsettled.insert(*key);
            }
            Destination::NodePort => {
                let addresses = self.node_addresses.iter();
                self.unsettled.extend(addresses.map(|ip| at(key, *ip)));
            }
        }
    }

    /// The pool that the virtual service of an address and port is to have. A node port comes after what has the address for
    /// itself, as it does for packets.
    fn pool_at(&self, key: &FrontendKey) -> Option<u32> {
        if self.foreign.contains(key) {
            return None;
        }
        if let Some(written) = self.frontends.get(key) {
            return written.address_pool();
        }
        let Destination::Address(address) = key.destination else {
            return None;
        };
        let port = FrontendKey {
            destination: Destination::NodePort,
            ..*key
        };
        let written = self.frontends.get(&port)?;
        written
            .address_pool()
            .filter(|_| self.node_addresses.contains(&address))
    }

    /// Takes in on which addresses node ports answer.
    fn set_node_addresses(&mut self, context: &Context, change: &mut Change) {
        let wanted = context.node_port_addresses(self.layout.family);
        let wanted: BTreeSet<IpAddr> = wanted.into_iter().collect();
        let different: Vec<IpAddr> = wanted
            .symmetric_difference(&self.node_addresses)
            .copied()
            .collect();
        for ip in &different {
            switch_set(wanted.contains(ip), Entry::NodeAddress(*ip), &mut change.stages);
        }
        self.node_addresses = wanted;
        if different.is_empty() || self.layout.purpose != Purpose::Admit {
            return;
        }
        let is_found_so = |(key, written): &(&FrontendKey, &Written)| {
            key.destination == Destination::NodePort && written.address_pool().is_some()
        };
        for (key, _) in self.frontends.iter().filter(is_found_so) {
            self.unsettled.extend(different.iter().map(|ip| at(key, *ip)));
        }
    }

    /// The frontend's number. One with source ranges has a restriction in front; any change of that is a new one, so
    /// that a packet meets all of the old or all of the new.
    fn write_frontend(
        &mut self,
        behind: u32,
        frontend: &Frontend,
        before: Option<&Written>,
        change: &mut Change,
    ) -> Result<Written, Full> {
        let Some(sources) = &frontend.sources else {
            return Ok(Written {
                number: behind,
                outside: 0,
                restriction: None,
            });
        };
        let restriction = Restriction {
            behind,
            // A set of intervals takes none that overlap.
            sources: {
                let mut sources = IpNet::aggregate(&sources.to_vec());
                sources.sort_unstable();
                sources
            },
        };
        if let Some(before) = before.filter(|before| before.restriction.as_deref() == Some(&restriction)) {
            return Ok(before.clone());
        }
        let number = RESTRICTED | self.restriction_ids.take().ok_or(Full::Restrictions)?;
        change.stages.grow(restriction.entries(number));
        Ok(Written {
            number,
            outside: 0,
            restriction: Some(Box::new(restriction)),
        })
    }

    fn id(&self, pool: &PoolKey) -> u32 {
        // A table's frontends refer to its pools only; a packet that met anything else would be dropped.
        self.pools.get(pool).map_or(DROP, |slots| slots.id)
    }

    fn number(&self, key: &FrontendKey, frontend: &Frontend) -> u32 {
        match &frontend.action {
            Action::Balance { pool, masquerade } => {
                let flag = match masquerade {
                    Masquerade::Always => MASQUERADE,
                    Masquerade::NonLocal => MASQUERADE_NON_LOCAL,
                };
                flag | self.by_address(key, pool) | self.id(pool)
            }
            Action::External { inside, .. } => EXTERNAL | self.by_address(key, inside) | self.id(inside),
            Action::Reject => REFUSE,
            Action::Drop => DROP,
        }
    }

    /// The flag of frontends whose address has a virtual service of its own. That of a mark does not translate ports where it
    /// remembers clients (`ip_vs_sched_persist`), so a node port that is to has one for each of the node's addresses.
    fn by_address(&self, key: &FrontendKey, pool: &PoolKey) -> u32 {
        if self.layout.purpose != Purpose::Admit {
            return 0;
        }
        let is_one = match key.destination {
            Destination::Address(_) => !self.foreign.contains(key),
            Destination::NodePort => self.pools.get(pool).is_some_and(Slots::has_affinity),
        };
        if is_one { BY_ADDRESS } else { 0 }
    }

    /// Every element that the kernel should have now.
    pub(super) fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        let classes = self
            .classes
            .iter()
            .map(|(class, known)| Entry::Class(known.number, *class));
        Self::fixed(self.layout.purpose)
            .iter()
            .copied()
            .chain(classes)
            .chain(self.of_services())
    }

    /// Those that are there for Services and the node.
    pub(super) fn of_services(&self) -> impl Iterator<Item = Entry> + '_ {
        let class_number = |class: &Class| self.classes.get(class).map_or(0, |known| known.number);
        let pools = self.pools.values().flat_map(move |slots| {
            let own = slots.class().map(|class| slots.entry(class_number(&class)));
            own.into_iter().chain(slots.entries())
        });
        let frontends = self.frontends.iter().flat_map(|(key, written)| {
            let restriction = written.restriction.as_ref();
            let restriction = restriction
                .map(|it| it.entries(written.number))
                .unwrap_or_default();
            std::iter::once(Entry::Frontend(*key, written.number)).chain(restriction)
        });
        let outside = self
            .outside
            .written
            .iter()
            .map(|(id, value)| Entry::Outside(*id, *value));
        pools
            .chain(frontends)
            .chain(outside)
            .chain(
                self.marks
                    .written
                    .keys()
                    .map(|id| Entry::Mark(*id, mark_of(self.layout.family, *id))),
            )
            .chain(self.vips.written.keys().map(|ip| Entry::Vip(*ip)))
            .chain(self.hairpins.written.keys().map(|ip| Entry::Hairpin(*ip)))
            .chain(self.cluster_ips.iter().map(|ip| Entry::ClusterIp(*ip)))
            .chain(self.node_addresses.iter().map(|ip| Entry::NodeAddress(*ip)))
    }
}

/// A node port at one of the node's addresses.
fn at(key: &FrontendKey, address: IpAddr) -> FrontendKey {
    FrontendKey {
        destination: Destination::Address(address),
        ..*key
    }
}

/// The address of a frontend, if the node is to have it for its own by a route for it alone.
fn vip(own: &OwnAddresses, key: &FrontendKey, written: &Written) -> Option<IpAddr> {
    match key.destination {
        Destination::Address(address) => (written.balances() && !own.have(address)).then_some(address),
        Destination::NodePort => None,
    }
}

fn switch_set(is_there: bool, entry: Entry, stages: &mut Stages) {
    let (before, after) = if is_there {
        (None, Some(entry))
    } else {
        (Some(entry), None)
    };
    stages.switch(before, after);
}

impl Restriction {
    /// Its elements, under its number.
    fn entries(&self, number: u32) -> Vec<Entry> {
        let sources = self.sources.iter().map(|range| Entry::Source(number, *range));
        std::iter::once(Entry::Restricted(number, self.behind))
            .chain(sources)
            .collect()
    }
}

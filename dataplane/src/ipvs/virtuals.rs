//! Virtual services and their destinations: what is asked for, what the kernel holds as far as we know, and the commands
//! that lie between. Pure.
//!
//! A TCP or SCTP endpoint that leaves a pool goes to weight 0 and is removed when its connections have ended: it *leaves*. A
//! service that nobody asks for any more leaves with all of its endpoints. A UDP endpoint is removed at once, or its clients
//! would go on talking to it, but for one that terminates and still serves ([`Pool::draining`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::listing::Listed;
use super::options::Options;
use crate::model::{
    Destination as Place, Family, FrontendKey, IpPort, IpvsSettings, Pool, PoolEndpoint, Protocol, Scheduler,
    SchedulerKind, ServicePortName,
};
use crate::netlink::ipvs::{Command, Destination, DestinationState, ServiceKey};
use crate::nftables::{Asked, AskedPool, mark_of};

/// The first look at whether connections have ended comes after this long; each next one after twice as long as the one
/// before.
const FIRST_LOOK: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(16);

/// The scheduler that keeps a client at an endpoint, and one that older kernels have, too.
const BY_CLIENT: SchedulerKind = SchedulerKind::MaglevHashing;
const OLD_BY_CLIENT: SchedulerKind = SchedulerKind::SourceHashing;
/// What is left where the kernel has none of those that are asked for.
const LAST: Scheduler = Scheduler {
    kind: SchedulerKind::RoundRobin,
    fallback: false,
    port: false,
};

/// The virtual services of a family.
#[derive(Debug)]
pub(super) struct Virtuals {
    family: Family,
    pools: HashMap<u32, Held>,
    /// The pool of each service that is asked for.
    wanted: HashMap<ServiceKey, u32>,
    written: HashMap<ServiceKey, Written>,
    /// Services with destinations that leave, each with when to look at them.
    looks: BTreeMap<ServiceKey, Look>,
    /// No look is due before.
    next_look: Option<Instant>,
    settings: IpvsSettings,
    /// Schedulers that the kernel has not got.
    lacking: BTreeSet<SchedulerKind>,
}

/// A pool, and the services that have it.
#[derive(Debug)]
struct Held {
    asked: AskedPool,
    keys: Vec<ServiceKey>,
}

/// What the kernel has of a service.
#[derive(Debug)]
pub(super) struct Written {
    /// None where it is something that we would not write.
    pub(super) options: Option<Options>,
    pub(super) protocol: Protocol,
    owner: Option<Arc<ServicePortName>>,
    /// Its destinations that get connections.
    pool: Arc<Pool>,
    /// Its destinations of weight 0, since when.
    leaving: HashMap<IpPort, Instant>,
    /// Nobody asks for it any more.
    is_gone: bool,
}

/// Which endpoints stay for the connections that they have when they leave a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stay {
    /// All of TCP and SCTP, and of UDP those that still serve.
    Connected,
    /// Of UDP those that still serve.
    Draining,
    /// None: dh would go on to pick them, and refuse.
    Never,
}

/// When a service is looked at.
#[derive(Clone, Copy, Debug)]
struct Look {
    at: Instant,
    pause: Duration,
}

/// Commands, by when they are to be sent.
#[derive(Debug, Default)]
pub(super) struct Commands {
    /// Before packets are led to what they make. What they remove has weight 0.
    pub(super) grow: Vec<Command>,
    /// After packets are no longer led to what they remove.
    pub(super) shrink: Vec<Command>,
    /// Services whose address the node has to keep as long as they have connections.
    pub(super) left: Vec<ServiceKey>,
    /// Services of `left` that have none any more, or are asked for again.
    pub(super) ended: Vec<ServiceKey>,
}

/// The addresses that slices name for a TCP port, where that is known ([`crate::model::ForwardingTable::existing`]).
pub(super) type Existing<'a> = &'a dyn Fn(&Arc<ServicePortName>) -> Option<Arc<[IpPort]>>;

impl Virtuals {
    pub(super) fn new(family: Family, settings: IpvsSettings, lacking: BTreeSet<SchedulerKind>) -> Self {
        Self {
            family,
            pools: HashMap::new(),
            wanted: HashMap::new(),
            written: HashMap::new(),
            looks: BTreeMap::new(),
            next_look: None,
            settings,
            lacking,
        }
    }

    /// Takes a service that was found for what is written. Destinations of weight 0 leave.
    pub(super) fn adopt(
        &mut self,
        key: ServiceKey,
        options: Option<Options>,
        found: &[Listed],
        now: Instant,
    ) {
        let mut endpoints = Vec::with_capacity(found.len());
        let mut leaving = HashMap::new();
        for listed in found {
            let (address, weight) = (IpPort::from(listed.address), listed.weight);
            if weight == 0 && listed.is_translated {
                leaving.insert(address, now);
            } else {
                endpoints.push(PoolEndpoint {
                    address,
                    local: false,
                    // No share is 0: what is none of ours is written anew.
                    share: match listed.is_translated {
                        true => u8::try_from(weight).unwrap_or(0),
                        false => 0,
                    },
                });
            }
        }
        endpoints.sort_unstable_by_key(|endpoint| endpoint.address);
        let protocol = match key {
            ServiceKey::Address(protocol, _) => protocol,
            ServiceKey::Mark(..) => Protocol::Tcp,
        };
        let written = Written {
            options,
            protocol,
            owner: None,
            pool: pool_of(endpoints),
            leaving,
            is_gone: false,
        };
        self.written.insert(key, written);
    }

    /// Takes in what is asked for, and new settings. Gives the services that may have to be written.
    pub(super) fn take_in(&mut self, asked: Asked, settings: IpvsSettings) -> BTreeSet<ServiceKey> {
        let mut touched = BTreeSet::new();
        if self.settings.scheduler != settings.scheduler {
            touched.extend(self.wanted.keys());
        }
        if self.settings.graceful != settings.graceful {
            self.next_look = self.looks.values().map(|look| look.at).min();
        }
        self.settings = settings;
        let mut gone = Vec::new();
        for (id, pool) in asked.pools {
            match (pool, self.pools.get_mut(&id)) {
                (Some(asked), Some(held)) => {
                    held.asked = asked;
                    touched.extend(&held.keys);
                }
                (Some(asked), None) => {
                    let keys = Vec::new();
                    self.pools.insert(id, Held { asked, keys });
                }
                (None, _) => gone.push(id),
            }
        }
        for (frontend, id) in asked.addresses {
            if let Some(key) = service_of(&frontend) {
                self.want(key, id, &mut touched);
            }
        }
        for (id, is_marked) in asked.marks {
            let key = ServiceKey::Mark(self.family, mark_of(self.family, id));
            self.want(key, is_marked.then_some(id), &mut touched);
        }
        for id in gone {
            self.pools.remove(&id);
        }
        touched
    }

    /// All services, those that are to go among them.
    pub(super) fn all(&self) -> BTreeSet<ServiceKey> {
        self.wanted.keys().chain(self.written.keys()).copied().collect()
    }

    fn want(&mut self, key: ServiceKey, id: Option<u32>, touched: &mut BTreeSet<ServiceKey>) {
        let before = match id {
            Some(id) => self.wanted.insert(key, id),
            None => self.wanted.remove(&key),
        };
        if before == id {
            return;
        }
        if let Some(held) = before.and_then(|id| self.pools.get_mut(&id)) {
            held.keys.retain(|other| *other != key);
        }
        if let Some(held) = id.and_then(|id| self.pools.get_mut(&id)) {
            held.keys.push(key);
        }
        touched.insert(key);
    }

    /// What a service that is asked for is to be. While an endpoint leaves, sh and mh have to be told that its clients may go
    /// elsewhere, or they would be refused.
    fn options(&self, key: &ServiceKey, pool: &Pool, leaves: bool) -> Options {
        let mut options = self.usual_options(key, pool);
        options.scheduler.fallback |= leaves && options.scheduler.kind.has_flags();
        options
    }

    fn usual_options(&self, key: &ServiceKey, pool: &Pool) -> Options {
        let has = |scheduler: &Scheduler| !self.lacking.contains(&scheduler.kind);
        match (key, pool.affinity) {
            // It cannot remember clients: they are told by their address, for as long as their endpoint is there.
            (ServiceKey::Mark(..), Some(_)) => Options {
                scheduler: [BY_CLIENT, OLD_BY_CLIENT]
                    .map(Scheduler::from)
                    .into_iter()
                    .find(has)
                    .unwrap_or(LAST),
                affinity: None,
            },
            (_, affinity) => {
                let asked = pool.scheduler.unwrap_or(self.settings.scheduler);
                let candidates = [asked, self.settings.scheduler];
                Options {
                    scheduler: candidates.into_iter().find(has).unwrap_or(LAST),
                    affinity,
                }
            }
        }
    }

    /// The scheduler that a service that is asked for has, or would have.
    pub(super) fn scheduler_of(&self, key: &ServiceKey) -> Option<SchedulerKind> {
        let held = self.wanted.get(key).and_then(|id| self.pools.get(id))?;
        Some(self.usual_options(key, &held.asked.pool).scheduler.kind)
    }

    /// What the policy says.
    pub(super) fn settings(&self) -> IpvsSettings {
        self.settings
    }

    /// The family.
    pub(super) fn family(&self) -> Family {
        self.family
    }

    /// The scheduler of services whose own the kernel has not got.
    pub(super) fn fallback(&self) -> SchedulerKind {
        let policy = self.settings.scheduler.kind;
        match self.lacking.contains(&policy) {
            true => LAST.kind,
            false => policy,
        }
    }

    /// How many services ask for each of the schedulers that the kernel has not got.
    pub(super) fn deprived(&self) -> BTreeMap<SchedulerKind, usize> {
        let mut deprived: BTreeMap<_, _> = self.lacking.iter().map(|kind| (*kind, 0)).collect();
        if deprived.is_empty() {
            return deprived;
        }
        for held in self.pools.values() {
            let asked = held.asked.pool.scheduler.unwrap_or(self.settings.scheduler);
            let by_client = held.asked.pool.affinity.map(|_| BY_CLIENT);
            for key in &held.keys {
                let kind = match key {
                    ServiceKey::Mark(..) => by_client.unwrap_or(asked.kind),
                    ServiceKey::Address(..) => asked.kind,
                };
                if let Some(count) = deprived.get_mut(&kind) {
                    *count += 1;
                }
            }
        }
        deprived
    }

    /// Adds the commands that bring one service from what is written to what is asked for.
    pub(super) fn settle(
        &mut self,
        key: ServiceKey,
        existing: Existing<'_>,
        now: Instant,
        commands: &mut Commands,
    ) {
        let held = self.wanted.get(&key).and_then(|id| self.pools.get(id));
        let Some(asked) = held.map(|held| held.asked.clone()) else {
            self.leave(key, existing, now, commands);
            return;
        };
        let usual = self.usual_options(&key, &asked.pool);
        let stay = self.stay(usual.scheduler.kind);
        let is_new = !self.written.contains_key(&key);
        if is_new {
            commands.grow.push(Command::NewService(usual.service(key)));
        }
        let written = self
            .written
            .entry(key)
            .or_insert_with(|| Written::empty(asked.owner.protocol));
        if std::mem::take(&mut written.is_gone) {
            commands.ended.push(key);
        }
        if is_new {
            written.options = Some(usual);
        }
        written.protocol = asked.owner.protocol;
        written.owner = Some(asked.owner);
        written.become_pool(key, Arc::clone(&asked.pool), existing, now, stay, commands);
        let leaves = !written.leaving.is_empty();
        let (before, drains) = (written.options, written.drains());
        let options = self.options(&key, &asked.pool, leaves);
        if before != Some(options) {
            commands.grow.push(Command::SetService(options.service(key)));
            self.set_options(&key, options);
        }
        self.look_after(key, leaves && drains, now);
    }

    fn set_options(&mut self, key: &ServiceKey, options: Options) {
        if let Some(written) = self.written.get_mut(key) {
            written.options = Some(options);
        }
    }

    /// Which endpoints of a service that is asked for stay when they leave.
    fn stay(&self, kind: SchedulerKind) -> Stay {
        match kind {
            SchedulerKind::DestinationHashing => Stay::Never,
            _ => self.grace(),
        }
    }

    fn grace(&self) -> Stay {
        match self.settings.graceful {
            Some(0) => Stay::Draining,
            _ => Stay::Connected,
        }
    }

    /// Lets a service go that nobody asks for.
    fn leave(&mut self, key: ServiceKey, existing: Existing<'_>, now: Instant, commands: &mut Commands) {
        let stay = self.grace();
        let Some(written) = self.written.get_mut(&key) else {
            return;
        };
        if !std::mem::replace(&mut written.is_gone, true) {
            commands.left.push(key);
        }
        if written.drains() {
            written.become_pool(key, pool_of(Vec::new()), existing, now, stay, commands);
        } else {
            written.leaving.clear();
        }
        if written.leaving.is_empty() {
            // Its destinations go with it.
            self.written.remove(&key);
            commands
                .shrink
                .retain(|command| !matches!(command, Command::DeleteDestination(of, _) if *of == key));
            commands.shrink.push(Command::DeleteService(key));
            commands.ended.push(key);
            self.look_after(key, false, now);
        } else {
            self.look_after(key, true, now);
        }
    }

    fn look_after(&mut self, key: ServiceKey, leaves: bool, now: Instant) {
        if !leaves {
            self.looks.remove(&key);
            return;
        }
        let look = self.looks.entry(key).or_insert(Look {
            at: now + FIRST_LOOK,
            pause: FIRST_LOOK,
        });
        self.next_look = Some(self.next_look.map_or(look.at, |next| next.min(look.at)));
    }

    /// Adds the commands for TCP endpoints of these ports that leave and are in no slice any more.
    pub(super) fn end_removed(
        &mut self,
        ports: &HashSet<Arc<ServicePortName>>,
        existing: Existing<'_>,
        now: Instant,
        commands: &mut Commands,
    ) {
        let keys: Vec<ServiceKey> = self.looks.keys().copied().collect();
        for key in keys {
            let owner = self.written.get(&key).and_then(|written| written.owner.clone());
            if owner.is_some_and(|owner| ports.contains(&owner)) {
                self.settle_again(key, existing, now, commands);
            }
        }
    }

    fn settle_again(
        &mut self,
        key: ServiceKey,
        existing: Existing<'_>,
        now: Instant,
        commands: &mut Commands,
    ) {
        let stay = self.grace();
        let Some(written) = self.written.get_mut(&key) else {
            return;
        };
        let known = written.known(existing);
        written.drop_leaving(key, known.as_deref(), stay, &mut commands.shrink);
        if written.leaving.is_empty() && written.is_gone {
            self.leave(key, existing, now, commands);
        } else {
            let leaves = !written.leaving.is_empty();
            self.look_after(key, leaves, now);
            if !leaves {
                self.settle_options(key, commands);
            }
        }
    }

    /// Has a service be as usual when none of its endpoints leaves any more.
    fn settle_options(&mut self, key: ServiceKey, commands: &mut Commands) {
        let held = self.wanted.get(&key).and_then(|id| self.pools.get(id));
        let Some(usual) = held.map(|held| self.usual_options(&key, &held.asked.pool)) else {
            return;
        };
        if self
            .written
            .get(&key)
            .is_some_and(|written| written.options != Some(usual))
        {
            commands.shrink.push(Command::SetService(usual.service(key)));
            self.set_options(&key, usual);
        }
    }

    /// When a look is due.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.next_look.filter(|_| !self.looks.is_empty())
    }

    /// Services that are to be looked at, so many at most.
    pub(super) fn due(&mut self, now: Instant, most: usize) -> Vec<ServiceKey> {
        let due = self.looks.iter().filter(|(_, look)| look.at <= now);
        let due: Vec<ServiceKey> = due.map(|(key, _)| *key).take(most).collect();
        if due.len() < most {
            let later = self.looks.values().map(|look| look.at).filter(|at| *at > now);
            self.next_look = later.min();
        }
        due
    }

    /// Takes in what was found of a service that was due.
    pub(super) fn looked(
        &mut self,
        key: ServiceKey,
        found: &[DestinationState],
        now: Instant,
        commands: &mut Commands,
    ) {
        let limit = self
            .settings
            .graceful
            .map(|seconds| Duration::from_secs(seconds.into()));
        let Some(written) = self.written.get_mut(&key) else {
            self.looks.remove(&key);
            return;
        };
        let busy: HashSet<SocketAddr> = found
            .iter()
            .filter(|state| state.active > 0 || state.inactive > 0)
            .map(|state| state.destination.address)
            .collect();
        let is_there = |address: SocketAddr| found.iter().any(|state| state.destination.address == address);
        written.leaving.retain(|address, since| {
            let address = SocketAddr::from(*address);
            let is_over = limit.is_some_and(|limit| now >= *since + limit);
            let stays = busy.contains(&address) && !is_over;
            if !stays && is_there(address) {
                commands.shrink.push(Command::DeleteDestination(key, address));
            }
            stays
        });
        if written.leaving.is_empty() {
            let is_gone = written.is_gone;
            self.looks.remove(&key);
            if is_gone {
                self.leave(key, &|_| None, now, commands);
            } else {
                self.settle_options(key, commands);
            }
            return;
        }
        let ends = limit.and_then(|limit| written.leaving.values().map(|since| *since + limit).min());
        if let Some(look) = self.looks.get_mut(&key) {
            look.pause = (look.pause * 2).min(LONGEST_PAUSE);
            look.at = ends.map_or(now + look.pause, |ends| ends.min(now + look.pause));
            self.next_look = Some(self.next_look.map_or(look.at, |next| next.min(look.at)));
        }
    }

    /// What the kernel has of a service, as far as we know.
    pub(super) fn written(&self, key: &ServiceKey) -> Option<&Written> {
        self.written.get(key)
    }

    /// All services that the kernel has, as far as we know.
    pub(super) fn keys(&self) -> impl Iterator<Item = &ServiceKey> {
        self.written.keys()
    }
}

impl Written {
    fn empty(protocol: Protocol) -> Self {
        Self {
            options: None,
            protocol,
            owner: None,
            pool: pool_of(Vec::new()),
            leaving: HashMap::new(),
            is_gone: false,
        }
    }

    /// Whether endpoints stay until their connections have ended.
    fn drains(&self) -> bool {
        self.protocol != Protocol::Udp
    }

    /// The weight that the kernel has for a destination; none when it has no such destination.
    pub(super) fn weight(&self, address: SocketAddr) -> Option<u32> {
        let address = IpPort::from(address);
        let endpoints = &self.pool.endpoints;
        let place = endpoints.binary_search_by_key(&address, |endpoint| endpoint.address);
        match place.ok().and_then(|place| endpoints.get(place)) {
            Some(endpoint) => Some(weight(&self.pool, endpoint)),
            None => self.leaving.contains_key(&address).then_some(0),
        }
    }

    /// How many destinations the kernel has.
    pub(super) fn count(&self) -> usize {
        self.pool.endpoints.len() + self.leaving.len()
    }

    /// Adds the commands that give a service the endpoints of another pool.
    fn become_pool(
        &mut self,
        key: ServiceKey,
        pool: Arc<Pool>,
        existing: Existing<'_>,
        now: Instant,
        stay: Stay,
        commands: &mut Commands,
    ) {
        let known = self.known(existing);
        let before = std::mem::replace(&mut self.pool, Arc::clone(&pool));
        let is_other = !Arc::ptr_eq(&before, &pool);
        for endpoint in pool.endpoints.iter().filter(|_| is_other) {
            let wanted = weight(&pool, endpoint);
            let destination = destination(endpoint.address, wanted);
            let place = before
                .endpoints
                .binary_search_by_key(&endpoint.address, |old| old.address);
            let found = place.ok().and_then(|at| before.endpoints.get(at));
            let found = found.map(|old| weight(&before, old));
            if self.leaving.remove(&endpoint.address).is_some() {
                commands.grow.push(Command::SetDestination(key, destination));
            } else if found.is_none() {
                commands.grow.push(Command::NewDestination(key, destination));
            } else if found != Some(wanted) {
                commands.grow.push(Command::SetDestination(key, destination));
            }
        }
        // No packet is led to them, but some schedulers would refuse in their stead.
        self.drop_leaving(key, known.as_deref(), stay, &mut commands.grow);
        for old in before.endpoints.iter().filter(|_| is_other) {
            let goes_on = pool
                .endpoints
                .binary_search_by_key(&old.address, |endpoint| endpoint.address);
            if goes_on.is_ok() {
                continue;
            }
            if self.stays(old.address, known.as_deref(), stay) {
                let quiet = destination(old.address, 0);
                commands.shrink.push(Command::SetDestination(key, quiet));
                self.leaving.insert(old.address, now);
            } else {
                let address = old.address.into();
                commands.shrink.push(Command::DeleteDestination(key, address));
            }
        }
    }

    /// The addresses of which it is known that they exist, and no others.
    fn known(&self, existing: Existing<'_>) -> Option<Arc<[IpPort]>> {
        match self.protocol {
            Protocol::Tcp => self.owner.as_ref().and_then(existing),
            Protocol::Udp | Protocol::Sctp => None,
        }
    }

    /// Whether an endpoint that leaves stays for the connections that it has.
    fn stays(&self, address: IpPort, known: Option<&[IpPort]>, stay: Stay) -> bool {
        let is_draining = self.pool.draining.binary_search(&address).is_ok();
        let stays = match stay {
            Stay::Connected => self.drains() || is_draining,
            Stay::Draining => is_draining,
            Stay::Never => false,
        };
        stays && known.is_none_or(|known| known.binary_search(&address).is_ok())
    }

    /// Removes endpoints of weight 0 that do not stay.
    fn drop_leaving(
        &mut self,
        key: ServiceKey,
        known: Option<&[IpPort]>,
        stay: Stay,
        commands: &mut Vec<Command>,
    ) {
        let mut leaving = std::mem::take(&mut self.leaving);
        leaving.retain(|address, _| {
            let stays = self.stays(*address, known, stay);
            if !stays {
                commands.push(Command::DeleteDestination(key, (*address).into()));
            }
            stays
        });
        self.leaving = leaving;
    }
}

/// The service of a frontend's address; none for a node port.
pub(super) fn service_of(frontend: &FrontendKey) -> Option<ServiceKey> {
    match frontend.destination {
        Place::Address(address) => Some(ServiceKey::Address(
            frontend.protocol,
            SocketAddr::new(address, frontend.port),
        )),
        Place::NodePort => None,
    }
}

fn destination(address: IpPort, weight: u32) -> Destination {
    Destination::new(address.into(), weight)
}

/// The weight of an endpoint.
fn weight(pool: &Pool, endpoint: &PoolEndpoint) -> u32 {
    u32::from(endpoint.share) * u32::from(pool.unit)
}

fn pool_of(endpoints: Vec<PoolEndpoint>) -> Arc<Pool> {
    Arc::new(Pool {
        endpoints: endpoints.into(),
        affinity: None,
        scheduler: None,
        unit: 1,
        draining: Box::default(),
    })
}

#[cfg(test)]
mod kernel;
#[cfg(test)]
mod tests;

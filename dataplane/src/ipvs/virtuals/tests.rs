//! An agent works on a kernel, through whatever is asked of it; packets are led to services as its table says.

use proptest::prelude::*;
use proptest::sample::select;

use super::kernel::Kernel;
use super::*;
use crate::model::ServiceName;

const FAMILY: Family = Family::V4;
/// The protocol of each pool.
const POOLS: [Protocol; 4] = [Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
/// So many endpoints there may be in a pool.
const ENDPOINTS: u8 = 4;
/// The first number of a pool.
const FIRST: u32 = 16;

/// Something that may be asked, or happen.
#[derive(Clone, Debug)]
enum Event {
    /// A pool has these endpoints with these shares (0: not in it), and these of UDP drain.
    Pool(usize, [u8; ENDPOINTS as usize], Kind),
    NoPool(usize),
    /// An address of a pool's protocol leads to it, or to none.
    Address(u8, usize, bool),
    /// A pool is found by its mark.
    Mark(usize, bool),
    Settings(Option<u32>, Scheduler),
    /// These endpoints of a pool's port exist, of each pool that is TCP.
    Existing(usize, Option<[bool; ENDPOINTS as usize]>),
}

#[derive(Clone, Copy, Debug)]
struct Kind {
    affinity: Option<u32>,
    scheduler: Option<Scheduler>,
    drains: bool,
}

/// What happens one after the other.
#[derive(Clone, Debug)]
enum Step {
    /// All of this is one change. The agent is killed after so many commands.
    Change(Vec<Event>, Option<usize>),
    /// Another agent takes over, with other numbers for the pools that have no mark.
    Restart(bool),
    /// Schedulers come and go, and an agent starts.
    Missing(BTreeSet<SchedulerKind>),
    Connect(bool),
    Wait(u64),
}

fn scheduler() -> impl Strategy<Value = Scheduler> {
    let kinds = [
        SchedulerKind::RoundRobin,
        SchedulerKind::WeightedLeastConnections,
        SchedulerKind::SourceHashing,
        SchedulerKind::MaglevHashing,
        SchedulerKind::DestinationHashing,
    ];
    (select(kinds.to_vec()), any::<bool>()).prop_map(|(kind, port)| Scheduler {
        kind,
        fallback: false,
        port: port && kind.has_flags(),
    })
}

fn event() -> impl Strategy<Value = Event> {
    let pool = 0..POOLS.len();
    let shares = prop::array::uniform4(0..3_u8);
    let kind = (
        prop::option::weighted(0.2, Just(60)),
        prop::option::weighted(0.3, scheduler()),
        any::<bool>(),
    );
    let kind = kind.prop_map(|(affinity, scheduler, drains)| Kind {
        affinity,
        scheduler,
        drains,
    });
    prop_oneof![
        6 => (pool.clone(), shares, kind).prop_map(|(pool, shares, kind)| Event::Pool(pool, shares, kind)),
        1 => pool.clone().prop_map(Event::NoPool),
        4 => (0..3_u8, pool.clone(), any::<bool>()).prop_map(|(at, pool, on)| Event::Address(at, pool, on)),
        2 => (pool.clone(), any::<bool>()).prop_map(|(pool, on)| Event::Mark(pool, on)),
        1 => (select(vec![None, Some(0), Some(5)]), scheduler())
            .prop_map(|(graceful, scheduler)| Event::Settings(graceful, scheduler)),
        1 => (pool, prop::option::of(prop::array::uniform4(any::<bool>())))
            .prop_map(|(pool, those)| Event::Existing(pool, those)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let missing = prop::collection::btree_set(
        select(vec![
            SchedulerKind::SourceHashing,
            SchedulerKind::MaglevHashing,
            SchedulerKind::WeightedLeastConnections,
        ]),
        0..3,
    );
    prop_oneof![
        8 => (prop::collection::vec(event(), 1..5), prop::option::weighted(0.2, 0..8_usize))
            .prop_map(|(events, limit)| Step::Change(events, limit)),
        1 => any::<bool>().prop_map(Step::Restart),
        1 => missing.prop_map(Step::Missing),
        3 => any::<bool>().prop_map(Step::Connect),
        2 => (0..20_u64).prop_map(Step::Wait),
    ]
}

/// What is asked, all of it.
#[derive(Clone, Debug, Default)]
struct World {
    numbers: [u32; POOLS.len()],
    next_number: u32,
    pools: BTreeMap<usize, AskedPool>,
    addresses: BTreeMap<FrontendKey, usize>,
    marks: BTreeSet<usize>,
    settings: IpvsSettings,
    existing: BTreeMap<usize, Arc<[IpPort]>>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            next_number: FIRST,
            ..Self::default()
        };
        for pool in 0..POOLS.len() {
            world.renumber(pool);
        }
        world
    }

    fn renumber(&mut self, pool: usize) {
        self.numbers[pool] = self.next_number;
        self.next_number += 1;
    }

    /// Takes an event in; true when it changed anything.
    fn take(&mut self, event: &Event) {
        match event {
            Event::Pool(pool, shares, kind) => {
                if shares.iter().any(|share| *share > 0) {
                    let asked = asked(*pool, shares, *kind);
                    self.pools.insert(*pool, asked);
                } else {
                    self.drop_pool(*pool);
                }
            }
            Event::NoPool(pool) => self.drop_pool(*pool),
            Event::Address(at, pool, on) => {
                let key = frontend(*at, POOLS[*pool]);
                if *on && self.pools.contains_key(pool) {
                    self.addresses.insert(key, *pool);
                } else {
                    self.addresses.remove(&key);
                }
            }
            Event::Mark(pool, on) => {
                if *on && self.pools.contains_key(pool) {
                    self.marks.insert(*pool);
                } else {
                    self.marks.remove(pool);
                }
            }
            Event::Settings(graceful, scheduler) => {
                self.settings.graceful = *graceful;
                self.settings.scheduler = *scheduler;
            }
            Event::Existing(pool, those) => match those {
                Some(those) if POOLS[*pool] == Protocol::Tcp => {
                    let those = (0..ENDPOINTS).filter(|at| those[usize::from(*at)]).map(endpoint);
                    self.existing.insert(*pool, those.collect());
                }
                _ => {
                    self.existing.remove(pool);
                }
            },
        }
    }

    /// Nobody may refer to it any more. A pool that comes again has another number.
    fn drop_pool(&mut self, pool: usize) {
        if self.pools.remove(&pool).is_some() {
            self.addresses.retain(|_, other| *other != pool);
            self.marks.remove(&pool);
            self.renumber(pool);
        }
    }

    /// What is different from another one, as the table in front asks it: more than that may be told.
    fn since(&self, before: &Self) -> Asked {
        let mut asked = Asked::default();
        for (pool, now) in &self.pools {
            let then = before.pools.get(pool).map(|then| &then.pool);
            if then != Some(&now.pool) || before.numbers[*pool] != self.numbers[*pool] {
                asked.pools.push((self.numbers[*pool], Some(now.clone())));
            }
        }
        for pool in before.pools.keys() {
            if !self.pools.contains_key(pool) || before.numbers[*pool] != self.numbers[*pool] {
                asked.pools.push((before.numbers[*pool], None));
            }
        }
        for key in before
            .addresses
            .keys()
            .chain(self.addresses.keys())
            .collect::<BTreeSet<_>>()
        {
            let number = self.addresses.get(key).map(|pool| self.numbers[*pool]);
            asked.addresses.push((*key, number));
        }
        for (world, is_there) in [(before, false), (self, true)] {
            let numbers = world.marks.iter().map(|pool| world.numbers[*pool]);
            for number in numbers.filter(|number| is_there || !self.marked().contains(number)) {
                asked.marks.push((number, is_there));
            }
        }
        asked
    }

    fn marked(&self) -> BTreeSet<u32> {
        self.marks.iter().map(|pool| self.numbers[*pool]).collect()
    }

    /// Every service that packets are led to, with its pool.
    fn services(&self) -> BTreeMap<ServiceKey, usize> {
        let addresses = self.addresses.iter();
        let addresses = addresses.map(|(key, pool)| (service_of(key).unwrap(), *pool));
        let marks = self.marks.iter();
        let marks = marks.map(|pool| {
            (
                ServiceKey::Mark(FAMILY, mark_of(FAMILY, self.numbers[*pool])),
                *pool,
            )
        });
        addresses.chain(marks).collect()
    }
}

fn endpoint(at: u8) -> IpPort {
    IpPort::from(([10, 0, 0, at + 1], 8080))
}

fn frontend(at: u8, protocol: Protocol) -> FrontendKey {
    FrontendKey {
        family: FAMILY,
        destination: Place::Address([10, 96, 0, at + 1].into()),
        protocol,
        port: 80,
    }
}

fn owner(pool: usize) -> Arc<ServicePortName> {
    Arc::new(ServicePortName {
        service: ServiceName::new("default", &format!("service-{pool}")),
        port: "".into(),
        protocol: POOLS[pool],
    })
}

fn asked(pool: usize, shares: &[u8], kind: Kind) -> AskedPool {
    let all = (0..ENDPOINTS).zip(shares.iter().copied());
    let (there, others): (Vec<_>, Vec<_>) = all.partition(|(_, share)| *share > 0);
    let endpoints = there.into_iter().map(|(at, share)| PoolEndpoint {
        address: endpoint(at),
        local: false,
        share,
    });
    let drains = kind.drains && POOLS[pool] == Protocol::Udp;
    let draining = others.into_iter().filter(|_| drains).map(|(at, _)| endpoint(at));
    AskedPool {
        owner: owner(pool),
        pool: Arc::new(Pool {
            endpoints: endpoints.collect(),
            // The same shares may be of other weights.
            unit: if kind.affinity.is_some() { 7 } else { 1 },
            affinity: kind.affinity,
            scheduler: kind.scheduler,
            draining: draining.collect(),
        }),
    }
}

/// An agent, and what it works on.
struct Agent {
    world: World,
    virtuals: Virtuals,
    kernel: Kernel,
    /// The services that packets are led to now.
    led: BTreeMap<ServiceKey, usize>,
    /// The protocol of each service that packets were ever led to.
    protocols: BTreeMap<ServiceKey, Protocol>,
    /// Addresses that the node keeps for services that leave.
    kept: BTreeMap<ServiceKey, u32>,
    now: Instant,
}

impl Agent {
    fn new() -> Self {
        let world = World::new();
        Self {
            virtuals: Virtuals::new(FAMILY, world.settings, BTreeSet::new()),
            world,
            kernel: Kernel::default(),
            led: BTreeMap::new(),
            protocols: BTreeMap::new(),
            kept: BTreeMap::new(),
            now: Instant::now(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Change(events, limit) => self.change(events, *limit),
            Step::Restart(renumbers) => {
                if *renumbers {
                    let unmarked = (0..POOLS.len()).filter(|pool| !self.world.marks.contains(pool));
                    for pool in unmarked.collect::<Vec<_>>() {
                        self.world.renumber(pool);
                    }
                }
                self.start();
            }
            Step::Missing(missing) => {
                self.kernel.missing.clone_from(missing);
                self.start();
            }
            Step::Connect(begin) => self.kernel.connect(*begin),
            Step::Wait(seconds) => {
                self.now += Duration::from_secs(*seconds);
                self.tend();
            }
        }
    }

    fn change(&mut self, events: &[Event], limit: Option<usize>) {
        let before = self.world.clone();
        events.iter().for_each(|event| self.world.take(event));
        let asked = self.world.since(&before);
        let existing = self.world.existing.clone();
        let differs = (0..POOLS.len()).filter(|pool| before.existing.get(pool) != existing.get(pool));
        let ports: HashSet<Arc<ServicePortName>> = differs.map(owner).collect();
        let keys = self.virtuals.take_in(asked, self.world.settings);
        if !self.write(&keys, &ports, limit) {
            self.start();
        }
    }

    /// An agent that knows nothing brings what it finds to what is asked, and another one, if it finds that a scheduler is
    /// missing.
    fn start(&mut self) {
        let mut lacking = BTreeSet::new();
        loop {
            self.kept.clear();
            self.virtuals = Virtuals::new(FAMILY, self.world.settings, lacking.clone());
            for key in self.kernel.services.keys() {
                let (options, listed) = (self.kernel.options(key), self.kernel.listed(key));
                self.virtuals.adopt(*key, Some(options), &listed, self.now);
            }
            let asked = self.world.since(&World::default());
            self.virtuals.take_in(asked, self.world.settings);
            let keys = self.virtuals.all();
            match self.written(&keys, &HashSet::new(), None) {
                Ok(()) => return,
                Err(Some(kind)) => assert!(lacking.insert(kind), "{kind} is lacking, as it is known"),
                Err(None) => panic!("nobody killed it"),
            }
        }
    }

    fn write(
        &mut self,
        keys: &BTreeSet<ServiceKey>,
        ports: &HashSet<Arc<ServicePortName>>,
        limit: Option<usize>,
    ) -> bool {
        self.written(keys, ports, limit).is_ok()
    }

    /// Sends the commands for these services in their order, each of them looked at; the scheduler that is missing, or none
    /// when the agent was killed before it was through.
    fn written(
        &mut self,
        keys: &BTreeSet<ServiceKey>,
        ports: &HashSet<Arc<ServicePortName>>,
        limit: Option<usize>,
    ) -> Result<(), Option<SchedulerKind>> {
        let mut commands = Commands::default();
        let existing = self.world.existing.clone();
        let existing = |port: &Arc<ServicePortName>| {
            let pool = (0..POOLS.len()).find(|pool| owner(*pool) == *port)?;
            existing.get(&pool).cloned()
        };
        for key in keys {
            self.virtuals.settle(*key, &existing, self.now, &mut commands);
        }
        let mut left = limit.unwrap_or(usize::MAX);
        for command in std::mem::take(&mut commands.grow) {
            left = left.checked_sub(1).ok_or(None)?;
            self.take(command)?;
        }
        self.keep(&mut commands);
        self.virtuals
            .end_removed(ports, &existing, self.now, &mut commands);
        assert!(commands.grow.is_empty());
        // The table in front is written.
        self.led = self.world.services();
        let led = self.led.iter().map(|(key, pool)| (*key, POOLS[*pool]));
        self.protocols.extend(led);
        self.has_what_is_asked();
        for command in std::mem::take(&mut commands.shrink) {
            left = left.checked_sub(1).ok_or(None)?;
            self.take(command)?;
            self.has_what_is_asked();
        }
        self.keep(&mut commands);
        self.end(&mut commands);
        self.has_no_more_than_that();
        Ok(())
    }

    fn take(&mut self, command: Command) -> Result<(), Option<SchedulerKind>> {
        self.may_go(&command);
        let refused = self.kernel.take(command).err();
        if let (
            Command::NewService(service) | Command::SetService(service),
            Some(nix::errno::Errno::ENOENT),
        ) = (command, refused)
        {
            return Err(self.virtuals.scheduler_of(&service.key));
        }
        assert_eq!(refused, None, "{command:?} in {:?}", self.kernel);
        self.led.keys().for_each(|key| self.kernel.serves(key));
        Ok(())
    }

    /// Connections of TCP and SCTP are ended for a reason only.
    fn may_go(&self, command: &Command) {
        let graceful = self.world.settings.graceful.is_some();
        let (key, address) = match command {
            Command::DeleteService(key) => (key, None),
            Command::DeleteDestination(key, address) => (key, Some(*address)),
            _ => return,
        };
        let is_udp = self.protocols.get(key) == Some(&Protocol::Udp);
        if graceful || is_udp {
            return;
        }
        let exists_no_more = |address: SocketAddr| {
            let known = self.world.existing.values();
            known.into_iter().any(|known| !known.contains(&address.into()))
        };
        // It has, or is about to have, the scheduler that cannot pass them over.
        let by_destination = |key| {
            let kinds = [
                Some(self.kernel.options(key).scheduler.kind),
                self.virtuals.scheduler_of(key),
            ];
            kinds.contains(&Some(SchedulerKind::DestinationHashing))
        };
        let Some((_, all)) = self.kernel.services.get(key) else {
            return;
        };
        let goes = |at: &SocketAddr| address.is_none_or(|address| address == *at);
        for (at, there) in all.iter().filter(|(at, _)| goes(at)) {
            assert!(
                there.connections == 0 || exists_no_more(*at) || by_destination(key),
                "{command:?} ends {} connections",
                there.connections
            );
        }
    }

    fn keep(&mut self, commands: &mut Commands) {
        for key in std::mem::take(&mut commands.left) {
            *self.kept.entry(key).or_default() += 1;
        }
    }

    fn end(&mut self, commands: &mut Commands) {
        for key in std::mem::take(&mut commands.ended) {
            let count = self.kept.get_mut(&key).expect("one that left");
            *count -= 1;
        }
        self.kept.retain(|_, count| *count > 0);
    }

    /// Everything that packets are led to is there as it is asked for.
    fn has_what_is_asked(&self) {
        for (key, pool) in &self.led {
            self.kernel.serves(key);
            let asked = &self.world.pools[pool].pool;
            let (_, all) = &self.kernel.services[key];
            for endpoint in &asked.endpoints {
                let there = all.get(&endpoint.address.into()).expect("an endpoint");
                assert_eq!(
                    there.weight,
                    u32::from(endpoint.share) * u32::from(asked.unit),
                    "{key}"
                );
            }
        }
    }

    /// What is not asked for leaves, or is gone.
    fn has_no_more_than_that(&self) {
        for (key, (_, all)) in &self.kernel.services {
            let Some(pool) = self.led.get(key) else {
                assert!(all.values().all(|there| there.weight == 0), "{key}: {all:?}");
                assert_eq!(self.kept.get(key), Some(&1), "{key} leaves");
                continue;
            };
            assert_eq!(self.kept.get(key), None, "{key} stays");
            let asked = &self.world.pools[pool].pool;
            let options = self.kernel.options(key);
            let is_held_by_hash = matches!(key, ServiceKey::Mark(..)) && asked.affinity.is_some();
            assert_eq!(options.affinity, asked.affinity.filter(|_| !is_held_by_hash));
            let wanted = match is_held_by_hash {
                true => Scheduler::from(BY_CLIENT),
                false => asked.scheduler.unwrap_or(self.world.settings.scheduler),
            };
            if !self.kernel.missing.contains(&wanted.kind) {
                assert_eq!(
                    (options.scheduler.kind, options.scheduler.port),
                    (wanted.kind, wanted.port)
                );
            }
            let is_asked = |address: &SocketAddr| {
                let address = IpPort::from(*address);
                asked.endpoints.iter().any(|endpoint| endpoint.address == address)
            };
            for (address, there) in all.iter().filter(|(address, _)| !is_asked(address)) {
                assert_eq!(there.weight, 0, "{key}: {address}");
                if POOLS[*pool] == Protocol::Udp {
                    assert!(
                        asked.draining.contains(&IpPort::from(*address)),
                        "{key}: {address}"
                    );
                }
            }
        }
        let is_there = |key: &ServiceKey| self.kernel.services.contains_key(key);
        assert!(self.kept.keys().all(is_there), "{:?}", self.kept);
    }

    /// Looks at what is due.
    fn tend(&mut self) {
        while self.virtuals.next_look().is_some_and(|at| at <= self.now) {
            let mut commands = Commands::default();
            let due = self.virtuals.due(self.now, 2);
            for key in due {
                let found = self.kernel.states(&key);
                self.virtuals.looked(key, &found, self.now, &mut commands);
            }
            assert!(commands.grow.is_empty() && commands.left.is_empty());
            for command in std::mem::take(&mut commands.shrink) {
                self.take(command).unwrap();
                self.has_what_is_asked();
            }
            self.end(&mut commands);
            self.has_no_more_than_that();
        }
    }

    /// All connections end, and looks are taken as long as any is due.
    fn come_to_rest(&mut self) {
        self.kernel.connect(false);
        for _ in 0..100 {
            let Some(at) = self.virtuals.next_look() else {
                break;
            };
            self.now = self.now.max(at);
            self.tend();
        }
        assert_eq!(self.virtuals.next_look(), None, "it would go on to look");
        assert_eq!(self.kept, BTreeMap::new());
        let services: Vec<&ServiceKey> = self.kernel.services.keys().collect();
        assert_eq!(services, self.led.keys().collect::<Vec<_>>());
        for (key, pool) in &self.led {
            let asked = &self.world.pools[pool].pool;
            let (_, all) = &self.kernel.services[key];
            let drains = all.values().filter(|there| there.weight == 0).count();
            assert_eq!(all.len(), asked.endpoints.len() + drains);
            if POOLS[*pool] != Protocol::Udp {
                assert_eq!(drains, 0, "{key}: {all:?}");
            }
            // What clients of endpoints that leave need is for as long as any leaves.
            assert_eq!(
                self.kernel.options(key).scheduler.fallback,
                drains > 0 && self.kernel.options(key).scheduler.kind.has_flags()
            );
            for (address, there) in all {
                assert_eq!(
                    self.virtuals
                        .written(key)
                        .and_then(|written| written.weight(*address)),
                    Some(there.weight)
                );
            }
        }
    }
}

proptest! {
    #[test]
    fn packets_find_an_endpoint_and_what_left_ends(steps in prop::collection::vec(step(), 1..12)) {
        let mut agent = Agent::new();
        steps.iter().for_each(|step| agent.step(step));
        agent.come_to_rest();
    }

    #[test]
    fn who_starts_again_writes_nothing(steps in prop::collection::vec(step(), 1..12)) {
        let mut agent = Agent::new();
        steps.iter().for_each(|step| agent.step(step));
        agent.come_to_rest();
        let before = agent.kernel.clone();
        agent.start();
        prop_assert_eq!(agent.kernel.services, before.services);
    }
}

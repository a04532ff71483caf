//! The IPVS backend: virtual services and destinations over generic netlink, an nf_tables table in front of them, and routes
//! that make Services' addresses the node's own.
//!
//! ```text
//! nat prerouting, output ─▶ the table `pointsman-ipvs`: what the nftables backend's says of a packet, but instead of
//!                           translating it the packet passes, some with a mark (`nftables::admit`)
//! routing                ─▶ the address is the node's (`addresses`)
//! IPVS                   ─▶ the virtual service of the mark, or of the address: a destination (`virtuals`)
//! nat postrouting        ─▶ masqueraded where it is to be
//! ```
//!
//! Only first packets of connections meet the table. What is written in which order: virtual services and destinations,
//! routes, the table; and what goes, the other way round.
//!
//! Our virtual services carry a flag ([`options`]); others are never touched. Where somebody else's has the address and port of
//! one of our frontends, that frontend is found by a mark.

mod addresses;
mod listing;
mod options;
pub mod parameters;
pub mod probe;
mod virtuals;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::backend::{Backend, Error, Observed, Remaining, Report};
use crate::model::{
    Destination, Diff, Family, ForwardingTable, FrontendKey, IpvsSettings, PortKey, SchedulerKind,
    ServicePortName,
};
use crate::netlink::ipvs::{
    Command, Destination as Quiet, Forwarding, Ipvs as Socket, Outcome, Refusal, Request, ServiceKey,
    Timeouts, Verb,
};
use crate::nftables::{Known, Nftables, family_of_mark, pool_of_mark};
use addresses::Routes;
pub use listing::{Line, Listed, line};
use options::{Options, is_ours};
use virtuals::{Commands, Virtuals};

/// So many commands are held before they are sent.
const CHUNK: usize = 4_000;
/// So many services at most are looked at, in one go, for connections that have ended.
const LOOKS: usize = 64;
/// How many differences are spelled out.
const SPELLED_OUT: usize = 8;

/// Programs the Services of one family into IPVS.
#[derive(Debug)]
pub struct Ipvs {
    family: Family,
    front: Nftables,
    /// Opened when it is first needed, in the network namespace of the thread that needs it.
    socket: Option<Socket>,
    routes: Routes,
    /// What the kernel holds as far as we know; none before the first sync and after a failure.
    held: Option<Virtuals>,
    /// Schedulers that the kernel has not got.
    lacking: BTreeSet<SchedulerKind>,
    /// Since when what is left drains.
    draining_since: Option<Instant>,
}

/// Our virtual services; without options one that is as we would not write it.
type Ours = HashMap<ServiceKey, Option<Options>>;
/// Virtual services and destinations, as they were read.
type Found = HashMap<ServiceKey, Vec<Listed>>;

impl Ipvs {
    /// A backend for one family.
    #[must_use]
    pub fn new(family: Family) -> Self {
        Self {
            family,
            front: Nftables::admitting(family),
            socket: None,
            routes: Routes::new(family),
            held: None,
            lacking: BTreeSet::new(),
            draining_since: None,
        }
    }

    /// Removes everything at once, whatever connections there are.
    ///
    /// # Errors
    /// When something is left.
    pub fn remove_all(&mut self) -> Result<(), Error> {
        self.teardown(Some(Duration::ZERO))?;
        self.front.remove_all()
    }

    fn socket(&mut self) -> Result<&mut Socket, Error> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => Socket::open()?,
        };
        Ok(self.socket.insert(socket))
    }

    /// One attempt to bring the kernel to a table.
    fn try_sync(&mut self, table: &ForwardingTable) -> Result<Report, Error> {
        self.held = None;
        self.routes.forget();
        let settings = table.context().settings.ipvs;
        let now = Instant::now();
        let (ours, foreign) = self.read_services()?;
        let mut virtuals = Virtuals::new(self.family, settings, self.lacking.clone());
        let mut found = self.read_destinations(ours.keys())?;
        for (key, options) in &ours {
            virtuals.adopt(*key, *options, &found.remove(key).unwrap_or_default(), now);
        }
        drop(found);
        let known = Known {
            foreign: foreign.iter().filter_map(frontend_of).collect(),
            marked: {
                let marks = ours
                    .keys()
                    .chain(&foreign)
                    .filter_map(|key| mark(key, self.family));
                marks.collect::<BTreeSet<u32>>().into_iter().collect()
            },
        };
        self.routes.addresses.set_context(table.context());
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => Socket::open()?,
        };
        let mut work = Work {
            socket,
            routes: &mut self.routes,
            virtuals,
            table,
            now,
            commands: Commands::default(),
            objects: 0,
            bytes: 0,
        };
        let written = self.front.sync_after(table, known, |asked| {
            for (address, is_wanted) in &asked.vips {
                work.routes.addresses.want(*address, *is_wanted);
            }
            work.virtuals.take_in(asked, settings);
            let keys = work.virtuals.all();
            work.grow(keys)?;
            work.objects += work.routes.sync()?;
            Ok(())
        })?;
        work.shrink()?;
        work.set_timeouts()?;
        let report = work.report(written);
        let Work { socket, virtuals, .. } = work;
        self.socket = Some(socket);
        self.held = Some(virtuals);
        Ok(report)
    }

    /// Our services of the family, and those of others.
    fn read_services(&mut self) -> Result<(Ours, BTreeSet<ServiceKey>), Error> {
        let family = self.family;
        let mut ours = HashMap::new();
        let mut foreign = BTreeSet::new();
        for state in self.socket()?.services()? {
            let service = state.service;
            if service.key.family() != family {
                continue;
            }
            if is_ours(&service) {
                ours.insert(service.key, Options::read(&service));
            } else {
                foreign.insert(service.key);
            }
        }
        Ok((ours, foreign))
    }

    /// The destinations of these services.
    fn read_destinations<'a>(&mut self, keys: impl Iterator<Item = &'a ServiceKey>) -> Result<Found, Error> {
        let mut found = read_listing(self.family)?;
        // The file is read in parts: a service that somebody else removes meanwhile, in whatever network namespace, may hide
        // another one.
        for key in keys {
            if !found.contains_key(key) {
                let listed = self.socket()?.destinations(key)?.into_iter().map(|state| Listed {
                    address: state.destination.address,
                    is_translated: state.destination.forwarding == Forwarding::Masquerade,
                    weight: state.destination.weight,
                    connections: u64::from(state.active) + u64::from(state.inactive),
                });
                found.insert(*key, listed.collect());
            }
        }
        Ok(found)
    }

    fn try_apply(&mut self, table: &ForwardingTable, diff: &Diff) -> Result<Option<Report>, Error> {
        // Taken out: after a failure nothing is known, and the next call reads the kernel.
        let (Some(virtuals), Some(socket)) = (self.held.take(), self.socket.take()) else {
            return Ok(None);
        };
        let settings = table.context().settings.ipvs;
        let timeouts_differ = diff.context;
        if diff.context {
            self.routes.addresses.set_context(table.context());
        }
        let mut work = Work {
            socket,
            routes: &mut self.routes,
            virtuals,
            table,
            now: Instant::now(),
            commands: Commands::default(),
            objects: 0,
            bytes: 0,
        };
        let written = self.front.apply_after(table, diff, |asked| {
            for (address, is_wanted) in &asked.vips {
                work.routes.addresses.want(*address, *is_wanted);
            }
            let keys = work.virtuals.take_in(asked, settings);
            work.grow(keys)?;
            work.end_removed(diff);
            work.objects += work.routes.grow()?;
            Ok(())
        })?;
        let Some(written) = written else {
            return Ok(None);
        };
        work.shrink()?;
        if timeouts_differ {
            work.set_timeouts()?;
        }
        let report = work.report(written);
        let Work { socket, virtuals, .. } = work;
        self.socket = Some(socket);
        self.held = Some(virtuals);
        Ok(Some(report))
    }

    /// Compares virtual services and destinations with what was written.
    fn compare(&mut self, virtuals: &Virtuals) -> Result<Vec<String>, Error> {
        let mut differences = Vec::new();
        let mut seen: HashSet<ServiceKey> = HashSet::new();
        let mut current: Option<(ServiceKey, usize)> = None;
        let end = |current: Option<(ServiceKey, usize)>, differences: &mut Vec<String>| {
            if let Some((key, count)) = current
                && let Some(written) = virtuals.written(&key)
                && written.count() != count
            {
                let wanted = written.count();
                differences.push(format!("{key}: {count} destinations instead of {wanted}"));
            }
        };
        read_lines(|line| match line {
            Line::Service {
                key,
                scheduler,
                is_persistent,
            } => {
                end(current.take(), &mut differences);
                // One may be told twice, if another one was added meanwhile.
                let is_new = |key: &ServiceKey| virtuals.written(key).is_some() && !seen.contains(key);
                let Some(key) = key.filter(is_new) else {
                    return;
                };
                seen.insert(key);
                current = Some((key, 0));
                let options = virtuals.written(&key).and_then(|written| written.options);
                if let Some(options) = options
                    && (options.scheduler.kind.as_str(), options.affinity.is_some())
                        != (scheduler.as_str(), is_persistent)
                {
                    differences.push(format!("{key}: not scheduled as it was written"));
                }
            }
            Line::Destination(listed) => {
                let Some((key, count)) = current.as_mut() else {
                    return;
                };
                *count += 1;
                let weight = virtuals
                    .written(key)
                    .and_then(|written| written.weight(listed.address));
                let address = listed.address;
                match weight {
                    None => differences.push(format!("{key}: destination {address} is too many")),
                    Some(weight) if weight != listed.weight || !listed.is_translated => {
                        differences.push(format!("{key}: destination {address} is not as it was written"));
                    }
                    Some(_) => {}
                }
            }
        })?;
        end(current.take(), &mut differences);
        for key in virtuals.keys().filter(|key| !seen.contains(*key)) {
            if differences.len() >= SPELLED_OUT || self.socket()?.service(key)?.is_none() {
                differences.push(format!("virtual service {key} is gone"));
            }
        }
        Ok(differences)
    }

    /// Timeouts that the policy says otherwise.
    fn other_timeouts(&mut self, settings: IpvsSettings) -> Result<Option<String>, Error> {
        let wanted = timeouts(settings);
        if wanted == Timeouts::default() {
            return Ok(None);
        }
        let found = self.socket()?.timeouts()?;
        let differs = [
            (wanted.tcp, found.tcp),
            (wanted.tcp_fin, found.tcp_fin),
            (wanted.udp, found.udp),
        ]
        .into_iter()
        .any(|(wanted, found)| wanted != 0 && wanted != found);
        Ok(differs.then(|| format!("the timeouts of IPVS are {found:?}, not as the policy says")))
    }

    /// Schedulers that the kernel has got since it was asked last.
    fn new_schedulers(&mut self) -> Vec<String> {
        let lacking: Vec<SchedulerKind> = self.lacking.iter().copied().collect();
        let mut news = Vec::new();
        for kind in lacking {
            if probe::scheduler(self.family, kind).is_ok_and(|there| there) {
                self.lacking.remove(&kind);
                news.push(format!("the kernel has scheduler {kind} now"));
            }
        }
        news
    }

    fn observe_all(&mut self, virtuals: &Virtuals) -> Result<Observed, Error> {
        let mut observed = self.front.observe()?;
        let mut differences = self.compare(virtuals)?;
        differences.extend(self.routes.differences()?);
        differences.extend(self.other_timeouts(virtuals.settings())?);
        differences.extend(self.new_schedulers());
        for difference in differences {
            if observed.differences.len() < SPELLED_OUT {
                observed.differences.push(difference);
            } else {
                observed.more += 1;
            }
        }
        Ok(observed)
    }

    /// What a teardown does when there is something to take down.
    fn drain(&mut self, limit: Option<Duration>) -> Result<Remaining, Error> {
        let since = *self.draining_since.get_or_insert_with(Instant::now);
        let is_over = limit.is_some_and(|limit| since.elapsed() >= limit);
        let (ours, _) = match self.read_services() {
            Err(Error::MissingKernelFeature { .. }) => Default::default(),
            other => other?,
        };
        let found = match ours.is_empty() {
            true => Found::new(),
            false => self.read_destinations(ours.keys())?,
        };
        let mut connections = 0;
        let mut commands = Vec::new();
        for key in ours.keys() {
            let listed = found.get(key).map(Vec::as_slice).unwrap_or_default();
            let (busy, idle): (Vec<&Listed>, Vec<&Listed>) =
                listed.iter().partition(|listed| listed.connections > 0);
            if busy.is_empty() || is_over {
                commands.push(Command::DeleteService(*key));
                continue;
            }
            connections += busy.iter().map(|listed| listed.connections).sum::<u64>();
            let idle = idle.into_iter();
            commands.extend(idle.map(|listed| Command::DeleteDestination(*key, listed.address)));
            let awake = busy.into_iter().filter(|listed| listed.weight > 0);
            commands.extend(awake.map(|listed| Command::SetDestination(*key, Quiet::new(listed.address, 0))));
        }
        if !commands.is_empty() {
            let outcome = self.socket()?.run(commands)?;
            accept(
                outcome
                    .refused
                    .into_iter()
                    .filter(|refusal| !is_gone_already(refusal)),
            )?;
        }
        if connections > 0 {
            return Ok(Remaining::Connections(connections));
        }
        self.routes.remove()?;
        self.draining_since = None;
        Ok(Remaining::Nothing)
    }
}

impl Backend for Ipvs {
    fn family(&self) -> Family {
        self.family
    }

    fn tables(&self) -> &'static [&'static str] {
        self.front.tables()
    }

    fn apply(&mut self, table: &ForwardingTable, diff: &Diff) -> Result<Report, Error> {
        if diff.all {
            return self.sync(table);
        }
        match self.try_apply(table, diff) {
            Ok(Some(report)) => Ok(report),
            Ok(None) => self.sync(table),
            Err(Error::MissingScheduler(kind)) => {
                self.lacking.insert(kind);
                self.sync(table)
            }
            Err(error) => Err(error),
        }
    }

    fn sync(&mut self, table: &ForwardingTable) -> Result<Report, Error> {
        self.draining_since = None;
        let mut replaced = false;
        loop {
            match self.try_sync(table) {
                Err(Error::MissingScheduler(kind)) if self.lacking.insert(kind) => {
                    tracing::warn!(family = %self.family, scheduler = %kind, "the kernel has no such scheduler");
                }
                Err(_) if self.front.is_beyond_repair() && !replaced => replaced = true,
                other => return other,
            }
        }
    }

    fn observe(&mut self) -> Result<Observed, Error> {
        let Some(virtuals) = self.held.take() else {
            return Ok(Observed {
                differences: vec!["nothing was written yet, or the last attempt failed".to_owned()],
                ..Observed::default()
            });
        };
        let observed = self.observe_all(&virtuals);
        // What was written is known also when it cannot be read at the moment.
        self.held = Some(virtuals);
        observed
    }

    fn teardown(&mut self, limit: Option<Duration>) -> Result<Remaining, Error> {
        self.held = None;
        // Asking IPVS loads it: not on a node that has nothing of ours.
        if !self.routes.is_there()? && !self.front.is_there()? {
            return Ok(Remaining::Nothing);
        }
        self.front.teardown(limit)?;
        self.drain(limit)
    }

    fn tend_at(&self) -> Option<Instant> {
        self.held.as_ref().and_then(Virtuals::next_look)
    }

    fn tend(&mut self) -> Result<(), Error> {
        let (Some(mut virtuals), Some(mut socket)) = (self.held.take(), self.socket.take()) else {
            return Ok(());
        };
        let now = Instant::now();
        let mut commands = Commands::default();
        for key in virtuals.due(now, LOOKS) {
            let found = socket.destinations(&key)?;
            virtuals.looked(key, &found, now, &mut commands);
        }
        let outcome = socket.run(std::mem::take(&mut commands.shrink))?;
        accept(
            outcome
                .refused
                .into_iter()
                .filter(|refusal| !is_gone_already(refusal)),
        )?;
        for key in &commands.ended {
            leave(&mut self.routes, key, false);
        }
        self.routes.shrink()?;
        self.socket = Some(socket);
        self.held = Some(virtuals);
        Ok(())
    }

    fn lacking(&self) -> Vec<String> {
        let Some(virtuals) = &self.held else {
            return Vec::new();
        };
        let policy = virtuals.fallback();
        let deprived = virtuals.deprived().into_iter();
        let told = deprived.filter(|(_, count)| *count > 0).map(|(kind, count)| {
            format!(
                "the kernel has no IPVS scheduler {kind}: {count} virtual services of {} use {policy} instead; load the module \
                 {} on the node (CONFIG_IP_VS_{}; Debian: in linux-image)",
                self.family,
                kind.module(),
                kind.as_str().to_ascii_uppercase()
            )
        });
        told.collect()
    }
}

/// A change on its way into the kernel.
struct Work<'a> {
    socket: Socket,
    routes: &'a mut Routes,
    virtuals: Virtuals,
    table: &'a ForwardingTable,
    now: Instant,
    commands: Commands,
    objects: usize,
    bytes: usize,
}

impl Work<'_> {
    /// Brings services to what is asked for, but for what has to wait for [`Work::shrink`].
    fn grow(&mut self, keys: BTreeSet<ServiceKey>) -> Result<(), Error> {
        let (table, family) = (self.table, self.virtuals.family());
        let existing = existing(table, family);
        for key in keys {
            self.virtuals.settle(key, &existing, self.now, &mut self.commands);
            if self.commands.grow.len() >= CHUNK {
                let chunk = std::mem::take(&mut self.commands.grow);
                self.send(chunk)?;
            }
        }
        let chunk = std::mem::take(&mut self.commands.grow);
        self.send(chunk)?;
        // Before the table lets go of their frontends.
        for key in std::mem::take(&mut self.commands.left) {
            leave(self.routes, &key, true);
        }
        Ok(())
    }

    /// Has endpoints go that leave and are in no slice any more.
    fn end_removed(&mut self, diff: &Diff) {
        let (table, family) = (self.table, self.virtuals.family());
        let ports = diff.existing.keys().filter(|key| key.family == family);
        let ports: HashSet<Arc<ServicePortName>> = ports.map(|key| Arc::clone(&key.owner)).collect();
        if !ports.is_empty() {
            let existing = existing(table, family);
            self.virtuals
                .end_removed(&ports, &existing, self.now, &mut self.commands);
        }
    }

    /// Removes what no packet is led to any more.
    fn shrink(&mut self) -> Result<(), Error> {
        let commands = std::mem::take(&mut self.commands.shrink);
        self.send(commands)?;
        for key in std::mem::take(&mut self.commands.left) {
            leave(self.routes, &key, true);
        }
        for key in std::mem::take(&mut self.commands.ended) {
            leave(self.routes, &key, false);
        }
        self.objects += self.routes.shrink()?;
        Ok(())
    }

    fn send(&mut self, commands: Vec<Command>) -> Result<(), Error> {
        if commands.is_empty() {
            return Ok(());
        }
        let Outcome {
            commands,
            bytes,
            refused,
            ..
        } = self.socket.run(commands)?;
        self.objects += commands;
        self.bytes += bytes;
        for refusal in &refused {
            if let Some(kind) = self.missing_scheduler(refusal) {
                return Err(Error::MissingScheduler(kind));
            }
        }
        accept(refused)
    }

    /// The scheduler for want of which a command was refused.
    fn missing_scheduler(&self, refusal: &Refusal) -> Option<SchedulerKind> {
        match refusal.request {
            Some(Request::Service(Verb::New | Verb::Set, key)) if refusal.errno == Errno::ENOENT => {
                self.virtuals.scheduler_of(&key)
            }
            _ => None,
        }
    }

    fn set_timeouts(&mut self) -> Result<(), Error> {
        let timeouts = timeouts(self.table.context().settings.ipvs);
        if timeouts == Timeouts::default() {
            return Ok(());
        }
        self.send(vec![Command::SetTimeouts(timeouts)])
    }

    fn report(&self, front: Report) -> Report {
        Report {
            objects: front.objects + self.objects,
            bytes: front.bytes + self.bytes,
            iptables: None,
        }
    }
}

/// The timeouts that a policy wants; 0 leaves what is.
fn timeouts(settings: IpvsSettings) -> Timeouts {
    Timeouts {
        tcp: settings.tcp_timeout.unwrap_or(0),
        tcp_fin: settings.tcp_fin_timeout.unwrap_or(0),
        udp: settings.udp_timeout.unwrap_or(0),
    }
}

/// Keeps the address of a service that leaves for the node, or lets go of it.
fn leave(routes: &mut Routes, key: &ServiceKey, leaves: bool) {
    if let ServiceKey::Address(_, address) = key {
        routes.addresses.keep(address.ip(), leaves);
    }
}

/// The addresses that slices name for a port.
fn existing(
    table: &ForwardingTable,
    family: Family,
) -> impl Fn(&Arc<ServicePortName>) -> Option<Arc<[crate::model::IpPort]>> + '_ {
    move |owner| {
        let key = PortKey {
            owner: Arc::clone(owner),
            family,
        };
        table.existing(&key).cloned()
    }
}

/// The frontend that has a service's address and port.
fn frontend_of(key: &ServiceKey) -> Option<FrontendKey> {
    match key {
        ServiceKey::Address(protocol, address) => Some(FrontendKey {
            family: Family::of(address.ip()),
            destination: Destination::Address(address.ip()),
            protocol: *protocol,
            port: address.port(),
        }),
        ServiceKey::Mark(..) => None,
    }
}

/// The pool that a service's mark would be.
fn mark(key: &ServiceKey, family: Family) -> Option<u32> {
    match key {
        ServiceKey::Mark(_, mark) if family_of_mark(*mark) == Some(family) => Some(pool_of_mark(*mark)),
        _ => None,
    }
}

/// What is gone need not be removed.
fn is_gone_already(refusal: &Refusal) -> bool {
    let removes = match refusal.request {
        Some(Request::Service(verb, _) | Request::Destination(verb, ..)) => verb != Verb::New,
        _ => false,
    };
    removes && matches!(refusal.errno, Errno::ESRCH | Errno::ENOENT)
}

/// An error that names the first refusal, if there is any.
fn accept(refused: impl IntoIterator<Item = Refusal>) -> Result<(), Error> {
    let mut refused = refused.into_iter();
    match refused.next() {
        None => Ok(()),
        Some(first) => {
            let more = refused.count();
            let more = if more > 0 {
                format!(" (and {more} more)")
            } else {
                String::new()
            };
            Err(Error::Refused(format!("{first}{more}")))
        }
    }
}

/// The destinations of the services of a family.
fn read_listing(family: Family) -> Result<Found, Error> {
    let mut found = Found::new();
    let mut current: Option<ServiceKey> = None;
    read_lines(|line| match line {
        Line::Service { key, .. } => {
            // One may be told twice, if another one was added meanwhile.
            let new = key.filter(|key| key.family() == family && !found.contains_key(key));
            current = new.inspect(|key| {
                found.insert(*key, Vec::new());
            });
        }
        Line::Destination(listed) => {
            if let Some(found) = current.and_then(|key| found.get_mut(&key)) {
                found.push(listed);
            }
        }
    })?;
    Ok(found)
}

fn read_lines(mut each: impl FnMut(Line)) -> Result<(), Error> {
    let failed = |source| Error::Io {
        what: format!("reading {}", listing::PATH),
        source,
    };
    let file = File::open(listing::PATH).map_err(failed)?;
    // The kernel gives a page at a time; few large reads cost least.
    let mut file = BufReader::with_capacity(1 << 16, file);
    let mut text = String::new();
    loop {
        text.clear();
        if file.read_line(&mut text).map_err(failed)? == 0 {
            return Ok(());
        }
        if let Some(line) = line(&text) {
            each(line);
        }
    }
}

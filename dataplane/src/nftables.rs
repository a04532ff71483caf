//! The nftables backend: a constant set of chains, and maps that a packet finds its Service through, written over
//! netlink. No program is needed.
//!
//! ```text
//! nat prerouting, output ─▶ services: frontends { address . protocol . port : number } ─▶ dispatch
//!                                     node-addresses, node-ports { protocol . port : number } ─▶ dispatch
//! the same, after others ─▶ unclaimed: cluster-ips ─▶ refuse; ServiceCIDRs ─▶ drop
//! dispatch: special, if the number has any flag but the usual one:
//!           restricted?  sources { number . range }, restricted { number : number }, or drop
//!           external?    from here: as it is; from elsewhere: outside { pool : pool }
//!           masquerade?  marks the packet
//!           pools { pool : class and pool }, classes { class : chain }
//! pick-n:   endpoints { pool . slot : address . port } with a random slot below n
//! sticky-n-t, hit-n-t, fresh-n-t: the same with affinity-t { pool . client : member }, stable { pool . slot : member },
//!           members { member : address . port }
//! nat postrouting: masquerades what is marked, and hairpins
//! ```
//!
//! The kernel validates chains at every commit that touches rules or verdict maps; here a change of a Service or an
//! endpoint touches plain elements only, whatever the size of the table. The rooms:
//! - [`layout`], [`picks`], [`words`]: chains and rules; [`sets`]: what the maps are made as;
//! - [`number`]: what a packet carries from one lookup to the next;
//! - [`entry`]: elements, typed and as bytes;
//! - [`pool`], [`state`]: what a change of the model means, in which order;
//! - [`snapshot`], [`adopt`]: reading back, and keeping what is right already;
//! - [`mod@write`], in transactions;
//! - [`probe`]: whether the kernel can do all that.

mod admit;
mod adopt;
mod entry;
mod layout;
mod number;
mod picks;
mod pool;
pub mod probe;
mod sets;
mod snapshot;
mod state;
mod words;
mod write;

use std::collections::HashMap;
use std::time::Duration;

use nix::errno::Errno;

use crate::backend::{Backend, Error, Observed, Remaining, Report};
use crate::model::{Context, Diff, Family, ForwardingTable};
use crate::netlink::nftables::{Batch, Listing, answer};
use crate::netlink::socket::{NetlinkError, Socket};
use adopt::Found;
use layout::{Chain, Layout, Purpose, chains, grace};
pub(crate) use number::{family_of_mark, mark_of, pool_of_mark};
use picks::class_chains;
use snapshot::{Digests, Snapshot, add_to};
use state::State;
pub(crate) use state::{Asked, AskedPool, Known};
use write::{Unsent, Writing};

/// How many differences are spelled out.
const SPELLED_OUT: usize = 8;

/// Programs the Services of one family into an nf_tables table of its own.
#[derive(Debug)]
pub struct Nftables {
    layout: Layout,
    /// Opened when it is first needed, in the network namespace of the thread that needs it.
    socket: Option<Socket>,
    /// What the kernel holds as far as we know; none before the first sync and after a failure.
    held: Option<Held>,
    /// The kernel refused to repair the table that is there: the next sync puts a new one in its place.
    is_beyond_repair: bool,
}

/// What was written, and in which generation of the ruleset.
#[derive(Debug)]
struct Held {
    state: State,
    context: Context,
    /// The generation after our last transaction; none where somebody else had one since the table was read.
    generation: Option<u32>,
}

impl Nftables {
    /// A backend for one family.
    #[must_use]
    pub fn new(family: Family) -> Self {
        Self::of(Purpose::Translate, family)
    }

    /// The part of another backend that stands before IPVS: see [`mod@admit`].
    pub(crate) fn admitting(family: Family) -> Self {
        Self::of(Purpose::Admit, family)
    }

    fn of(purpose: Purpose, family: Family) -> Self {
        Self {
            layout: Layout { purpose, family },
            socket: None,
            held: None,
            is_beyond_repair: false,
        }
    }

    /// Whether there is a table of this in the kernel, in whatever state.
    pub(crate) fn is_there(&mut self) -> Result<bool, Error> {
        let layout = self.layout;
        let snapshot = Snapshot::outline(self.socket()?, layout).map_err(failed)?;
        Ok(snapshot.is_there || snapshot.has_deputy)
    }

    /// Removes everything, what [`Backend::teardown`] would leave for connections that live on as well: unless something
    /// else on the node translates addresses, those that are left break.
    ///
    /// # Errors
    /// When the table could not be removed.
    pub fn remove_all(&mut self) -> Result<(), Error> {
        self.held = None;
        self.remove(|_| true, |_| ())
    }

    /// Removes a table that is there for which `is_due` says so, and puts in its place what `leave` writes.
    fn remove(
        &mut self,
        is_due: impl Fn(&Snapshot) -> bool,
        leave: impl FnOnce(&mut Batch),
    ) -> Result<(), Error> {
        let layout = self.layout;
        let socket = self.socket()?;
        let snapshot = Snapshot::outline(socket, layout).map_err(failed)?;
        if snapshot.is_there && is_due(&snapshot) {
            let mut batch = socket.batch(layout.table());
            batch.delete_table();
            leave(&mut batch);
            socket.commit(&batch.finish()).map_err(failed)?;
        }
        if snapshot.has_deputy {
            let mut batch = socket.batch(layout.deputy());
            batch.delete_table();
            socket.commit(&batch.finish()).map_err(failed)?;
        }
        Ok(())
    }

    fn socket(&mut self) -> Result<&mut Socket, Error> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => Socket::open().map_err(failed)?,
        };
        Ok(self.socket.insert(socket))
    }

    /// Whether the last sync failed because the kernel refused to repair the table: the next one replaces it.
    pub(crate) fn is_beyond_repair(&self) -> bool {
        self.is_beyond_repair
    }

    /// Brings a table that can be kept to what is wanted, or makes one. What the change asks of IPVS is handed over first.
    pub(crate) fn sync_after(
        &mut self,
        table: &ForwardingTable,
        known: Known,
        first: impl FnOnce(Asked) -> Result<(), Error>,
    ) -> Result<Report, Error> {
        self.held = None;
        let is_beyond_repair = std::mem::take(&mut self.is_beyond_repair);
        let layout = self.layout;
        let family = layout.family;
        let socket = self.socket()?;
        let found = std::cell::RefCell::new(Found::default());
        let snapshot = Snapshot::read(
            socket,
            layout,
            || *found.borrow_mut() = Found::default(),
            |entry| found.borrow_mut().add(entry),
        )
        .map_err(failed)?;
        let context = table.context();
        let wanted = chains(context, layout);
        let empty = State::knowing(layout, known);
        let mut writing = Writing::new(socket, layout, Some(snapshot.generation));
        let foreign = snapshot.is_foreign(&wanted, layout);
        let is_kept = snapshot.is_there && foreign.is_none() && !is_beyond_repair;
        if let Some(why) = foreign.filter(|_| snapshot.is_there) {
            tracing::info!(%family, why, "replacing a table that an older agent made or others changed");
        }
        let (state, mut change) = match is_kept {
            true => found.into_inner().become_table(table, empty),
            false => empty.of_table(table),
        }
        .map_err(full)?;
        first(std::mem::take(&mut change.asked))?;
        if is_kept {
            let unsent = Unsent::repair(&snapshot, wanted, &state, &change);
            if let Err(error) = writing.send(&change, unsent) {
                if let Error::Netlink(NetlinkError::Refused { .. }) = error {
                    // Whatever is wrong with it: a new one in its place will do.
                    tracing::warn!(%family, %error, "the table cannot be repaired: replacing it");
                    self.is_beyond_repair = true;
                }
                return Err(error);
            }
        } else if snapshot.is_there {
            writing.replace(&wanted, &state, &change, &snapshot)?;
        } else {
            writing.make(&wanted, &state, &change)?;
        }
        if snapshot.has_deputy && (is_kept || !snapshot.is_there) {
            writing.remove_deputy(&[])?;
        }
        let (report, generation) = writing.done()?;
        self.held = Some(Held {
            state,
            context: context.clone(),
            generation,
        });
        Ok(report)
    }

    /// Brings the kernel from the table before `diff` to `table`; none when it is not known what the kernel holds. What the
    /// change asks of IPVS is handed over first.
    pub(crate) fn apply_after(
        &mut self,
        table: &ForwardingTable,
        diff: &Diff,
        first: impl FnOnce(Asked) -> Result<(), Error>,
    ) -> Result<Option<Report>, Error> {
        // Taken out: after a failure nothing is known, and the next call reads the kernel.
        let Some(mut held) = self.held.take() else {
            return Ok(None);
        };
        let mut change = held.state.change(table, diff).map_err(full)?;
        first(std::mem::take(&mut change.asked))?;
        let layout = self.layout;
        let mut unsent = Unsent::default();
        if diff.context {
            let before = chains(&held.context, layout);
            let after = chains(table.context(), layout);
            let differs = |chain: &Chain| !before.contains(chain);
            unsent.chains = after.into_iter().filter(differs).collect();
            held.context = table.context().clone();
        }
        let mut writing = Writing::new(self.socket()?, layout, held.generation);
        writing.send(&change, unsent)?;
        let (report, generation) = writing.done()?;
        held.generation = generation;
        self.held = Some(held);
        Ok(Some(report))
    }

    /// Compares the kernel with what was written.
    fn compare_with(&mut self, held: &mut Held) -> Result<Observed, Error> {
        let layout = self.layout;
        let socket = self.socket()?;
        let counters = counted(socket, layout).map_err(failed)?;
        // Nobody has changed anything in this network namespace since our last transaction.
        if Some(socket.generation().map_err(failed)?) == held.generation {
            return Ok(Observed {
                counters,
                ..Observed::default()
            });
        }
        let found = std::cell::RefCell::new(Digests::new());
        let snapshot = Snapshot::read(
            socket,
            layout,
            || found.borrow_mut().clear(),
            |entry| add_to(&mut found.borrow_mut(), &entry),
        )
        .map_err(failed)?;
        let observed = Observed {
            counters,
            ..compare(held, &snapshot, &found.into_inner())
        };
        if observed.is_clean() {
            held.generation = Some(snapshot.generation);
        }
        Ok(observed)
    }
}

impl Backend for Nftables {
    fn family(&self) -> Family {
        self.layout.family
    }

    fn tables(&self) -> &'static [&'static str] {
        match self.layout.purpose {
            Purpose::Translate => &["pointsman"],
            Purpose::Admit => &["pointsman-ipvs"],
        }
    }

    fn apply(&mut self, table: &ForwardingTable, diff: &Diff) -> Result<Report, Error> {
        if diff.all {
            return self.sync(table);
        }
        match self.apply_after(table, diff, |_| Ok(()))? {
            Some(report) => Ok(report),
            None => self.sync(table),
        }
    }

    fn sync(&mut self, table: &ForwardingTable) -> Result<Report, Error> {
        match self.sync_after(table, Known::default(), |_| Ok(())) {
            Err(_) if self.is_beyond_repair => self.sync_after(table, Known::default(), |_| Ok(())),
            other => other,
        }
    }

    fn observe(&mut self) -> Result<Observed, Error> {
        let Some(mut held) = self.held.take() else {
            return Ok(Observed {
                differences: vec!["nothing was written yet, or the last attempt failed".to_owned()],
                ..Observed::default()
            });
        };
        let observed = self.compare_with(&mut held);
        // What was written is known also when it cannot be read at the moment.
        self.held = Some(held);
        observed
    }

    /// Removes everything but a chain without which the kernel would stop translating established connections
    /// ([`layout::grace`]). [`Nftables::remove_all`] removes that; a later sync takes over from it.
    fn teardown(&mut self, _limit: Option<Duration>) -> Result<Remaining, Error> {
        self.held = None;
        let left = grace();
        self.remove(
            |snapshot| snapshot.chains.len() != 1 || !snapshot.has(&left),
            |batch| {
                batch.add_table();
                write::put_chain(batch, &left, &mut 0);
            },
        )?;
        Ok(Remaining::Nothing)
    }
}

/// What differs between what was written and what was read.
fn compare(held: &Held, snapshot: &Snapshot, found: &Digests) -> Observed {
    let layout = held.state.layout;
    let mut differences = Vec::new();
    if !snapshot.is_there {
        differences.push(format!("table {} is gone", layout.name()));
    } else {
        let mut expected: HashMap<String, Chain> = HashMap::new();
        let of_classes = held
            .state
            .classes
            .keys()
            .flat_map(|class| class_chains(*class, layout.family));
        for chain in chains(&held.context, layout).into_iter().chain(of_classes) {
            expected.insert(chain.name.clone(), chain);
        }
        for chain in expected.values().filter(|chain| !snapshot.has(chain)) {
            differences.push(match snapshot.chains.contains_key(&chain.name) {
                true => format!("chain {}: other rules than were written", chain.name),
                false => format!("chain {} is gone", chain.name),
            });
        }
        for name in snapshot
            .chains
            .keys()
            .filter(|name| !expected.contains_key(*name))
        {
            differences.push(format!("chain {name}: not one of those that were written"));
        }
        differences.extend(snapshot.is_foreign(&chains(&held.context, layout), layout));
        let mut wanted = Digests::new();
        held.state.entries().for_each(|entry| add_to(&mut wanted, &entry));
        for map in layout.maps() {
            let (wanted, found) = (wanted.get(&map).copied(), found.get(&map).copied());
            let (wanted, found) = (wanted.unwrap_or_default(), found.unwrap_or_default());
            if wanted.count != found.count {
                differences.push(format!(
                    "map {}: {} elements instead of {}",
                    map.name(),
                    found.count,
                    wanted.count
                ));
            } else if wanted != found {
                differences.push(format!("map {}: other elements than were written", map.name()));
            }
        }
    }
    differences.sort_unstable();
    let more = differences.len().saturating_sub(SPELLED_OUT);
    differences.truncate(SPELLED_OUT);
    Observed {
        differences,
        more,
        ..Observed::default()
    }
}

/// The packets of our counters.
fn counted(socket: &mut Socket, layout: Layout) -> Result<Vec<(&'static str, u64)>, NetlinkError> {
    let counters = std::cell::RefCell::new(Vec::new());
    socket.list(
        layout.table(),
        Listing::Counters,
        || counters.borrow_mut().clear(),
        |message| {
            if let Some((table, name, packets)) = answer::counter(message)
                && table == layout.name()
                && let Some(known) = layout.counters().iter().find(|known| **known == name)
            {
                counters.borrow_mut().push((*known, packets));
            }
        },
    )?;
    Ok(counters.into_inner())
}

fn failed(error: NetlinkError) -> Error {
    let missing = [Errno::EOPNOTSUPP, Errno::EAFNOSUPPORT, Errno::EPROTONOSUPPORT];
    let is_missing = |errno| missing.iter().any(|known| *known as i32 == errno);
    if matches!(error, NetlinkError::Absent) || error.errno().is_some_and(is_missing) {
        return Error::MissingKernelFeature {
            what: "nf_tables feature that this mode needs".to_owned(),
            hint: format!(
                "it said: {error}; mode NFTables needs Linux 5.13 or newer with nf_tables, nft_nat and nft_fib"
            ),
        };
    }
    Error::Netlink(error)
}

fn full(what: state::Full) -> Error {
    Error::TooMuch(what.to_string())
}

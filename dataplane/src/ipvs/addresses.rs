//! What makes Services' addresses the node's own: a dummy link, and on it a `local` route for each range that ClusterIPs are
//! allocated from, and for each other address one of its own.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;
use nix::errno::Errno;

use crate::backend::Error;
use crate::model::{Context, Family};
use crate::netlink::route::{Change, LocalRoute, Refusal, RouteError, Rtnetlink};

/// The name of the link, which both families share.
pub(super) const LINK: &str = "pointsman-ipvs";

/// The addresses of a family.
#[derive(Debug)]
pub(super) struct Addresses {
    family: Family,
    ranges: Vec<IpNet>,
    /// Addresses that are asked for by themselves.
    vips: HashSet<IpAddr>,
    /// Those of services that leave, with how many leave.
    leaving: HashMap<IpAddr, usize>,
    source: Option<IpAddr>,
    /// Routes that the kernel has, and ones that somebody else's address or route makes needless.
    held: BTreeMap<IpNet, Held>,
    /// Addresses that may have to be written.
    touched: BTreeSet<IpNet>,
}

/// What the kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// Our route with this source.
    Ours(Option<IpAddr>),
    /// Somebody else made it the node's.
    Theirs,
}

impl Addresses {
    pub(super) fn new(family: Family) -> Self {
        Self {
            family,
            ranges: Vec::new(),
            vips: HashSet::new(),
            leaving: HashMap::new(),
            source: None,
            held: BTreeMap::new(),
            touched: BTreeSet::new(),
        }
    }

    /// Takes in the ranges and the source that node and policy mean.
    pub(super) fn set_context(&mut self, context: &Context) {
        let ranges = context.service_ranges(self.family);
        if self.ranges != ranges {
            self.touched.extend(self.ranges.iter().chain(&ranges));
            self.touch_singles();
            self.ranges = ranges;
        }
        let source = source(context, self.family);
        if self.source != source {
            self.touched.extend(self.held.keys());
            self.source = source;
        }
    }

    /// An address is asked for, or no more.
    pub(super) fn want(&mut self, address: IpAddr, is_wanted: bool) {
        if is_wanted {
            self.vips.insert(address);
        } else {
            self.vips.remove(&address);
        }
        self.touched.insert(address.into());
    }

    /// One more service of an address leaves, or one less.
    pub(super) fn keep(&mut self, address: IpAddr, leaves: bool) {
        let count = self.leaving.entry(address).or_default();
        *count = if leaves {
            *count + 1
        } else {
            count.saturating_sub(1)
        };
        if *count == 0 {
            self.leaving.remove(&address);
        }
        self.touched.insert(address.into());
    }

    /// Takes in what the kernel has.
    fn adopt(&mut self, link: u32, routes: Vec<LocalRoute>) {
        self.held.clear();
        for route in routes.into_iter().filter(|route| route.link == link) {
            self.held.insert(route.destination, Held::Ours(route.source));
        }
        self.touched.extend(self.held.keys());
        self.touched.extend(&self.ranges);
        self.touch_singles();
    }

    fn touch_singles(&mut self) {
        let singles = self.vips.iter().chain(self.leaving.keys());
        self.touched.extend(singles.map(|ip| IpNet::from(*ip)));
    }

    fn is_wanted(&self, destination: &IpNet) -> bool {
        if self.ranges.contains(destination) {
            return true;
        }
        let address = destination.addr();
        *destination == IpNet::from(address)
            && (self.vips.contains(&address) || self.leaving.contains_key(&address))
            && !self.ranges.iter().any(|range| range.contains(&address))
    }

    /// What is to be added and changed, and what is to be removed later.
    fn changes(&mut self, link: u32) -> (Vec<Change>, Vec<Change>) {
        let (mut add, mut remove) = (Vec::new(), Vec::new());
        for destination in std::mem::take(&mut self.touched) {
            let route = |source| LocalRoute {
                destination,
                link,
                source,
            };
            let held = self.held.get(&destination).copied();
            match (self.is_wanted(&destination), held) {
                (true, None) => add.push(Change::AddRoute(route(self.source))),
                (true, Some(Held::Ours(source))) if source != self.source => {
                    add.push(Change::ReplaceRoute(route(self.source)));
                }
                (true, Some(_)) => continue,
                (false, Some(Held::Ours(source))) => remove.push(Change::DeleteRoute(route(source))),
                (false, _) => {}
            }
            if self.is_wanted(&destination) {
                self.held.insert(destination, Held::Ours(self.source));
            } else {
                self.held.remove(&destination);
            }
        }
        (add, remove)
    }
}

/// The source of who sends to a Service from the node: an address that the node has, or clients of an IPv4 Service would have
/// the Service's own.
fn source(context: &Context, family: Family) -> Option<IpAddr> {
    let node = &context.node;
    let has =
        |address: &&IpAddr| Family::of(**address) == family && node.interface_addresses.contains(address);
    let own = node.interface_addresses.iter().find(has);
    node.internal_ips.iter().find(has).or(own).copied()
}

/// The routes of a family, in the kernel.
#[derive(Debug)]
pub(super) struct Routes {
    pub(super) addresses: Addresses,
    socket: Option<Rtnetlink>,
    /// The number of the link.
    link: Option<u32>,
    /// Changes that wait until no packet is led to what they remove.
    later: Vec<Change>,
}

impl Routes {
    pub(super) fn new(family: Family) -> Self {
        Self {
            addresses: Addresses::new(family),
            socket: None,
            link: None,
            later: Vec::new(),
        }
    }

    fn socket(&mut self) -> Result<&mut Rtnetlink, RouteError> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => Rtnetlink::open()?,
        };
        Ok(self.socket.insert(socket))
    }

    /// Forgets what is asked for and what the kernel has.
    pub(super) fn forget(&mut self) {
        self.addresses = Addresses::new(self.addresses.family);
        self.link = None;
        self.later.clear();
    }

    /// Reads what the kernel has, makes the link where it is missing, and adds what is missing.
    pub(super) fn sync(&mut self) -> Result<usize, Error> {
        let family = self.addresses.family;
        let link = self.make_link()?;
        let routes = self.socket()?.local_routes(family)?;
        self.link = Some(link);
        self.addresses.adopt(link, routes);
        self.grow()
    }

    fn make_link(&mut self) -> Result<u32, Error> {
        let socket = self.socket()?;
        let link = match socket.link(LINK)? {
            Some(link) => link,
            None => match socket.add_dummy(LINK) {
                // The other family's backend, of an agent that runs beside this one.
                Err(RouteError::Refused { source, .. })
                    if source.raw_os_error() == Some(Errno::EEXIST as i32) =>
                {
                    return self.make_link();
                }
                other => other?,
            },
        };
        if link.kind.as_deref() != Some("dummy") {
            return Err(Error::Refused(format!(
                "a link {LINK} is there that is no dummy: rename or remove it, so that Services' addresses can be on it"
            )));
        }
        if !link.is_up {
            socket.set_up(link.index, true)?;
        }
        Ok(link.index)
    }

    /// Adds routes; what is to go waits for [`Routes::shrink`].
    pub(super) fn grow(&mut self) -> Result<usize, Error> {
        let Some(link) = self.link else {
            return self.sync();
        };
        let (add, remove) = self.addresses.changes(link);
        self.later.extend(remove);
        if add.is_empty() {
            return Ok(0);
        }
        let outcome = self.socket()?.run(add)?;
        for refusal in outcome.refused {
            match refusal {
                // An address of the node: it is the node's without us.
                Refusal {
                    change: Change::AddRoute(route),
                    errno: Errno::EEXIST,
                    ..
                } => {
                    self.addresses.held.insert(route.destination, Held::Theirs);
                }
                other => return Err(Error::Refused(other.to_string())),
            }
        }
        Ok(outcome.changes)
    }

    /// Removes what is to go.
    pub(super) fn shrink(&mut self) -> Result<usize, Error> {
        let Some(link) = self.link else {
            return Ok(0);
        };
        let (add, remove) = self.addresses.changes(link);
        let changes = std::mem::take(&mut self.later)
            .into_iter()
            .chain(add)
            .chain(remove);
        let changes: Vec<Change> = changes.collect();
        if changes.is_empty() {
            return Ok(0);
        }
        let outcome = self.socket()?.run(changes)?;
        let mut refused = outcome.refused.into_iter();
        match refused.find(|refusal| refusal.errno != Errno::ESRCH) {
            Some(refusal) => Err(Error::Refused(refusal.to_string())),
            None => Ok(outcome.changes),
        }
    }

    /// What the kernel has otherwise than it was written.
    pub(super) fn differences(&mut self) -> Result<Vec<String>, Error> {
        let family = self.addresses.family;
        let Some(index) = self.link else {
            return Ok(Vec::new());
        };
        let found = self.socket()?.link(LINK)?;
        match found {
            Some(found) if found.index == index && found.is_up => {}
            Some(found) if found.index == index => return Ok(vec![format!("link {LINK} is down")]),
            _ => return Ok(vec![format!("link {LINK} is gone")]),
        }
        let routes = self.socket()?.local_routes(family)?;
        let found: BTreeMap<IpNet, Option<IpAddr>> = routes
            .into_iter()
            .filter(|route| route.link == index)
            .map(|route| (route.destination, route.source))
            .collect();
        let mut differences = Vec::new();
        for (destination, held) in &self.addresses.held {
            let Held::Ours(source) = held else { continue };
            match found.get(destination) {
                None => differences.push(format!("the local route to {destination} is gone")),
                Some(other) if other != source => {
                    differences.push(format!("the local route to {destination} has another source"));
                }
                Some(_) => {}
            }
        }
        let strange = found
            .keys()
            .filter(|destination| !matches!(self.addresses.held.get(destination), Some(Held::Ours(_))));
        differences.extend(strange.map(|destination| format!("a local route to {destination} is too many")));
        Ok(differences)
    }

    /// Whether the link is there.
    pub(super) fn is_there(&mut self) -> Result<bool, Error> {
        Ok(self.socket()?.link(LINK)?.is_some())
    }

    /// Removes all routes of the family, and the link when it has no other's.
    pub(super) fn remove(&mut self) -> Result<(), Error> {
        let family = self.addresses.family;
        self.forget();
        let socket = self.socket()?;
        let Some(link) = socket
            .link(LINK)?
            .filter(|link| link.kind.as_deref() == Some("dummy"))
        else {
            return Ok(());
        };
        let is_on_it = |route: &LocalRoute| route.link == link.index;
        let own = socket.local_routes(family)?.into_iter().filter(is_on_it);
        let outcome = socket.run(own.map(Change::DeleteRoute).collect::<Vec<_>>())?;
        let mut refused = outcome.refused.into_iter();
        if let Some(refusal) = refused.find(|refusal| refusal.errno != Errno::ESRCH) {
            return Err(Error::Refused(refusal.to_string()));
        }
        let other = match family {
            Family::V4 => Family::V6,
            Family::V6 => Family::V4,
        };
        if !socket.local_routes(other)?.iter().any(is_on_it) {
            socket.delete_link(link.index)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

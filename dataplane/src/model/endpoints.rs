//! Which endpoints of a Service port may get connections, by conditions, hints and node (kube-proxy's
//! `CategorizeEndpoints`).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use super::frontend::PoolEndpoint;
use super::input::{Endpoint, EndpointSlice, TrafficPolicy};
use super::names::{Family, IpPort, ServicePortName};
use super::weight::{Weights, share};

/// Endpoints that were chosen, and the weight of a share of 1 ([`super::Pool::unit`]).
pub(super) type Chosen = (Box<[PoolEndpoint]>, u8);

/// The endpoints of one Service port in one family.
///
/// While an endpoint moves from one slice to another both may have it: what is true in one of them counts, so that the
/// order of slices does not matter.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    able: BTreeMap<IpPort, Candidate>,
    /// Those with weight 0. They get no new connection, as if they were not there, and keep what they have.
    resting: BTreeMap<IpPort, Candidate>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Candidate {
    ready: bool,
    /// Serves while it terminates (KEP-1669).
    terminating: bool,
    local: bool,
    /// Whether nothing says that it is elsewhere.
    may_be_here: bool,
    /// Whether it has hints for nodes, and for zones.
    hinted: [bool; 2],
    /// Whether this node is, and its zone is, among them.
    meant: [bool; 2],
    /// The largest weight that a slice, or the Service, gives it.
    weight: Option<u8>,
}

/// Indices of [`Candidate::hinted`] and [`Candidate::meant`].
const NODE: usize = 0;
const ZONE: usize = 1;

impl Candidates {
    /// Those of the slices' ports that have the Service port's name and protocol. `weights` are the Service's, `zone` is
    /// this node's.
    pub(super) fn of<'a>(
        owner: &ServicePortName,
        family: Family,
        slices: impl IntoIterator<Item = &'a EndpointSlice>,
        weights: &Weights,
        zone: Option<&str>,
    ) -> Self {
        let mut found: BTreeMap<_, Candidate> = BTreeMap::new();
        for (address, endpoint) in named(owner, family, slices) {
            let weight = weights.of(endpoint.weight());
            found.entry(address).or_default().take_in(endpoint, weight, zone);
        }
        found.retain(|_, it| it.ready || it.terminating);
        let (resting, able) = found.into_iter().partition(|(_, it)| it.weight == Some(0));
        Self { able, resting }
    }

    /// Whether nobody anywhere could get a connection.
    pub(super) fn is_empty(&self) -> bool {
        self.able.is_empty()
    }

    /// Policy Cluster: the ready ones that hints allow; when none is ready, those that serve while they terminate.
    pub(super) fn cluster(&self) -> Chosen {
        let topology = self.topology();
        let ready = |it: &Candidate| it.ready && topology.is_none_or(|by| it.meant[by]);
        self.choose(ready, |it| it.terminating)
    }

    /// Policy Local: the same among those of this node, without hints.
    pub(super) fn local(&self) -> Chosen {
        self.choose(|it| it.ready && it.local, |it| it.terminating && it.local)
    }

    /// Those that have weight 0, or serve while they terminate, and were not chosen: what they have, they keep.
    pub(super) fn draining(&self, policy: TrafficPolicy, chosen: &[PoolEndpoint]) -> Box<[IpPort]> {
        let of_policy = |it: &Candidate| policy == TrafficPolicy::Cluster || it.local;
        let is_chosen = |address: &IpPort| chosen.binary_search_by_key(address, |it| it.address).is_ok();
        let terminating = self.able.iter().filter(|(_, it)| it.terminating);
        let all = terminating.chain(&self.resting).filter(|(_, it)| of_policy(it));
        let addresses = all.map(|(address, _)| *address);
        let mut addresses: Vec<_> = addresses.filter(|address| !is_chosen(address)).collect();
        addresses.sort_unstable();
        addresses.into()
    }

    /// The addresses of this node's ready endpoints: those that a load balancer's health check counts.
    pub(super) fn local_ready(&self) -> impl Iterator<Item = IpAddr> {
        let local = self.able.iter().filter(|(_, it)| it.ready && it.local);
        local.map(|(address, _)| address.ip())
    }

    fn choose(&self, first: impl Fn(&Candidate) -> bool, fallback: impl Fn(&Candidate) -> bool) -> Chosen {
        let all = |choice: &dyn Fn(&Candidate) -> bool| -> Box<[PoolEndpoint]> {
            let chosen = self.able.iter().filter(|(_, it)| choice(it));
            chosen
                .map(|(&address, it)| PoolEndpoint {
                    address,
                    local: it.may_be_here,
                    share: it.weight.unwrap_or(1),
                })
                .collect()
        };
        let mut chosen = all(&first);
        if chosen.is_empty() {
            chosen = all(&fallback);
        }
        let unit = share(&mut chosen);
        (chosen, unit)
    }

    /// Which hints count: those that every ready endpoint has, and of which some are for us; nodes before zones
    /// (KEP-4444, KEP-3015).
    fn topology(&self) -> Option<usize> {
        let ready = || self.able.values().filter(|it| it.ready);
        [NODE, ZONE]
            .into_iter()
            .find(|&by| ready().all(|it| it.hinted[by]) && ready().any(|it| it.meant[by]))
    }
}

impl Candidate {
    fn take_in(&mut self, endpoint: &Endpoint, weight: Option<u8>, zone: Option<&str>) {
        self.weight = self.weight.max(weight);
        self.ready |= endpoint.ready;
        self.terminating |= !endpoint.ready && endpoint.serving && endpoint.terminating;
        self.local |= endpoint.local;
        self.may_be_here |= endpoint.local || endpoint.unplaced;
        self.hinted[NODE] |= endpoint.for_nodes.is_some();
        self.meant[NODE] |= endpoint.for_nodes == Some(true);
        if let Some(zones) = endpoint.for_zones() {
            self.hinted[ZONE] = true;
            self.meant[ZONE] |= zones.iter().any(|for_zone| Some(&**for_zone) == zone);
        }
    }
}

/// All that slices name for a Service port, in whatever condition.
fn named<'a>(
    owner: &ServicePortName,
    family: Family,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> impl Iterator<Item = (IpPort, &'a Endpoint)> {
    let slices = slices.into_iter().filter(move |slice| slice.family == family);
    slices.flat_map(move |slice| {
        let ports = slice.ports.iter();
        let ports = ports.filter(|port| port.name == owner.port && port.protocol == owner.protocol);
        ports.flat_map(move |port| {
            let endpoints = slice.endpoints.iter();
            endpoints
                .filter(move |endpoint| impossible(endpoint, family).is_none())
                .map(|endpoint| (IpPort::new(endpoint.address, port.port), endpoint))
        })
    })
}

/// The addresses of all that slices name for a Service port, also of those that get no connections any more, sorted.
pub(super) fn existing<'a>(
    owner: &ServicePortName,
    family: Family,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> Arc<[IpPort]> {
    let addresses: BTreeSet<_> = named(owner, family, slices).map(|(address, _)| address).collect();
    addresses.into_iter().collect()
}

/// Why this can be no endpoint, by the rules that the API server validates slices with (`ValidateNonSpecialIP`) and
/// the slice's own address type.
pub(super) fn impossible(endpoint: &Endpoint, family: Family) -> Option<&'static str> {
    let address = endpoint.address;
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if Family::of(address) != family {
        Some("of another family than its slice's addressType")
    } else if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_loopback() {
        Some("a loopback address")
    } else if link_local {
        Some("a link-local address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else if address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        // The API server accepts it, and multicast as well (ValidateEndpointIP).
        Some("the broadcast address")
    } else {
        None
    }
}

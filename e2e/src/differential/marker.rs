//! How a side is known to have everything: a Service that every step moves, written last.
//!
//! Services, slices and the Node come by three watches, each in its own order. The marker's Service port moves with
//! every mark, so that an answer there tells that the watch of Services has come so far; the answering port tells the
//! same of slices. Each of its endpoints has a hint for one zone, and who answers tells which zone the side believes the
//! node to be in.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::world::{Family, Place, ZONES, vip};
use crate::traffic::Outcome;

/// The Service's name.
pub const NAME: &str = "marker";
/// The number of its ClusterIPs.
const VIP: u8 = 250;
/// The ports of its endpoints; marks alternate.
pub const TARGETS: [u16; 2] = [7100, 7101];
const PORTS: [u16; 2] = [7000, 7001];
/// Its endpoints, by the zones that their hints are for.
pub const PLACES: [Place; 3] = [Place::Local(0), Place::Remote(0), Place::Remote(1)];

/// A state of the marker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    odd: bool,
}

impl Mark {
    /// The next one, which differs from this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self { odd: !self.odd }
    }

    fn of<T: Copy>(self, [even, odd]: [T; 2]) -> T {
        if self.odd { odd } else { even }
    }

    /// Where it answers.
    #[must_use]
    pub fn targets(self) -> [SocketAddr; 2] {
        Family::ALL.map(|family| SocketAddr::new(vip(family, VIP), self.of(PORTS)))
    }

    /// Whether an answer there tells that a side has this mark, and has the node in this zone.
    #[must_use]
    pub fn is_told_by(self, family: Family, zone: usize, outcome: &Outcome) -> bool {
        let place = PLACES.get(zone);
        let expected = place.map(|place| SocketAddr::new(place.address(family), self.of(TARGETS)));
        expected.is_some_and(|expected| outcome.is_by(&expected.to_string()))
    }
}

/// The Service.
#[must_use]
pub fn service(mark: Mark) -> Value {
    let vips = Family::ALL.map(|family| vip(family, VIP));
    json!({
        "metadata": {"name": NAME, "namespace": "default"},
        "spec": {
            "clusterIP": vips[0], "clusterIPs": vips, "ipFamilyPolicy": "RequireDualStack",
            "ipFamilies": ["IPv4", "IPv6"], "ports": [{"port": mark.of(PORTS)}],
        },
    })
}

/// Its slices with their names.
#[must_use]
pub fn slices(mark: Mark) -> [(String, Value); 2] {
    [(Family::V4, "IPv4"), (Family::V6, "IPv6")].map(|(family, address_type)| {
        let name = format!("{NAME}-{}", address_type.to_lowercase());
        let endpoints = PLACES.iter().zip(ZONES).map(|(place, zone)| {
            json!({
                "addresses": [place.address(family)], "nodeName": place.node(), "zone": zone,
                "conditions": {"ready": true}, "hints": {"forZones": [{"name": zone}]},
            })
        });
        let object = json!({
            "metadata": {"name": name, "namespace": "default", "labels": {
                "kubernetes.io/service-name": NAME,
                "endpointslice.kubernetes.io/managed-by": "differential.pointsman.dev",
            }},
            "addressType": address_type, "endpoints": endpoints.collect::<Vec<_>>(),
            "ports": [{"name": "", "port": mark.of(TARGETS), "protocol": "TCP"}],
        });
        (name, object)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_tells_the_mark_and_the_zone() {
        let (first, second) = (Mark::default(), Mark::default().next());
        let answer = Outcome::from_line("10.244.2.2:7100 10.244.1.4:5\n");
        assert!(first.is_told_by(Family::V4, 1, &answer));
        assert!(!first.is_told_by(Family::V4, 0, &answer), "another zone");
        assert!(!second.is_told_by(Family::V4, 1, &answer), "the mark before");
        assert!(!first.is_told_by(Family::V4, 1, &Outcome::Refused));
        assert_eq!(second.next(), first);
        assert_ne!(first.targets(), second.targets());
    }
}

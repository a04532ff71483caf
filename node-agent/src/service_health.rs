//! What load balancers are told at `spec.healthCheckNodePort`: whether this node has ready endpoints of a Service
//! whose external traffic policy is Local, and forwards to them.
//!
//! The engine publishes [`HealthChecks`] when they change, [`serve`] opens and closes the servers. Their answers are
//! kube-proxy's (`pkg/proxy/healthcheck`), which cloud load balancers know.

mod listen;

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use pointsman_dataplane::model::{Family, ForwardingTable, NodePortAddresses, ServiceName};
use serde_json::json;

pub use listen::serve;

/// What the servers answer, and where they listen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthChecks {
    /// The addresses that NodePorts answer on. The unspecified address of a family stands for all of them.
    addresses: Vec<IpAddr>,
    /// By family and port.
    checks: BTreeMap<(Family, u16), Check>,
    /// Services whose port another Service has.
    clashes: Vec<String>,
}

/// One Service's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Check {
    service: ServiceName,
    /// Ready endpoints on this node; those that only serve while they terminate do not count.
    local_endpoints: usize,
}

impl HealthChecks {
    /// Those of a table. The cost follows the Services with a health-check port, not all of them.
    #[must_use]
    pub fn of(table: &ForwardingTable) -> Self {
        let mut found = Self::default();
        for (service, family, check) in table.health_checks() {
            match found.checks.entry((family, check.port)) {
                Entry::Vacant(vacant) => {
                    vacant.insert(Check {
                        service: service.clone(),
                        local_endpoints: check.local_endpoints,
                    });
                }
                // The API server allocates each port once; files may not.
                Entry::Occupied(taken) => found.clashes.push(format!(
                    "Service {service}: its health-check port {} is that of Service {}, which is served: give it \
                     another one",
                    check.port,
                    taken.get().service
                )),
            }
        }
        if !found.checks.is_empty() {
            found.addresses = addresses(table);
        }
        found
    }

    /// The sockets to listen on.
    fn sockets(&self) -> BTreeSet<SocketAddr> {
        let of_port = |(family, port): &(Family, u16)| {
            let (family, port) = (*family, *port);
            let own = self.addresses.iter().filter(move |ip| Family::of(**ip) == family);
            own.map(move |ip| SocketAddr::new(*ip, port))
        };
        self.checks.keys().flat_map(of_port).collect()
    }

    fn at(&self, socket: SocketAddr) -> Option<&Check> {
        self.checks.get(&(Family::of(socket.ip()), socket.port()))
    }
}

fn addresses(table: &ForwardingTable) -> Vec<IpAddr> {
    let context = table.context();
    if context
        .settings
        .node_port_addresses
        .contains(&NodePortAddresses::All)
    {
        return vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    }
    let of_family = |family| context.node_port_addresses(family);
    Family::ALL.into_iter().flat_map(of_family).collect()
}

/// The answer for a Service; `healthy` is whether the kernel holds what it should.
fn answer(check: &Check, healthy: bool) -> Response {
    let code = if check.local_endpoints > 0 && healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = json!({
        "service": {"namespace": &*check.service.namespace, "name": &*check.service.name},
        "localEndpoints": check.local_endpoints,
        "serviceProxyHealthy": healthy,
    });
    let headers = [
        ("X-Content-Type-Options", "nosniff".to_owned()),
        (
            "X-Load-Balancing-Endpoint-Weight",
            check.local_endpoints.to_string(),
        ),
    ];
    (code, headers, Json(body)).into_response()
}

#[cfg(test)]
mod tests;

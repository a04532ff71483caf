//! The objects that both sides are measured with: Services without a selector, each with an EndpointSlice.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Service},
        discovery::v1::EndpointSlice,
    },
    serde::de::DeserializeOwned,
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Backends, Size, Writer,
    backends::{Backend, PROBES, Places},
    interrupt,
};

/// The namespace of all Services.
const NAMESPACE: &str = "bench";
/// The port of every Service.
pub const PORT: u16 = 80;
/// Requests in flight: what two processors can serve at a time, and some more.
const PARALLEL: usize = 24;
/// Between two lines of progress.
const BEAT: Duration = Duration::from_secs(10);

/// Services and slices in the API server, the same for both sides.
#[derive(Debug, Serialize, Deserialize)]
pub struct Load {
    size: Size,
    probes: Vec<Probe>,
}

/// A Service whose endpoint is really served. It has one endpoint, where others have [`Size::endpoints`]: so one
/// connection tells whether a change has arrived.
#[derive(Debug, Serialize, Deserialize)]
pub struct Probe {
    number: usize,
    name: String,
    /// Its ClusterIP and port.
    pub vip: SocketAddr,
    /// Its endpoint without a Service, by backend A.
    pub direct: SocketAddr,
    now: Mutex<Backend>,
}

impl Load {
    /// Makes the objects, in parallel. The probes are spread evenly over the Services, the first and the last among
    /// them.
    ///
    /// # Errors
    /// When the API server refuses one.
    pub fn create(writer: &Writer, size: Size, backends: &Places, progress: &dyn Fn(&str)) -> Result<Self> {
        // The Services' range is a /16.
        ensure!(
            size.services <= 60_000,
            "{size}: an API server has room for 60000 Services here"
        );
        let started = Instant::now();
        progress(&format!("{size}: creating {} Services and slices", size.services));
        writer.run(|client| async move {
            let namespace = object(json!({"metadata": {"name": NAMESPACE}}))?;
            let made = Api::<Namespace>::all(client)
                .create(&PostParams::default(), &namespace)
                .await;
            made.map(drop).context("making the namespace")
        })?;

        let places = probe_places(size.services);
        let mut probes = Vec::new();
        let all: Vec<usize> = (0..size.services).collect();
        let mut last_line = Instant::now();
        for chunk in all.chunks(PARALLEL * 8) {
            interrupt::check()?;
            let objects: Vec<_> = chunk
                .iter()
                .map(|&service| {
                    let probe = places.iter().position(|&place| place == service);
                    let endpoints = match probe {
                        Some(probe) => probe_endpoints(backends, Backend::A, probe),
                        None => endpoints(service, size.endpoints, size.endpoints),
                    };
                    (service, probe, endpoints)
                })
                .collect();
            let made = writer.run(|client| create(client, objects))?;
            probes.extend(made.into_iter().map(|(number, service, address)| Probe {
                number,
                name: name(service),
                vip: (address, PORT).into(),
                direct: (backends.address(Backend::A), Backends::port(number)).into(),
                now: Mutex::new(Backend::A),
            }));
            if last_line.elapsed() > BEAT {
                last_line = Instant::now();
                let done = chunk.last().map_or(0, |last| last + 1);
                progress(&format!("{size}: {done} Services created"));
            }
        }
        probes.sort_by_key(|probe| probe.number);
        progress(&format!(
            "{size}: {} Services created in {:.1} s",
            size.services,
            started.elapsed().as_secs_f64()
        ));
        Ok(Self { size, probes })
    }

    /// Gives every probe the endpoint that it began with.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn reset(&self, writer: &Writer, backends: &Places) -> Result<()> {
        let mut probes = self.probes.iter();
        probes.try_for_each(|probe| probe.lead_to(Backend::A, writer, backends).map(drop))
    }

    /// How much it is.
    #[must_use]
    pub fn size(&self) -> Size {
        self.size
    }

    /// Gives a Service that is no probe this number of endpoints; none of those that it keeps differs from before.
    /// Returns when the request was sent and when the answer was here.
    ///
    /// # Errors
    /// When the API server refuses it, or when all Services are probes.
    pub fn scale(&self, writer: &Writer, count: usize) -> Result<(Instant, Instant)> {
        let places = probe_places(self.size.services);
        let service = (0..self.size.services)
            .rev()
            .find(|place| !places.contains(place))
            .context("a scale-up needs more Services than there are probes: take a size of 11x10 or more")?;
        patch(
            writer,
            name(service),
            &endpoints(service, self.size.endpoints, count),
        )
    }

    /// The probes, in the order of creation.
    #[must_use]
    pub fn probes(&self) -> &[Probe] {
        &self.probes
    }
}

impl Probe {
    /// Which server it leads to, as far as the API server knows.
    #[must_use]
    pub fn backend(&self) -> Backend {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces its endpoint by the other server. Returns when the request was sent and when the answer was here.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn switch(&self, writer: &Writer, backends: &Places) -> Result<(Instant, Instant)> {
        self.lead_to(self.backend().other(), writer, backends)
    }

    fn lead_to(&self, to: Backend, writer: &Writer, backends: &Places) -> Result<(Instant, Instant)> {
        let times = patch(
            writer,
            self.name.clone(),
            &probe_endpoints(backends, to, self.number),
        )?;
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = to;
        Ok(times)
    }
}

/// Endpoints of one slice, and their port.
struct Endpoints {
    endpoints: Vec<Value>,
    port: u16,
}

/// Puts these endpoints into a slice. Returns when the request was sent and when the answer was here.
fn patch(writer: &Writer, name: String, to: &Endpoints) -> Result<(Instant, Instant)> {
    let patch = json!({"endpoints": to.endpoints});
    writer.run(|client| async move {
        let slices = Api::<EndpointSlice>::namespaced(client, NAMESPACE);
        let asked = Instant::now();
        slices
            .patch_metadata(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .with_context(|| format!("changing the slice of {name}"))?;
        Ok((asked, Instant::now()))
    })
}

/// Makes some Services with their slices. Returns the probes among them: number, Service and ClusterIP.
async fn create(
    client: kube::Client,
    objects: Vec<(usize, Option<usize>, Endpoints)>,
) -> Result<Vec<(usize, usize, Ipv4Addr)>> {
    let services = Arc::new(Api::<Service>::namespaced(client.clone(), NAMESPACE));
    let slices = Arc::new(Api::<EndpointSlice>::namespaced(client, NAMESPACE));
    let made = stream::iter(objects).map(move |(service, probe, endpoints)| {
        let (services, slices) = (Arc::clone(&services), Arc::clone(&slices));
        async move {
            let name = name(service);
            let context = || format!("making the Service {name}");
            let object = object(service_object(&name))?;
            let made = services
                .create(&PostParams::default(), &object)
                .await
                .with_context(context)?;
            let slice = self::object(slice_object(&name, &endpoints))?;
            slices
                .create(&PostParams::default(), &slice)
                .await
                .with_context(context)?;
            let address = made.spec.and_then(|spec| spec.cluster_ip);
            let address = address.and_then(|address| address.parse::<Ipv4Addr>().ok());
            let address = address.with_context(|| format!("the Service {name} has no IPv4 ClusterIP"))?;
            Ok::<_, anyhow::Error>(probe.map(|probe| (probe, service, address)))
        }
    });
    let made: Vec<_> = made.buffer_unordered(PARALLEL).try_collect().await?;
    Ok(made.into_iter().flatten().collect())
}

fn object<T: DeserializeOwned>(json: Value) -> Result<T> {
    serde_json::from_value(json).context("an object of the bench's own")
}

fn name(service: usize) -> String {
    format!("service-{service:05}")
}

fn service_object(name: &str) -> Value {
    json!({
        "metadata": {"name": name},
        // No selector: no controller touches its slice.
        "spec": {"ports": [{"name": "http", "port": PORT, "protocol": "TCP", "targetPort": "http"}]},
    })
}

fn slice_object(name: &str, Endpoints { endpoints, port }: &Endpoints) -> Value {
    json!({
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/service-name": name,
                "endpointslice.kubernetes.io/managed-by": "bench.pointsman.dev",
            },
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

fn endpoint(address: Ipv4Addr, node: &str) -> Value {
    json!({
        "addresses": [address],
        "conditions": {"ready": true, "serving": true, "terminating": false},
        "nodeName": node,
    })
}

fn probe_endpoints(backends: &Places, backend: Backend, probe: usize) -> Endpoints {
    Endpoints {
        endpoints: vec![endpoint(backends.address(backend), &backends.node)],
        port: Backends::port(probe),
    }
}

/// The endpoints of a Service that is no probe: pods of nodes that are not there. Every Service has a port of its
/// own, so that all endpoints of the load differ.
fn endpoints(service: usize, spacing: usize, count: usize) -> Endpoints {
    // Nodes of the fabric have the low numbers.
    const FIRST_NODE: usize = 16;
    const NODES: usize = 240;
    const PODS: usize = 250;
    let all = (0..count).map(|number| {
        let place = (service * spacing + number) % (NODES * PODS);
        let (node, pod) = (FIRST_NODE + place / PODS, 2 + place % PODS);
        let octet = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
        let address = Ipv4Addr::new(10, 244, octet(node), octet(pod));
        endpoint(address, &format!("elsewhere-{node}"))
    });
    Endpoints {
        endpoints: all.collect(),
        port: 1024 + u16::try_from(service % 60_000).unwrap_or(0),
    }
}

/// Where the probes are among the Services.
pub(super) fn probe_places(services: usize) -> Vec<usize> {
    let count = services.min(PROBES);
    let last = services.saturating_sub(1);
    let place = |probe: usize| match count {
        0 | 1 => 0,
        _ => probe * last / (count - 1),
    };
    (0..count).map(place).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn probes_are_spread_from_the_first_to_the_last_service() {
        assert_eq!(probe_places(100), [0, 11, 22, 33, 44, 55, 66, 77, 88, 99],);
        assert_eq!(probe_places(3), [0, 1, 2]);
        assert_eq!(probe_places(1), [0]);
        for services in 1..200 {
            let places = probe_places(services);
            let distinct: BTreeSet<_> = places.iter().collect();
            assert_eq!(distinct.len(), services.min(PROBES), "{services}");
        }
    }

    #[test]
    fn no_two_services_have_the_same_endpoint() {
        let mut seen = BTreeSet::new();
        for service in 0..10_000 {
            let Endpoints { endpoints, port } = endpoints(service, 10, 10);
            for endpoint in endpoints {
                assert!(
                    seen.insert((endpoint["addresses"][0].to_string(), port)),
                    "{service}"
                );
            }
        }
        assert_eq!(seen.len(), 100_000);
    }

    #[test]
    fn a_scale_up_keeps_the_endpoints_that_are_there() {
        let few = endpoints(7, 10, 10).endpoints;
        assert_eq!(endpoints(7, 10, 250).endpoints.get(..10), Some(&few[..]));
    }

    #[test]
    fn the_objects_are_valid_ones() -> Result<()> {
        let _: Service = object(service_object("a"))?;
        let slice: EndpointSlice = object(slice_object("a", &endpoints(7, 3, 3)))?;
        assert_eq!(slice.endpoints.map(|all| all.len()), Some(3));
        Ok(())
    }
}

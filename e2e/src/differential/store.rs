//! Writes a world to the API server: only what is different, one request after the other.

use anyhow::{Context as _, Result};
use k8s_openapi::{
    api::{
        core::v1::{Node, Service as ServiceObject},
        discovery::v1::EndpointSlice,
    },
    serde::{Serialize, de::DeserializeOwned},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    marker::{self, Mark},
    world::{NODE, SERVICE_PREFIX, Service, Slice, World, ZONES},
};
use crate::{Access, bench::Writer};

/// One request.
#[derive(Clone, Debug, PartialEq)]
enum Write {
    Create(Object),
    Replace(Object),
    /// `status.loadBalancer` of a Service.
    Status(String, Value),
    DeleteService(String),
    DeleteSlice(String),
    Zone(usize),
}

/// An object with its name.
#[derive(Clone, Debug, PartialEq)]
enum Object {
    Service(String, Value),
    Slice(String, Value),
}

/// The API server, and what it holds.
#[derive(Debug)]
pub struct Store {
    writer: Writer,
    holds: World,
    /// A write that failed: `holds` may be wrong.
    failed: bool,
}

impl Store {
    /// An API server that has the node's object and nothing else of a world; makes the objects of the marker.
    ///
    /// # Errors
    /// When the API server refuses them.
    pub fn new(access: &Access, mark: Mark) -> Result<Self> {
        let writer = Writer::new(access)?;
        let store = Self {
            writer,
            holds: World::default(),
            failed: false,
        };
        let writes = marker_objects(mark).map(Write::Create);
        store.send([Write::Zone(0)].into_iter().chain(writes).collect())?;
        Ok(store)
    }

    /// Makes the API server hold this world.
    ///
    /// # Errors
    /// When it refuses an object.
    pub fn write(&mut self, world: &World) -> Result<()> {
        self.failed = true;
        self.send(writes(&self.holds, world))?;
        self.failed = false;
        self.holds = world.clone();
        Ok(())
    }

    /// After a write that the API server refused: takes away whatever there is.
    ///
    /// # Errors
    /// When the API server refuses that too.
    pub fn recover(&mut self) -> Result<()> {
        if !self.failed {
            return Ok(());
        }
        self.writer.run(|client| async move {
            let services = Api::<ServiceObject>::namespaced(client.clone(), "default");
            let slices = Api::<EndpointSlice>::namespaced(client.clone(), "default");
            let ours = |name: &String| name.starts_with(SERVICE_PREFIX);
            for service in services.list(&ListParams::default()).await? {
                if let Some(name) = service.metadata.name.filter(ours) {
                    services.delete(&name, &DeleteParams::default()).await?;
                }
            }
            for slice in slices.list(&ListParams::default()).await? {
                if let Some(name) = slice.metadata.name.filter(ours) {
                    slices.delete(&name, &DeleteParams::default()).await?;
                }
            }
            Write::Zone(0).send(&client).await
        })?;
        self.holds = World::default();
        self.failed = false;
        Ok(())
    }

    /// Moves the marker.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn mark(&self, mark: Mark) -> Result<()> {
        self.send(marker_objects(mark).map(Write::Replace).into())
    }

    fn send(&self, writes: Vec<Write>) -> Result<()> {
        self.writer.run(|client| async move {
            for write in writes {
                let context = format!("{write:?}");
                write.send(&client).await.with_context(|| context)?;
            }
            Ok(())
        })
    }
}

fn marker_objects(mark: Mark) -> [Object; 3] {
    let [v4, v6] = marker::slices(mark);
    [
        Object::Service(marker::NAME.to_owned(), marker::service(mark)),
        Object::Slice(v4.0, v4.1),
        Object::Slice(v6.0, v6.1),
    ]
}

/// From one world to another. What is deleted goes first, so that its addresses are free for others.
fn writes(before: &World, after: &World) -> Vec<Write> {
    let mut writes = Vec::new();
    // Which ClusterIPs a Service has cannot be changed.
    let stays = |slot: &u8, old: &Service| {
        let new = after.services.get(slot);
        let identity = |it: &Service| (it.vip, it.families.clone(), it.kind.class());
        new.is_some_and(|new| identity(new) == identity(old))
    };
    let gone = before.services.iter().filter(|(slot, old)| !stays(slot, old));
    writes.extend(gone.map(|(&slot, _)| Write::DeleteService(Service::name(slot))));
    // A slice's address type cannot be changed either.
    let remains =
        |key: &(u8, u8), old: &Slice| after.slices.get(key).is_some_and(|new| new.family == old.family);
    let gone = before.slices.iter().filter(|(key, old)| !remains(key, old));
    writes.extend(gone.map(|(&(slot, number), _)| Write::DeleteSlice(Slice::name(slot, number))));
    if before.zone != after.zone {
        writes.push(Write::Zone(after.zone));
    }
    for (&slot, new) in &after.services {
        let old = before.services.get(&slot).filter(|old| stays(&slot, old));
        if old == Some(new) {
            continue;
        }
        let object = Object::Service(Service::name(slot), new.object(slot));
        writes.push(match old {
            Some(_) => Write::Replace(object),
            None => Write::Create(object),
        });
        let had = old.and_then(Service::status);
        if let Some(status) = new.status().filter(|status| Some(status) != had.as_ref()) {
            writes.push(Write::Status(Service::name(slot), status));
        }
    }
    for (&(slot, number), new) in &after.slices {
        let old = before
            .slices
            .get(&(slot, number))
            .filter(|old| remains(&(slot, number), old));
        if old == Some(new) {
            continue;
        }
        let object = Object::Slice(Slice::name(slot, number), new.object(slot, number));
        writes.push(match old {
            Some(_) => Write::Replace(object),
            None => Write::Create(object),
        });
    }
    writes
}

impl Write {
    async fn send(self, client: &Client) -> Result<()> {
        let services = Api::<ServiceObject>::namespaced(client.clone(), "default");
        let slices = Api::<EndpointSlice>::namespaced(client.clone(), "default");
        match self {
            Self::Create(Object::Service(_, object)) => create(&services, object).await,
            Self::Create(Object::Slice(_, object)) => create(&slices, object).await,
            Self::Replace(Object::Service(name, object)) => replace(&services, &name, object).await,
            Self::Replace(Object::Slice(name, object)) => replace(&slices, &name, object).await,
            Self::Status(name, status) => {
                let patch = Patch::Merge(status);
                services
                    .patch_status(&name, &PatchParams::default(), &patch)
                    .await?;
                Ok(())
            }
            Self::DeleteService(name) => {
                services.delete(&name, &DeleteParams::default()).await?;
                Ok(())
            }
            Self::DeleteSlice(name) => {
                slices.delete(&name, &DeleteParams::default()).await?;
                Ok(())
            }
            Self::Zone(zone) => {
                let label = json!({"topology.kubernetes.io/zone": ZONES.get(zone)});
                let patch = Patch::Merge(json!({"metadata": {"labels": label}}));
                Api::<Node>::all(client.clone())
                    .patch(NODE, &PatchParams::default(), &patch)
                    .await?;
                Ok(())
            }
        }
    }
}

async fn create<K>(api: &Api<K>, object: Value) -> Result<()>
where
    K: Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    api.create(&PostParams::default(), &serde_json::from_value(object)?)
        .await?;
    Ok(())
}

/// Without a resourceVersion: nobody else writes these.
async fn replace<K>(api: &Api<K>, name: &str, object: Value) -> Result<()>
where
    K: Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    api.replace(name, &PostParams::default(), &serde_json::from_value(object)?)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::{generate, random::Random};

    #[test]
    fn what_is_the_same_is_not_written() {
        let mut world = World::default();
        for number in 0..200 {
            let before = world.clone();
            world = generate::step(&before, &mut Random::of(9, number))
                .pop()
                .unwrap()
                .world;
            assert_eq!(writes(&world, &world), []);
            assert_eq!(writes(&before, &world).is_empty(), before == world);
        }
    }

    #[test]
    fn another_cluster_ip_needs_another_service() {
        let mut world = World::default();
        while !world.services.values().any(Service::has_vip) {
            world = generate::step(&world, &mut Random::new(4)).pop().unwrap().world;
        }
        let mut moved = world.clone();
        let (&slot, service) = moved.services.iter_mut().find(|(_, it)| it.has_vip()).unwrap();
        service.vip = 77;
        let name = Service::name(slot);
        let sent = writes(&world, &moved);
        assert_eq!(sent[0], Write::DeleteService(name.clone()));
        assert!(matches!(&sent[1], Write::Create(Object::Service(created, _)) if *created == name));
    }
}

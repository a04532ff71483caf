//! Packets.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use pointsman_e2e::{
    traffic::{Client, Protocol, Tally},
    workload::{NODE_PORT, WebPod},
};
use serde_json::json;

use super::LIMIT;
use crate::{commentary::Commentary, stage::Stage};

const ATTEMPTS: usize = 60;
const SLICES: &str = "kubectl get endpointslice -l kubernetes.io/service-name=web -o \
                      'custom-columns=ENDPOINTS:.endpoints[*].addresses[0]'";
/// So many answers by others mean that an endpoint is out: with four endpoints one in 30 million rows of them is
/// chance.
const OTHERS: usize = 60;

pub(super) fn nobody_forwards(tell: &mut Commentary, stage: &Stage<'_>) -> Result<()> {
    let [v4, _] = stage.vips;
    let outcome = Client::of(stage.client.namespace()).tcp(v4);
    ensure!(
        outcome.answer().is_none(),
        "the ClusterIP answers without a proxy: {outcome}"
    );
    tell.done(&format!(
        "the ClusterIP {v4} is an address that nobody has yet: a connection from a pod is {outcome}"
    ))
}

/// Makes connections and says who answered.
fn ask(tell: &mut Commentary, from: &str, client: &Client, protocol: Protocol, to: SocketAddr) -> Result<()> {
    let tally = client.many(protocol, to, ATTEMPTS)?;
    let all = ["web-1", "web-2", "web-3"];
    ensure!(
        tally.lost() == 0 && tally.answerers() == all,
        "{protocol:?} from {from} to {to} should reach all endpoints: {tally}"
    );
    let protocol = format!("{protocol:?}").to_uppercase();
    tell.say(&format!("{protocol} {to:<32} {}", answers(&tally)))
}

fn answers(tally: &Tally) -> String {
    let each = tally.answered.iter().map(|(by, count)| format!("{by} {count}"));
    each.collect::<Vec<_>>().join(", ")
}

pub(super) fn every_way_in(tell: &mut Commentary, stage: &Stage<'_>) -> Result<()> {
    tell.step(
        "Traffic reaches every endpoint",
        &format!("{ATTEMPTS} connections or datagrams each; the pods answer with their names."),
    )?;
    tell.say("From a pod on node-1 to the ClusterIPs:")?;
    let pod = Client::of(stage.client.namespace());
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for vip in stage.vips {
            ask(tell, "a pod", &pod, protocol, vip)?;
        }
    }
    tell.say("From a host outside of the cluster to the node port of node-2:")?;
    let outside = Client::of(stage.outside.namespace());
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for address in stage.nodes()[1].addresses().both(NODE_PORT) {
            ask(tell, "outside", &outside, protocol, address)?;
        }
    }
    tell.done("every endpoint answered, nothing was lost")
}

pub(super) fn endpoints_come_and_go(tell: &mut Commentary, stage: &Stage<'_>) -> Result<()> {
    tell.step(
        "Endpoints come and go",
        "A fourth pod gets the Service's label and is deleted later, while connection after connection goes to the\n\
         ClusterIP. Times count from the API server's answer, and include its controllers' work on the EndpointSlice.",
    )?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let pods: Api<Pod> = runtime.block_on(async {
        let client = stage.control_plane.client().await?;
        anyhow::Ok(Api::namespaced(client, "default"))
    })?;
    let client = Client::of(stage.client.namespace());
    let [vip, _] = stage.vips;
    let pod = WebPod::unannounced(&stage.nodes()[1], "web-4")?;
    stage
        .control_plane
        .create_pod(pod.pod(), &[("app", "not-yet-web")])?;
    let flood = client.flood(Protocol::Tcp, vip);
    flood.wait_for(200, LIMIT)?;

    let label = Patch::Merge(json!({"metadata": {"labels": {"app": "web"}}}));
    runtime.block_on(pods.patch("web-4", &PatchParams::default(), &label))?;
    let took = client.until_answered_by(Protocol::Tcp, vip, &["web-4"], LIMIT)?;
    stage.shown(tell, SLICES)?;
    tell.done(&format!(
        "added: packets reached web-4 {} after it had the label",
        milliseconds(took)
    ))?;

    runtime.block_on(pods.delete("web-4", &DeleteParams::default()))?;
    let took = until_without(&client, vip, "web-4")?;
    stage.shown(tell, SLICES)?;
    tell.done(&format!(
        "removed: the last packet to web-4 came {} after it was deleted",
        milliseconds(took)
    ))?;
    flood.wait_for(200, LIMIT)?;
    let tally = flood
        .stop_without_loss()
        .context("connections were lost while endpoints changed")?;
    // It listened until now: only so is every connection that still came its way answered.
    drop(pod);
    tell.done(&format!("{} connections in the meantime, none lost", tally.ok()))
}

fn milliseconds(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1000.0)
}

/// How long it took until this server answered for the last time.
fn until_without(client: &Client, to: SocketAddr, server: &str) -> Result<Duration> {
    let began = Instant::now();
    let (mut last, mut others) = (Duration::ZERO, 0);
    while others < OTHERS {
        ensure!(began.elapsed() < LIMIT, "{server} still answers after {LIMIT:?}");
        if client.tcp(to).is_by(server) {
            last = began.elapsed();
            others = 0;
        } else {
            others += 1;
        }
    }
    Ok(last)
}

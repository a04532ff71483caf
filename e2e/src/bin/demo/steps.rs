//! The steps, in their order.

mod failures;
mod install;
mod policies;
mod traffic;

use std::time::Duration;

use anyhow::Result;
use pointsman_e2e::NodeNet;
use serde_json::Value;

use crate::{commentary::Commentary, stage::Stage};

/// How long anything may take before the demo gives up.
const LIMIT: Duration = Duration::from_secs(60);

/// All of them.
pub fn play(tell: &mut Commentary, stage: &mut Stage<'_>) -> Result<()> {
    traffic::nobody_forwards(tell, stage)?;
    install::charts(tell, stage)?;
    install::first_policy(tell, stage)?;
    traffic::every_way_in(tell, stage)?;
    traffic::endpoints_come_and_go(tell, stage)?;
    policies::edited(tell, stage)?;
    policies::wrong_ones_are_refused(tell, stage)?;
    policies::kernel_parameters(tell, stage)?;
    policies::a_second_one_wins_a_node(tell, stage)?;
    failures::an_agent_is_killed(tell, stage)?;
    failures::somebody_flushes_the_rules(tell, stage)?;
    policies::deleted(tell, stage)?;
    policies::final_state(tell, stage)
}

/// Waits until all of these nodes follow the policy as it is now and are ready.
fn ready(stage: &Stage<'_>, policy: &str, nodes: usize) -> Result<Value> {
    let what = format!("ready on {nodes} nodes");
    stage
        .control_plane
        .until("proxypolicy", policy, &what, LIMIT, |policy| {
            let status = &policy["status"];
            let all = ["matched", "updated", "ready"];
            status["observedGeneration"] == policy["metadata"]["generation"]
                && all.iter().all(|count| status["nodes"][count] == nodes)
        })
}

/// Waits until the NodeProxy of a node is as `wanted`.
fn node_proxy(
    stage: &Stage<'_>,
    node: &NodeNet,
    what: &str,
    wanted: impl Fn(&Value) -> bool,
) -> Result<Value> {
    stage
        .control_plane
        .until("nodeproxy", node.name(), what, LIMIT, wanted)
}

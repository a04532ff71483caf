//! A short run of the differential test in the test kernel, both sides in ipvs mode; `make differential` has the long one.

use std::time::Duration;

use anyhow::Result;
use pointsman_e2e::{
    IptablesVariant, PeerMode,
    cluster::note,
    differential::{Plan, Setup, run},
};

pointsman_e2e::run_inside_with_control_plane!();

/// Few: kube-proxy takes some ten seconds for each, most of them to start programs.
const STEPS: u64 = 3;

#[test]
fn random_clusters_mean_the_same_to_kube_proxy_in_ipvs_mode() -> Result<()> {
    let seed = 3;
    let plan = Plan {
        seed,
        steps: STEPS,
        limit: Duration::MAX,
        setup: Setup::of(seed, [PeerMode::Ipvs; 2], IptablesVariant::Nft),
        go_on: false,
        shrink_limit: Duration::from_secs(60),
    };
    let report = run(&plan, &|line| note(format_args!("{line}")))?;
    assert!(report.found.is_empty(), "{}", report.found[0]);
    // Packets of every kind were compared: nothing is proven by a run in which nobody answers.
    assert_eq!(report.steps, STEPS, "{report}");
    for outcome in ["answered", "refused"] {
        assert!(
            report.agreed.contains_key(outcome),
            "no question was {outcome}: {report}"
        );
    }
    Ok(())
}

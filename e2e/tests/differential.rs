//! A short run of the differential test; `make differential` is the long one.

use std::time::Duration;

use anyhow::Result;
use pointsman_e2e::{
    IptablesVariant, PeerMode,
    cluster::note,
    differential::{Plan, Setup, run},
};

/// How long a run goes on at most, on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn random_clusters_mean_the_same_to_kube_proxy() -> Result<()> {
    let seed = 1;
    let plan = Plan {
        seed,
        steps: 60,
        limit: LIMIT,
        setup: Setup::of(seed, [PeerMode::Nftables; 2], IptablesVariant::Nft),
        go_on: false,
        shrink_limit: Duration::from_secs(60),
    };
    let report = run(&plan, &|line| note(format_args!("{line}")))?;
    assert!(report.found.is_empty(), "{}", report.found[0]);
    // Packets of every kind were compared: nothing is proven by a run in which nobody answers.
    assert!(report.steps > 5, "{report}");
    for outcome in ["answered", "refused", "unreachable"] {
        assert!(
            report.agreed.contains_key(outcome),
            "no question was {outcome}: {report}"
        );
    }
    Ok(())
}

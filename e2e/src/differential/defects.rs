//! What kube-proxy in ipvs mode is known to get wrong, or to do in its own way: each was found by a run.

use super::{
    intended::{Difference, Intended},
    packets::Claim,
    seen::Failure,
};
use crate::peer::PeerMode;

/// All of them.
pub(super) const IPVS: &[Intended] = &[Intended {
    name: "ipvs: policy Local without endpoints on the node",
    reason: "kube-proxy in ipvs mode then takes all endpoints (kubernetes/kubernetes#97081), for everybody and both policies, \
             and masquerades nobody, so that who is no pod of the node gets no answer; Pointsman drops, as kube-proxy does in \
             its other modes",
    applies: |it| {
        is_ipvs(it)
            && it.ours.is_only(&Failure::Dropped)
            && it.claims().iter().any(|(slot, claim)| {
                it.world.services.get(slot).is_some_and(|service| match claim {
                    Claim::ClusterIp => service.internal_local,
                    _ => service.external_local,
                })
            })
    },
}];

fn is_ipvs(it: &Difference<'_>) -> bool {
    it.setup.peer == PeerMode::Ipvs
}

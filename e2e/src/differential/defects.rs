//! What kube-proxy in ipvs mode is known to get wrong, or to do in its own way, and what Pointsman does in that mode only: each
//! was found by a run.

use std::{collections::BTreeSet, net::SocketAddr};

use super::{
    intended::{Difference, Intended},
    packets::{Claim, SECOND, Sender, is_external},
    seen::{Failure, Seen, Source},
    world::{node, wire},
};
use crate::peer::PeerMode;

/// All of them.
pub(super) const IPVS: &[Intended] = &[
    Intended {
        name: "ipvs: policy Local without endpoints on the node",
        reason: "kube-proxy in ipvs mode then takes all endpoints (kubernetes/kubernetes#97081), for everybody and both \
                 policies, and masquerades nobody, so that who is no pod of the node gets no answer; Pointsman drops, as \
                 kube-proxy does in its other modes",
        applies: |it| {
            is_peer(it)
                && it.ours.is_only(&Failure::Dropped)
                && it.claims().iter().any(|(slot, claim)| {
                    it.world.services.get(slot).is_some_and(|service| match claim {
                        Claim::ClusterIp => service.internal_local,
                        _ => service.external_local,
                    })
                })
        },
    },
    Intended {
        name: "ipvs: an external address of which nothing is balanced",
        reason: "in mode IPVS an external or load balancer address is the node's own as long as one of its ports is balanced; \
                 with none (policy Local, and no endpoint on the node) Pointsman lets packets to other ports go where routes \
                 lead, as in its other modes, and kube-proxy in ipvs mode refuses them",
        applies: |it| {
            is_peer(it)
                && it.setup.ours == PeerMode::Ipvs
                && it.claims().is_empty()
                && is_external(it.world, it.question.target.ip())
                && it.ours.is_only(&Failure::Unreachable)
                && it.theirs.is_only(&Failure::Refused)
        },
    },
    Intended {
        name: "ipvs: the node itself, seen by another of its addresses",
        reason: "Pointsman masquerades what the node sends to its own Services, and the kernel then chooses among the node's \
                 addresses; kube-proxy in ipvs mode does not masquerade all of it, so that the address that was asked, which is \
                 the node's own as well, is the sender's",
        applies: |it| {
            let family = it.family();
            let own = [node(family, 1), wire(family, SECOND), it.question.target.ip()];
            let is_own =
                |source: &Source| matches!(source, Source::Address(address) if own.contains(address));
            let servers =
                |seen: &Seen| -> BTreeSet<SocketAddr> { seen.answers.iter().map(|(by, _)| *by).collect() };
            is_peer(it)
                && it.question.sender == Sender::Node
                && it.ours.failures == it.theirs.failures
                && servers(it.ours) == servers(it.theirs)
                && [it.ours, it.theirs]
                    .into_iter()
                    .all(|seen| seen.answers.iter().all(|(_, source)| is_own(source)))
        },
    },
];

fn is_peer(it: &Difference<'_>) -> bool {
    it.setup.peer == PeerMode::Ipvs
}

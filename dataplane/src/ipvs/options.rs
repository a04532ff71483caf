//! What a virtual service of ours is, beside its destinations.

use crate::model::{Scheduler, SchedulerKind};
use crate::netlink::ipvs::{Flags, Name, ServiceKey, VirtualService};

/// The flag by which our virtual services are known: it is the third that a scheduler could have, and none of the kernel's has
/// a meaning for it. ipvsadm shows it as `flag-3`.
const OURS: Flags = Flags::SCHEDULER_3;

/// How a virtual service picks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) scheduler: Scheduler,
    /// How many seconds a client keeps its endpoint.
    pub(super) affinity: Option<u32>,
}

impl Options {
    /// The service, as it is told to the kernel.
    pub(super) fn service(self, key: ServiceKey) -> VirtualService {
        let mut service = VirtualService::new(key, name(self.scheduler.kind));
        service.flags = OURS;
        if self.scheduler.fallback {
            service.flags = service.flags | Flags::FALLBACK;
        }
        if self.scheduler.port {
            service.flags = service.flags | Flags::PORT;
        }
        match self.affinity {
            Some(seconds) => service.persistent(seconds),
            None => service,
        }
    }

    /// What a service that was read is; none where we would not write it so.
    pub(super) fn read(service: &VirtualService) -> Option<Self> {
        let kind: SchedulerKind = service.scheduler.as_str().parse().ok()?;
        let options = Self {
            scheduler: Scheduler {
                kind,
                fallback: service.flags.has(Flags::FALLBACK),
                port: service.flags.has(Flags::PORT),
            },
            affinity: service.flags.has(Flags::PERSISTENT).then_some(service.timeout),
        };
        (options.service(service.key) == *service).then_some(options)
    }
}

/// Whether a service is one of ours.
pub(super) fn is_ours(service: &VirtualService) -> bool {
    service.flags.has(OURS)
}

/// A scheduler's name, as the kernel is told.
pub(super) fn name(kind: SchedulerKind) -> Name {
    // All names are short.
    Name::new(kind.as_str()).unwrap_or(Name::ROUND_ROBIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Family, Protocol};

    #[test]
    fn what_is_told_is_read() {
        let key = ServiceKey::Address(Protocol::Tcp, "10.96.0.1:80".parse().unwrap());
        let mark = ServiceKey::Mark(Family::V6, 7);
        for kind in SchedulerKind::ALL {
            for (affinity, flag) in [(None, false), (Some(10_800), true), (Some(1), false)] {
                let scheduler = Scheduler {
                    kind,
                    fallback: flag && kind.has_flags(),
                    port: kind.has_flags(),
                };
                let options = Options { scheduler, affinity };
                for key in [key, mark] {
                    let service = options.service(key);
                    assert!(is_ours(&service));
                    assert_eq!(service.scheduler.as_str(), kind.as_str());
                    assert_eq!(Options::read(&service), Some(options));
                }
            }
        }
    }

    #[test]
    fn what_we_would_not_write_is_not_read() {
        let key = ServiceKey::Address(Protocol::Udp, "[fd00::1]:53".parse().unwrap());
        let ours = Options {
            scheduler: Scheduler::default(),
            affinity: Some(60),
        }
        .service(key);
        let others = [
            VirtualService {
                scheduler: Name::new("nosuch").unwrap(),
                ..ours
            },
            VirtualService { netmask: 64, ..ours },
            VirtualService {
                flags: ours.flags | Flags::ONE_PACKET,
                ..ours
            },
            VirtualService {
                engine: Name::new("sip"),
                ..ours
            },
        ];
        for other in others {
            assert_eq!(Options::read(&other), None, "{other:?}");
        }
        assert!(!is_ours(&VirtualService::new(key, Name::new("rr").unwrap())));
    }
}

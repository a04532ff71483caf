//! Whether the kernel can do what mode IPVS needs.

use nix::errno::Errno;

use crate::backend::Error;
use crate::model::{Family, SchedulerKind};
use crate::netlink::ipvs::{Command, Ipvs, ServiceKey, VirtualService};
use crate::netlink::route::Rtnetlink;
use crate::nftables::mark_of;
use crate::nftables::probe::{Capability, probe_front};

use super::addresses::LINK;
use super::options::name;

/// A pool that never is: its mark is on no packet.
const NO_POOL: u32 = 0;

/// Asks the kernel of the calling thread's network namespace whether it has IPVS, this scheduler, and what stands in front of
/// IPVS. Modules are loaded for it where the kernel finds them; for a moment there is a virtual service that no packet meets.
#[must_use]
pub fn probe(family: Family, kind: SchedulerKind) -> Capability {
    match scheduler(family, kind) {
        Ok(true) => probe_front(family),
        Ok(false) => Capability::Lacking(format!(
            "the kernel lacks the IPVS scheduler {kind} (module {}, CONFIG_IP_VS_{})",
            kind.module(),
            kind.as_str().to_ascii_uppercase()
        )),
        Err(Error::MissingKernelFeature { .. }) => {
            Capability::Lacking("the kernel lacks IPVS (module ip_vs, CONFIG_IP_VS)".to_owned())
        }
        Err(error) => Capability::Undecided(error.to_string()),
    }
}

/// Whether the kernel has a scheduler.
///
/// # Errors
/// When it has no IPVS, or the question failed.
pub fn scheduler(family: Family, kind: SchedulerKind) -> Result<bool, Error> {
    let mut ipvs = Ipvs::open()?;
    let key = ServiceKey::Mark(family, mark_of(family, NO_POOL));
    let service = VirtualService::new(key, name(kind));
    let outcome = ipvs.run([Command::NewService(service), Command::DeleteService(key)])?;
    let refused = |place| outcome.refused.iter().find(|refusal| refusal.place == place);
    match refused(0) {
        None => Ok(true),
        Some(refusal) if refusal.errno == Errno::ENOENT => Ok(false),
        Some(refusal) if refusal.errno == Errno::EAFNOSUPPORT => Err(Error::MissingKernelFeature {
            what: format!("IPVS for {family}"),
            hint: "the kernel was built without CONFIG_IP_VS_IPV6: choose another mode".to_owned(),
        }),
        Some(refusal) => Err(Error::Refused(refusal.to_string())),
    }
}

/// Has the kernel load IPVS, where it is a module.
///
/// # Errors
/// When it has none.
pub fn load() -> Result<(), Error> {
    Ipvs::open()?;
    Ok(())
}

/// Whether there may be something of this mode in the kernel. Does not load IPVS.
#[must_use]
pub fn is_there() -> bool {
    let link = Rtnetlink::open().and_then(|mut socket| socket.link(LINK));
    // Where it cannot be told, what is there is not to be taken for gone.
    !matches!(link, Ok(None))
}

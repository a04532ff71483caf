//! ServiceCIDRs: the ranges that ClusterIPs are allocated from (KEP-1880).

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Deserialize;

use super::{list, metadata, range};
use crate::source::Parsed;

/// What is read of a ServiceCIDR. One that is being deleted counts until it is gone: the API server keeps it for as
/// long as a Service has an address of it.
#[derive(Resource, Clone, Debug, Deserialize)]
#[resource(inherit = "k8s_openapi::api::networking::v1::ServiceCIDR")]
pub(in crate::source) struct SlimServiceCidr {
    #[serde(deserialize_with = "metadata")]
    pub(in crate::source) metadata: ObjectMeta,
    #[serde(default)]
    spec: SlimServiceCidrSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct SlimServiceCidrSpec {
    #[serde(default, deserialize_with = "list")]
    cidrs: Vec<String>,
}

/// Packets into a range that no Service has are dropped, also those of the node itself: a slip of the pen in one object
/// must not cut all nodes off. The API server's own flag takes /12 and /64 at most.
fn shortest(range: IpNet) -> u8 {
    match range {
        IpNet::V4(_) => 8,
        IpNet::V6(_) => 32,
    }
}

impl SlimServiceCidr {
    pub(in crate::source) fn name(&self) -> String {
        self.metadata.name.clone().unwrap_or_default()
    }

    /// Its ranges.
    pub(in crate::source) fn parse(self) -> Parsed<Vec<IpNet>> {
        let name = self.name();
        let mut problems = Vec::new();
        let mut ranges = Vec::new();
        for text in self.spec.cidrs {
            match range(&text) {
                Some(range) if range.prefix_len() < shortest(range) => problems.push(format!(
                    "ServiceCIDR {name}: spec.cidrs has {text}, which is most of all addresses: it is left out, \
                     because packets to addresses in it that no Service has would be dropped; mend the field"
                )),
                Some(range) => ranges.push(range),
                None => problems.push(format!(
                    "ServiceCIDR {name}: spec.cidrs has {text:?}, which is no CIDR: it is left out; mend the field"
                )),
            }
        }
        Parsed {
            object: Some(ranges),
            problems,
        }
    }
}

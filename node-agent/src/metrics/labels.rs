//! The labels of metrics, with the values that kube-proxy gives them.

use pointsman_dataplane::model::{Family, TrafficSide};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};

use crate::source::Kind;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct IpFamily {
    ip_family: IpFamilyValue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum IpFamilyValue {
    IPv4,
    IPv6,
}

impl From<Family> for IpFamilyValue {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::IPv4,
            Family::V6 => Self::IPv6,
        }
    }
}

impl From<Family> for IpFamily {
    fn from(family: Family) -> Self {
        Self {
            ip_family: family.into(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct IptablesTable {
    ip_family: IpFamilyValue,
    table: TableValue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "as the label's values are written")]
pub(super) enum TableValue {
    nat,
    filter,
}

impl IptablesTable {
    pub(super) fn new(family: Family, table: TableValue) -> Self {
        Self {
            ip_family: family.into(),
            table,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Policy {
    ip_family: IpFamilyValue,
    traffic_policy: PolicyValue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "as the label's values are written")]
enum PolicyValue {
    internal,
    external,
}

impl Policy {
    pub(super) fn new(family: Family, side: TrafficSide) -> Self {
        Self {
            ip_family: family.into(),
            traffic_policy: match side {
                TrafficSide::Internal => PolicyValue::internal,
                TrafficSide::External => PolicyValue::external,
            },
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Code {
    pub(super) code: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Watched {
    kind: WatchedKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum WatchedKind {
    Service,
    EndpointSlice,
    Node,
    NodeProxy,
    ServiceCIDR,
}

impl From<Kind> for Watched {
    fn from(kind: Kind) -> Self {
        Self {
            kind: match kind {
                Kind::Services => WatchedKind::Service,
                Kind::Slices => WatchedKind::EndpointSlice,
                Kind::Node => WatchedKind::Node,
                Kind::Assignment => WatchedKind::NodeProxy,
                Kind::ServiceCidrs => WatchedKind::ServiceCIDR,
            },
        }
    }
}

//! What was wrong with an object, said so that its owner can mend it. The rest of the object is used.

use std::{fmt, net::IpAddr};

use super::names::{Family, ServiceName};

/// Something of a Service that cannot be forwarded as written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// An address of a family that the Service does not have.
    WrongFamily {
        /// The Service.
        service: ServiceName,
        /// The address.
        address: IpAddr,
        /// Its family, which none of the Service's ClusterIPs has.
        family: Family,
    },
    /// An endpoint whose address cannot be one: unspecified, loopback, link-local, multicast or broadcast, or
    /// not of the slice's family.
    ImpossibleEndpoint {
        /// The Service.
        service: ServiceName,
        /// The address.
        address: IpAddr,
        /// Why it can be no endpoint.
        why: &'static str,
    },
    /// Two ClusterIPs of one family.
    SecondClusterIp {
        /// The Service.
        service: ServiceName,
        /// The one that is not used.
        address: IpAddr,
    },
    /// A port that an earlier port of the same Service already has.
    DuplicatePort {
        /// The Service.
        service: ServiceName,
        /// The port's number.
        port: u16,
    },
}

impl Problem {
    /// The Service whose object has to be mended.
    #[must_use]
    pub fn service(&self) -> &ServiceName {
        match self {
            Self::WrongFamily { service, .. }
            | Self::ImpossibleEndpoint { service, .. }
            | Self::SecondClusterIp { service, .. }
            | Self::DuplicatePort { service, .. } => service,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongFamily {
                service,
                address,
                family,
            } => write!(
                f,
                "Service {service}: address {address} is left out, because the Service has no {family} ClusterIP: \
                 remove it, or add {family} to spec.ipFamilies"
            ),
            Self::ImpossibleEndpoint {
                service,
                address,
                why,
            } => write!(
                f,
                "Service {service}: endpoint {address} is left out, because it is {why}: mend its EndpointSlice"
            ),
            Self::SecondClusterIp { service, address } => write!(
                f,
                "Service {service}: ClusterIP {address} is left out, because another one of its family comes first: \
                 spec.clusterIPs takes one of each family"
            ),
            Self::DuplicatePort { service, port } => write!(
                f,
                "Service {service}: a second entry for port {port} of the same protocol is left out: remove one of them \
                 from spec.ports"
            ),
        }
    }
}

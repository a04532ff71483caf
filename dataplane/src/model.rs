//! What a node forwards: from Services, endpoints and node facts to a table of frontends and pools. Pure.

mod compile;
mod context;
mod endpoints;
mod frontend;
mod input;
mod names;
mod problem;
mod scheduler;
mod table;
#[cfg(test)]
pub(crate) mod testing;
mod trace;
mod weight;

pub use compile::{Compiled, HealthCheck, compile};
pub use context::{Context, DetectLocal, IpvsSettings, LocalTraffic, NodeFacts, NodePortAddresses, Settings};
pub use frontend::{
    Action, Destination, Frontend, FrontendKey, FrontendKind, Masquerade, Pool, PoolEndpoint, PoolKey,
    PortKey, TrafficSide,
};
pub use input::{Common, Endpoint, EndpointPort, EndpointSlice, Service, ServicePort, TrafficPolicy};
pub use names::{Family, IpPort, Protocol, ServiceName, ServicePortName};
pub use problem::Problem;
pub use scheduler::{BadScheduler, Scheduler, SchedulerKind};
pub use table::{Change, Diff, ForwardingTable};
pub use trace::{Ingress, Packet, Target, Verdict};
pub use weight::{MAX_WEIGHT, Weight, Weights};

//! The Kubernetes API of Pointsman, `pointsman.dev/v1alpha1`.
//!
//! [`ProxyPolicy`] is what people write: how a pool of nodes forwards Service traffic.
//! [`NodeProxy`] is what the operator makes of it for one node, and where that node's agent reports.
//! [`Settings`] are a policy's values with every default filled in; both sides of the wire share them.
//!
//! The YAML of the two CustomResourceDefinitions under `crds/yaml/` is generated from these types
//! (`cargo run -p pointsman-crds --bin crdgen`); a test fails when it is stale.

#![allow(
    clippy::duplicated_attributes,
    reason = "every printcolumn of #[kube(...)] has its own type_ and json_path; the lint takes them for repetitions"
)]

pub mod conditions;
mod node_proxy;
mod policy;
mod settings;
pub mod sysctl;

pub use node_proxy::{NodeProxy, NodeProxySpec, NodeProxyStatus};
pub use policy::{NodeCounts, ProxyPolicy, ProxyPolicySpec, ProxyPolicyStatus};
pub use settings::{
    Conntrack, DetectLocal, DetectLocalMode, Ipvs, Mode, SCHEDULERS, SchedulerFlag, Settings,
};

/// The API group of both kinds.
pub const GROUP: &str = "pointsman.dev";
/// The one served version.
pub const VERSION: &str = "v1alpha1";

/// The files under `crds/yaml/`, each with its generated content.
///
/// # Errors
/// When a schema cannot be written as YAML, which would be a bug in this crate.
pub fn generated_yaml() -> Result<Vec<(&'static str, String)>, serde_saphyr::ser_error::Error> {
    use kube::CustomResourceExt as _;
    Ok(vec![
        (
            "pointsman.dev_proxypolicies.yaml",
            serde_saphyr::to_string(&ProxyPolicy::crd())?,
        ),
        (
            "pointsman.dev_nodeproxies.yaml",
            serde_saphyr::to_string(&NodeProxy::crd())?,
        ),
    ])
}

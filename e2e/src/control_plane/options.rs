//! What a test may choose about the control plane.

/// The Services' addresses: `--service-cluster-ip-range`.
pub const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];

/// Choices about the control plane; the default is right for most tests.
#[derive(Clone, Debug)]
pub struct Options {
    /// More flags for kube-apiserver, after the harness's own: `--feature-gates=...`.
    pub api_server_flags: Vec<String>,
    /// `--controllers` of kube-controller-manager; see [`Options::default`] for what is left out and why.
    pub controllers: Vec<String>,
}

impl Default for Options {
    /// All controllers but those that fight with nodes made by hand:
    ///
    /// - node-lifecycle-controller: no kubelet renews a lease, so after 40 s it would call every node NotReady,
    ///   taint it, and take its endpoints out of the slices.
    /// - node-ipam-controller: the nodes bring the pod ranges that the fabric gave them.
    /// - ttl-controller: writes an annotation to every Node, which shows up as a change to whoever watches.
    /// - pod-garbage-collector-controller: deletes pods of nodes that a test has not made objects for.
    fn default() -> Self {
        let controllers = [
            "*",
            "-node-lifecycle-controller",
            "-node-ipam-controller",
            "-ttl-controller",
            "-pod-garbage-collector-controller",
        ];
        Self {
            api_server_flags: Vec::new(),
            controllers: controllers.map(str::to_owned).to_vec(),
        }
    }
}

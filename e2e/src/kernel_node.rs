//! A node that runs on a kernel of its own, the test kernel, on the same wire as the others: for what the machine's
//! kernel lacks. What runs on it is started with [`Kernel::spawn`]; namespaces for its pods are made in it.

use std::{process::Command, sync::Arc};

use anyhow::{Context, Result, ensure};
use pointsman_test_kernel::{Kernel, Options, Streams};

use crate::{
    Netns, ip,
    network::{Addresses, WIRE_INTERFACE},
    node::PodRange,
    sysctl,
};

/// A node on the test kernel. It leaves the wire and its kernel ends when dropped.
#[derive(Debug)]
pub struct KernelNode {
    name: String,
    kernel: Arc<Kernel>,
    addresses: Addresses,
    pods: PodRange,
    _tap: Tap,
}

impl KernelNode {
    /// Boots it on a tap device and gives it its addresses; `ways` are `ip` commands for its routes.
    pub(crate) fn boot(
        name: &str,
        options: &Options,
        tap: Tap,
        addresses: Addresses,
        pods: PodRange,
        ways: impl IntoIterator<Item = String>,
    ) -> Result<Self> {
        let options = Options {
            taps: vec![tap.name.clone()],
            namespace: Some(tap.wire.handle()),
            ..options.clone()
        };
        let kernel = Kernel::boot(&options).with_context(|| format!("booting {name}"))?;
        let Addresses { v4, v6 } = addresses;
        // All by the shell itself: a new process costs 15 ms in the guest.
        let mut script = "set -e\n".to_owned();
        for (name, value) in sysctl::HOST.iter().chain(sysctl::ROUTER) {
            script.push_str(&format!("echo {value} > /proc/sys/{}\n", name.replace('.', "/")));
        }
        shell(&kernel, &script)?;
        let mut lines = vec![
            format!("link set vec0 name {WIRE_INTERFACE} up"),
            format!("addr add {v4}/24 dev {WIRE_INTERFACE}"),
            format!("addr add {v6}/64 dev {WIRE_INTERFACE} nodad"),
        ];
        lines.extend(ways);
        batch(&kernel, lines)?;
        // As carrier::wait_for_neighbours says.
        let [.., a, b, c] = v6.octets();
        let group = format!("ff0200000000000000000001ff{a:02x}{b:02x}{c:02x}");
        shell(
            &kernel,
            &format!("until grep -q '{WIRE_INTERFACE} *{group}' /proc/net/igmp6; do sleep 0.01; done"),
        )?;
        Ok(Self {
            name: name.to_owned(),
            kernel: Arc::new(kernel),
            addresses,
            pods,
            _tap: tap,
        })
    }

    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its kernel, to run programs on.
    #[must_use]
    pub fn kernel(&self) -> &Arc<Kernel> {
        &self.kernel
    }

    /// Its own addresses, on the wire.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The addresses of its pods. Everybody on the wire sends them to this node.
    #[must_use]
    pub fn pod_range(&self) -> PodRange {
        self.pods
    }
}

/// A tap device in the wire's namespace; removed when dropped.
#[derive(Debug)]
pub(crate) struct Tap {
    wire: Netns,
    name: String,
}

impl Tap {
    /// Makes one and puts it on the bridge.
    pub(crate) fn on(wire: &Netns, bridge: &str, place: u8) -> Result<Self> {
        let name = format!("tap{place}");
        ip::batch(
            wire,
            [
                format!("tuntap add dev {name} mode tap"),
                format!("link set {name} master {bridge} up"),
            ],
        )?;
        Ok(Self {
            wire: wire.clone(),
            name,
        })
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // It goes with its namespace at the latest.
        let _ = ip::batch(&self.wire, [format!("link delete {}", self.name)]);
    }
}

/// Runs `ip` commands in the guest's own namespace, as [`ip::batch`] does in others.
///
/// # Errors
/// With what `ip` said, when one of them fails.
pub fn batch<C: AsRef<str>>(kernel: &Kernel, commands: impl IntoIterator<Item = C>) -> Result<()> {
    let script: String = commands
        .into_iter()
        .map(|line| format!("{}\n", line.as_ref()))
        .collect();
    let mut ip = Command::new("ip");
    ip.args(["-batch", "-"]);
    let process = kernel.spawn(&ip, Streams::captured())?;
    process.write(script.as_bytes())?;
    process.write(b"")?;
    let output = process.output()?;
    ensure!(
        output.status.success(),
        "`ip -batch` in the test kernel failed: {}\nthe commands were:\n{script}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Runs a script of the shell in the guest and gives what it says.
///
/// # Errors
/// With what it said on stderr, when it fails.
pub fn shell(kernel: &Kernel, script: &str) -> Result<String> {
    let output = kernel.output(Command::new("sh").args(["-c", script]))?;
    ensure!(
        output.status.success(),
        "in the test kernel: {}\nthe script was:\n{script}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

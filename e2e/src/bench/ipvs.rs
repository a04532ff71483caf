//! The bench of mode IPVS: the agent and kube-proxy one after the other, each on a test kernel that was just booted.
//!
//! The control plane is outside of that kernel, where it is quick. Everything that tells the time is inside: the client that
//! writes to the API server, the program that is measured, and who watches IPVS, so that there is one clock.
//!
//! | idea | where |
//! |---|---|
//! | the part inside, for both sides | [`inside`] |
//! | when a change has arrived | [`Watcher`] |
//! | netlink messages, and when a sync ended | [`Tap`] |
//! | ours alone, from files | [`alone`] |
//! | the file and the tables | [`report`] |

pub mod alone;
pub mod inside;
pub mod report;
pub mod tap;
pub mod watcher;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use pointsman_test_kernel::{GuestProcess, Kernel, Options, Streams};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use self::{tap::Tap, watcher::Watcher};
use super::{Contest, Load, Places, Plan, Size, Subject, Writer, interrupt, machine, site};
use crate::{
    ControlPlane, Fabric, Installation, Toolchain, WorkDir,
    inside::{self as test_kernel, Guest},
    node::PodRange,
};

use self::report::{Alone, BenchFile, Run, Side};

/// The guest's memory, in MiB: kube-proxy has some hundred with 10,000 Services, and the kernel as much again.
const MEMORY: u32 = 4096;
/// The node of the servers is the first of the fabric inside.
const SERVERS: &str = "servers";
/// The program that is run inside, beside this one.
const PROGRAM: &str = "bench-inside";

/// What the part inside is to do.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// Measure one side.
    Side {
        /// Which program.
        subject: Subject,
        /// Our mode.
        mode: String,
        /// kube-proxy's minSyncPeriod.
        peer_min_sync_period: Duration,
        /// What the API server has.
        load: Arc<Load>,
        /// Where the servers are.
        places: Places,
        /// How many changes are timed.
        changes: usize,
    },
    /// Measure ours alone.
    Alone {
        /// Our mode.
        mode: String,
        /// How many Services.
        size: Size,
        /// How many changes are timed.
        changes: usize,
    },
}

/// Measures everything in a plan and writes `<folder>/<bench>.json`, after every run again.
///
/// # Errors
/// When something does not start, a change does not arrive in time, or on Ctrl-C.
pub fn run(
    plan: &Plan,
    folder: &Path,
    progress: &dyn Fn(&str),
    mut finished: impl FnMut(&Run) -> Result<()>,
) -> Result<BenchFile> {
    interrupt::listen()?;
    let toolchain = Toolchain::locate()?;
    progress("building the agent, kube-proxy and the test kernel where they have changed");
    test_kernel::build()?;
    let contest = plan.contests.first().context("nothing to compare")?;
    let mut file = BenchFile::new(&plan.bench, machine::Machine::describe()?);
    for &size in &plan.sizes {
        let run = compare(&toolchain, contest, size, plan.changes, progress)?;
        finished(&run)?;
        file.add(run);
        file.write(folder)?;
    }
    for &size in &plan.alone {
        progress(&format!("{size} alone: booting the test kernel"));
        let orders = WorkDir::new("bench")?;
        let order = Order::Alone {
            mode: contest.mode.to_owned(),
            size,
            changes: plan.changes,
        };
        let kernel = Kernel::boot(&options(&orders))?;
        let figures: Alone = carry_out(&orders, &order, progress, |command| {
            kernel.spawn(&command, Streams::Inherit)
        })?;
        file.alone.push(figures);
        file.write(folder)?;
    }
    Ok(file)
}

fn compare(
    toolchain: &Toolchain,
    contest: &Contest,
    size: Size,
    changes: usize,
    progress: &dyn Fn(&str),
) -> Result<Run> {
    progress(&format!("{size}: starting a control plane"));
    let fabric = Fabric::without_gateway()?;
    let control_plane = ControlPlane::start(toolchain, &fabric, site::options())?;
    let installation = Installation::install(toolchain, &control_plane, &[])?;
    let _operator = installation.operator()?;
    control_plane
        .apply(&site::policy(contest).to_string())
        .context("applying the bench's ProxyPolicy")?;
    let pods = PodRange::of(1);
    let places = Places {
        node: SERVERS.to_owned(),
        addresses: [2, 3].map(|place| pods.place(place).v4),
    };
    let writer = Writer::new(&control_plane)?;
    let load = Arc::new(Load::create(&writer, size, &places, progress)?);
    let side = |subject| -> Result<Side> {
        // What the side before has changed.
        load.reset(&writer, &places)?;
        let changes = contest.changes(subject, size, changes);
        progress(&format!("{size}, {subject}: booting the test kernel"));
        let orders = WorkDir::new("bench")?;
        let guest = Guest::boot(&fabric, &control_plane, &options(&orders))?;
        let order = Order::Side {
            subject,
            mode: contest.mode.to_owned(),
            peer_min_sync_period: contest.peer_min_sync_period,
            load: Arc::clone(&load),
            places: places.clone(),
            changes,
        };
        let done = carry_out(&orders, &order, progress, |command| {
            guest.spawn(command, Streams::Inherit)
        });
        let done = done.with_context(|| format!("{subject} with {size}"))?;
        control_plane.kubectl(&["delete", "node", &inside::node_name(subject), "--wait=false"])?;
        Ok(done)
    };
    Ok(Run::new(
        size,
        contest,
        side(Subject::Ours)?,
        side(Subject::Peer)?,
    ))
}

fn options(orders: &WorkDir) -> Options {
    Options {
        memory_mib: MEMORY,
        shared: vec![orders.path().to_owned()],
        ..Options::default()
    }
}

/// Has an order carried out inside and reads what came of it.
fn carry_out<T: DeserializeOwned>(
    folder: &WorkDir,
    order: &Order,
    progress: &dyn Fn(&str),
    spawn: impl FnOnce(Command) -> Result<GuestProcess>,
) -> Result<T> {
    let order = folder.write("order.json", serde_json::to_vec(order)?)?;
    let result = folder.file("result.json");
    let mut command = Command::new(program()?);
    command.arg(&order).arg(&result);
    let began = Instant::now();
    let process = spawn(command)?;
    process.write(b"")?;
    let status = loop {
        interrupt::check()?;
        if let Some(status) = process.wait_for(Duration::from_millis(500))? {
            break status;
        }
    };
    ensure!(status.success(), "the part in the test kernel failed (above)");
    progress(&format!("that took {:.0} s", began.elapsed().as_secs_f64()));
    let result = std::fs::read(&result).with_context(|| format!("reading {}", result.display()))?;
    serde_json::from_slice(&result).context("reading what the part in the test kernel found")
}

/// Cargo puts programs of a package side by side.
fn program() -> Result<PathBuf> {
    let own = std::env::current_exe().context("asking where this program is")?;
    let path = own.with_file_name(PROGRAM);
    ensure!(
        path.is_file(),
        "{} is missing: build the whole package pointsman-e2e",
        path.display()
    );
    Ok(path)
}

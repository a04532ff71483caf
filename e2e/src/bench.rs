//! The bench: Pointsman's agent beside kube-proxy, one after the other, on the same API server, with the same
//! objects, on nodes of the same shape, seen by the same observer.
//!
//! | idea | where |
//! |---|---|
//! | how many Services and endpoints | [`Size`] |
//! | a control plane with our operator, and a node for one subject | [`Ground`], [`Site`], [`Bed`] |
//! | the objects, and the Services whose endpoints are really served | [`Load`], [`Probe`], [`Backends`] |
//! | what is measured | [`Subject`], [`Contest`] |
//! | when a change has arrived: packets say so | [`Observer`] |
//! | and nf_tables' own notifications, in mode NFTables | [`Commits`] |
//! | first packets and connections | [`packets`] |
//! | processor time, memory, rules | [`usage`], [`rules`] |
//! | one side measured, step by step | [`measure()`] |
//! | ours alone, with many Services from files | [`alone`] |
//! | mode IPVS, in the test kernel | [`ipvs`] |
//! | the file, the table, the plot, and what is to be reached | [`report`], [`table`], [`plot`], [`targets`] |
//!
//! # What the times mean
//!
//! A change replaces the one endpoint of a probe Service, which alternates between two servers. A client in a pod on
//! the node opens a connection through the Service's address every millisecond (or every half percent of the time
//! waited, whichever is longer, so that the client leaves the two processors to the subject), each from a fresh port,
//! and learns which server has it. The change has arrived with the first connection that gets the new server, if
//! none after it gets the old one. So a time is late by at most that pause and one connection (about 0.2 ms on a
//! quiet machine), the same for both sides, and says what a user would notice, whatever the rules look like.
//!
//! In mode NFTables the kernel's notifications say it, too: a change has arrived with the last commit that was read
//! between the request and 150 ms after the packets saw the change, whoever made it. That time is late by the wake-up
//! of a thread (below 0.1 ms on a quiet machine).

pub mod alone;
pub mod backends;
pub mod commits;
pub mod interrupt;
pub mod ipvs;
pub mod load;
pub mod machine;
pub mod measure;
pub mod metrics;
pub mod observer;
pub mod packets;
pub mod plot;
pub mod report;
pub mod rules;
pub mod site;
pub mod size;
pub mod statistics;
pub mod subject;
pub mod table;
pub mod targets;
pub mod usage;
pub mod writer;

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};

use crate::binaries::{self, Binary};

pub use self::{
    backends::{Backends, Places},
    commits::Commits,
    load::{Load, Probe},
    measure::measure,
    observer::Observer,
    report::{BenchFile, Run, Side},
    site::{Bed, Ground, Site},
    size::Size,
    statistics::Summary,
    subject::{Contest, Running, Subject},
    writer::Writer,
};

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The bench's name, which is also its file's.
    pub bench: String,
    /// A run for each of these,
    pub sizes: Vec<Size>,
    /// and each of these.
    pub contests: Vec<Contest>,
    /// Sizes that ours is measured with alone, from files, after the runs. Only in mode NFTables.
    pub alone: Vec<Size>,
    /// How many changes are timed on each side.
    pub changes: usize,
}

/// Measures everything in a plan and writes `<folder>/<bench>.json`, after every run again, so that what was
/// measured is there when a later run fails. `progress` gets a line for every step that takes long, `finished` every
/// run.
///
/// # Errors
/// When something does not start, a change does not arrive within [`Contest::limit`], or on Ctrl-C. Everything is
/// torn down then, too.
pub fn run(
    plan: &Plan,
    folder: &Path,
    progress: &dyn Fn(&str),
    mut finished: impl FnMut(&Run) -> Result<()>,
) -> Result<BenchFile> {
    interrupt::listen()?;
    let toolchain = crate::Toolchain::locate()?;
    progress("building pointsman-agent and pointsman-operator where they have changed");
    binaries::find(Binary::Agent)?;
    let mut file = BenchFile::new(&plan.bench, machine::Machine::describe()?);
    for &size in &plan.sizes {
        progress(&format!("{size}: starting a control plane"));
        let ground = Ground::new(&toolchain)?;
        let site = Site::install(&ground, progress)?;
        let load = Load::create(&site.writer, size, ground.backends.places(), progress)?;
        for contest in &plan.contests {
            let side = |subject| {
                let context = || format!("{subject} with {size} ({contest})");
                measure(&site, &load, contest, subject, plan.changes, progress).with_context(context)
            };
            let run = Run::new(size, contest, side(Subject::Ours)?, side(Subject::Peer)?);
            finished(&run)?;
            file.runs.push(run);
            file.targets = targets::of(&file.runs, &file.alone);
            file.write(folder)?;
        }
    }
    for &size in &plan.alone {
        let alone = alone::measure(size, plan.changes, progress)?;
        file.alone.push(alone);
        file.targets = targets::of(&file.runs, &file.alone);
        file.write(folder)?;
    }
    Ok(file)
}

/// Sleeps, unless interrupted.
///
/// # Errors
/// On Ctrl-C.
pub fn pause(time: Duration) -> Result<()> {
    std::thread::sleep(time);
    interrupt::check()
}

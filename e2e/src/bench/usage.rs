//! What a subject costs: processor time and memory, of itself and of the programs that it runs.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use nix::time::clock_getcpuclockid;

use crate::{Process, process::CpuTime};

/// The processor time used so far. The process's own is exact (its CPU clock); that of the children that it has
/// waited for comes in steps of 10 ms (/proc has nothing finer).
///
/// # Errors
/// When the process has ended.
pub fn cpu(process: &Process) -> Result<CpuTime> {
    let clock = clock_getcpuclockid(process.id()).and_then(|clock| clock.now());
    let own = clock.with_context(|| format!("the processor time of {}: has it ended?", process.name()))?;
    Ok(CpuTime {
        own: own.into(),
        children: process.cpu_time()?.children,
    })
}

/// What was used between two readings.
#[must_use]
pub fn between(before: CpuTime, after: CpuTime) -> CpuTime {
    CpuTime {
        own: after.own.saturating_sub(before.own),
        children: after.children.saturating_sub(before.children),
    }
}

/// Milliseconds, with fractions.
#[must_use]
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The most resident memory that the program's children of this moment have had (the largest one's VmHWM), in bytes.
#[must_use]
pub fn children_memory(process: &Process) -> u64 {
    let of = |id: &str, file: &str| Path::new("/proc").join(id).join(file);
    let id = process.id().to_string();
    let program = fs::read_link(of(&id, "exe")).ok();
    // Until it calls exec a child is a copy of its parent, or even shares its memory (vfork).
    let is_another = |child: &&str| fs::read_link(of(child, "exe")).ok() != program;
    let tasks = fs::read_dir(of(&id, "task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let sizes = lists.map(|list| {
        let children = list.split_whitespace().filter(is_another);
        children
            .filter_map(|child| status_bytes(&of(child, "status"), "VmHWM:"))
            .max()
    });
    sizes.flatten().max().unwrap_or(0)
}

/// The resident memory at this moment, in bytes.
#[must_use]
pub fn resident(process: &Process) -> Option<u64> {
    status_bytes(
        &Path::new("/proc").join(process.id().to_string()).join("status"),
        "VmRSS:",
    )
}

fn status_bytes(status: &Path, field: &str) -> Option<u64> {
    let status = fs::read_to_string(status).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// MiB, with fractions.
#[must_use]
pub fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory() {
        // Not compared with each other: the tests of the other threads allocate between two readings.
        let status = Path::new("/proc/self/status");
        for field in ["VmHWM:", "VmRSS:"] {
            assert!(
                status_bytes(status, field).is_some_and(|bytes| bytes > 1 << 20),
                "{field}"
            );
        }
        assert_eq!(status_bytes(status, "VmNone:"), None);
    }

    #[test]
    fn usage_is_what_was_added() {
        let reading = |own, children| CpuTime {
            own: Duration::from_millis(own),
            children: Duration::from_millis(children),
        };
        assert_eq!(between(reading(10, 20), reading(15, 40)), reading(5, 20));
    }
}

//! The file of the bench, and its tables.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::tap::Counts;
use crate::bench::{
    Contest, Size, Summary,
    machine::Machine,
    report::ratio,
    statistics::round,
    table::number,
    targets::{self, Target},
};

/// `target/bench/ipvs.json`.
#[derive(Clone, Debug, Serialize)]
pub struct BenchFile {
    /// The bench's name.
    pub bench: String,
    /// What it ran on; the test kernel is a program there.
    pub machine: Machine,
    /// What the figures mean.
    pub reading: Reading,
    /// One for each size.
    pub runs: Vec<Run>,
    /// Ours alone.
    pub alone: Vec<Alone>,
    /// Which targets hold, with 10,000 Services.
    pub targets: Vec<Target>,
}

/// How to read the file, in the file.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "each is about the figure of the same name")]
pub struct Reading {
    pub node: &'static str,
    pub full_sync_ms: &'static str,
    pub change_ms: &'static str,
    pub cpu_ms: &'static str,
    pub netlink: &'static str,
    pub first_packet_us: &'static str,
    pub lookup_us: &'static str,
    pub ratios: &'static str,
}

const READING: Reading = Reading {
    node: "a user-mode Linux kernel with one processor, booted anew for each side; a system call in it takes some 12 us, a \
           new page some 40 us and a new process some 20 ms, many times what they take elsewhere, so that programs with many \
           of these look worse than they are: the counts of messages and processes do not depend on that. Everything that tells the time is inside of it",
    full_sync_ms: "from the start of the process until the last command to IPVS was answered, by the time stamps of the \
                   kernel's netlink tap; that everything is there was then counted in /proc/net/ip_vs. The processor time and \
                   the messages of a full sync are those until done_ms",
    change_ms: "from the API server's answer to the write of an EndpointSlice (one endpoint replaced) until IPVS told of the \
                new destination and of no other with a weight; 0 when it did before the answer was here. IPVS is asked \
                every millisecond, and watcher_gap_ms says how long it really was from answer to answer: a time is late by \
                at most that",
    cpu_ms: "of the program and those that it ran; the guest's clock has steps of 10 ms, so that a figure per change is a mean \
             of samples",
    netlink: "requests that the node's programs sent, without the bench's own: commands to IPVS that change something, questions \
              to IPVS (a listing is one), messages about links, addresses and routes, and messages to nf_tables, ipset and \
              conntrack; datagrams are system calls",
    first_packet_us: "connect(2) from a pod on the node through the address of a probe Service; direct: to the endpoint itself, \
                      in turns with it",
    lookup_us: "how much longer the one takes than the other, by their medians: what finding the Service, and translating to its \
                endpoint, adds. The kernel hashes virtual services into 256 buckets (up to 6.12), so that it grows with them",
    ratios: "kube-proxy's figure divided by ours: above 1, ours is better",
};

/// Both sides with one size.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// How many Services.
    pub services: usize,
    /// How many endpoints each.
    pub endpoints_per_service: usize,
    /// The policy's mode.
    pub mode: String,
    /// The scheduler of both.
    pub scheduler: &'static str,
    /// kube-proxy's minSyncPeriod, in milliseconds; ours is 0.
    pub peer_min_sync_period_ms: u64,
    /// Our agent.
    pub ours: Side,
    /// kube-proxy.
    pub peer: Side,
    /// How they compare.
    pub ratios: Ratios,
}

/// One side's figures.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Side {
    /// Which program.
    pub program: String,
    /// See [`Reading`].
    pub full_sync_ms: f64,
    /// See [`Reading`].
    pub change_ms: Summary,
    /// Processor time for a change; see [`Reading`].
    pub cpu_ms_per_change: f64,
    /// Of it, what programs that it ran used (ipset, iptables-restore).
    pub children_cpu_ms_per_change: f64,
    /// Processes and threads that were started for a change.
    pub processes_per_change: f64,
    /// The most resident memory that the program had (VmHWM), in MiB.
    pub peak_rss_mb: f64,
    /// What was said for a change.
    pub netlink_per_change: Netlink,
    /// More about the full sync.
    pub full_sync: FullSync,
    /// As `change_ms`, from before the request was sent.
    pub change_from_request_ms: Summary,
    /// From one answer of IPVS to the next while a change was waited for.
    pub watcher_gap_ms: Summary,
    /// See [`Reading`].
    pub first_packet_us: Summary,
    /// The same for each probe, in the order of creation, the first and the last Service among them.
    pub first_packet_us_by_service: Vec<Summary>,
    /// See [`Reading`].
    pub direct_first_packet_us: Summary,
    /// See [`Reading`].
    pub lookup_us: f64,
    /// Resident memory at the end, in MiB.
    pub rss_mb: f64,
    /// Virtual services in the kernel.
    pub services: usize,
    /// Destinations in the kernel.
    pub destinations: usize,
}

/// A full sync in detail.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FullSync {
    /// From the start of the process until the last command to IPVS was answered.
    pub last_command_ms: f64,
    /// Until the program itself counts a finished sync: kube-proxy adds every address to an ipset after it has given IPVS
    /// everything. Looked at every 100 ms.
    pub done_ms: f64,
    /// Processor time until then.
    pub cpu_ms: f64,
    /// Of it, what programs that it ran used.
    pub children_cpu_ms: f64,
    /// What was said.
    pub netlink: Netlink,
}

/// Netlink messages; see [`Reading`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "as those of Counts")]
pub struct Netlink {
    pub messages: f64,
    pub ipvs_commands: f64,
    pub ipvs_questions: f64,
    pub route: f64,
    pub netfilter: f64,
    pub datagrams: f64,
    pub bytes: f64,
}

impl Netlink {
    /// What was said for each of `count`.
    #[must_use]
    pub fn of(counts: &Counts, count: usize) -> Self {
        let each = |number: u64| round(number as f64 / count.max(1) as f64);
        Self {
            messages: each(counts.messages()),
            ipvs_commands: each(counts.ipvs_commands),
            ipvs_questions: each(counts.ipvs_questions),
            route: each(counts.route),
            netfilter: each(counts.netfilter),
            datagrams: each(counts.datagrams),
            bytes: each(counts.bytes),
        }
    }
}

/// Ours alone, from files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Alone {
    /// How many Services.
    pub services: usize,
    /// How many endpoints each.
    pub endpoints_per_service: usize,
    /// The full sync; reading the files is in it.
    pub full_sync: FullSync,
    /// From the moment a manifest with another endpoint was in place until IPVS had it. The agent waits until a file has been
    /// quiet for 20 ms: that is in it.
    pub change_ms: Summary,
    /// Processor time for a change.
    pub cpu_ms_per_change: f64,
    /// What was said for a change.
    pub netlink_per_change: Netlink,
    /// As that of a [`Side`].
    pub watcher_gap_ms: Summary,
    /// The most resident memory (VmHWM), in MiB.
    pub peak_rss_mb: f64,
    /// Resident memory at the end, in MiB.
    pub rss_mb: f64,
    /// As that of a [`Side`].
    pub first_packet_us: Summary,
    /// As that of a [`Side`].
    pub direct_first_packet_us: Summary,
    /// As that of a [`Side`].
    pub lookup_us: f64,
}

/// How the sides compare: above 1, ours is better. None where ours is 0.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs, reason = "each is the ratio of the figure of the same name")]
pub struct Ratios {
    pub full_sync_ms: Option<f64>,
    pub full_sync_done_ms: Option<f64>,
    pub full_sync_messages: Option<f64>,
    pub full_sync_datagrams: Option<f64>,
    pub change_ms_p50: Option<f64>,
    pub change_ms_p99: Option<f64>,
    pub cpu_ms_per_change: Option<f64>,
    pub messages_per_change: Option<f64>,
    pub peak_rss_mb: Option<f64>,
    pub first_packet_us_p50: Option<f64>,
}

impl Run {
    /// A run with its ratios.
    #[must_use]
    pub fn new(size: Size, contest: &Contest, ours: Side, peer: Side) -> Self {
        let of = |figure: fn(&Side) -> f64| ratio(figure(&peer), figure(&ours));
        let ratios = Ratios {
            full_sync_ms: of(|side| side.full_sync_ms),
            full_sync_done_ms: of(|side| side.full_sync.done_ms),
            full_sync_messages: of(|side| side.full_sync.netlink.messages),
            full_sync_datagrams: of(|side| side.full_sync.netlink.datagrams),
            change_ms_p50: of(|side| side.change_ms.p50),
            change_ms_p99: of(|side| side.change_ms.p99),
            cpu_ms_per_change: of(|side| side.cpu_ms_per_change),
            messages_per_change: of(|side| side.netlink_per_change.messages),
            peak_rss_mb: of(|side| side.peak_rss_mb),
            first_packet_us_p50: of(|side| side.first_packet_us.p50),
        };
        Self {
            services: size.services,
            endpoints_per_service: size.endpoints,
            mode: contest.mode.to_owned(),
            scheduler: crate::peer::SCHEDULER,
            peer_min_sync_period_ms: u64::try_from(contest.peer_min_sync_period.as_millis())
                .unwrap_or(u64::MAX),
            ours,
            peer,
            ratios,
        }
    }

    /// The figures side by side, a line each.
    #[must_use]
    pub fn table(&self) -> String {
        let Self {
            ours, peer, ratios, ..
        } = self;
        type Row = (&'static str, fn(&Side) -> f64, Option<f64>);
        let rows: &[Row] = &[
            ("full sync, ms", |side| side.full_sync_ms, ratios.full_sync_ms),
            (
                "  until it says so itself, ms",
                |side| side.full_sync.done_ms,
                ratios.full_sync_done_ms,
            ),
            ("  CPU until then, ms", |side| side.full_sync.cpu_ms, None),
            (
                "    of programs it runs, ms",
                |side| side.full_sync.children_cpu_ms,
                None,
            ),
            (
                "  netlink messages",
                |side| side.full_sync.netlink.messages,
                ratios.full_sync_messages,
            ),
            (
                "  netlink datagrams",
                |side| side.full_sync.netlink.datagrams,
                ratios.full_sync_datagrams,
            ),
            (
                "change to kernel p50, ms",
                |side| side.change_ms.p50,
                ratios.change_ms_p50,
            ),
            (
                "change to kernel p99, ms",
                |side| side.change_ms.p99,
                ratios.change_ms_p99,
            ),
            ("  asked every (p50), ms", |side| side.watcher_gap_ms.p50, None),
            ("  asked every (p99), ms", |side| side.watcher_gap_ms.p99, None),
            (
                "CPU per change, ms",
                |side| side.cpu_ms_per_change,
                ratios.cpu_ms_per_change,
            ),
            (
                "  of it programs it runs, ms",
                |side| side.children_cpu_ms_per_change,
                None,
            ),
            ("processes per change", |side| side.processes_per_change, None),
            (
                "netlink messages per change",
                |side| side.netlink_per_change.messages,
                ratios.messages_per_change,
            ),
            (
                "  commands to IPVS",
                |side| side.netlink_per_change.ipvs_commands,
                None,
            ),
            (
                "  questions to IPVS",
                |side| side.netlink_per_change.ipvs_questions,
                None,
            ),
            (
                "peak memory (RSS), MiB",
                |side| side.peak_rss_mb,
                ratios.peak_rss_mb,
            ),
            (
                "first packet p50, us",
                |side| side.first_packet_us.p50,
                ratios.first_packet_us_p50,
            ),
            (
                "  not to a Service p50, us",
                |side| side.direct_first_packet_us.p50,
                None,
            ),
            ("  the difference, us", |side| side.lookup_us, None),
        ];
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{} Services x {} endpoints, {}, scheduler {}; {} and {} changes",
            self.services,
            self.endpoints_per_service,
            self.mode,
            self.scheduler,
            ours.change_ms.samples,
            peer.change_ms.samples
        );
        let _ = writeln!(
            out,
            "{:<32}{:>14}{:>14}{:>9}",
            "", "Pointsman", "kube-proxy", "ratio"
        );
        for (name, figure, ratio) in rows {
            let ratio = ratio.map_or_else(String::new, |ratio| format!("{ratio:.1}x"));
            let (ours, peer) = (number(figure(ours)), number(figure(peer)));
            let _ = writeln!(out, "{name:<32}{ours:>14}{peer:>14}{ratio:>9}");
        }
        out
    }
}

impl Alone {
    /// The figures in words.
    #[must_use]
    pub fn line(&self) -> String {
        format!(
            "{} Services x {} endpoints alone: full sync {:.0} ms ({} netlink datagrams), change p50 {} ms, p99 {} ms, {} ms of \
             CPU and {} netlink messages each, {} MiB, first packet p50 {} us, {} us more than one that is to no Service",
            self.services,
            self.endpoints_per_service,
            self.full_sync.last_command_ms,
            self.full_sync.netlink.datagrams,
            self.change_ms.p50,
            self.change_ms.p99,
            self.cpu_ms_per_change,
            self.netlink_per_change.messages,
            self.peak_rss_mb,
            self.first_packet_us.p50,
            self.lookup_us,
        )
    }
}

impl BenchFile {
    /// A file without runs.
    #[must_use]
    pub fn new(bench: &str, machine: Machine) -> Self {
        Self {
            bench: bench.to_owned(),
            machine,
            reading: READING,
            runs: Vec::new(),
            alone: Vec::new(),
            targets: Vec::new(),
        }
    }

    /// Adds a run, and looks at the targets again.
    pub fn add(&mut self, run: Run) {
        if (run.services, run.endpoints_per_service) == (10_000, 10) {
            self.targets = vec![
                Target::at_most(
                    "change to kernel p99 at 10,000 x 10, ms",
                    run.ours.change_ms.p99,
                    10.0,
                ),
                Target::at_most(
                    "full sync of 10,000 x 10, ms (kube-proxy's / 10)",
                    run.ours.full_sync_ms,
                    run.peer.full_sync_ms / 10.0,
                ),
            ];
        }
        self.runs.push(run);
    }

    /// Writes `<folder>/<bench>.json`.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write(&self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join(format!("{}.json", self.bench));
        let context = || format!("writing {}", path.display());
        fs::create_dir_all(folder).with_context(context)?;
        let mut json = serde_json::to_vec_pretty(self).with_context(context)?;
        json.push(b'\n');
        fs::write(&path, json).with_context(context)?;
        Ok(path)
    }

    /// A line for each target.
    #[must_use]
    pub fn verdicts(&self) -> String {
        targets::render(&self.targets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(services: usize) -> Run {
        let side = |times: f64| Side {
            full_sync_ms: 100.0 * times,
            change_ms: Summary::of([2.0 * times, 9.0 * times]),
            ..Side::default()
        };
        let size = Size {
            services,
            endpoints: 10,
        };
        Run::new(size, &Contest::ipvs(), side(1.0), side(20.0))
    }

    #[test]
    fn the_table_has_both_sides_and_the_ratio() {
        let table = run(1000).table();
        let line = table.lines().find(|line| line.starts_with("full sync"));
        let words: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
        assert_eq!(words, ["full", "sync,", "ms", "100", "2000", "20.0x"]);
    }

    #[test]
    fn targets_are_those_of_the_large_run() -> Result<()> {
        let mut file = BenchFile::new("ipvs", Machine::describe()?);
        file.add(run(1000));
        assert_eq!(file.targets, []);
        file.add(run(10_000));
        assert!(file.targets.len() == 2 && file.targets.iter().all(|target| target.holds));
        Ok(())
    }

    #[test]
    fn what_the_part_inside_found_comes_out_as_it_was() -> Result<()> {
        let counts = Counts {
            ipvs_commands: 20,
            ipvs_questions: 10,
            datagrams: 30,
            ..Counts::default()
        };
        let side = Side {
            netlink_per_change: Netlink::of(&counts.without_questions(10), 10),
            ..Side::default()
        };
        let out: Side = serde_json::from_str(&serde_json::to_string(&side)?)?;
        let netlink = out.netlink_per_change;
        assert_eq!(
            (netlink.messages, netlink.ipvs_questions, netlink.datagrams),
            (2.0, 0.0, 2.0)
        );
        Ok(())
    }
}

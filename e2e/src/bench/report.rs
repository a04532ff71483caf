//! The file of a bench.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{Contest, Size, Summary, machine::Machine, statistics::round};

/// `target/bench/<bench>.json`.
#[derive(Clone, Debug, Serialize)]
pub struct BenchFile {
    /// The bench's name.
    pub bench: String,
    /// What it ran on.
    pub machine: Machine,
    /// What the figures mean.
    pub reading: Reading,
    /// One for each size and variant.
    pub runs: Vec<Run>,
    /// Ours alone.
    pub alone: Vec<super::alone::Alone>,
    /// Which targets hold, in mode NFTables with 10,000 Services.
    pub targets: Vec<super::targets::Target>,
}

/// How to read the file, in the file.
#[derive(Clone, Debug, Serialize)]
pub struct Reading {
    /// Of `change_ms`.
    pub change_ms: &'static str,
    /// Of `change_commit_ms`.
    pub change_commit_ms: &'static str,
    /// Of `full_sync_ms`.
    pub full_sync_ms: &'static str,
    /// Of `ratios`.
    pub ratios: &'static str,
}

const READING: Reading = Reading {
    change_ms: "from the API server's answer to the write of an EndpointSlice (one endpoint replaced) until the first \
                connection through the Service's address that reaches the new endpoint, none after it reaching the \
                old one; a connection is made every 1 ms, or every 0.5 % of the time waited once that is more, so a \
                time is late by at most that and one connection (about 0.2 ms); 0 when the kernel had it before the \
                answer was here",
    change_commit_ms: "the same until the last NFT_MSG_NEWGEN that was read between the request and 150 ms after the \
                       packets saw the change, whoever sent it; late by the wake-up of a thread; 0 when the kernel had \
                       it before the answer was here",
    full_sync_ms: "from the start of the process until a connection through each of the probe Services, which are \
                   spread from the first to the last, reaches its endpoint, /healthz is 200 and the program's own metric \
                   counts a finished full sync",
    ratios: "kube-proxy's figure divided by ours (connections_per_second: ours divided by kube-proxy's): above 1, \
             ours is better",
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
    /// The iptables variant: legacy or nf_tables.
    pub variant: String,
    /// kube-proxy's minSyncPeriod, in milliseconds; ours is 0.
    pub peer_min_sync_period_ms: u64,
    /// syncPeriod of both, in seconds.
    pub sync_period_s: u64,
    /// Our agent.
    pub ours: Side,
    /// kube-proxy.
    pub peer: Side,
    /// How they compare.
    pub ratios: Ratios,
}

/// One side's figures.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Side {
    /// Which program.
    pub program: String,
    /// See [`Reading`].
    pub full_sync_ms: f64,
    /// See [`Reading`].
    pub change_ms: Summary,
    /// In mode NFTables: from the API server's answer to the last commit that belongs to the change; see [`Reading`].
    pub change_commit_ms: Option<Summary>,
    /// Commits for each change.
    pub commits_per_change: Option<f64>,
    /// In mode NFTables: from the API server's answer until the last commit of a Service's scale-up from 10 to 250
    /// endpoints, none following for a second.
    pub scale_up_commit_ms: Option<Summary>,
    /// Processor time for a scale-up and the scale-down after it.
    pub scale_cpu_ms: Option<f64>,
    /// Processor time for a change: of the program and those that it ran, less what it uses when idle.
    pub cpu_ms_per_change: f64,
    /// The most resident memory that the program had (VmHWM), in MiB.
    pub peak_rss_mb: f64,

    /// As `change_ms`, from before the request was sent.
    pub change_from_request_ms: Summary,
    /// Of `cpu_ms_per_change`, what programs that it ran used (iptables-restore, nft), in steps of 10 ms over all
    /// changes.
    pub children_cpu_ms_per_change: f64,
    /// What its own metric of partial syncs grew by for each change; both families together.
    pub own_metric_ms_per_change: Option<f64>,
    /// How many partial syncs that were, counted by family.
    pub syncs_per_change: Option<f64>,
    /// Bytes handed to iptables-restore for each change, where the program tells.
    pub kernel_bytes_per_change: Option<f64>,
    /// Rules and chains written or removed for each change, where the program tells.
    pub kernel_objects_per_change: Option<f64>,
    /// Connections that got the old server after one had got the new one.
    pub old_after_new: u64,
    /// Connections that got no server while changes were made.
    pub lost_in_changes: u64,
    /// What it uses when nothing changes.
    pub idle_cpu_ms_per_s: f64,

    /// More about the full sync.
    pub full_sync: FullSync,
    /// Resident memory at the end, in MiB.
    pub rss_mb: f64,
    /// Rules in the node's kernel.
    pub rules: u64,
    /// Chains in the node's kernel, built-in ones among them.
    pub chains: u64,
    /// connect(2) through the address of a probe Service, all probes together, in microseconds.
    pub first_packet_us: Summary,
    /// The same for each probe, in the order of creation, the first and the last Service among them.
    pub first_packet_us_by_service: Vec<Summary>,
    /// connect(2) to the endpoint itself through the same node, measured in turns with `first_packet_us`: a new
    /// connection that is to no Service. Where rules are a list it passes all of them, and takes longer than one that
    /// finds its Service half way.
    pub direct_first_packet_us: Summary,
    /// The same before the program was started: a node without rules and without connection tracking.
    pub bare_first_packet_us: Summary,
    /// New connections through the probes' addresses, one after the other by two clients: the middle one of five
    /// seconds.
    pub connections_per_second: f64,
    /// Those of them that were not answered.
    pub connections_failed: u64,
    /// The machine's load average before this side began: above 1, something else was running.
    pub load_average: f64,
}

/// A full sync in detail.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FullSync {
    /// From the start of the process until the last Service answered.
    pub first_answer_ms: f64,
    /// In mode NFTables: from the start of the process until its first commit and until its last one.
    pub first_commit_ms: Option<f64>,
    /// See above.
    pub last_commit_ms: Option<f64>,
    /// How many commits there were.
    pub commits: Option<usize>,
    /// The program's own metric of full syncs, both families together.
    pub own_metric_ms: Option<f64>,
    /// How many that were.
    pub own_metric_syncs: Option<u64>,
    /// Processor time from the start until then, of the program and those that it ran.
    pub cpu_ms: f64,
    /// Of it, what programs that it ran used.
    pub children_cpu_ms: f64,
    /// The most memory that one of these was seen with, in MiB (looked at every 20 ms).
    pub children_peak_rss_mb: f64,
    /// Bytes handed to iptables-restore, where the program tells.
    pub kernel_bytes: Option<f64>,
    /// Rules and chains written, where the program tells.
    pub kernel_objects: Option<f64>,
}

/// How the sides compare: above 1, ours is better. None where ours is 0.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs, reason = "each is the ratio of the figure of the same name")]
pub struct Ratios {
    pub full_sync_ms: Option<f64>,
    pub change_ms_p50: Option<f64>,
    pub change_ms_p99: Option<f64>,
    pub change_commit_ms_p50: Option<f64>,
    pub scale_up_commit_ms_p50: Option<f64>,
    pub cpu_ms_per_change: Option<f64>,
    pub peak_rss_mb: Option<f64>,
    pub rules: Option<f64>,
    pub first_packet_us_p50: Option<f64>,
    pub first_packet_us_p99: Option<f64>,
    pub connections_per_second: Option<f64>,
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

    /// Writes `<folder>/<bench>.json` and the plot beside it, `<bench>.svg`.
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
        let plot = path.with_extension("svg");
        fs::write(&plot, super::plot::render(&self.runs))
            .with_context(|| format!("writing {}", plot.display()))?;
        Ok(path)
    }
}

impl Run {
    /// A run with its ratios.
    #[must_use]
    pub fn new(size: Size, contest: &Contest, ours: Side, peer: Side) -> Self {
        Self {
            services: size.services,
            endpoints_per_service: size.endpoints,
            mode: contest.mode.to_owned(),
            variant: contest.variant_name().to_owned(),
            peer_min_sync_period_ms: u64::try_from(contest.peer_min_sync_period.as_millis())
                .unwrap_or(u64::MAX),
            sync_period_s: contest.sync_period.as_secs(),
            ratios: Ratios::of(&ours, &peer),
            ours,
            peer,
        }
    }
}

impl Ratios {
    fn of(ours: &Side, peer: &Side) -> Self {
        Self {
            full_sync_ms: ratio(peer.full_sync_ms, ours.full_sync_ms),
            change_ms_p50: ratio(peer.change_ms.p50, ours.change_ms.p50),
            change_ms_p99: ratio(peer.change_ms.p99, ours.change_ms.p99),
            change_commit_ms_p50: p50s(&peer.change_commit_ms, &ours.change_commit_ms),
            scale_up_commit_ms_p50: p50s(&peer.scale_up_commit_ms, &ours.scale_up_commit_ms),
            cpu_ms_per_change: ratio(peer.cpu_ms_per_change, ours.cpu_ms_per_change),
            peak_rss_mb: ratio(peer.peak_rss_mb, ours.peak_rss_mb),
            rules: ratio(peer.rules as f64, ours.rules as f64),
            first_packet_us_p50: ratio(peer.first_packet_us.p50, ours.first_packet_us.p50),
            first_packet_us_p99: ratio(peer.first_packet_us.p99, ours.first_packet_us.p99),
            connections_per_second: ratio(ours.connections_per_second, peer.connections_per_second),
        }
    }
}

fn p50s(above: &Option<Summary>, below: &Option<Summary>) -> Option<f64> {
    ratio(above.as_ref()?.p50, below.as_ref()?.p50)
}

/// A ratio; JSON has no infinity.
pub(super) fn ratio(above: f64, below: f64) -> Option<f64> {
    (below != 0.0).then(|| round(above / below))
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::Value;

    use super::*;
    use crate::IptablesVariant;

    pub(crate) fn a_run() -> Run {
        let side = |times: f64| Side {
            full_sync_ms: 100.0 * times,
            change_ms: Summary::of([10.0 * times, 20.0 * times]),
            cpu_ms_per_change: 4.0 * times,
            peak_rss_mb: 8.0 * times,
            rules: 16,
            connections_per_second: 1000.0 / times,
            ..Side::default()
        };
        let size = Size {
            services: 100,
            endpoints: 10,
        };
        Run::new(
            size,
            &Contest::iptables(IptablesVariant::Legacy),
            side(1.0),
            side(3.0),
        )
    }

    /// Every later bench and whoever reads the files rely on these names.
    #[test]
    fn the_file_has_the_form_that_is_agreed_on() -> Result<()> {
        let machine = Machine::describe()?;
        let mut file = BenchFile::new("iptables", machine);
        file.runs.push(a_run());
        let folder = tempfile::tempdir()?;
        let path = file.write(folder.path())?;
        assert_eq!(path, folder.path().join("iptables.json"));
        let json: Value = serde_json::from_slice(&fs::read(path)?)?;
        assert_eq!(json["bench"], "iptables");
        for name in ["cpus", "kernel", "memory_mb", "iptables", "date"] {
            assert!(!json["machine"][name].is_null(), "machine.{name}");
        }
        let run = &json["runs"][0];
        assert_eq!(
            (&run["services"], &run["endpoints_per_service"]),
            (&100.into(), &10.into())
        );
        assert_eq!(
            (&run["mode"], &run["variant"]),
            (&"IPTables".into(), &"legacy".into())
        );
        for side in ["ours", "peer"] {
            for name in [
                "full_sync_ms",
                "cpu_ms_per_change",
                "peak_rss_mb",
                "rules",
                "chains",
            ] {
                assert!(run[side][name].is_number(), "{side}.{name}");
            }
            for name in ["change_ms", "first_packet_us"] {
                for percentile in ["p50", "p99"] {
                    assert!(
                        run[side][name][percentile].is_number(),
                        "{side}.{name}.{percentile}"
                    );
                }
                assert!(run[side][name]["samples"].is_u64());
            }
        }
        Ok(())
    }

    #[test]
    fn a_ratio_above_one_means_that_ours_is_better() {
        let ratios = a_run().ratios;
        for ratio in [
            ratios.full_sync_ms,
            ratios.change_ms_p50,
            ratios.change_ms_p99,
            ratios.cpu_ms_per_change,
            ratios.peak_rss_mb,
            ratios.connections_per_second,
        ] {
            assert_eq!(ratio, Some(3.0));
        }
        assert_eq!(ratios.rules, Some(1.0));
        assert_eq!(ratios.first_packet_us_p50, None);
    }
}

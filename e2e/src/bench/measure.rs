//! One side, from its start to its end.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::{
    Bed, Contest, Load, Running, Side, Site, Subject, Summary,
    commits::Commit,
    interrupt, machine, metrics, packets, pause,
    report::FullSync,
    rules,
    statistics::round,
    usage::{self, between, mebibytes, milliseconds},
};

/// For what comes after a start to end, such as a first status.
const SETTLE: Duration = Duration::from_secs(3);
/// How long it is watched doing nothing.
const IDLE: Duration = Duration::from_secs(5);
/// Between two changes: so that what follows one is not taken for the next one's.
const GAP: Duration = Duration::from_millis(150);
/// A scale-up has arrived when no commit followed for this long.
const QUIET: Duration = Duration::from_secs(1);
/// How many scale-ups are timed, and to how many endpoints.
const SCALE_UPS: usize = 5;
const FEW: usize = 10;
const MANY: usize = 250;
/// Connections to each probe, for the time of first packets.
const FIRST_PACKETS: usize = 300;
/// How often, and how long, connections are counted.
const RATES: usize = 5;
const RATE: Duration = Duration::from_secs(1);

const FULL_SYNC_METRIC: &str = "kubeproxy_sync_full_proxy_rules_duration_seconds";
const PARTIAL_SYNC_METRIC: &str = "kubeproxy_sync_partial_proxy_rules_duration_seconds";

/// Measures one subject on a fresh node.
///
/// # Errors
/// When it does not start or sync, when a change does not arrive, or when a connection fails.
pub fn measure(
    site: &Site<'_>,
    load: &Load,
    contest: &Contest,
    subject: Subject,
    changes: usize,
    progress: &dyn Fn(&str),
) -> Result<Side> {
    let label = format!("{} ({contest}), {subject}", load.size());
    let say = |what: &str| progress(&format!("{label}: {what}"));
    let changes = contest.changes(subject, load.size(), changes);
    let bed = site.bed(contest, &format!("{}-node", subject))?;
    let mut side = Side {
        program: subject.version(&bed.node, &site.ground.toolchain),
        load_average: machine::load_average().unwrap_or_default(),
        ..Side::default()
    };

    let direct: Vec<_> = load.probes().iter().map(|probe| probe.direct).collect();
    let bare = packets::first_packets(bed.observer.namespace(), &direct, FIRST_PACKETS)?;
    side.bare_first_packet_us = Summary::of(bare.into_iter().flatten());
    say("full sync");
    let running = full_sync(&bed, load, contest, subject, &mut side)?;
    say(&format!("synced in {:.0} ms; idle", side.full_sync_ms));
    pause(SETTLE)?;
    let before = usage::cpu(running.process())?;
    pause(IDLE)?;
    let idle = between(before, usage::cpu(running.process())?)
        .total()
        .as_secs_f64()
        / IDLE.as_secs_f64();
    side.idle_cpu_ms_per_s = round(idle * 1e3);

    say(&format!("{changes} changes"));
    changes_of(&bed, load, contest, &running, changes, idle, &mut side)?;

    if bed.commits.is_some() {
        say("scale-ups");
        scale_ups_of(&bed, load, contest, &running, changes.min(SCALE_UPS), &mut side)?;
    }

    say("packets");
    let counted = match contest.is_told() {
        true => rules::nftables(bed.node.namespace())?,
        false => rules::iptables(&bed.node)?,
    };
    (side.rules, side.chains) = (counted.rules, counted.chains);
    packets_of(&bed, load, &mut side)?;

    let process = running.process();
    side.peak_rss_mb = round(mebibytes(process.peak_memory()?));
    side.rss_mb = round(mebibytes(usage::resident(process).unwrap_or(0)));
    running.stop()?;
    Ok(side)
}

fn full_sync(
    bed: &Bed<'_>,
    load: &Load,
    contest: &Contest,
    subject: Subject,
    side: &mut Side,
) -> Result<Running> {
    let probes = load.probes();
    let last = probes.last().context("a load without a Service")?;
    let limit = contest.limit;
    let began = Instant::now();
    let running = subject.start(bed, contest)?;
    let process = running.process();
    let log = || {
        format!(
            "waiting for the full sync; the end of its log:\n{}",
            process.log_tail(20)
        )
    };

    let (mut children, mut looked) = (0, Instant::now());
    let meanwhile = || {
        if looked.elapsed() > Duration::from_millis(20) {
            children = children.max(usage::children_memory(process));
            looked = Instant::now();
            anyhow::ensure!(process.is_running(), "it ended");
        }
        Ok(())
    };
    let answered = bed
        .observer
        .wait_for(last.vip, last.backend(), limit, meanwhile)
        .with_context(log)?;
    for probe in probes {
        let found = bed
            .observer
            .wait_for(probe.vip, probe.backend(), limit, || Ok(()));
        found.with_context(log)?;
    }
    let is_synced = |text: &str| {
        let count = format!("{FULL_SYNC_METRIC}_count");
        metrics::sum_with(text, &count, "ip_family=\"IPv4\"").is_some_and(|syncs| syncs >= 1.0)
    };
    // kube-proxy calls itself healthy before its first sync, and a table may be in force before whoever wrote it has
    // ended: only its metric says that it is done.
    while !(running.is_healthy() && running.metrics().is_ok_and(|text| is_synced(&text))) {
        interrupt::check()?;
        anyhow::ensure!(began.elapsed() < limit, "not healthy: {}", log());
        std::thread::sleep(Duration::from_millis(5));
    }
    side.full_sync_ms = round(milliseconds(began.elapsed()));
    let cpu = usage::cpu(process)?;
    let commits = match &bed.commits {
        Some(commits) => Some(commits.since(began)?),
        None => None,
    };
    let commit_ms = |commit: Option<&Commit>| Some(round(milliseconds(commit?.at - began)));
    forget_connections(bed)?;
    let text = running.metrics()?;
    let own = metrics::sum(&text, &format!("{FULL_SYNC_METRIC}_sum"));
    let count = metrics::sum(&text, &format!("{FULL_SYNC_METRIC}_count"));
    side.full_sync = FullSync {
        first_answer_ms: round(milliseconds(answered - began)),
        first_commit_ms: commits.as_ref().and_then(|all| commit_ms(all.first())),
        last_commit_ms: commits.as_ref().and_then(|all| commit_ms(all.last())),
        commits: commits.as_ref().map(Vec::len),
        own_metric_ms: own.map(|seconds| round(seconds * 1e3)),
        own_metric_syncs: count.map(|count| count as u64),
        cpu_ms: round(milliseconds(cpu.total())),
        children_cpu_ms: round(milliseconds(cpu.children)),
        children_peak_rss_mb: round(mebibytes(children)),
        kernel_bytes: metrics::sum(&text, "pointsman_agent_kernel_bytes_written_total").map(round),
        kernel_objects: metrics::sum(&text, "pointsman_agent_kernel_objects_written_total").map(round),
    };
    Ok(running)
}

/// Connections that were tried before there were rules are remembered for two minutes as ones that are not
/// translated (`nf_conntrack_tcp_timeout_syn_sent`), and the next one from the same port would share their fate.
fn forget_connections(bed: &Bed<'_>) -> Result<()> {
    let output = bed.node.command("conntrack").arg("-F").output();
    let output = output.context("running conntrack; run e2e/packages.sh")?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "conntrack -F: {}", said.trim());
    Ok(())
}

fn changes_of(
    bed: &Bed<'_>,
    load: &Load,
    contest: &Contest,
    running: &Running,
    changes: usize,
    idle: f64,
    side: &mut Side,
) -> Result<()> {
    let process = running.process();
    let site = bed.site;
    let (mut from_answer, mut from_request) = (Vec::new(), Vec::new());
    let (mut commit_times, mut commit_count) = (Vec::new(), 0);
    let text_before = running.metrics()?;
    let (before, began) = (usage::cpu(process)?, Instant::now());
    for probe in load.probes().iter().cycle().take(changes) {
        let to = probe.backend().other();
        let switch = || probe.switch(&site.writer, site.ground.backends.places());
        let watched = bed.observer.watch(probe.vip, to, contest.limit, switch);
        let ((asked, answered), seen) =
            watched.with_context(|| format!("the end of its log:\n{}", process.log_tail(20)))?;
        // A kernel may have it before the writer has the answer.
        from_answer.push(milliseconds(seen.arrived.saturating_duration_since(answered)));
        from_request.push(milliseconds(seen.arrived.saturating_duration_since(asked)));
        side.old_after_new += seen.old_after_new;
        side.lost_in_changes += seen.lost;
        pause(GAP)?;
        if let Some(commits) = &bed.commits {
            let commits = commits.since(asked)?;
            let last = commits
                .last()
                .context("the change was seen by packets, and no commit was")?;
            commit_times.push(milliseconds(last.at.saturating_duration_since(answered)));
            commit_count += commits.len();
        }
    }
    // What was changed last is still being looked after, by kube-proxy's conntrack cleaning for instance.
    pause(GAP * 4)?;
    let (used, took) = (between(before, usage::cpu(process)?), began.elapsed());
    let text = running.metrics()?;
    let count = changes.max(1) as f64;
    let per_change = |total: Duration| milliseconds(total) / count;
    let idle_share = idle * milliseconds(took) / count;
    side.change_ms = Summary::of(from_answer);
    if bed.commits.is_some() {
        side.change_commit_ms = Some(Summary::of(commit_times));
        side.commits_per_change = Some(round(commit_count as f64 / count));
    }
    side.change_from_request_ms = Summary::of(from_request);
    side.cpu_ms_per_change = round((per_change(used.total()) - idle_share).max(0.0));
    side.children_cpu_ms_per_change = round(per_change(used.children));
    let grown = |name: &str| metrics::growth(&text_before, &text, name);
    let syncs =
        grown(&format!("{PARTIAL_SYNC_METRIC}_sum")).zip(grown(&format!("{PARTIAL_SYNC_METRIC}_count")));
    // Of both families together: a sync of a family without Services is as good as nothing.
    side.own_metric_ms_per_change = syncs.map(|(seconds, _)| round(seconds * 1e3 / count));
    side.syncs_per_change = syncs.map(|(_, syncs)| round(syncs / count));
    side.kernel_bytes_per_change =
        grown("pointsman_agent_kernel_bytes_written_total").map(|bytes| round(bytes / count));
    side.kernel_objects_per_change =
        grown("pointsman_agent_kernel_objects_written_total").map(|objects| round(objects / count));
    Ok(())
}

/// Scales a Service up and down again, and times the way up.
fn scale_ups_of(
    bed: &Bed<'_>,
    load: &Load,
    contest: &Contest,
    running: &Running,
    rounds: usize,
    side: &mut Side,
) -> Result<()> {
    let Some(commits) = &bed.commits else {
        return Ok(());
    };
    let writer = &bed.site.writer;
    // The size says how many endpoints it has now.
    if load.size().endpoints != FEW {
        let (asked, _) = load.scale(writer, FEW)?;
        commits.settled(asked, QUIET, contest.limit)?;
    }
    let mut times = Vec::new();
    let before = usage::cpu(running.process())?;
    for _ in 0..rounds {
        let (asked, answered) = load.scale(writer, MANY)?;
        let arrived = commits.settled(asked, QUIET, contest.limit)?;
        times.extend(
            arrived
                .last()
                .map(|last| milliseconds(last.at.saturating_duration_since(answered))),
        );
        let (asked, _) = load.scale(writer, FEW)?;
        commits.settled(asked, QUIET, contest.limit)?;
    }
    let used = between(before, usage::cpu(running.process())?).total();
    side.scale_up_commit_ms = Some(Summary::of(times));
    side.scale_cpu_ms = Some(round(milliseconds(used) / rounds.max(1) as f64));
    if load.size().endpoints != FEW {
        let (asked, _) = load.scale(writer, load.size().endpoints)?;
        commits.settled(asked, QUIET, contest.limit)?;
    }
    Ok(())
}

fn packets_of(bed: &Bed<'_>, load: &Load, side: &mut Side) -> Result<()> {
    let pod = bed.observer.namespace();
    let vips: Vec<_> = load.probes().iter().map(|probe| probe.vip).collect();
    let direct = load.probes().iter().map(|probe| probe.direct);
    // In turns with the way past the Services: what disturbs the machine disturbs both.
    let targets: Vec<_> = vips.iter().copied().chain(direct).collect();
    let mut times = packets::first_packets(pod, &targets, FIRST_PACKETS)?;
    let direct = times.split_off(vips.len());
    side.first_packet_us_by_service = times
        .iter()
        .map(|times| Summary::of(times.iter().copied()))
        .collect();
    side.first_packet_us = Summary::of(times.into_iter().flatten());
    side.direct_first_packet_us = Summary::of(direct.into_iter().flatten());
    let rates = (0..RATES).map(|_| packets::connections_per_second(pod, &vips, RATE));
    let rates: Vec<_> = rates.collect::<Result<_>>()?;
    // The middle one: a second in which the machine was disturbed does not count.
    side.connections_per_second = Summary::of(rates.iter().map(|rate| rate.per_second)).p50.round();
    side.connections_failed = rates.iter().map(|rate| rate.failed).sum();
    Ok(())
}

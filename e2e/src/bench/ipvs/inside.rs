//! The part in the test kernel: one side, from its start to its end.

use std::{
    fs,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Order, SERVERS, Tap, Watcher, alone,
    report::{FullSync, Netlink, Side},
};
use crate::{
    Netns, Toolchain,
    bench::{
        Backends, Contest, Load, Places, Running, Size, Subject, Summary, Writer, interrupt, metrics,
        packets, pause,
        statistics::round,
        usage::{self, between, mebibytes, milliseconds},
    },
    inside, installation,
    process::CpuTime,
};

/// After a sync, for what follows it.
const SETTLE: Duration = Duration::from_secs(3);
/// Between two changes: so that what follows one is not taken for the next one's.
pub(super) const GAP: Duration = Duration::from_millis(150);
/// Both programs' own count of syncs.
const SYNCS: &str = "kubeproxy_sync_proxy_rules_duration_seconds_count";
/// Connections to each probe, for the time of first packets.
pub(super) const FIRST_PACKETS: usize = 300;

/// Carries out an order, and gives the result as JSON. `progress` gets a line for every step.
///
/// # Errors
/// When a program does not start or sync, or a change does not arrive.
pub fn carry_out(order: Order, progress: &dyn Fn(&str)) -> Result<serde_json::Value> {
    match order {
        Order::Side {
            subject,
            mode,
            peer_min_sync_period,
            load,
            places,
            changes,
        } => {
            let contest = Contest {
                peer_min_sync_period,
                ..Contest::ipvs()
            };
            let label = format!("{} ({mode}), {subject}", load.size());
            let say = |what: &str| progress(&format!("{label}: {what}"));
            let side = measure(subject, &contest, &load, &places, changes, &say)?;
            Ok(serde_json::to_value(side)?)
        }
        Order::Alone { mode, size, changes } => {
            let say = |what: &str| progress(&format!("{size} alone: {what}"));
            Ok(serde_json::to_value(alone::measure(&mode, size, changes, &say)?)?)
        }
    }
}

/// What the node of a side is called.
#[must_use]
pub fn node_name(subject: Subject) -> String {
    format!("{subject}-node")
}

fn measure(
    subject: Subject,
    contest: &Contest,
    load: &Load,
    places: &Places,
    changes: usize,
    say: &dyn Fn(&str),
) -> Result<Side> {
    let toolchain = Toolchain::locate()?;
    let (fabric, access) = inside::join()?;
    let servers = fabric.node(SERVERS)?;
    let backends = Backends::start(&servers)?;
    ensure!(backends.places() == places, "the servers are elsewhere");
    let node = fabric.node(&node_name(subject))?;
    let client = node.add_pod("client")?;
    access.create_node(&node)?;
    access
        .wait_for(&["get", "nodeproxy", node.name()], Duration::from_secs(60))
        .context("waiting for the operator to write the NodeProxy")?;
    let kubeconfig = installation::agent_kubeconfig(&access, &node)?;
    let mut side = Side {
        program: subject.version(&node, &toolchain),
        ..Side::default()
    };
    let tap = Tap::on(&node)?;
    let watcher = Watcher::on(&node)?;

    say("full sync");
    let (began, clock) = (Instant::now(), SystemTime::now());
    let running = subject.start_on(&node, contest, &kubeconfig, &access, &toolchain)?;
    let probes = load.probes().iter().map(|probe| (probe.vip, probe.direct));
    let expected = expected(load.size(), probes.len());
    let process = running.process();
    wait_for_sync(&watcher, probes, expected, contest.limit, || {
        ensure!(process.is_running(), "it ended");
        Ok(())
    })
    .with_context(|| format!("the end of its log:\n{}", process.log_tail(20)))?;
    // kube-proxy calls itself healthy before its first sync. What it has to write after the last destination counts too.
    let is_synced =
        |text: &str| metrics::sum_with(text, SYNCS, "ip_family=\"IPv4\"").is_some_and(|count| count >= 1.0);
    while !(running.is_healthy() && running.metrics().is_ok_and(|text| is_synced(&text))) {
        interrupt::check()?;
        ensure!(
            began.elapsed() < contest.limit,
            "not synced; the end of its log:\n{}",
            process.log_tail(20)
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    let cpu = usage::cpu(process)?;
    side.full_sync = full_sync(&tap, &watcher, clock, began.elapsed(), cpu, expected)?;
    side.full_sync_ms = side.full_sync.last_command_ms;
    pause(SETTLE)?;

    say(&format!(
        "synced in {:.0} ms; {changes} changes",
        side.full_sync_ms
    ));
    let writer = Writer::new(&access)?;
    let bench = Bench {
        load,
        places,
        watcher: &watcher,
        writer: &writer,
        limit: contest.limit,
    };
    bench.time(changes, &running, &tap, &mut side)?;
    say("packets");
    first_packets(client.namespace(), load, places, &mut side)?;
    side.peak_rss_mb = round(mebibytes(process.peak_memory()?));
    side.rss_mb = round(mebibytes(usage::resident(process).unwrap_or(0)));
    (side.services, side.destinations) = watcher.count()?;
    running.stop()?;
    Ok(side)
}

/// How many virtual services and destinations there are to be at least: a probe has one endpoint.
pub(super) fn expected(size: Size, probes: usize) -> (usize, usize) {
    let others = size.services.saturating_sub(probes);
    (size.services, others * size.endpoints + probes)
}

/// Waits until IPVS has everything. It is asked seldom: when the last command came the tap tells.
pub(super) fn wait_for_sync(
    watcher: &Watcher,
    probes: impl Iterator<Item = (std::net::SocketAddr, std::net::SocketAddr)>,
    expected: (usize, usize),
    limit: Duration,
    meanwhile: impl Fn() -> Result<()>,
) -> Result<()> {
    let began = Instant::now();
    let pause = |time| -> Result<()> {
        interrupt::check()?;
        meanwhile()?;
        ensure!(
            began.elapsed() < limit,
            "not synced after {limit:?}: {:?}",
            watcher.count()?
        );
        std::thread::sleep(time);
        Ok(())
    };
    for (vip, to) in probes {
        while !watcher.leads_to(vip, to)? {
            pause(Duration::from_millis(20))?;
        }
    }
    loop {
        let (services, destinations) = watcher.count()?;
        if services >= expected.0 && destinations >= expected.1 {
            return Ok(());
        }
        pause(Duration::from_millis(250))?;
    }
}

/// The figures of a sync that is done.
pub(super) fn full_sync(
    tap: &Tap,
    watcher: &Watcher,
    clock: SystemTime,
    done: Duration,
    cpu: CpuTime,
    expected: (usize, usize),
) -> Result<FullSync> {
    let counts = tap.counts().without_questions(watcher.asked());
    ensure!(
        counts.ipvs_added >= (expected.0 + expected.1) as u64,
        "the tap lost messages: it has heard {counts:?}, and there are {expected:?}"
    );
    Ok(FullSync {
        last_command_ms: round(milliseconds(tap.until_last_command(clock)?)),
        done_ms: round(milliseconds(done)),
        cpu_ms: round(milliseconds(cpu.total())),
        children_cpu_ms: round(milliseconds(cpu.children)),
        netlink: Netlink::of(&counts, 1),
    })
}

/// How many processes and threads were ever started here.
fn processes() -> Result<u64> {
    let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let line = text.lines().find_map(|line| line.strip_prefix("processes "));
    line.and_then(|number| number.trim().parse().ok())
        .context("/proc/stat does not tell of processes")
}

struct Bench<'a> {
    load: &'a Load,
    places: &'a Places,
    watcher: &'a Watcher,
    writer: &'a Writer,
    limit: Duration,
}

impl Bench<'_> {
    /// Makes changes and measures them.
    fn time(&self, changes: usize, running: &Running, tap: &Tap, side: &mut Side) -> Result<()> {
        let (mut from_answer, mut from_request, mut gaps) = (Vec::new(), Vec::new(), Vec::new());
        let (said, asked_before, started) = (tap.counts(), self.watcher.asked(), processes()?);
        let before = usage::cpu(running.process())?;
        for probe in self.load.probes().iter().cycle().take(changes) {
            let to = (self.places.address(probe.backend().other()), probe.direct.port()).into();
            let switch = || probe.switch(self.writer, self.places);
            let watched = self.watcher.watch(probe.vip, to, self.limit, switch);
            let log = || format!("the end of its log:\n{}", running.process().log_tail(20));
            let ((asked, answered), seen) = watched.with_context(log)?;
            // A kernel may have it before the writer has the answer.
            from_answer.push(milliseconds(seen.arrived.saturating_duration_since(answered)));
            from_request.push(milliseconds(seen.arrived.saturating_duration_since(asked)));
            gaps.extend(seen.gaps.into_iter().map(milliseconds));
            pause(GAP)?;
        }
        // What was changed last is still being looked after.
        pause(GAP * 4)?;
        let used = between(before, usage::cpu(running.process())?);
        let count = changes.max(1) as f64;
        let each = |time| round(milliseconds(time) / count);
        side.change_ms = Summary::of(from_answer);
        side.change_from_request_ms = Summary::of(from_request);
        side.watcher_gap_ms = Summary::of(gaps);
        side.cpu_ms_per_change = each(used.total());
        side.children_cpu_ms_per_change = each(used.children);
        // The watcher has a thread for each change.
        let started = processes()?.saturating_sub(started + changes as u64);
        side.processes_per_change = round(started as f64 / count);
        let said = tap.counts().since(&said);
        side.netlink_per_change = Netlink::of(
            &said.without_questions(self.watcher.asked() - asked_before),
            changes,
        );
        Ok(())
    }
}

/// What a Service adds to a first packet.
pub(super) fn lookup(through: &Summary, direct: &Summary) -> f64 {
    round(through.p50 - direct.p50)
}

fn first_packets(client: &Netns, load: &Load, places: &Places, side: &mut Side) -> Result<()> {
    let vips = load.probes().iter().map(|probe| probe.vip);
    // The server that it does not lead to: IPVS takes what the other one answers for part of a connection that it remembers,
    // when the client's port is the same.
    let direct = load
        .probes()
        .iter()
        .map(|probe| (places.address(probe.backend().other()), probe.direct.port()).into());
    let targets: Vec<_> = vips.chain(direct).collect();
    let mut times = packets::first_packets(client, &targets, FIRST_PACKETS)?;
    let direct = times.split_off(load.probes().len());
    side.first_packet_us_by_service = times
        .iter()
        .map(|times| Summary::of(times.iter().copied()))
        .collect();
    side.first_packet_us = Summary::of(times.into_iter().flatten());
    side.direct_first_packet_us = Summary::of(direct.into_iter().flatten());
    side.lookup_us = lookup(&side.first_packet_us, &side.direct_first_packet_us);
    Ok(())
}

//! Puts the parts together.
//!
//! This thread runs watches, reports and servers on a single-threaded runtime. The engine has its own, because
//! writing to the kernel blocks, and so have the one that hears of changed rules and the one that deletes stale
//! connection entries.

use std::{fs, sync::Arc, thread, time::Duration};

use anyhow::{Context as _, Result, bail};
use pointsman_api_client::connect;
use pointsman_crds::Mode;
use pointsman_dataplane::backend::{Backend, Error};
use pointsman_dataplane::conntrack::Cleaner;
use pointsman_dataplane::iptables::{Iptables, Programs};
use pointsman_dataplane::ipvs::{self, Ipvs};
use pointsman_dataplane::leftover::Search;
use pointsman_dataplane::model::Family;
use pointsman_dataplane::nftables::{Nftables, probe::probe};
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::args::Args;
use crate::engine::{Engine, Kernel, Parameters, families};
use crate::logging::LogLevel;
use crate::metrics::Metrics;
use crate::report::{self, kernel_release};
use crate::server::{self, Sources};
use crate::service_health::{self, HealthChecks};
use crate::source::{Event, addresses, api, manifests, rules};
use crate::state::State;

/// Events that wait for the engine; sources pause when there are more.
const EVENTS: usize = 4096;

/// How long a write that is under way may delay the end. Kubernetes gives a pod 30 seconds.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Runs the agent until it is told to stop, or cleans up when that was asked for.
///
/// # Errors
/// When the agent cannot begin: a bad flag, an address that is taken, no way to reach the API server. Later
/// failures are reported and tried again.
pub fn run(args: Args, log_level: LogLevel) -> Result<()> {
    fs::create_dir_all(&args.state_dir).with_context(|| {
        format!(
            "making the directory of --state-dir, {}",
            args.state_dir.display()
        )
    })?;
    if args.cleanup {
        return clean_up(&args);
    }
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let ended = runtime.block_on(serve(args, log_level));
    // Not waited for: the thread that follows manifests, which may be waiting for a change.
    runtime.shutdown_background();
    ended
}

fn backend(mode: Mode, family: Family) -> Result<Box<dyn Backend>, Error> {
    match mode {
        Mode::NFTables => Ok(Box::new(Nftables::new(family))),
        Mode::IPVS => {
            // Has the kernel load it, before its parameters are set.
            ipvs::probe::load()?;
            Ok(Box::new(Ipvs::new(family)))
        }
        Mode::Auto | Mode::IPTables => Ok(Box::new(Iptables::new(family, Programs::find(family, None))?)),
    }
}

/// Takes down what any run of the agent made on this node.
fn clean_up(args: &Args) -> Result<()> {
    let mut left = Vec::new();
    for family in families() {
        let cleaned = Iptables::new(family, Programs::find(family, None)).and_then(|mut iptables| {
            iptables.teardown(None)?;
            iptables.remove_grace_rule()
        });
        if let Err(Error::MissingProgram { program, .. }) = &cleaned {
            // Mode NFTables needs no iptables, so that a node without it is nothing strange.
            tracing::warn!(%family, program, "is not there: rules that an agent in mode IPTables left are not looked for");
        } else if let Err(error) = cleaned {
            left.push(format!("{family}: {error}"));
        }
        match Ipvs::new(family).remove_all() {
            Ok(()) | Err(Error::MissingKernelFeature { .. }) => (),
            Err(error) => left.push(format!("{family}: {error}")),
        }
        match Nftables::new(family).remove_all() {
            Ok(()) | Err(Error::MissingKernelFeature { .. }) => (),
            Err(error) => left.push(format!("{family}: {error}")),
        }
    }
    let mut parameters = Parameters::new(&args.proc_sys, &args.state_dir);
    parameters.restore();
    left.extend(parameters.failures().iter().cloned());
    if left.is_empty() {
        tracing::info!("nothing of the agent is left in the kernel");
        return Ok(());
    }
    bail!("not everything could be cleaned up: {}", left.join("; "))
}

async fn serve(args: Args, log_level: LogLevel) -> Result<()> {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = args.node_name,
        "starting"
    );
    let metrics = Arc::new(Metrics::default());
    let (events_in, events) = mpsc::channel(EVENTS);
    let (state_in, state) = watch::channel(State::default());
    let (checks_in, checks) = watch::channel(HealthChecks::default());

    let health = server::bind("--healthz-bind-address", args.healthz_bind_address).await?;
    let own = server::bind("--metrics-bind-address", args.metrics_bind_address).await?;
    let sources = Sources {
        state: state.clone(),
        metrics: Arc::clone(&metrics),
        log_level: log_level.clone(),
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(server::serve_health(health, sources.clone()));
    tasks.spawn(server::serve_metrics(own, sources));

    let balancers = service_health::serve(checks, state.clone(), events_in.clone());
    tasks.spawn(async {
        balancers.await;
        Ok(())
    });

    let addresses = addresses::follow(events_in.clone());
    tasks.spawn(async {
        addresses.await;
        Ok(())
    });
    let touched = events_in.clone();
    thread::Builder::new()
        .name("rules".to_owned())
        .spawn(move || rules::follow(&touched))
        .context("starting the thread that hears of changed rules")?;
    let stop = events_in.clone();
    match &args.manifests {
        Some(directory) => {
            let (directory, node) = (directory.clone(), args.node_name.clone());
            tasks.spawn_blocking(move || manifests::follow(&directory, &node, &events_in));
        }
        None => {
            let client = connect(args.kubeconfig.as_deref()).await?;
            let watches = api::watch_all(
                client.clone(),
                args.node_name.clone(),
                events_in,
                Arc::clone(&metrics),
            );
            tasks.spawn(async {
                watches.await;
                Ok(())
            });
            let reports = report::follow(client, args.node_name.clone(), state, Arc::clone(&metrics));
            tasks.spawn(async {
                reports.await;
                Ok(())
            });
        }
    }

    let parameters = Parameters::new(&args.proc_sys, &args.state_dir);
    let (cleaner, worker) = Cleaner::new();
    let counted = Arc::clone(&metrics);
    thread::Builder::new()
        .name("conntrack".to_owned())
        .spawn(move || worker.run(|cleaned| counted.cleaned(cleaned)))
        .context("starting the thread that deletes stale connection entries")?;
    let mut leftovers = Search::default();
    let engine = Engine::new(
        Kernel {
            make_backend: Arc::new(backend),
            probe: Arc::new(probe),
            probe_ipvs: Arc::new(ipvs::probe::probe),
            has_ipvs: Box::new(ipvs::probe::is_there),
            release: kernel_release().unwrap_or_default(),
            look_for_leftovers: Box::new(move |families| leftovers.look(families)),
        },
        parameters,
        cleaner,
        log_level,
        metrics,
        state_in,
        checks_in,
    );
    let mut stopped = run_engine(engine, events)?;
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("stopping; the rules stay"),
        _ = interrupt.recv() => tracing::info!("stopping; the rules stay"),
        ended = tasks.join_next() => match ended {
            Some(Ok(Err(error))) => return Err(error),
            Some(Err(error)) => return Err(error).context("a part of the agent broke"),
            Some(Ok(Ok(()))) | None => bail!("a part of the agent ended by itself"),
        },
        _ = &mut stopped => bail!("the engine ended by itself"),
    }
    // What is being written is written to its end; what has only been heard of waits for the next agent.
    let ended = async {
        if stop.send(Event::Stop).await.is_ok() {
            // An engine that is gone has ended, too.
            let _ = stopped.await;
        }
    };
    if tokio::time::timeout(STOP_LIMIT, ended).await.is_err() {
        tracing::warn!(
            "the kernel did not take what was being written within {} s: the next agent will look after it",
            STOP_LIMIT.as_secs()
        );
    }
    Ok(())
}

/// Runs the engine on its own thread; what is returned is done when it ends.
fn run_engine(engine: Engine, events: mpsc::Receiver<Event>) -> Result<tokio::sync::oneshot::Receiver<()>> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .context("starting the engine")?;
    let (ended, stopped) = tokio::sync::oneshot::channel();
    let body = move || {
        runtime.block_on(engine.run(events));
        drop(ended);
    };
    thread::Builder::new()
        .name("engine".to_owned())
        .spawn(body)
        .context("starting the engine's thread")?;
    Ok(stopped)
}

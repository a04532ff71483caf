//! The differential test: random clusters, given to Pointsman's agent and to the real kube-proxy at once. Both have a
//! node of their own with the same addresses; the same packets are sent to both, and the outcomes have to agree: who
//! answers, with which source address in sight, who is refused, what is dropped.
//!
//! | idea | where |
//! |---|---|
//! | a cluster at one moment, and its objects | [`world`] |
//! | how it comes about and changes, by a seed | [`generate`], [`random`] |
//! | what is sent after each step | [`packets`] |
//! | whether two outcomes are the same | [`seen`] |
//! | the differences that are meant, and why | [`intended`], `defects` |
//! | the smallest cluster that shows a difference | [`shrink`] |
//! | a node with servers and clients around it | [`side`] |
//! | both sides under one API server | [`arena`], [`store`] |
//! | when a side has what the API server has | [`marker`] |
//!
//! [`side`], [`arena`] and [`store`] do what has to be done outside of this process; everything else is pure.

pub mod arena;
mod defects;
pub mod generate;
pub mod intended;
pub mod marker;
mod objects;
pub mod packets;
pub mod random;
pub mod seen;
pub mod shrink;
pub mod side;
pub mod store;
pub mod world;

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

pub use self::arena::Setup;
use self::{
    arena::{Answers, Arena},
    generate::Stage,
    intended::Difference,
    random::Random,
    world::World,
};
use crate::bench::interrupt;

/// How many questions follow a step.
const QUESTIONS: usize = 60;
/// Between two lines of progress.
const BEAT: Duration = Duration::from_secs(15);

/// What a run does.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Decides everything that is random.
    pub seed: u64,
    /// How many steps.
    pub steps: u64,
    /// When no further step begins.
    pub limit: Duration,
    /// How the sides are set up.
    pub setup: Setup,
    /// Whether to go on after a difference.
    pub go_on: bool,
    /// How long a difference may be made smaller.
    pub shrink_limit: Duration,
}

/// What a run showed.
#[derive(Debug, Default)]
pub struct Report {
    /// How many steps were done.
    pub steps: u64,
    /// How many questions had which outcome on both sides.
    pub agreed: BTreeMap<&'static str, u64>,
    /// How many differences were meant, by name.
    pub intended: BTreeMap<&'static str, u64>,
    /// Those that nobody meant.
    pub found: Vec<Found>,
}

/// A difference that nobody meant.
#[derive(Debug)]
pub struct Found {
    seed: u64,
    step: u64,
    setup: Setup,
    stages: Vec<Stage>,
    answers: Answers,
    /// Whether the stages were seen to show it again, from an empty cluster.
    repeats: bool,
}

/// Runs a plan on a fresh control plane.
///
/// # Errors
/// When anything but the comparison fails. A difference is no error here.
pub fn run(plan: &Plan, progress: &dyn Fn(&str)) -> Result<Report> {
    let began = Instant::now();
    let mut arena = Arena::start(plan.setup)?;
    progress(&format!(
        "seed {}: both sides are up, {:?}",
        plan.seed, plan.setup
    ));
    let mut report = Report::default();
    let mut history: Vec<Stage> = Vec::new();
    let mut world = World::default();
    let mut last_line = Instant::now();
    for step in 0..plan.steps {
        interrupt::check()?;
        if began.elapsed() > plan.limit {
            break;
        }
        let mut random = Random::of(plan.seed, step);
        let stages = generate::step(&world, &mut random);
        let context = || format!("seed {}, step {step}", plan.seed);
        arena.enact(&stages).with_context(context)?;
        history.extend(stages);
        world = history
            .last()
            .map(|stage| stage.world.clone())
            .unwrap_or_default();
        let questions = packets::questions(&world, QUESTIONS, &mut random);
        let compared = arena.compare(&world, &questions).with_context(context)?;
        for (outcome, count) in compared.agreed {
            *report.agreed.entry(outcome).or_default() += count;
        }
        report.steps += 1;
        let mut unexplained = None;
        for answers in compared.different {
            match difference(&world, &answers, plan).intended() {
                Some(intended) => *report.intended.entry(intended.name).or_default() += 1,
                None => unexplained = unexplained.or(Some(answers)),
            }
        }
        if let Some(answers) = unexplained {
            progress(&format!(
                "seed {}, step {step}: a difference, which is now made smaller",
                plan.seed
            ));
            let found = Found::of(plan, step, &mut arena, &history, answers)?;
            progress(&found.to_string());
            report.found.push(found);
            if !plan.go_on {
                break;
            }
            arena.clear()?;
            arena.enact(&history[history.len() - 1..]).with_context(context)?;
        }
        if last_line.elapsed() > BEAT {
            last_line = Instant::now();
            progress(&format!(
                "seed {}: {} of {} steps, {:.2} s each; {report}",
                plan.seed,
                report.steps,
                plan.steps,
                began.elapsed().as_secs_f64() / report.steps as f64
            ));
        }
    }
    progress(&format!("seed {}: {report}", plan.seed));
    Ok(report)
}

fn difference<'a>(world: &'a World, answers: &'a Answers, plan: &Plan) -> Difference<'a> {
    Difference {
        world,
        question: answers.question,
        ours: &answers.ours,
        theirs: &answers.theirs,
        setup: plan.setup,
    }
}

impl Found {
    fn of(
        plan: &Plan,
        step: u64,
        arena: &mut Arena,
        history: &[Stage],
        mut answers: Answers,
    ) -> Result<Self> {
        let until = Instant::now() + plan.shrink_limit;
        let question = answers.question;
        let mut shows = |stages: &[Stage]| -> Result<bool> {
            interrupt::check()?;
            let Some(last) = stages.last() else {
                return Ok(false);
            };
            arena.clear()?;
            // What the API server refuses shows nothing.
            if arena.enact(stages).is_err() {
                return Ok(false);
            }
            for again in arena.compare(&last.world, &[question])?.different {
                if difference(&last.world, &again, plan).intended().is_none() {
                    answers = again;
                    return Ok(true);
                }
            }
            Ok(false)
        };
        let mut beginning = None;
        for end in shrink::ends(history) {
            if Instant::now() > until {
                break;
            }
            if shows(&end)? {
                beginning = Some(end);
                break;
            }
        }
        let repeats = beginning.is_some();
        let stages = match beginning {
            Some(end) => shrink::shrink(end, &mut shows, || Instant::now() < until)?,
            None => history.last().cloned().into_iter().collect(),
        };
        Ok(Self {
            seed: plan.seed,
            step,
            setup: plan.setup,
            stages,
            answers,
            repeats,
        })
    }
}

impl fmt::Display for Found {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Answers {
            question,
            ours,
            theirs,
        } = &self.answers;
        writeln!(
            formatter,
            "== seed {}, step {}, {:?}",
            self.seed, self.step, self.setup
        )?;
        if !self.repeats {
            writeln!(
                formatter,
                "(it did not come again from an empty cluster; these are the objects of that step)"
            )?;
        }
        for (number, stage) in self.stages.iter().enumerate() {
            let settled = if stage.settle { "" } else { ", not waited for" };
            writeln!(
                formatter,
                "-- stage {} of {}{settled}",
                number + 1,
                self.stages.len()
            )?;
            formatter.write_str(&stage.world.yaml().map_err(|_| fmt::Error)?)?;
        }
        writeln!(
            formatter,
            "-- {:?} from {:?} to {}",
            question.protocol, question.sender, question.target
        )?;
        writeln!(formatter, "   pointsman:  {ours}")?;
        writeln!(formatter, "   kube-proxy: {theirs} ({:?})", self.setup.peer)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} steps, agreed: {:?}, intended: {:?}, unexplained: {}",
            self.steps,
            self.agreed,
            self.intended,
            self.found.len()
        )
    }
}

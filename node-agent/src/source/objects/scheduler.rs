//! The scheduler of mode IPVS, as annotations of a Service name it. docs/services.md has what users read.

use pointsman_dataplane::model::{BadScheduler, Scheduler};

/// The annotation that names the scheduler.
pub(super) const ANNOTATION: &str = "pointsman.dev/scheduler";
/// The annotation with its flags: `port,fallback`.
pub(super) const FLAGS_ANNOTATION: &str = "pointsman.dev/scheduler-flags";

/// A Service's scheduler, none where the policy's is to be used, and what is wrong with the annotations.
pub(super) fn of_service(name: Option<&str>, flags: Option<&str>) -> (Option<Scheduler>, Option<String>) {
    let flags = || {
        let flags = flags.unwrap_or_default().split(',').map(str::trim);
        flags.filter(|flag| !flag.is_empty())
    };
    let problem = match name.map(|name| Scheduler::parse(name.trim(), flags())) {
        Some(Ok(scheduler)) => return (Some(scheduler), None),
        Some(Err(error @ BadScheduler::Unknown(_))) => format!("{ANNOTATION}: {error}"),
        Some(Err(error)) => format!("{FLAGS_ANNOTATION}: {error}"),
        None if flags().next().is_some() => {
            format!("{FLAGS_ANNOTATION} is there without {ANNOTATION}, which has to say sh or mh")
        }
        None => return (None, None),
    };
    let problem = format!("{problem}; mode IPVS uses the policy's scheduler; mend the annotation");
    (None, Some(problem))
}

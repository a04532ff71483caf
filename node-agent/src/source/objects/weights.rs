//! Weights of endpoints, as annotations of slices and Services say them. docs/services.md has what users read.

use pointsman_dataplane::model::{MAX_WEIGHT, Weights};

/// The annotation of a slice: the weight of each of its endpoints.
pub(super) const SLICE_ANNOTATION: &str = "pointsman.dev/weight";
/// The annotation of a Service: the weights of its pods, by the name of their workload: `web=9, web-canary=1`.
pub(super) const SERVICE_ANNOTATION: &str = "pointsman.dev/weights";

/// How much of a bad value is repeated to its owner.
const REPEATED: usize = 60;

/// A slice's weight, or what is wrong with it.
pub(super) fn of_slice(text: &str) -> Result<u8, String> {
    number(text).ok_or_else(|| {
        format!(
            "{SLICE_ANNOTATION} is {:?}, which is no whole number from 0 to {MAX_WEIGHT}: its endpoints have weight 1; \
             mend the annotation",
            beginning(text)
        )
    })
}

/// A Service's weights, and what is wrong with them. A workload with a bad weight has weight 1.
pub(super) fn of_service(text: &str) -> (Weights, Option<String>) {
    let mut weights = Weights::default();
    let mut bad = Vec::new();
    let entries = text.split([',', '\n']).map(str::trim);
    for entry in entries.filter(|entry| !entry.is_empty()) {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        let (name, weight) = (name.trim(), number(value));
        let is_new = !name.is_empty() && weights.add(name, weight.unwrap_or(1));
        if weight.is_none() || !is_new {
            bad.push(entry);
        }
    }
    let problem = bad.first().map(|first| {
        let others = match bad.len() {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        format!(
            "{SERVICE_ANNOTATION} has {:?}{others}: each entry is WORKLOAD=WEIGHT, with a whole number from 0 to \
             {MAX_WEIGHT} and no workload twice; a workload without a good weight has 1; mend the annotation",
            beginning(first)
        )
    });
    (weights, problem)
}

fn number(text: &str) -> Option<u8> {
    let text = text.trim();
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| plain && *number <= MAX_WEIGHT)
}

fn beginning(text: &str) -> String {
    text.chars().take(REPEATED).collect()
}

/// The workload that a pod is of: controllers name a pod after what they made it for, and add a part of their own.
pub(super) fn workload(pod: &str) -> &str {
    pod.rsplit_once('-').map_or(pod, |(workload, _)| workload)
}

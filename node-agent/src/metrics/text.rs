//! Prometheus' classic text format, as kube-proxy serves it.
//!
//! The library writes OpenMetrics, which calls a counter by its name without `_total` where it says its type, and
//! writes the bound of a bucket as `1.0`. Whoever looks for kube-proxy's names and labels looks for the classic ones.

/// The media type.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Rewrites what the library wrote.
pub(super) fn classic(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    // What is said of a metric before its type is known.
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(said) = line.strip_prefix("# HELP ") {
            help = said.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|said| said.split_once(' '))
        {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, help)) = help.take() {
                text.extend(["# HELP ", name, suffix, " ", help, "\n"]);
            }
            text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            sample(line, &mut text);
            text.push('\n');
        }
    }
    text
}

/// A sample, with the bound of its bucket as Go prints it.
fn sample(line: &str, text: &mut String) {
    const BOUND: &str = "le=\"";
    let whole = line.split_once(BOUND).and_then(|(before, rest)| {
        let (bound, after) = rest.split_once('"')?;
        Some((before, bound.strip_suffix(".0")?, after))
    });
    match whole {
        Some((before, bound, after)) => text.extend([before, BOUND, bound, "\"", after]),
        None => text.push_str(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_buckets_and_the_end_are_written_as_before_open_metrics() {
        let open = "# HELP a Things.\n# TYPE a counter\na_total{x=\"# y\"} 1\n\
            # HELP b_seconds Time.\n# TYPE b_seconds histogram\n# UNIT b_seconds seconds\nb_seconds_sum 0.5\n\
            b_seconds_bucket{le=\"0.25\",f=\"v\"} 1\nb_seconds_bucket{le=\"10.0\",f=\"v\"} 1\n\
            b_seconds_bucket{le=\"+Inf\"} 1\n# HELP c_total Now.\n# TYPE c_total gauge\nc_total 2.0\n# EOF\n";
        let classic_text = "# HELP a_total Things.\n# TYPE a_total counter\na_total{x=\"# y\"} 1\n\
            # HELP b_seconds Time.\n# TYPE b_seconds histogram\nb_seconds_sum 0.5\n\
            b_seconds_bucket{le=\"0.25\",f=\"v\"} 1\nb_seconds_bucket{le=\"10\",f=\"v\"} 1\n\
            b_seconds_bucket{le=\"+Inf\"} 1\n# HELP c_total Now.\n# TYPE c_total gauge\nc_total 2.0\n";
        assert_eq!(classic(open), classic_text);
    }
}

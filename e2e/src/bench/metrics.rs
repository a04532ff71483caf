//! Prometheus' text format, as far as a bench reads it.

/// The sum of all samples of a metric, whatever their labels; none when there is no sample.
#[must_use]
pub fn sum(text: &str, name: &str) -> Option<f64> {
    sum_with(text, name, "")
}

/// The sum of the samples that have this label, written as in the text: `ip_family="IPv4"`.
#[must_use]
pub fn sum_with(text: &str, name: &str, label: &str) -> Option<f64> {
    let samples = text
        .lines()
        .filter(|line| line.contains(label))
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let value = match rest.strip_prefix('{') {
                // A label's value may hold a brace; what is after the last one is the value.
                Some(labelled) => labelled.rsplit_once('}')?.1,
                None => rest.strip_prefix(' ')?,
            };
            value.split_whitespace().next()?.parse::<f64>().ok()
        });
    samples.fold(None, |sum: Option<f64>, value| Some(sum.unwrap_or(0.0) + value))
}

/// What a histogram or counter grew by between two readings.
#[must_use]
pub fn growth(before: &str, after: &str, name: &str) -> Option<f64> {
    Some(sum(after, name)? - sum(before, name).unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# TYPE a_seconds histogram\n\
        a_seconds_sum{ip_family=\"IPv4\"} 1.5\n\
        a_seconds_sum{ip_family=\"IPv6\",odd=\"}\"} 0.25 1700000000\n\
        a_seconds_sum_of_others 9\n\
        plain 3e2\n";

    #[test]
    fn samples_of_one_name_are_added_up() {
        assert_eq!(sum(TEXT, "a_seconds_sum"), Some(1.75));
        assert_eq!(sum(TEXT, "plain"), Some(300.0));
        assert_eq!(sum(TEXT, "a_seconds"), None);
        assert_eq!(sum_with(TEXT, "a_seconds_sum", "ip_family=\"IPv6\""), Some(0.25));
        assert_eq!(growth("plain 100\n", TEXT, "plain"), Some(200.0));
        assert_eq!(growth("", TEXT, "plain"), Some(300.0));
    }
}

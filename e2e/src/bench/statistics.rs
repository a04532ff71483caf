//! Percentiles.

use serde::{Deserialize, Serialize};

/// What is said about a series of measurements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Half of the samples are at most this.
    pub p50: f64,
    /// 99 % of the samples are at most this: with fewer than 100 samples it is the largest.
    pub p99: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// The arithmetic mean.
    pub mean: f64,
    /// How many there were.
    pub samples: usize,
}

impl Summary {
    /// Sums up a series; of an empty one everything is 0.
    #[must_use]
    pub fn of(samples: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = samples.into_iter().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (sorted.first(), sorted.last()) else {
            return Self::default();
        };
        Self {
            p50: round(percentile(&sorted, 50.0)),
            p99: round(percentile(&sorted, 99.0)),
            min: round(min),
            max: round(max),
            mean: round(sorted.iter().sum::<f64>() / sorted.len() as f64),
            samples: sorted.len(),
        }
    }
}

/// The nearest-rank percentile of a sorted series: always a value that was measured. 0 for an empty one.
#[must_use]
pub fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    let last = sorted.len().saturating_sub(1);
    sorted
        .get(rank.saturating_sub(1).min(last))
        .copied()
        .unwrap_or_default()
}

/// Three decimals: more than any of these measurements is exact to.
#[must_use]
pub fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_values() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(
            [0.0, 1.0, 50.0, 99.0, 99.5, 100.0].map(|percent| percentile(&hundred, percent)),
            [1.0, 1.0, 50.0, 99.0, 100.0, 100.0]
        );
        assert_eq!(percentile(&[1.0, 2.0, 3.0], 50.0), 2.0);
        assert_eq!(percentile(&[1.0, 2.0, 3.0, 4.0], 50.0), 2.0);
        assert_eq!(percentile(&[], 50.0), 0.0);
    }

    #[test]
    fn order_does_not_matter_and_few_samples_have_their_largest_as_p99() {
        let summary = Summary::of([3.0, 1.0, 2.000_4]);
        let Summary {
            p50,
            p99,
            min,
            max,
            mean,
            samples,
        } = summary;
        assert_eq!((p50, p99, min, max, mean, samples), (2.0, 3.0, 1.0, 3.0, 2.0, 3));
        assert_eq!(Summary::of([]), Summary::default());
    }
}

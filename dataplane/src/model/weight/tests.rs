use proptest::prelude::*;

use super::*;

fn shares(weights: &[u8]) -> Vec<u8> {
    let endpoint = |(at, share): (usize, &u8)| PoolEndpoint {
        address: ([10, 0, (at / 256) as u8, (at % 256) as u8], 80).into(),
        local: false,
        share: *share,
    };
    let mut endpoints: Vec<_> = weights.iter().enumerate().map(endpoint).collect();
    let unit = share(&mut endpoints);
    if weights.iter().copied().map(usize::from).sum::<usize>() <= EXACT {
        let weighs = |it: &PoolEndpoint| u16::from(it.share) * u16::from(unit);
        let found: Vec<u16> = endpoints.iter().map(weighs).collect();
        assert_eq!(found, weights.iter().copied().map(u16::from).collect::<Vec<_>>());
    }
    endpoints.iter().map(|it| it.share).collect()
}

#[test]
fn shares_have_no_common_divisor() {
    assert_eq!(shares(&[]), []);
    assert_eq!(shares(&[100]), [1]);
    assert_eq!(shares(&[7, 7, 7]), [1, 1, 1]);
    assert_eq!(shares(&[10, 90]), [1, 9]);
    assert_eq!(shares(&[6, 4, 10]), [3, 2, 5]);
    assert_eq!(shares(&[1, 100]), [1, 100]);
}

#[test]
fn too_many_are_rounded_and_nobody_loses_all() {
    // 1,000 x 100 + 1 is more than 4 x 1,001.
    let mut weights = vec![100; 1000];
    weights.push(1);
    let found = shares(&weights);
    assert_eq!(found[..1000], [4; 1000]);
    assert_eq!(found[1000], 1);
    // Ten stable ones and ten canaries are exact.
    let weights = [[99; 10], [1; 10]].concat();
    assert_eq!(shares(&weights), weights);
}

#[test]
fn the_longest_name_of_a_workload_counts() {
    let mut weights = Weights::default();
    assert!(weights.add("web", 9) && weights.add("web-canary", 1) && weights.add("db", 0));
    assert!(!weights.add("web", 5), "it has one");
    let of = |workload: &str| weights.of(&Weight::Workload(workload.into()));
    assert_eq!(of("web-6d4cf56db6"), Some(9));
    assert_eq!(of("web-canary-5f7b9c8d4"), Some(1));
    assert_eq!(of("web-canary"), Some(1));
    assert_eq!(of("web"), Some(9));
    assert_eq!(of("db"), Some(0));
    for other in ["webs", "webs-6d4cf56db6", "my-web", "", "-", "we"] {
        assert_eq!(of(other), None, "{other}");
    }
    assert_eq!(weights.of(&Weight::Given(Some(200))), Some(MAX_WEIGHT));
    assert_eq!(weights.of(&Weight::USUAL), None);
}

proptest! {
    /// Any weights: shares are bounded, in the same order, and exact where their sum is small.
    #[test]
    fn shares_are_as_the_weights(weights in prop::collection::vec(1..=MAX_WEIGHT, 1..400)) {
        let shares = shares(&weights);
        let sum: usize = shares.iter().copied().map(usize::from).sum();
        prop_assert!(sum <= EXACT.max(4 * weights.len()));
        let exact = weights.iter().copied().map(usize::from).sum::<usize>() <= EXACT;
        for (at, share) in shares.iter().enumerate() {
            prop_assert!((1..=MAX_WEIGHT).contains(share));
            for (other, smaller) in weights.iter().zip(&shares) {
                prop_assert!(*other > weights[at] || smaller <= share);
                prop_assert!(!exact || u16::from(*other) * u16::from(*share) == u16::from(weights[at]) * u16::from(*smaller));
            }
        }
        // What the shares come to is nothing new.
        prop_assert_eq!(self::shares(&shares), shares);
    }
}

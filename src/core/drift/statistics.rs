//! Tests and distances between two samples. All are pure, and fit SciPy's: the golden values beside them are its.

use super::kolmogorov;
use libm::{fabs, frexp, log, log2, scalbn, sqrt};
use statrs::function::gamma::gamma_ur;

/// A share of nothing counts as this in the population stability index, which is infinite otherwise.
pub const PSI_EPSILON: f64 = 1e-6;

/// Mean and standard deviation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeanAndDeviation {
    /// The mean.
    pub mean: f64,
    /// The standard deviation of the population: over n.
    pub deviation: f64,
}

/// A test's statistic and its p-value: how often two samples of one distribution lie that far apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tested {
    /// The statistic.
    pub statistic: f64,
    /// In [0, 1].
    pub p_value: f64,
}

/// Pearson's chi-squared test with its measure of effect.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChiSquared {
    /// Statistic and p-value.
    pub test: Tested,
    /// Cramer's V, in [0, 1].
    pub cramers_v: f64,
}

/// Mean and deviation of at least one value, whatever its size: in two passes, with compensated sums.
pub fn mean_and_deviation(values: &[f64]) -> Option<MeanAndDeviation> {
    let (first, rest) = values.split_first()?;
    if rest.iter().all(|x| x == first) {
        // The sum of a constant, divided again, may be another number.
        return Some(MeanAndDeviation { mean: *first, deviation: 0.0 });
    }
    let largest = values.iter().fold(0.0, |m: f64, x| m.max(fabs(*x)));
    // Squares of huge values would be infinite and those of tiny ones nothing. Scaling by a power of two is exact.
    let (_, exponent) = frexp(largest);
    let scaled = |x: &f64| scalbn(*x, -exponent);
    let n = values.len() as f64;
    let mean = sum(values.iter().map(scaled)) / n;
    let squares = sum(values.iter().map(|x| (scaled(x) - mean) * (scaled(x) - mean)));
    let deviation = sqrt(squares / n);
    let back = |x: f64| scalbn(x, exponent);
    Some(MeanAndDeviation { mean: back(mean), deviation: back(deviation) })
}

/// Fourth moment over the square of the variance: 3 of a normal distribution. Of a constant, 0.
pub fn kurtosis(values: &[f64], MeanAndDeviation { mean, deviation }: MeanAndDeviation) -> f64 {
    if deviation == 0.0 {
        return 0.0;
    }
    let fourth = |x: &f64| {
        let square = (x - mean) / deviation * ((x - mean) / deviation);
        square * square
    };
    sum(values.iter().map(fourth)) / values.len() as f64
}

/// A sum that keeps what additions round away. Source: Neumaier (1974).
fn sum(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut lost) = (0.0, 0.0);
    for x in values {
        let next = sum + x;
        lost += if fabs(sum) >= fabs(x) { (sum - next) + x } else { (x - next) + sum };
        sum = next;
    }
    sum + lost
}

/// Walks over the distinct values of two sorted samples; tells each, and the shares of both that are not above it.
fn walk(a: &[f64], b: &[f64], mut see: impl FnMut(f64, f64, f64)) {
    let (mut i, mut j) = (0, 0);
    while i < a.len() || j < b.len() {
        let x = match (a.get(i), b.get(j)) {
            (Some(x), Some(y)) => x.min(*y),
            (Some(x), None) | (None, Some(x)) => *x,
            (None, None) => return,
        };
        i += a[i..].iter().take_while(|v| **v == x).count();
        j += b[j..].iter().take_while(|v| **v == x).count();
        see(x, i as f64 / a.len() as f64, j as f64 / b.len() as f64);
    }
}

/// Two-sample Kolmogorov-Smirnov test, two-sided, asymptotic.
///
/// `a`, `b`: sorted, not empty. The p-value is that of one sample of round(nm / (n + m)) against its distribution, as
/// in SciPy's `ks_2samp(method='asymp')`.
pub fn kolmogorov_smirnov(a: &[f64], b: &[f64]) -> Tested {
    let mut statistic: f64 = 0.0;
    walk(a, b, |_, below_a, below_b| statistic = statistic.max(fabs(below_a - below_b)));
    let (n, m) = (a.len() as f64, b.len() as f64);
    // Ties go to the even number, as in numpy.
    let effective = (n * m / (n + m)).round_ties_even().max(1.0);
    Tested { statistic, p_value: kolmogorov::survival(effective as u32, statistic) }
}

/// Wasserstein-1 (earth mover's) distance. `a`, `b`: sorted, not empty.
pub fn wasserstein(a: &[f64], b: &[f64]) -> f64 {
    let (mut distance, mut last, mut apart) = (0.0, None, 0.0);
    walk(a, b, |x, below_a, below_b| {
        if let Some(last) = last.replace(x) {
            distance += apart * (x - last);
        }
        apart = fabs(below_a - below_b);
    });
    distance
}

/// Upper edges of equally likely bins: the quantiles 1/bins .. (bins-1)/bins of a sorted sample that is not empty, with
/// linear interpolation. Equal edges (heavy ties) are one, so there may be fewer bins.
pub fn quantile_edges(sorted: &[f64], bins: usize) -> Vec<f64> {
    let mut edges: Vec<f64> = (1..bins)
        .map(|i| {
            // Rounded as in numpy: a last bit decides into which bin an equal value falls.
            let rank = (sorted.len() - 1) as f64 * (i as f64 / bins as f64);
            let (low, part) = (rank.floor() as usize, rank.fract());
            let (a, b) = (sorted[low], sorted[(low + 1).min(sorted.len() - 1)]);
            match b - a {
                apart if apart.is_infinite() => a * (1.0 - part) + b * part,
                apart if part < 0.5 => a + apart * part,
                apart => b - apart * (1.0 - part),
            }
        })
        .collect();
    edges.dedup();
    edges
}

/// How many values fall into each bin: bin i holds those above edge i - 1, up to and with edge i; the last those above
/// all edges. `edges` rise.
pub fn bin_counts(values: impl IntoIterator<Item = f64>, edges: &[f64]) -> Vec<u64> {
    let mut counts = vec![0; edges.len() + 1];
    values.into_iter().for_each(|x| counts[edges.partition_point(|edge| *edge < x)] += 1);
    counts
}

fn shares(weights: &[f64]) -> impl Iterator<Item = f64> + '_ {
    let all = weights.iter().sum::<f64>();
    weights.iter().map(move |weight| weight / all)
}

/// Population stability index between two histograms.
///
/// `expected`, `actual`: counts or shares in the same B >= 1 bins, neither all 0. Returns PSI >= 0 (nats). Shares below
/// 1e-6 count as that, so the result is finite. Source: Siddiqi, Credit Risk Scorecards (2006).
pub fn population_stability(expected: &[f64], actual: &[f64]) -> f64 {
    let floor = |share: f64| share.max(PSI_EPSILON);
    shares(expected).zip(shares(actual)).map(|(e, a)| (floor(a) - floor(e)) * log(floor(a) / floor(e))).sum()
}

/// Jensen-Shannon distance between two histograms: the root of the divergence, base 2, in [0, 1].
///
/// `expected`, `actual`: counts or shares in the same bins, neither all 0. SciPy: `jensenshannon(base=2)`.
pub fn jensen_shannon(expected: &[f64], actual: &[f64]) -> f64 {
    let part = |share: f64, middle: f64| if share > 0.0 { share * log2(share / middle) } else { 0.0 };
    let divergence: f64 = shares(expected)
        .zip(shares(actual))
        .map(|(e, a)| (part(e, (e + a) / 2.0) + part(a, (e + a) / 2.0)) / 2.0)
        .sum();
    sqrt(divergence.max(0.0))
}

/// Pearson's chi-squared test of two histograms, without continuity correction, and Cramer's V.
///
/// `expected`, `actual`: counts of the same categories, neither all 0. Categories that neither has are left out. One
/// category alone: statistic 0, p 1. SciPy: `chi2_contingency(correction=False)`.
pub fn chi_squared(expected: &[u64], actual: &[u64]) -> ChiSquared {
    let (n, m) = (expected.iter().sum::<u64>() as f64, actual.iter().sum::<u64>() as f64);
    let (mut statistic, mut categories) = (0.0, 0u32);
    for (e, a) in expected.iter().zip(actual).filter(|(e, a)| **e + **a > 0) {
        categories += 1;
        let both = (*e + *a) as f64;
        for (observed, size) in [(*e as f64, n), (*a as f64, m)] {
            let wanted = both * size / (n + m);
            statistic += (observed - wanted) * (observed - wanted) / wanted;
        }
    }
    let freedom = f64::from(categories.saturating_sub(1));
    let p_value = if freedom > 0.0 && statistic > 0.0 { gamma_ur(freedom / 2.0, statistic / 2.0) } else { 1.0 };
    // Of two rows the lesser dimension is 1.
    ChiSquared { test: Tested { statistic, p_value }, cramers_v: sqrt(statistic / (n + m)).min(1.0) }
}

/// Cosine distance, in [0, 2]; `None` where a vector is all 0. `a`, `b`: of one length.
pub fn cosine_distance(a: &[f64], b: &[f64]) -> Option<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let lengths = sqrt(dot(a, a)) * sqrt(dot(b, b));
    (lengths > 0.0).then(|| (1.0 - dot(a, b) / lengths).clamp(0.0, 2.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    /// What SciPy says, written by tests/drift_golden.py.
    #[derive(Deserialize)]
    struct Golden {
        kolmogorov: Vec<(u32, f64, f64)>,
        samples: Vec<Samples>,
        tables: Vec<Table>,
        vectors: Vec<(Vec<f64>, Vec<f64>, f64)>,
    }

    #[derive(Deserialize)]
    struct Samples {
        a: Vec<f64>,
        b: Vec<f64>,
        mean: f64,
        deviation: f64,
        ks: (f64, f64),
        wasserstein: f64,
        edges: Vec<f64>,
        counts: (Vec<u64>, Vec<u64>),
        psi: f64,
        jensen_shannon: f64,
    }

    #[derive(Deserialize)]
    struct Table {
        a: Vec<u64>,
        b: Vec<u64>,
        statistic: f64,
        p_value: f64,
        cramers_v: f64,
    }

    fn golden() -> Golden {
        serde_json::from_str(include_str!("golden.json")).expect("the golden values")
    }

    fn check(what: &str, expected: f64, got: f64, relative: f64) {
        let allowed = relative * expected.abs().max(1e-300);
        assert!((expected - got).abs() <= allowed, "{what}: expected {expected:e}, got {got:e}");
    }

    fn check_p(what: &str, expected: f64, got: f64) {
        if expected > 1e-12 {
            check(what, expected, got, 1e-6);
        } else {
            assert!((0.0..=2e-12).contains(&got), "{what}: expected {expected:e}, got {got:e}");
        }
    }

    #[test]
    fn kolmogorovs_distribution_is_scipys() {
        for (n, d, p) in golden().kolmogorov {
            check_p(&format!("P(D > {d}) of {n}"), p, kolmogorov::survival(n, d));
        }
        assert_eq!((kolmogorov::survival(10, 0.0), kolmogorov::survival(10, 1.0)), (1.0, 0.0));
    }

    #[test]
    fn moments_hold_at_any_size() {
        for size in [1e-300, 1e-170, 1.0, 1e154, 1e300] {
            let moments = mean_and_deviation(&[size, 3.0 * size]).expect("values");
            check(&format!("the mean at {size:e}"), 2.0 * size, moments.mean, 1e-15);
            check(&format!("the deviation at {size:e}"), size, moments.deviation, 1e-15);
        }
        let zero = mean_and_deviation(&[0.0, 0.0]).expect("values");
        assert_eq!((zero.mean, zero.deviation, mean_and_deviation(&[])), (0.0, 0.0, None));
    }

    #[test]
    fn samples_are_told_apart_as_scipy_does() {
        for Samples { a, b, mean, deviation, ks, wasserstein: w, edges, counts, psi, jensen_shannon: js } in
            golden().samples
        {
            let what = format!("samples of {} and {} from {} on", a.len(), b.len(), a[0]);
            let moments = mean_and_deviation(&b).expect("values");
            // Against the size of the values: a mean may be next to nothing.
            let size = b.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            assert!((moments.mean - mean).abs() <= 1e-12 * size, "{what}: mean {mean} {}", moments.mean);
            assert!((moments.deviation - deviation).abs() <= 1e-9 * deviation + 1e-15 * size, "{what}: deviation");
            let tested = kolmogorov_smirnov(&a, &b);
            check(&what, ks.0, tested.statistic, 1e-9);
            check_p(&what, ks.1, tested.p_value);
            check(&what, w, wasserstein(&a, &b), 1e-9);
            let own_edges = quantile_edges(&a, 10);
            assert_eq!(own_edges, edges, "{what}");
            let (expected, actual) = (bin_counts(a.iter().copied(), &edges), bin_counts(b.iter().copied(), &edges));
            assert_eq!((&expected, &actual), (&counts.0, &counts.1), "{what}");
            let [expected, actual] =
                [expected, actual].map(|counts| counts.iter().map(|n| *n as f64).collect::<Vec<_>>());
            check(&what, psi, population_stability(&expected, &actual), 1e-9);
            assert!((js - jensen_shannon(&expected, &actual)).abs() <= 1e-9 * js + 1e-8, "{what}: JS");
        }
    }

    #[test]
    fn categories_are_told_apart_as_scipy_does() {
        for Table { a, b, statistic, p_value, cramers_v } in golden().tables {
            let (what, tested) = (format!("{a:?} {b:?}"), chi_squared(&a, &b));
            assert!((tested.test.statistic - statistic).abs() <= 1e-9 * statistic + 1e-12, "{what}");
            check_p(&what, p_value, tested.test.p_value);
            assert!((tested.cramers_v - cramers_v).abs() <= 1e-9, "{what}");
        }
        assert_eq!(chi_squared(&[5], &[7]).test.p_value, 1.0);
    }

    #[test]
    fn directions_are_told_apart_as_scipy_does() {
        for (a, b, distance) in golden().vectors {
            let got = cosine_distance(&a, &b).expect("no zero vector");
            assert!((got - distance).abs() < 1e-12, "{a:?} {b:?}");
        }
        assert_eq!(cosine_distance(&[0.0, 0.0], &[1.0, 0.0]), None);
    }
}

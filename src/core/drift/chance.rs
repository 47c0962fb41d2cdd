//! What chance alone does: a distance between two samples is never nothing, and between small ones it is large.
//!
//! Of methods that have no p-value of their own: about how often chance alone goes as far. `n`: how many values there
//! are now, `m`: in the baseline; `None` where it gives figures that are taken as exact.

use super::statistics::{chi_squared, kurtosis, MeanAndDeviation};
use libm::{erfc, fmax, sqrt};

/// Bins with fewer values are not compared one by one.
const BIN_VALUES_MIN: f64 = 5.0;

/// 1/n + 1/m: the variance of a difference of means, in variances of the values.
fn inverse(n: u64, m: Option<u64>) -> f64 {
    1.0 / n as f64 + m.map_or(0.0, |m| 1.0 / m as f64)
}

/// How often a normal error goes as far, to both sides.
fn of_error(difference: f64, standard_error: f64) -> f64 {
    match standard_error > 0.0 {
        true => erfc(difference.abs() / standard_error / std::f64::consts::SQRT_2),
        // What cannot differ by chance does not.
        false => f64::from(u8::from(difference == 0.0)),
    }
}

/// Difference of two means. `spread`: the larger deviation of both sides, for a small sample may not have met a tail.
pub(super) fn of_means(difference: f64, spread: f64, n: u64, m: Option<u64>) -> f64 {
    of_error(difference, spread * sqrt(inverse(n, m)))
}

/// Difference of two standard deviations. `sides`: the values of those sides that are there as values.
pub(super) fn of_deviations(
    difference: f64,
    spread: f64,
    sides: &[(&[f64], MeanAndDeviation)],
    n: u64,
    m: Option<u64>,
) -> f64 {
    // Of a normal distribution it is 3; heavy tails make deviations jump.
    let heaviest = sides.iter().map(|(values, moments)| kurtosis(values, *moments)).fold(3.0, fmax);
    of_error(difference, spread * sqrt((heaviest - 1.0) / 4.0 * inverse(n, m)))
}

/// Wasserstein-1 distance. `sides`: sorted. The standard error of the distance is at most the integral of
/// sqrt(F (1 - F)) over the values, F being the share of values that are not above.
pub(super) fn of_wasserstein(distance: f64, sides: [&[f64]; 2]) -> f64 {
    let integral = |sorted: &[f64]| -> f64 {
        let all = sorted.len() as f64;
        let share = |i: usize| (i + 1) as f64 / all;
        sorted.windows(2).enumerate().map(|(i, pair)| sqrt(share(i) * (1.0 - share(i))) * (pair[1] - pair[0])).sum()
    };
    let [m, n] = sides.map(|side| side.len() as u64);
    of_error(distance, fmax(integral(sides[0]), integral(sides[1])) * sqrt(inverse(n, Some(m))))
}

/// Difference of a share from that of the baseline. `share`: what both would have in common.
pub(super) fn of_shares(difference: f64, share: f64, n: u64, m: Option<u64>) -> f64 {
    of_error(difference, sqrt(share * (1.0 - share) * inverse(n, m)))
}

/// Two histograms over the same bins: the p-value of Pearson's chi-squared, with bins in one that would hold fewer than
/// five values. Many rare values make it believe in differences that are none. Source: Cochran (1954).
pub(super) fn of_bins(expected: &[u64], actual: &[u64]) -> f64 {
    let [m, n] = [expected, actual].map(|side| side.iter().sum::<u64>() as f64);
    let is_rare = |e: u64, a: u64| (e + a) as f64 * m.min(n) / (m + n) < BIN_VALUES_MIN;
    let (rare, common): (Vec<_>, Vec<_>) =
        expected.iter().copied().zip(actual.iter().copied()).partition(|(e, a)| is_rare(*e, *a));
    let together = rare.into_iter().fold((0, 0), |sum, (e, a)| (sum.0 + e, sum.1 + a));
    let (expected, actual): (Vec<u64>, Vec<u64>) = common.into_iter().chain([together]).unzip();
    chi_squared(&expected, &actual).test.p_value
}

/// Two mean vectors so far apart. `spreads`: of each side, the mean square of the distance from the mean vector.
pub(super) fn of_mean_vectors(difference: f64, [before, now]: [f64; 2], n: u64, m: u64) -> f64 {
    of_error(difference, sqrt(before / m as f64 + now / n as f64))
}

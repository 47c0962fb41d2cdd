//! Kolmogorov's distribution: how often two samples of one distribution lie that far apart.

use libm::{exp, lgamma, log, pow, sqrt};
use std::f64::consts::PI;

/// Up to this many observations the matrix method is exact and quick.
const MATRIX_N_MAX: u32 = 140;

/// Probability that the two-sided Kolmogorov-Smirnov statistic of `n` observations is greater than `d`.
///
/// `n` >= 1, `d` in [0, 1]. Returns a probability in [0, 1], to 1e-6 relative where it is above 1e-12. Source: the
/// choice of methods follows Simard and L'Ecuyer, Computing the two-sided Kolmogorov-Smirnov distribution (2011).
pub fn survival(n: u32, d: f64) -> f64 {
    let (count, squared) = (f64::from(n), f64::from(n) * d * d);
    if count * d <= 0.5 {
        return 1.0;
    }
    if d >= 1.0 || squared >= 370.0 {
        return 0.0;
    }
    // Far out, being too high and being too low hardly ever come together.
    let tails_apart = if n <= MATRIX_N_MAX { 4.0 } else { 2.2 };
    if d >= 0.5 || squared >= tails_apart {
        return (2.0 * one_sided_survival(n, d)).min(1.0);
    }
    let below = if n <= MATRIX_N_MAX || (n <= 100_000 && count * pow(d, 1.5) <= 1.4) {
        by_matrix(n, d)
    } else {
        by_expansion(count, d)
    };
    (1.0 - below).clamp(0.0, 1.0)
}

/// Probability that the one-sided statistic is greater than `d`: Smirnov's finite sum (1944), in logarithms.
fn one_sided_survival(n: u32, d: f64) -> f64 {
    let count = f64::from(n);
    let last = (count * (1.0 - d)) as u32;
    let log_factorial_n = lgamma(count + 1.0);
    (0..=last)
        .map(|j| {
            let j = f64::from(j);
            let (up, down) = (d + j / count, 1.0 - d - j / count);
            let choose = log_factorial_n - lgamma(j + 1.0) - lgamma(count - j + 1.0);
            // Zero to a positive power; the last term alone can be so.
            if down <= 0.0 {
                return 0.0;
            }
            exp(log(d) + choose + (j - 1.0) * log(up) + (count - j) * log(down))
        })
        .sum()
}

/// Probability that the statistic is at most `d`: the matrix of Marsaglia, Tsang and Wang (2003), after Durbin (1968).
fn by_matrix(n: u32, d: f64) -> f64 {
    let nd = f64::from(n) * d;
    let k = nd.floor() as usize + 1;
    let (m, h) = (2 * k - 1, k as f64 - nd);
    let mut matrix = vec![0.0; m * m];
    for row in 0..m {
        for column in 0..=(row + 1).min(m - 1) {
            matrix[row * m + column] = 1.0;
        }
    }
    for i in 0..m {
        matrix[i * m] -= pow(h, (i + 1) as f64);
        matrix[(m - 1) * m + i] -= pow(h, (m - i) as f64);
    }
    if h > 0.5 {
        matrix[(m - 1) * m] += pow(2.0 * h - 1.0, m as f64);
    }
    for row in 0..m {
        for column in 0..=row.min(m - 1) {
            matrix[row * m + column] /= exp(lgamma((row - column + 2) as f64));
        }
    }
    let (power, mut scale) = to_the_power(&matrix, m, n);
    let mut below = power[(k - 1) * m + k - 1];
    for i in 1..=n {
        below *= f64::from(i) / f64::from(n);
        if below < 1e-140 {
            below *= 1e140;
            scale -= 140;
        }
    }
    below * pow(10.0, f64::from(scale))
}

/// A matrix of m rows to a power, and the power of ten by which the result is to be multiplied.
fn to_the_power(matrix: &[f64], m: usize, n: u32) -> (Vec<f64>, i32) {
    if n == 1 {
        return (matrix.to_vec(), 0);
    }
    let (half, half_scale) = to_the_power(matrix, m, n / 2);
    let (mut power, mut scale) = (product(&half, &half, m), 2 * half_scale);
    if n % 2 == 1 {
        power = product(matrix, &power, m);
    }
    if power[(m / 2) * m + m / 2] > 1e140 {
        power.iter_mut().for_each(|x| *x *= 1e-140);
        scale += 140;
    }
    (power, scale)
}

fn product(a: &[f64], b: &[f64], m: usize) -> Vec<f64> {
    let mut out = vec![0.0; m * m];
    for row in 0..m {
        for (i, factor) in a[row * m..(row + 1) * m].iter().enumerate() {
            for (sum, x) in out[row * m..(row + 1) * m].iter_mut().zip(&b[i * m..(i + 1) * m]) {
                *sum += factor * x;
            }
        }
    }
    out
}

/// Probability that the statistic is at most `d`: the expansion of Pelz and Good (1976) in powers of 1 / sqrt(n).
fn by_expansion(n: f64, d: f64) -> f64 {
    let z = sqrt(n) * d;
    let (z2, pi2) = (z * z, PI * PI);
    let (z4, z6, z8) = (z2 * z2, z2 * z2 * z2, z2 * z2 * z2 * z2);
    let mut terms = [0.0; 4];
    // Far terms vanish long before sixteen multiples of z.
    let last = (16.0 * z / PI).ceil() as i32;
    for k in (1..=last).rev() {
        let (odd, even) = (f64::from(2 * k - 1), f64::from(k));
        let (o2, e2) = (odd * odd * pi2, even * even * pi2);
        let near = exp(-o2 / (8.0 * z2));
        let far = exp(-e2 / (2.0 * z2));
        terms[0] += near;
        terms[1] += near * (o2 / 4.0 - z2);
        terms[2] += near * (6.0 * z6 + 2.0 * z4 + o2 * (2.0 * z4 - 5.0 * z2) / 4.0 + o2 * o2 * (1.0 - 2.0 * z2) / 16.0)
            - far * e2 * 2.0 * z4;
        terms[3] += near
            * (-30.0 * z6 - 90.0 * z8
                + o2 * (135.0 * z4 - 96.0 * z6) / 4.0
                + o2 * o2 * (212.0 * z4 - 60.0 * z2) / 16.0
                + o2 * o2 * o2 * (5.0 - 30.0 * z2) / 64.0)
            + far * (3.0 * e2 * z2 - e2 * e2) * 30.0 * z4;
    }
    let root = sqrt(2.0 * PI);
    let divisors = [z, 6.0 * z4, 72.0 * z6 * z, 6480.0 * z8 * z2];
    let mut scale = 1.0;
    let mut sum = 0.0;
    for (term, divisor) in terms.iter().zip(divisors) {
        sum += root * term / divisor * scale;
        scale /= sqrt(n);
    }
    sum
}

//! Percentiles within 1 percent: counts by logarithmic bin, as in DDSketch (Masson, Rim, Lee, VLDB 2019), one sparse
//! sketch a hop, merged when read.
//!
//! A bin is numbered so that numbers rise with values: 0 holds zero, positive values are above, negative ones below.

/// Most bins of a hop; beyond, the two nearest to zero merge.
pub(super) const BINS_MAX: usize = 4_096;
/// A hair under 1 percent, for what rounding takes.
const ACCURACY: f64 = 0.009_99;
/// Moves the logarithm of the least positive double above 0.
const OFFSET: i32 = 40_000;

/// Sorting an entry costs as much as looking at so many counters of a row of all bins.
const SORTING_COST: usize = 16;

/// Counts by bin, rising.
#[derive(Debug, Clone, Default, PartialEq, bincode::Encode, bincode::Decode)]
pub(super) struct Bins(Vec<(i32, u32)>);

fn log_gamma() -> f64 {
    libm::log((1.0 + ACCURACY) / (1.0 - ACCURACY))
}

fn bin_of(x: f64) -> i32 {
    if x == 0.0 {
        return 0;
    }
    let bin = libm::ceil(libm::log(x.abs()) / log_gamma()) as i32 + OFFSET;
    if x > 0.0 {
        bin
    } else {
        -bin
    }
}

/// The value that stands for a bin: within the accuracy of all of them.
fn value_of(bin: i32) -> f64 {
    if bin == 0 {
        return 0.0;
    }
    let middle = libm::exp(log_gamma() * f64::from(bin.abs() - OFFSET)) * (1.0 - ACCURACY);
    f64::from(bin.signum()) * middle.min(f64::MAX)
}

impl Bins {
    pub(super) fn add(&mut self, x: f64) {
        let bin = bin_of(x);
        match self.0.binary_search_by_key(&bin, |(b, _)| *b) {
            Ok(i) => self.0[i].1 = self.0[i].1.saturating_add(1),
            Err(i) => {
                self.0.reserve_exact(if self.0.len() == self.0.capacity() { 1 + self.0.len() / 4 } else { 0 });
                self.0.insert(i, (bin, 1));
                if self.0.len() > BINS_MAX {
                    self.merge_smallest();
                }
            }
        }
    }

    /// Merges the bin nearest to zero into its neighbour away from zero.
    fn merge_smallest(&mut self) {
        let nearest = (0..self.0.len()).min_by_key(|i| self.0[*i].0.abs()).unwrap_or_default();
        let (bin, count) = self.0.remove(nearest);
        let neighbour = if bin < 0 && nearest > 0 { nearest - 1 } else { nearest.min(self.0.len() - 1) };
        self.0[neighbour].1 = self.0[neighbour].1.saturating_add(count);
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.0.capacity() * size_of::<(i32, u32)>()
    }

    pub(super) fn is_sound(&self) -> bool {
        self.0.len() <= BINS_MAX
            && self.0.windows(2).all(|pair| pair[0].0 < pair[1].0)
            && self.0.iter().all(|(bin, count)| bin.unsigned_abs() < 2 * OFFSET.unsigned_abs() && *count > 0)
    }
}

/// The value of rank floor(q * (n - 1)) of all that the bins hold; `None`: they hold nothing.
pub(super) fn quantile<'a>(hops: impl Iterator<Item = &'a Bins> + Clone, q: f64) -> Option<f64> {
    let ends = hops.clone().filter_map(|bins| Some((bins.0.first()?.0, bins.0.last()?.0)));
    let (low, high) = ends.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))?;
    let width = (high - low + 1).unsigned_abs() as usize;
    let entries = hops.clone().map(|bins| bins.0.len()).sum::<usize>();
    let all = hops.flat_map(|bins| bins.0.iter().copied());
    let counts: Vec<(i32, u64)> = if entries * SORTING_COST < width {
        let mut counts: Vec<(i32, u64)> = all.map(|(bin, count)| (bin, u64::from(count))).collect();
        counts.sort_unstable();
        counts
    } else {
        let mut counts: Vec<(i32, u64)> = (low..=high).map(|bin| (bin, 0)).collect();
        all.for_each(|(bin, count)| counts[(bin - low) as usize].1 += u64::from(count));
        counts
    };
    let n: u64 = counts.iter().map(|(_, count)| count).sum();
    let rank = (q * n.checked_sub(1)? as f64) as u64;
    let mut seen = 0;
    let bin = counts.iter().find(|(_, count)| {
        seen += count;
        seen > rank
    });
    bin.map(|(bin, _)| value_of(*bin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_within_a_percent_of_its_bin() {
        let mut x = f64::MIN_POSITIVE;
        while (x * 1.03).is_finite() {
            for x in [x, -x] {
                let error = (value_of(bin_of(x)) - x).abs();
                assert!(error <= x.abs() * 0.01, "{x}: {error}");
            }
            assert!(bin_of(x) < bin_of(x * 1.03));
            x *= 1.013_7;
        }
        assert_eq!(value_of(bin_of(0.0)), 0.0);
        assert!(bin_of(f64::from_bits(1)) > 0 && bin_of(-f64::MAX) < bin_of(-1.0));
    }

    #[test]
    fn too_many_bins_merge_nearest_to_zero() {
        let mut bins = Bins::default();
        for i in 0..BINS_MAX + 100 {
            bins.add(1.021f64.powi(i as i32) * if i % 2 == 0 { 1.0 } else { -1.0 });
        }
        assert!(bins.is_sound() && bins.0.len() == BINS_MAX);
        let n: u64 = bins.0.iter().map(|(_, count)| u64::from(*count)).sum();
        assert_eq!(n, BINS_MAX as u64 + 100);
    }
}

//! The values of a while, sampled: at most so many, none older than so long, each arrival as likely as any other.
//!
//! Every arrival draws a number; the share of numbers that is kept falls in levels, each seven eighths of the one
//! before. When there are too many values the level rises and takes some along. Each part of the while remembers the
//! highest level that it saw, and what is read is what would be kept under the highest of all parts that are left. So
//! the sample stays uniform when a burst comes and when it is forgotten again.

use super::steps::{Bounds, Step, Steps};
use bincode::{Decode, Encode};
use std::collections::VecDeque;

/// What is drawn at a level is kept up to this number.
const KEPT_UP_TO: [u64; 256] = {
    let mut thresholds = [u64::MAX; 256];
    let mut level = 1;
    while level < 256 {
        thresholds[level] = thresholds[level - 1] - thresholds[level - 1] / 8;
        level += 1;
    }
    thresholds
};
/// At most such a part of what a sample may hold waits to go.
const SLACK_PART: u64 = 16;
/// So many levels halve what is kept.
const LEVELS_OF_A_HALF: u8 = 5;

/// The highest level at which a number is still kept.
fn level_of(draw: u64) -> u8 {
    let kept = KEPT_UP_TO.partition_point(|threshold| *threshold >= draw);
    u8::try_from(kept.saturating_sub(1)).unwrap_or(u8::MAX)
}

/// When something came, and the number that it drew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Which part of time it came in.
    pub step: i64,
    /// Uniform over all numbers.
    pub draw: u64,
    /// How many values too many may wait before they go. Samples that are fed together should not all shrink at once.
    pub slack: u64,
}

impl Arrival {
    /// The same arrival as one of many samples sees it: with a draw and a slack of its own.
    pub fn seen_by(self, sample: usize, bounds: Bounds) -> Self {
        let slack = (own_number(sample) >> 32) % (bounds.values_max / SLACK_PART + 1);
        Arrival { draw: self.draw_of(sample), slack, ..self }
    }

    /// The draw of one of many samples.
    pub fn draw_of(self, sample: usize) -> u64 {
        self.draw ^ own_number(sample)
    }
}

fn own_number(sample: usize) -> u64 {
    (sample as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A bounded sample of values by arrival.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Sample<V: 'static> {
    /// What is kept, in the order of arrival.
    values: VecDeque<V>,
    /// For each value the highest level at which it is kept.
    levels: VecDeque<u8>,
    steps: Steps<Kept>,
    level: u8,
}

/// What a sample keeps of a part of the while.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
struct Kept {
    /// The highest level since it began.
    level: u8,
    /// How many values.
    values: u32,
}

impl<V> Default for Sample<V> {
    fn default() -> Self {
        Sample { values: VecDeque::new(), levels: VecDeque::new(), steps: Steps::default(), level: 0 }
    }
}

impl<V> Sample<V> {
    /// Draws beyond this are only counted.
    pub fn kept_up_to(&self) -> u64 {
        KEPT_UP_TO[usize::from(self.level)]
    }

    /// Counts values that were not kept, and begins a part.
    pub fn begin_step(&mut self, not_kept: u64, number: i64, bounds: Bounds, leave: impl FnMut(V)) {
        if let Some(step) = self.steps.newest() {
            step.present += not_kept;
        }
        self.reach(number, bounds, leave);
    }

    /// Takes in an arrival without a value.
    pub fn take_absent(&mut self, arrival: Arrival, bounds: Bounds, leave: impl FnMut(V)) {
        self.reach(arrival.step, bounds, leave).absent += 1;
    }

    /// Takes in an arrival with a value, which is only asked for when it is kept. True: it was.
    ///
    /// `leave` is told of values that are forgotten.
    pub fn take(
        &mut self,
        arrival: Arrival,
        bounds: Bounds,
        value: impl FnOnce() -> Option<V>,
        mut leave: impl FnMut(V),
    ) -> bool {
        let step = self.reach(arrival.step, bounds, &mut leave);
        step.present += 1;
        if arrival.draw > self.kept_up_to() {
            return false;
        }
        let Some(value) = value() else { return false };
        self.steps.newest().expect("the step of this arrival").rest.values += 1;
        let values_max = usize::try_from(bounds.values_max).unwrap_or(usize::MAX);
        if self.values.len() == self.values.capacity() {
            // The bound is known: doubling would take up to twice of it.
            let held_max = values_max.saturating_add(values_max / SLACK_PART as usize + 1);
            let more = (self.values.len() / 2).max(64).min(held_max.saturating_sub(self.values.len()).max(1));
            self.values.reserve_exact(more);
            self.levels.reserve_exact(more);
        }
        self.values.push_back(value);
        self.levels.push_back(level_of(arrival.draw));
        if (self.values.len() as u64).saturating_sub(arrival.slack) > bounds.values_max {
            self.shrink_to(values_max, leave);
        }
        true
    }

    /// The part of an arrival. Beginning it forgets what is too old then.
    #[inline]
    fn reach(&mut self, number: i64, bounds: Bounds, leave: impl FnMut(V)) -> &mut Step<Kept> {
        if self.steps.is_new(number) {
            self.begin(number, bounds, leave);
        }
        self.steps.newest().expect("a step was begun")
    }

    #[cold]
    fn begin(&mut self, number: i64, bounds: Bounds, leave: impl FnMut(V)) {
        let mut forgotten = 0;
        self.steps.begin(number, Kept { level: self.level, values: 0 }, |kept| forgotten += kept.values as usize);
        self.values.drain(..forgotten.min(self.values.len())).for_each(leave);
        self.levels.drain(..forgotten.min(self.levels.len()));
        // A burst is forgotten: what comes now may be kept more often again.
        if (self.values.len() as u64) < bounds.values_max / 2 {
            self.level = self.level.saturating_sub(LEVELS_OF_A_HALF);
            if let Some(step) = self.steps.newest() {
                step.rest.level = self.level;
            }
        }
    }

    fn shrink_to(&mut self, values_max: usize, mut leave: impl FnMut(V)) {
        while self.values.len() > values_max {
            if self.level < u8::MAX {
                self.rise(&mut leave);
                continue;
            }
            self.values.pop_back().into_iter().for_each(&mut leave);
            self.levels.pop_back();
            if let Some(step) = self.steps.iter_mut().filter(|step| step.rest.values > 0).last() {
                step.rest.values -= 1;
            }
        }
    }

    /// One level up: an eighth of the numbers goes, and the values that drew them.
    fn rise(&mut self, leave: impl FnMut(V)) {
        self.level += 1;
        let (values, levels) = (self.values.make_contiguous(), self.levels.make_contiguous());
        let (mut from, mut to) = (0, 0);
        for step in self.steps.iter_mut() {
            step.rest.level = step.rest.level.max(self.level);
            let end = from + step.rest.values as usize;
            let before = to;
            for i in from..end {
                if levels[i] >= self.level {
                    values.swap(to, i);
                    levels.swap(to, i);
                    to += 1;
                }
            }
            step.rest.values = (to - before) as u32;
            from = end;
        }
        self.values.drain(to..).for_each(leave);
        self.levels.truncate(to);
    }

    /// Takes on other bounds.
    pub fn rebound(&mut self, old: Bounds, new: Bounds, leave: impl FnMut(V)) {
        if old.age_ms_max != new.age_ms_max {
            self.steps.recut(old, new, |kept, more| {
                kept.level = kept.level.max(more.level);
                kept.values += more.values;
            });
        }
        self.shrink_to(usize::try_from(new.values_max).unwrap_or(usize::MAX), leave);
        self.values.shrink_to_fit();
        self.levels.shrink_to_fit();
    }

    /// The sample at this moment, in the order of arrival.
    pub fn values(&self, now_ms: i64, bounds: Bounds) -> impl Iterator<Item = &V> {
        let first = bounds.first_step(now_ms);
        let forgotten: usize = self.steps.iter().filter(|s| s.number < first).map(|s| s.rest.values as usize).sum();
        let level = self.steps.iter().filter(|s| s.number >= first).map(|s| s.rest.level).max().unwrap_or(0);
        // What waits to go is not there any more.
        let is_over = self.values.len() as u64 > bounds.values_max;
        let level = if is_over { level.saturating_add(1) } else { level };
        let kept = self.values.iter().zip(&self.levels).skip(forgotten);
        kept.filter(move |(_, of_value)| **of_value >= level).map(|(value, _)| value)
    }

    /// Everything that is held, readable or not.
    pub(crate) fn all(&self) -> impl Iterator<Item = &V> {
        self.values.iter()
    }

    /// How many values came, sampled or not, and how many arrivals had none.
    pub fn arrivals(&self, now_ms: i64, bounds: Bounds) -> (u64, u64) {
        self.steps.arrivals_since(bounds.first_step(now_ms))
    }

    /// Do its parts fit each other? What was read from a file may not.
    pub fn is_sound(&self) -> bool {
        let kept: u64 = self.steps.iter().map(|step| u64::from(step.rest.values)).sum();
        self.values.len() == self.levels.len() && kept == self.values.len() as u64 && self.steps.are_in_order()
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.values.capacity() * size_of::<V>() + self.levels.capacity() + self.steps.heap_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drift::statistics::chi_squared;
    use xxhash_rust::xxh3::xxh3_64;

    const BOUNDS: Bounds = Bounds { values_max: 1_000, age_ms_max: 48_000 };

    fn take(sample: &mut Sample<f64>, n: u64, ms: i64, bounds: Bounds) {
        let arrival = Arrival { step: bounds.step_of(ms), draw: xxh3_64(&n.to_le_bytes()), slack: 20 };
        sample.take(arrival, bounds, || Some(n as f64), drop);
    }

    /// Feeds values 0, 1, 2.. at the given paces: so many a millisecond for so long.
    fn fed(paces: &[(u64, i64)]) -> (Sample<f64>, u64, i64) {
        let (mut sample, mut n, mut now_ms) = (Sample::default(), 0, 1_700_000_000_000);
        for (per_ms, ms) in paces {
            for _ in 0..*ms {
                now_ms += 1;
                for _ in 0..*per_ms {
                    take(&mut sample, n, now_ms, BOUNDS);
                    n += 1;
                }
            }
        }
        assert!(sample.is_sound());
        (sample, n, now_ms)
    }

    /// Are tenths of the arrivals that are left equally likely in the sample?
    fn check_uniform(sample: &Sample<f64>, n: u64, now_ms: i64) {
        let (left, _) = sample.arrivals(now_ms, BOUNDS);
        let first = n - left;
        let mut drawn = vec![0u64; 10];
        sample.values(now_ms, BOUNDS).for_each(|v| drawn[((*v as u64 - first) * 10 / left) as usize] += 1);
        let all: Vec<u64> = vec![left / 10; 10];
        assert!(drawn.iter().sum::<u64>() > 200, "{drawn:?}");
        assert!(chi_squared(&all, &drawn).test.p_value > 1e-4, "{drawn:?}");
    }

    #[test]
    fn each_arrival_is_as_likely_as_any_other() {
        for paces in [
            &[(5u64, 30_000i64)][..],
            &[(1, 20_000), (20, 5_000), (1, 20_000)],
            &[(30, 10_000), (1, 30_000)],
            // The burst is forgotten.
            &[(30, 10_000), (1, 120_000)],
        ] {
            let (sample, n, now_ms) = fed(paces);
            check_uniform(&sample, n, now_ms);
        }
    }

    #[test]
    fn it_is_bounded_in_number_and_age_and_in_bytes() {
        let (sample, _, now_ms) = fed(&[(10, 60_000)]);
        let kept = sample.values(now_ms, BOUNDS).count();
        assert!((700..=1_000).contains(&kept), "{kept}");
        let (left, _) = sample.arrivals(now_ms, BOUNDS);
        assert!((470_000..=480_000).contains(&left), "{left}");
        let later_ms = now_ms + BOUNDS.age_ms_max;
        assert_eq!((sample.values(later_ms, BOUNDS).count(), sample.arrivals(later_ms, BOUNDS)), (0, (0, 0)));
        let bounds = Bounds { values_max: 10_000, age_ms_max: 86_400_000 };
        let mut full = Sample::default();
        (0..200_000u32).for_each(|i| take(&mut full, u64::from(i), i64::from(i), bounds));
        assert!(full.values(200_000, bounds).count() > 8_000);
        assert!(full.heap_bytes() <= 100_000, "{}", full.heap_bytes());
    }

    #[test]
    fn other_bounds_cut_it_without_favour() {
        let (mut sample, n, now_ms) = fed(&[(2, 40_000)]);
        let fewer = Bounds { values_max: 500, age_ms_max: 48_000 };
        sample.rebound(BOUNDS, fewer, drop);
        assert!(sample.is_sound() && sample.values(now_ms, fewer).count() <= 500);
        check_uniform(&sample, n, now_ms);
        let (before, _) = sample.arrivals(now_ms, fewer);
        for age_ms_max in [480_000, 12_000, 48_000] {
            let mut recut = sample.clone();
            let other = Bounds { values_max: 500, age_ms_max };
            recut.rebound(fewer, other, drop);
            let (left, _) = recut.arrivals(now_ms, other);
            // What began just before the bound counts whole or not at all.
            let expected = before.min(2 * age_ms_max as u64);
            assert!(recut.is_sound() && left.abs_diff(expected) <= 2_000, "{age_ms_max}: {left} of {expected}");
        }
    }

    #[test]
    fn arrivals_without_a_value_are_counted() {
        let mut sample = Sample::<f64>::default();
        for i in 0..10u64 {
            let arrival = Arrival { step: 0, draw: i, slack: 0 };
            match i % 5 {
                0 => sample.take_absent(arrival, BOUNDS, drop),
                _ => assert!(sample.take(arrival, BOUNDS, || Some(1.0), drop)),
            }
        }
        assert_eq!(sample.arrivals(0, BOUNDS), (8, 2));
    }
}

//! The values of a while, sampled: at most so many, none older than so long, each arrival as likely as any other.
//!
//! Every arrival draws a number, by its place in the order of arrivals and so the same on all copies; values whose number
//! is below a threshold are kept. When there are too many, the threshold falls and takes some along. Time is cut into
//! slots; a slot remembers the lowest threshold that it saw, and what is read is what would be kept under the lowest of
//! all slots that are left. So the sample stays uniform when a burst comes and when it is forgotten again.

use bincode::{Decode, Encode};
use std::collections::VecDeque;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A window of values is forgotten in so many steps.
const SLOTS: i64 = 48;
/// Numbers are drawn below this.
const NUMBERS: u32 = 1 << 24;
const SLOT_BITS: u32 = 8;

/// A bounded sample of values by arrival.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Sample<V: 'static> {
    /// What is kept.
    values: Vec<V>,
    /// For each value its number and, in the low bits, its slot.
    marks: Vec<u32>,
    slots: VecDeque<Slot>,
    threshold: u32,
    arrivals: u64,
}

/// A part of the window.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
struct Slot {
    /// Arrival time over the slot's length.
    number: i64,
    /// The lowest threshold since it began.
    threshold: u32,
    /// Values that came.
    present: u64,
    /// Arrivals without a value.
    absent: u64,
}

/// How much a sample may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// At most so many values, at least 8.
    pub values_max: usize,
    /// None is older than this, milliseconds, and some are forgotten a 48th of it earlier. At least 48.
    pub age_ms_max: i64,
}

impl<V> Default for Sample<V> {
    fn default() -> Self {
        Sample { values: Vec::new(), marks: Vec::new(), slots: VecDeque::new(), threshold: NUMBERS, arrivals: 0 }
    }
}

impl<V> Sample<V> {
    /// Takes in an arrival, with or without a value. `arrived_ms` does not fall.
    pub fn take(&mut self, value: Option<V>, arrived_ms: i64, bounds: Bounds) {
        self.forget(arrived_ms, bounds);
        let number = slot_number(arrived_ms, bounds);
        if self.slots.back().is_none_or(|slot| slot.number < number) {
            self.slots.push_back(Slot { number, threshold: self.threshold, present: 0, absent: 0 });
        }
        let Some(slot) = self.slots.back_mut() else { return };
        let Some(value) = value else {
            slot.absent += 1;
            return;
        };
        slot.present += 1;
        self.arrivals += 1;
        let drawn = xxh3_64_with_seed(&self.arrivals.to_le_bytes(), 0) as u32 % NUMBERS;
        if drawn >= self.threshold {
            return;
        }
        let mark = drawn << SLOT_BITS | slot_mark(slot.number);
        self.values.push(value);
        self.marks.push(mark);
        while self.values.len() > bounds.values_max {
            self.lower_threshold();
        }
    }

    /// Forgets what is too old.
    pub fn forget(&mut self, now_ms: i64, bounds: Bounds) {
        let first = slot_number(now_ms, bounds) - SLOTS + 1;
        if self.slots.front().is_none_or(|slot| slot.number >= first) {
            return;
        }
        self.slots.retain(|slot| slot.number >= first);
        let mut is_left = [false; 1 << SLOT_BITS];
        self.slots.iter().for_each(|slot| is_left[slot_mark(slot.number) as usize] = true);
        self.keep(|mark| is_left[(mark & ((1 << SLOT_BITS) - 1)) as usize]);
        // A burst is forgotten: what comes now may be kept more often again.
        if self.values.len() < bounds.values_max / 2 {
            self.threshold = self.threshold.saturating_mul(2).min(NUMBERS);
        }
    }

    /// Takes an eighth of the numbers away, and the values that drew them.
    fn lower_threshold(&mut self) {
        let threshold = (self.threshold - self.threshold.div_ceil(8)).max(1);
        self.threshold = threshold;
        self.slots.iter_mut().for_each(|slot| slot.threshold = slot.threshold.min(threshold));
        if threshold > 1 {
            self.keep(|mark| mark >> SLOT_BITS < threshold);
        } else {
            self.values.pop();
            self.marks.pop();
        }
    }

    fn keep(&mut self, is_kept: impl Fn(u32) -> bool) {
        let mut marks = self.marks.iter();
        self.values.retain(|_| marks.next().is_some_and(|mark| is_kept(*mark)));
        self.marks.retain(|mark| is_kept(*mark));
    }

    /// The sample, in the order of arrival.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        let lowest = self.slots.iter().map(|slot| slot.threshold).min().unwrap_or(NUMBERS);
        self.values
            .iter()
            .zip(&self.marks)
            .filter(move |(_, mark)| **mark >> SLOT_BITS < lowest)
            .map(|(value, _)| value)
    }

    /// How many values came, sampled or not, and how many arrivals had none.
    pub fn arrivals(&self) -> (u64, u64) {
        self.slots.iter().fold((0, 0), |(present, absent), slot| (present + slot.present, absent + slot.absent))
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.values.capacity() * size_of::<V>()
            + self.marks.capacity() * size_of::<u32>()
            + self.slots.capacity() * size_of::<Slot>()
    }
}

fn slot_number(ms: i64, bounds: Bounds) -> i64 {
    ms.div_euclid((bounds.age_ms_max / SLOTS).max(1))
}

fn slot_mark(number: i64) -> u32 {
    number.rem_euclid(1 << SLOT_BITS) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drift::statistics::chi_squared;

    const BOUNDS: Bounds = Bounds { values_max: 1_000, age_ms_max: 48_000 };

    /// Feeds values 0, 1, 2.. at the given paces: so many a millisecond for so long.
    fn fed(paces: &[(u64, i64)]) -> (Sample<f64>, u64, i64) {
        let (mut sample, mut n, mut now_ms) = (Sample::default(), 0, 1_700_000_000_000);
        for (per_ms, ms) in paces {
            for _ in 0..*ms {
                now_ms += 1;
                for _ in 0..*per_ms {
                    sample.take(Some(n as f64), now_ms, BOUNDS);
                    n += 1;
                }
            }
        }
        (sample, n, now_ms)
    }

    /// Are tenths of the arrivals that are left equally likely in the sample?
    fn check_uniform(sample: &Sample<f64>, n: u64) {
        let (left, _) = sample.arrivals();
        let first = n - left;
        let mut drawn = vec![0u64; 10];
        sample.values().for_each(|v| drawn[((*v as u64 - first) * 10 / left) as usize] += 1);
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
            let (sample, n, _) = fed(paces);
            check_uniform(&sample, n);
        }
    }

    #[test]
    fn it_is_bounded_in_number_and_age_and_in_bytes() {
        let (mut sample, _, now_ms) = fed(&[(10, 60_000)]);
        let kept = sample.values().count();
        assert!((700..=BOUNDS.values_max).contains(&kept), "{kept}");
        let (left, _) = sample.arrivals();
        assert!((470_000..=480_000).contains(&left), "{left}");
        sample.forget(now_ms + BOUNDS.age_ms_max, BOUNDS);
        assert_eq!((sample.values().count(), sample.arrivals()), (0, (0, 0)));
        let bounds = Bounds { values_max: 10_000, age_ms_max: 86_400_000 };
        let mut full = Sample::default();
        (0..200_000).for_each(|i| full.take(Some(f64::from(i)), i64::from(i), bounds));
        assert!(full.values().count() > 8_000);
        let exact = full.values.len() * 12;
        assert!(exact <= 120_000, "{exact}");
    }

    #[test]
    fn copies_that_hear_the_same_agree() {
        let (a, ..) = fed(&[(3, 9_000), (40, 100)]);
        let (b, ..) = fed(&[(3, 9_000), (40, 100)]);
        assert_eq!(a, b);
    }

    #[test]
    fn arrivals_without_a_value_are_counted() {
        let mut sample = Sample::<f64>::default();
        (0..10).for_each(|i| sample.take((i % 5 > 0).then_some(1.0), i, BOUNDS));
        assert_eq!(sample.arrivals(), (8, 2));
    }
}

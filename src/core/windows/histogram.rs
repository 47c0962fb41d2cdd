//! Counts by value: exact up to 256 distinct values in the state, estimates beyond.
//!
//! Beyond, a new value takes the place and the counts of the rarest one (Space-Saving: Metwally, Agrawal, El Abbadi,
//! 2005): the total stays right, a single count may be too high, and frequent values stay.

use super::timeline::Timeline;
use std::collections::BTreeMap;

/// So many values are counted exactly.
pub(super) const VALUES_MAX: usize = 256;

/// Counts of one hop, by the value's number; rising.
type Counts = Vec<(u16, u32)>;

/// Counts by hop and value.
#[derive(Debug, Clone, Default, PartialEq, bincode::Encode, bincode::Decode)]
pub(super) struct Histogram {
    /// The values, by number, with their count in all hops; 0: the number is free.
    values: Vec<(Box<[u8]>, u64)>,
    hops: Timeline<Counts>,
}

impl Histogram {
    pub(super) fn add(&mut self, hop: i64, value: &[u8]) {
        let number = match self.values.iter().position(|(v, n)| *n > 0 && **v == *value) {
            Some(number) => number,
            None => self.number_for(value),
        };
        let total = &mut self.values[number].1;
        let number = number as u16;
        let counts = self.hops.cell(hop, Vec::new);
        match counts.binary_search_by_key(&number, |(n, _)| *n) {
            // A count that is full stands still, and the total with it.
            Ok(i) if counts[i].1 == u32::MAX => return,
            Ok(i) => counts[i].1 += 1,
            Err(i) => {
                counts.reserve_exact(if counts.len() == counts.capacity() { 1 + counts.len() / 4 } else { 0 });
                counts.insert(i, (number, 1));
            }
        }
        *total += 1;
    }

    /// A number for a new value: a free one, one more, or that of the rarest value.
    fn number_for(&mut self, value: &[u8]) -> usize {
        let rarest = (0..self.values.len()).min_by_key(|i| self.values[*i].1);
        match rarest {
            Some(number) if self.values[number].1 == 0 || self.values.len() == VALUES_MAX => {
                self.values[number].0 = value.into();
                number
            }
            _ => {
                self.values.push((value.into(), 0));
                self.values.len() - 1
            }
        }
    }

    pub(super) fn forget_before(&mut self, hop: i64) {
        let values = &mut self.values;
        self.hops.forget_before(hop, |counts| {
            for (number, count) in counts {
                let value = &mut values[usize::from(number)];
                value.1 = value.1.saturating_sub(u64::from(count));
                if value.1 == 0 {
                    value.0 = Box::default();
                }
            }
        });
    }

    /// The most frequent values in hops `from..to`, with their counts; ties by the value's bytes.
    pub(super) fn read(&self, k: usize, from: i64, to: i64) -> Vec<(&[u8], u64)> {
        let mut counts: BTreeMap<u16, u64> = BTreeMap::new();
        for (number, count) in self.hops.range(from, to).flatten() {
            *counts.entry(*number).or_default() += u64::from(*count);
        }
        let mut all: Vec<(&[u8], u64)> =
            counts.into_iter().map(|(number, count)| (&*self.values[usize::from(number)].0, count)).collect();
        all.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        all.truncate(k);
        all
    }

    pub(super) fn divide_hops(&mut self, factor: i64) {
        self.hops.divide_hops(factor);
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.values.capacity() * size_of::<(Box<[u8]>, u64)>()
            + self.values.iter().map(|(v, _)| v.len()).sum::<usize>()
            + self.hops.heap_bytes()
            + self.hops.cells().map(|c| c.capacity() * size_of::<(u16, u32)>()).sum::<usize>()
    }

    pub(super) fn is_sound(&self, newest_hop: i64, mut value_is_sound: impl FnMut(&[u8]) -> bool) -> bool {
        let mut totals = vec![0u64; self.values.len()];
        let counts_are_sound = |counts: &Counts| {
            counts.windows(2).all(|pair| pair[0].0 < pair[1].0)
                && counts.iter().all(|(number, count)| match totals.get_mut(usize::from(*number)) {
                    Some(total) => {
                        *total = total.saturating_add(u64::from(*count));
                        *count > 0
                    }
                    None => false,
                })
        };
        let hops_are_sound = self.values.len() <= VALUES_MAX && self.hops.is_sound(newest_hop, counts_are_sound);
        // Counts that were full stand still, so that the total may be greater than they say.
        hops_are_sound
            && self
                .values
                .iter()
                .zip(&totals)
                .all(|((value, n), total)| n >= total && (*n > 0) == (*total > 0) && (*n == 0 || value_is_sound(value)))
    }
}

//! Distinct values of a sliding window: exact while it holds few, else by a sliding HyperLogLog.
//!
//! A HyperLogLog keeps in each register the greatest rank of the values that fell to it. Here a register keeps a list:
//! each rank with its newest hop, unless a rank as great came later (Chabchoub, Hebrail, 2010). The greatest rank since
//! any hop is then the first entry of the list from that hop on, so one sketch answers windows of all lengths, and its
//! memory does not grow with the number of hops. The estimate is Ertl's (2017), which needs no corrections.

use xxhash_rust::xxh3::xxh3_64;

/// So many of the latest values are told apart exactly.
const LATEST_MAX: usize = 256;
/// Registers, as a power of two: 2,048, for a standard error of 1.04 / sqrt(2048) = 2.3 percent.
const PRECISION: u32 = 11;
const REGISTERS: usize = 1 << PRECISION;
/// Ranks go to 54: leading zeros among the 53 bits of a hash that do not choose the register, and 1.
const RANK_MAX: u32 = 64 - PRECISION + 1;
const STAMP_BITS: u32 = 15;
const RANK_BITS: u32 = 6;
const STAMP_MAX: i64 = (1 << STAMP_BITS) - 1;
/// A register's list is strictly falling in rank, so it holds at most this many entries; on average 2 to 10.
pub(super) const BYTES_MAX: u64 = (REGISTERS as u64) * RANK_MAX as u64 * 4 * 9 / 8 + 16 * LATEST_MAX as u64 + 64;

/// Distinct values by the newest hop in which they came.
#[derive(Debug, Clone, Default, PartialEq, bincode::Encode, bincode::Decode)]
pub(super) struct Distinct {
    /// The latest values: their hashes, rising, with their hop.
    latest: Vec<(u64, i64)>,
    /// The newest hop of a value that had no place among the latest. Windows that begin later are counted exactly.
    dropped: Option<i64>,
    /// All values, as soon as one had no place.
    sketch: Option<Box<Sketch>>,
}

/// A sliding HyperLogLog.
#[derive(Debug, Clone, Default, PartialEq, bincode::Encode, bincode::Decode)]
struct Sketch {
    /// Hops are counted from here.
    base: i64,
    /// Rising: register, hop, rank.
    entries: Vec<u32>,
}

fn entry(register: u32, stamp: i64, rank: u32) -> u32 {
    register << (STAMP_BITS + RANK_BITS) | (stamp as u32) << RANK_BITS | rank
}

fn register_of(entry: u32) -> u32 {
    entry >> (STAMP_BITS + RANK_BITS)
}

fn stamp_of(entry: u32) -> i64 {
    i64::from(entry >> RANK_BITS & STAMP_MAX as u32)
}

fn rank_of(entry: u32) -> u32 {
    entry & ((1 << RANK_BITS) - 1)
}

impl Distinct {
    /// Takes in a value. Hops before `first_hop` are forgotten.
    pub(super) fn add(&mut self, value: &[u8], hop: i64, first_hop: i64) {
        self.add_hash(xxh3_64(value), hop, first_hop);
    }

    fn add_hash(&mut self, hash: u64, hop: i64, first_hop: i64) {
        if let Some(sketch) = &mut self.sketch {
            sketch.add(hash, hop, first_hop);
        }
        match self.latest.binary_search_by_key(&hash, |(h, _)| *h) {
            Ok(i) => self.latest[i].1 = self.latest[i].1.max(hop),
            Err(_) => {
                if self.latest.len() == LATEST_MAX {
                    self.forget_before(first_hop);
                }
                let full = self.latest.len() == LATEST_MAX;
                if full && self.sketch.is_none() {
                    let mut sketch = Sketch { base: first_hop, entries: Vec::with_capacity(2 * LATEST_MAX) };
                    self.latest.iter().for_each(|(hash, hop)| sketch.add(*hash, *hop, first_hop));
                    sketch.add(hash, hop, first_hop);
                    self.sketch = Some(Box::new(sketch));
                }
                if full {
                    let oldest = (0..LATEST_MAX).min_by_key(|i| self.latest[*i].1).unwrap_or_default();
                    if self.latest[oldest].1 >= hop {
                        self.dropped = self.dropped.max(Some(hop));
                        return;
                    }
                    self.dropped = self.dropped.max(Some(self.latest.remove(oldest).1));
                }
                let place = self.latest.partition_point(|(h, _)| *h < hash);
                if self.latest.len() == self.latest.capacity() {
                    self.latest.reserve_exact(1 + self.latest.len() / 4);
                }
                self.latest.insert(place, (hash, hop));
            }
        }
    }

    pub(super) fn forget_before(&mut self, hop: i64) {
        self.latest.retain(|(_, h)| *h >= hop);
        if let Some(sketch) = &mut self.sketch {
            sketch.forget_before(hop);
        }
        if self.dropped.is_some_and(|dropped| dropped < hop) {
            self.dropped = None;
            self.sketch = None;
        }
    }

    /// How many distinct values came in hops from `from` on: exact where the latest are all, else about.
    pub(super) fn count(&self, from: i64) -> i64 {
        match &self.sketch {
            Some(sketch) if self.dropped.is_some_and(|dropped| dropped >= from) => sketch.count(from),
            _ => self.latest.iter().filter(|(_, hop)| *hop >= from).count() as i64,
        }
    }

    pub(super) fn divide_hops(&mut self, factor: i64) {
        self.latest.iter_mut().for_each(|(_, hop)| *hop *= factor);
        self.dropped = self.dropped.map(|hop| hop * factor);
        if let Some(sketch) = &mut self.sketch {
            sketch.divide_hops(factor);
        }
    }

    pub(super) fn heap_bytes(&self) -> usize {
        let sketch = self.sketch.as_ref();
        self.latest.capacity() * size_of::<(u64, i64)>()
            + sketch.map_or(0, |s| size_of::<Sketch>() + s.entries.capacity() * size_of::<u32>())
    }

    /// Is it as this code writes it? `newest_hop`: none is later.
    pub(super) fn is_sound(&self, newest_hop: i64) -> bool {
        self.latest.len() <= LATEST_MAX
            && self.latest.windows(2).all(|pair| pair[0].0 < pair[1].0)
            && self.latest.iter().all(|(_, hop)| *hop <= newest_hop && hop.unsigned_abs() < 1 << 56)
            && self.dropped.is_none_or(|hop| hop <= newest_hop && hop.unsigned_abs() < 1 << 56)
            && self.dropped.is_some() == self.sketch.is_some()
            && self.sketch.as_ref().is_none_or(|sketch| sketch.is_sound(newest_hop))
    }
}

impl Sketch {
    fn add(&mut self, hash: u64, hop: i64, first_hop: i64) {
        if hop < self.base || hop - self.base > STAMP_MAX {
            self.rebase(first_hop.min(hop));
        }
        let Sketch { base, entries } = self;
        let stamp = (hop - *base).clamp(0, STAMP_MAX);
        let register = (hash >> (64 - PRECISION)) as u32;
        let rank = (hash << PRECISION).leading_zeros().min(64 - PRECISION) + 1;
        let from = entries.partition_point(|e| register_of(*e) < register);
        let list = &entries[from..];
        let length = list.iter().take_while(|e| register_of(**e) == register).count();
        let list = &list[..length];
        // A rank as great that came as late says it already.
        let place = list.partition_point(|e| stamp_of(*e) < stamp);
        if list[place..].iter().any(|e| rank_of(*e) >= rank) {
            return;
        }
        // Earlier ones that are no greater, and lesser ones of the same hop, say nothing any more.
        let same = usize::from(list.get(place).is_some_and(|e| stamp_of(*e) == stamp));
        let kept = list[..place].iter().take_while(|e| rank_of(**e) > rank).count();
        let new = entry(register, stamp, rank);
        let (start, end) = (from + kept, from + place + same);
        if start < end {
            entries[start] = new;
            entries.drain(start + 1..end);
        } else {
            entries.reserve_exact(if entries.len() == entries.capacity() { 1 + entries.len() / 8 } else { 0 });
            entries.insert(start, new);
        }
    }

    /// Counts hops from another one; what lies before it is forgotten.
    fn rebase(&mut self, base: i64) {
        let moved = self.base - base;
        self.entries.retain_mut(|e| {
            let stamp = stamp_of(*e) + moved;
            *e = entry(register_of(*e), stamp.clamp(0, STAMP_MAX), rank_of(*e));
            stamp >= 0
        });
        self.base = base;
    }

    fn forget_before(&mut self, hop: i64) {
        let base = self.base;
        if hop > base {
            self.entries.retain(|e| base + stamp_of(*e) >= hop);
        }
    }

    fn count(&self, from: i64) -> i64 {
        let mut registers = [0u32; RANK_MAX as usize + 1];
        registers[0] = REGISTERS as u32;
        let mut last = None;
        for e in self.entries.iter().filter(|e| self.base + stamp_of(**e) >= from) {
            // The first of a register's list is its greatest rank.
            if last.replace(register_of(*e)) != Some(register_of(*e)) {
                registers[rank_of(*e) as usize] += 1;
                registers[0] -= 1;
            }
        }
        estimate(&registers).round() as i64
    }

    fn divide_hops(&mut self, factor: i64) {
        let newest = self.entries.iter().map(|e| stamp_of(*e) * factor).max().unwrap_or_default();
        // Hops that lie too far back for a stamp are older than anything that is still asked for.
        let moved = (newest - STAMP_MAX).max(0);
        self.base = self.base * factor + moved;
        self.entries.retain_mut(|e| {
            let stamp = stamp_of(*e) * factor - moved;
            *e = entry(register_of(*e), stamp.max(0), rank_of(*e));
            stamp >= 0
        });
    }

    fn is_sound(&self, newest_hop: i64) -> bool {
        let is_before = |pair: &[u32]| {
            register_of(pair[0]) < register_of(pair[1])
                || (register_of(pair[0]) == register_of(pair[1])
                    && stamp_of(pair[0]) < stamp_of(pair[1])
                    && rank_of(pair[0]) > rank_of(pair[1]))
        };
        self.base.unsigned_abs() < 1 << 56
            && self.entries.windows(2).all(is_before)
            && self
                .entries
                .iter()
                .all(|e| (1..=RANK_MAX).contains(&rank_of(*e)) && self.base + stamp_of(*e) <= newest_hop)
    }
}

/// Ertl's estimate of how many distinct values were seen.
///
/// `registers`: how many registers have each rank, 0 (empty) to 54. Source: Ertl, New cardinality estimation algorithms
/// for HyperLogLog sketches (2017), algorithm 6.
fn estimate(registers: &[u32; RANK_MAX as usize + 1]) -> f64 {
    let m = REGISTERS as f64;
    let top = RANK_MAX as usize;
    let mut z = m * tau(1.0 - f64::from(registers[top]) / m);
    for n in registers[1..top].iter().rev() {
        z = 0.5 * (z + f64::from(*n));
    }
    z += m * sigma(f64::from(registers[0]) / m);
    m * m / (2.0 * std::f64::consts::LN_2 * z)
}

fn sigma(mut x: f64) -> f64 {
    if x == 1.0 {
        return f64::INFINITY;
    }
    let (mut y, mut z) = (1.0, x);
    loop {
        x *= x;
        let before = z;
        z += x * y;
        y += y;
        if z == before {
            return z;
        }
    }
}

fn tau(mut x: f64) -> f64 {
    if x == 0.0 || x == 1.0 {
        return 0.0;
    }
    let (mut y, mut z) = (1.0, 1.0 - x);
    loop {
        x = x.sqrt();
        let before = z;
        y *= 0.5;
        z -= (1.0 - x) * (1.0 - x) * y;
        if z == before {
            return z / 3.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The sketch of a window is the sketch that one would make of the window's values alone, in any order.
        #[test]
        fn a_sliding_sketch_equals_one_of_the_window_alone(
            values in proptest::collection::vec((0u32..5_000, 0i64..40), 300..900), from in 0i64..40,
        ) {
            let sketch = |values: &[(u32, i64)]| {
                let mut sketch = Sketch::default();
                values.iter().for_each(|(v, hop)| sketch.add(xxh3_64(&v.to_le_bytes()), *hop, 0));
                sketch
            };
            let all = sketch(&values);
            prop_assert!(all.is_sound(40));
            let alone: Vec<_> = values.iter().copied().filter(|(_, hop)| *hop >= from).collect();
            prop_assert_eq!(all.count(from), sketch(&alone).count(0));
            let mut forgotten = all.clone();
            forgotten.forget_before(from);
            prop_assert_eq!(forgotten.count(0), all.count(from));
            let mut reversed = values.clone();
            reversed.reverse();
            prop_assert_eq!(sketch(&reversed), all);
        }

        #[test]
        fn a_window_of_few_values_is_counted_exactly_whatever_the_state_holds(
            values in proptest::collection::vec((0u32..2_000, 0i64..40), 300..1_500),
        ) {
            let mut distinct = Distinct::default();
            for (value, hop) in &values {
                distinct.add(&value.to_le_bytes(), *hop, 0);
            }
            prop_assert!(distinct.is_sound(40));
            for from in 0..41 {
                let mut inside: Vec<u32> = values.iter().filter(|(_, hop)| *hop >= from).map(|(v, _)| *v).collect();
                inside.sort_unstable();
                inside.dedup();
                let got = distinct.count(from);
                if inside.len() <= LATEST_MAX {
                    prop_assert_eq!(got, inside.len() as i64);
                }
                prop_assert!((got - inside.len() as i64).abs() <= inside.len() as i64 / 8 + 3);
            }
        }
    }
}

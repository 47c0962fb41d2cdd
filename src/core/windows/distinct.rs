//! Distinct values of a sliding window: exact while few, then a sliding HyperLogLog.
//!
//! A HyperLogLog keeps in each register the greatest rank of the values that fell to it. Here a register keeps a list:
//! each rank with its newest hop, unless a rank as great came later (Chabchoub, Hebrail, 2010). The greatest rank since
//! any hop is then the first entry of the list from that hop on, so one sketch answers windows of all lengths, and its
//! memory does not grow with the number of hops. The estimate is Ertl's (2017), which needs no corrections.

use xxhash_rust::xxh3::xxh3_64;

/// So many values are told apart exactly.
const EXACT_MAX: usize = 256;
/// Registers, as a power of two: 2,048, for a standard error of 1.04 / sqrt(2048) = 2.3 percent.
const PRECISION: u32 = 11;
const REGISTERS: usize = 1 << PRECISION;
/// Ranks go to 54: leading zeros among the 53 bits of a hash that do not choose the register, and 1.
const RANK_MAX: u32 = 64 - PRECISION + 1;
const STAMP_BITS: u32 = 15;
const RANK_BITS: u32 = 6;
const STAMP_MAX: i64 = (1 << STAMP_BITS) - 1;
/// A register's list is strictly falling in rank, so it holds at most this many entries; on average 2 to 10.
pub(super) const BYTES_MAX: u64 = (REGISTERS as u64) * RANK_MAX as u64 * 4;

/// Distinct values by the newest hop in which they came.
#[derive(Debug, Clone, PartialEq, bincode::Encode, bincode::Decode)]
pub(super) enum Distinct {
    /// Hashes, rising, with their hop.
    Exact(Vec<(u64, i64)>),
    /// Entries, rising: register, hop counted from `base`, rank.
    Sketch { base: i64, entries: Vec<u32> },
}

impl Default for Distinct {
    fn default() -> Self {
        Distinct::Exact(Vec::new())
    }
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
        let hash = xxh3_64(value);
        match self {
            Distinct::Exact(hashes) => match hashes.binary_search_by_key(&hash, |(h, _)| *h) {
                Ok(i) => hashes[i].1 = hashes[i].1.max(hop),
                Err(i) if hashes.len() < EXACT_MAX => {
                    hashes.reserve_exact(if hashes.len() == hashes.capacity() { 1 + hashes.len() / 4 } else { 0 });
                    hashes.insert(i, (hash, hop));
                }
                Err(_) => {
                    self.forget_before(first_hop);
                    self.add_beyond_exact(hash, hop, first_hop);
                }
            },
            Distinct::Sketch { .. } => self.add_hash(hash, hop, first_hop),
        }
    }

    fn add_beyond_exact(&mut self, hash: u64, hop: i64, first_hop: i64) {
        if let Distinct::Exact(hashes) = self {
            if hashes.len() < EXACT_MAX {
                let place = hashes.partition_point(|(h, _)| *h < hash);
                hashes.insert(place, (hash, hop));
                return;
            }
            let hashes = std::mem::take(hashes);
            *self = Distinct::Sketch { base: first_hop, entries: Vec::with_capacity(2 * EXACT_MAX) };
            hashes.into_iter().for_each(|(hash, hop)| self.add_hash(hash, hop, first_hop));
        }
        self.add_hash(hash, hop, first_hop);
    }

    fn add_hash(&mut self, hash: u64, hop: i64, first_hop: i64) {
        let Distinct::Sketch { base, .. } = self else { return };
        if hop < *base || hop - *base > STAMP_MAX {
            self.rebase(first_hop.min(hop));
        }
        let Distinct::Sketch { base, entries } = self else { return };
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
    fn rebase(&mut self, new_base: i64) {
        if let Distinct::Sketch { base, entries } = self {
            let moved = *base - new_base;
            entries.retain_mut(|e| {
                let stamp = stamp_of(*e) + moved;
                *e = entry(register_of(*e), stamp.clamp(0, STAMP_MAX), rank_of(*e));
                stamp >= 0
            });
            *base = new_base;
        }
    }

    pub(super) fn forget_before(&mut self, hop: i64) {
        match self {
            Distinct::Exact(hashes) => hashes.retain(|(_, h)| *h >= hop),
            Distinct::Sketch { base, entries } => {
                if hop > *base {
                    entries.retain(|e| *base + stamp_of(*e) >= hop);
                    if entries.is_empty() {
                        *self = Distinct::default();
                    }
                }
            }
        }
    }

    /// About how many distinct values came in hops from `from` on.
    pub(super) fn count(&self, from: i64) -> i64 {
        match self {
            Distinct::Exact(hashes) => hashes.iter().filter(|(_, hop)| *hop >= from).count() as i64,
            Distinct::Sketch { base, entries } => {
                let mut registers = [0u32; RANK_MAX as usize + 1];
                registers[0] = REGISTERS as u32;
                let mut last = None;
                for e in entries.iter().filter(|e| *base + stamp_of(**e) >= from) {
                    // The first of a register's list is its greatest rank.
                    if last.replace(register_of(*e)) != Some(register_of(*e)) {
                        registers[rank_of(*e) as usize] += 1;
                        registers[0] -= 1;
                    }
                }
                estimate(&registers).round() as i64
            }
        }
    }

    pub(super) fn divide_hops(&mut self, factor: i64) {
        match self {
            Distinct::Exact(hashes) => hashes.iter_mut().for_each(|(_, hop)| *hop *= factor),
            Distinct::Sketch { base, entries } => {
                let newest = entries.iter().map(|e| stamp_of(*e) * factor).max().unwrap_or_default();
                // Hops that lie too far back for a stamp are older than anything that is still asked for.
                let moved = (newest - STAMP_MAX).max(0);
                *base = *base * factor + moved;
                entries.retain_mut(|e| {
                    let stamp = stamp_of(*e) * factor - moved;
                    *e = entry(register_of(*e), stamp.max(0), rank_of(*e));
                    stamp >= 0
                });
            }
        }
    }

    pub(super) fn heap_bytes(&self) -> usize {
        match self {
            Distinct::Exact(hashes) => hashes.capacity() * size_of::<(u64, i64)>(),
            Distinct::Sketch { entries, .. } => entries.capacity() * size_of::<u32>(),
        }
    }

    pub(super) fn is_sound(&self) -> bool {
        let is_hop = |hop: i64| hop.unsigned_abs() < 1 << 56;
        match self {
            Distinct::Exact(hashes) => {
                hashes.len() <= EXACT_MAX
                    && hashes.windows(2).all(|pair| pair[0].0 < pair[1].0)
                    && hashes.iter().all(|(_, hop)| is_hop(*hop))
            }
            Distinct::Sketch { base, entries } => {
                is_hop(*base)
                    && entries.iter().all(|e| (1..=RANK_MAX).contains(&rank_of(*e)))
                    && entries.windows(2).all(|pair| {
                        register_of(pair[0]) < register_of(pair[1])
                            || (register_of(pair[0]) == register_of(pair[1])
                                && stamp_of(pair[0]) < stamp_of(pair[1])
                                && rank_of(pair[0]) > rank_of(pair[1]))
                    })
            }
        }
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
                let mut distinct = Distinct::Sketch { base: 0, entries: Vec::new() };
                values.iter().for_each(|(v, hop)| distinct.add(&v.to_le_bytes(), *hop, 0));
                distinct
            };
            let all = sketch(&values);
            prop_assert!(all.is_sound());
            let alone: Vec<_> = values.iter().copied().filter(|(_, hop)| *hop >= from).collect();
            prop_assert_eq!(all.count(from), sketch(&alone).count(0));
            let mut forgotten = all.clone();
            forgotten.forget_before(from);
            prop_assert_eq!(forgotten.count(0), all.count(from));
            let mut reversed = values.clone();
            reversed.reverse();
            prop_assert_eq!(sketch(&reversed), all);
        }
    }
}

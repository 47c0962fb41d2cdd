//! Moments: count, sum, variance and extremes by hop, as words of eight bytes in one block.
//!
//! A group is a header and its records, one for each hop that holds events, rising. The header holds the number of the
//! first hop (48 bits), whether sums carry a second word (1 bit), and how many records follow (15 bits). A record holds
//! its hop, counted from the header's (16 bits), the count (48 bits), and one f64 a column.
//!
//! Sums are exact to the last bits: what rounding takes from a sum is kept in a second word (Neumaier, 1974) as soon as
//! there is any, which for whole numbers is never. Squared deviations are updated by Welford's rule and merged by
//! Chan's, with means of two words, so that a variance survives values like 1e9 + small.
//!
//! A column that was added to the definition later is not known for hops that were there before: it is NaN, and
//! functions that need it pass over such hops.

use super::layout::Columns;

const OFFSET_SHIFT: u32 = 48;
const COUNT_MASK: u64 = (1 << OFFSET_SHIFT) - 1;
const OFFSET_MAX: i64 = (1 << 16) - 1;
const BASE_SHIFT: u32 = 16;
const LENGTH_MASK: u64 = (1 << 15) - 1;
const SECOND_WORD: u64 = 1 << 15;
/// Hops beyond this have no place in a header.
pub(super) const HOP_MAX: i64 = (1 << 47) - 1;

/// An empty group.
pub(super) const EMPTY: u64 = 0;

/// A group inside the words of a state.
#[derive(Clone, Copy)]
pub(super) struct Place {
    start: usize,
    base: i64,
    length: usize,
    has_second: bool,
    columns: Columns,
}

/// Where a record holds what.
#[derive(Clone, Copy)]
struct Shape {
    sum: usize,
    second: usize,
    squares: usize,
    min: usize,
    max: usize,
    decayed: usize,
    stride: usize,
}

impl Place {
    /// The group whose header is at `start`. `None`: there is none.
    pub(super) fn at(words: &[u64], start: usize, columns: Columns) -> Option<Self> {
        let header = *words.get(start)?;
        let length = (header & LENGTH_MASK) as usize;
        let has_second = header & SECOND_WORD != 0;
        Some(Place { start, base: (header as i64) >> BASE_SHIFT, length, has_second, columns })
    }

    fn shape(&self) -> Shape {
        let mut next = 1;
        let mut take = |is_there: bool| {
            let place = next;
            next += usize::from(is_there);
            place
        };
        let c = self.columns;
        let (sum, second) = (take(c.sum), take(self.has_second));
        let (squares, min, max, decayed) = (take(c.squares), take(c.min), take(c.max), take(c.decayed));
        Shape { sum, second, squares, min, max, decayed, stride: next }
    }

    /// Where the next group begins.
    pub(super) fn end(&self) -> usize {
        self.start + 1 + self.length * self.shape().stride
    }

    fn record(&self, i: usize) -> usize {
        self.start + 1 + i * self.shape().stride
    }

    fn hop(&self, words: &[u64], i: usize) -> i64 {
        self.base + (words[self.record(i)] >> OFFSET_SHIFT) as i64
    }

    /// The first record of a hop that is not before `hop`.
    fn first_from(&self, words: &[u64], hop: i64) -> usize {
        let (mut low, mut high) = (0, self.length);
        while low < high {
            let middle = (low + high) / 2;
            if self.hop(words, middle) < hop {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    fn write_header(&self, words: &mut [u64]) {
        let second = if self.has_second { SECOND_WORD } else { 0 };
        words[self.start] = ((self.base << BASE_SHIFT) as u64) | second | self.length as u64;
    }

    /// Counts hops from another one.
    fn rebase(&mut self, words: &mut [u64], base: i64) {
        for i in 0..self.length {
            let offset = (self.hop(words, i) - base) as u64;
            let word = &mut words[self.record(i)];
            *word = offset << OFFSET_SHIFT | *word & COUNT_MASK;
        }
        self.base = base;
    }

    fn forget_before(&mut self, words: &mut Vec<u64>, hop: i64) {
        if self.length > 0 && self.hop(words, 0) < hop {
            let gone = self.first_from(words, hop);
            words.drain(self.record(0)..self.record(gone));
            self.length -= gone;
        }
    }

    /// Gives each sum a second word.
    fn add_second(&mut self, words: &mut Vec<u64>) {
        let (old, block) = (self.shape(), self.record(0)..self.end());
        let mut records = Vec::with_capacity(self.length * (old.stride + 1));
        for record in words[block.clone()].chunks_exact(old.stride) {
            records.extend_from_slice(&record[..old.second]);
            records.push(0f64.to_bits());
            records.extend_from_slice(&record[old.second..]);
        }
        words.reserve_exact(self.length);
        words.splice(block, records);
        self.has_second = true;
    }

    /// The record of a hop, made if it is not there.
    fn record_of(&mut self, words: &mut Vec<u64>, hop: i64) -> usize {
        if self.length == 0 {
            self.base = hop;
        }
        let place = match self.length {
            0 => 0,
            n if self.hop(words, n - 1) == hop => return self.record(n - 1),
            n if self.hop(words, n - 1) < hop => n,
            _ => self.first_from(words, hop),
        };
        if place < self.length && self.hop(words, place) == hop {
            return self.record(place);
        }
        if hop < self.base || hop - self.base > OFFSET_MAX {
            let first = if place == 0 { hop } else { self.hop(words, 0) };
            self.rebase(words, first);
        }
        let (at, shape) = (self.record(place), self.shape());
        // A state has no room to spare: there are millions of them, and a hop begins seldom.
        words.reserve_exact(shape.stride);
        words.splice(at..at, std::iter::repeat_n(0, shape.stride));
        words[at] = ((hop - self.base) as u64) << OFFSET_SHIFT;
        if self.columns.min {
            words[at + shape.min] = f64::INFINITY.to_bits();
        }
        if self.columns.max {
            words[at + shape.max] = f64::NEG_INFINITY.to_bits();
        }
        self.length += 1;
        at
    }
}

/// `a + b` and what rounding took from it (Knuth).
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let part = sum - a;
    (sum, (a - (sum - part)) + (b - part))
}

/// `a * b` and what rounding took from it (Dekker).
fn two_product(a: f64, b: f64) -> (f64, f64) {
    const SPLIT: f64 = 134_217_729.0;
    let split = |x: f64| {
        let c = SPLIT * x;
        let high = c - (c - x);
        (high, x - high)
    };
    let product = a * b;
    let ((a1, a2), (b1, b2)) = (split(a), split(b));
    (product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2)
}

/// A sum with what rounding took from it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sum {
    high: f64,
    low: f64,
}

impl Sum {
    fn plus(self, x: f64) -> Sum {
        let (high, lost) = two_sum(self.high, x);
        if high.is_finite() {
            return Sum { high, low: self.low + lost };
        }
        // Beyond every double it stays there; never NaN, which means that it is not known.
        Sum { high: if high.is_nan() { self.high } else { high }, low: 0.0 }
    }

    fn plus_sum(self, other: Sum) -> Sum {
        let sum = self.plus(other.high);
        if sum.high.is_finite() {
            Sum { high: sum.high, low: sum.low + other.low }
        } else {
            sum
        }
    }

    /// The mean of so many, in two words.
    fn over(self, n: f64) -> Sum {
        let high = self.high / n;
        let (product, lost) = two_product(high, n);
        let rest = ((self.high - product) - lost + self.low) / n;
        Sum { high, low: if rest.is_finite() { rest } else { 0.0 } }
    }

    fn minus(self, other: Sum) -> f64 {
        (self.high - other.high) + (self.low - other.low)
    }
}

fn never_nan(x: f64) -> f64 {
    if x.is_nan() {
        f64::INFINITY
    } else {
        x
    }
}

/// An event on its way into a group.
pub(super) struct Entry {
    /// Its hop.
    pub(super) hop: i64,
    /// Hops before this are forgotten.
    pub(super) first_hop: i64,
    /// The input's value.
    pub(super) number: f64,
    /// What it weighs in the decayed sum, seen from the end of its hop.
    pub(super) decay: f64,
}

/// Adds an event to the group whose header is at `start`.
pub(super) fn add(words: &mut Vec<u64>, mut group: Place, entry: &Entry) {
    group.forget_before(words, entry.first_hop);
    let mut at = group.record_of(words, entry.hop);
    let mut shape = group.shape();
    let count = words[at] & COUNT_MASK;
    let (before, after) = (count as f64, (count + 1) as f64);
    if group.columns.sum {
        let number = |word: usize| f64::from_bits(words[at + word]);
        let old = Sum { high: number(shape.sum), low: if group.has_second { number(shape.second) } else { 0.0 } };
        // NaN: not known for this hop, and stays so.
        let new = if old.high.is_nan() { old } else { old.plus(entry.number) };
        let squares = group.columns.squares.then(|| {
            let squares = f64::from_bits(words[at + shape.squares]);
            if squares.is_nan() || count == 0 {
                squares
            } else {
                let x = Sum { high: entry.number, low: 0.0 };
                never_nan(squares + x.minus(old.over(before)) * x.minus(new.over(after)))
            }
        });
        if new.low != 0.0 && !group.has_second {
            let i = (at - group.start - 1) / shape.stride;
            group.add_second(words);
            (at, shape) = (group.record(i), group.shape());
        }
        words[at + shape.sum] = new.high.to_bits();
        if group.has_second {
            words[at + shape.second] = new.low.to_bits();
        }
        if let Some(squares) = squares {
            words[at + shape.squares] = squares.to_bits();
        }
    }
    let mut update = |is_there: bool, word: usize, change: &dyn Fn(f64) -> f64| {
        if is_there {
            let old = f64::from_bits(words[at + word]);
            if !old.is_nan() {
                words[at + word] = change(old).to_bits();
            }
        }
    };
    update(group.columns.min, shape.min, &|old| old.min(entry.number));
    update(group.columns.max, shape.max, &|old| old.max(entry.number));
    update(group.columns.decayed, shape.decayed, &|old| {
        let new = old + entry.number * entry.decay;
        if new.is_nan() {
            old
        } else {
            new
        }
    });
    words[at] = words[at] & !COUNT_MASK | (count + 1).min(COUNT_MASK);
    group.write_header(words);
}

/// Which columns a function needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    Count,
    Sum,
    Squares,
    Min,
    Max,
    Decayed,
}

/// What the events of some hops come to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Moments {
    pub(super) count: u64,
    sum: Sum,
    squares: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    pub(super) decayed: f64,
}

impl Moments {
    pub(super) fn sum(&self) -> f64 {
        self.sum.high + self.sum.low
    }

    pub(super) fn mean(&self) -> f64 {
        let mean = self.sum.over(self.count as f64);
        mean.high + mean.low
    }

    /// Sum of squared deviations from the mean, over `n`.
    pub(super) fn variance_over(&self, n: u64) -> f64 {
        self.squares.max(0.0) / n as f64
    }
}

/// Merges the hops `from..to`. `weight_of` tells what a hop's decayed sum weighs.
pub(super) fn merge(
    words: &[u64],
    group: Place,
    (from, to): (i64, i64),
    needs: Needs,
    weight_of: impl Fn(i64) -> f64,
) -> Moments {
    let shape = group.shape();
    let none = Sum::default();
    let mut all =
        Moments { count: 0, sum: none, squares: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY, decayed: 0.0 };
    for i in group.first_from(words, from)..group.length {
        let record = &words[group.record(i)..][..shape.stride];
        let hop = group.base + (record[0] >> OFFSET_SHIFT) as i64;
        if hop >= to {
            break;
        }
        let count = record[0] & COUNT_MASK;
        let number = |word: usize| f64::from_bits(record[word]);
        let sum = || Sum { high: number(shape.sum), low: if group.has_second { number(shape.second) } else { 0.0 } };
        let is_known = match needs {
            Needs::Count => true,
            Needs::Sum => {
                let sum = sum();
                let is_known = !sum.high.is_nan();
                if is_known {
                    all.sum = all.sum.plus_sum(sum);
                }
                is_known
            }
            Needs::Squares => {
                let (sum, squares) = (sum(), number(shape.squares));
                let is_known = !sum.high.is_nan() && !squares.is_nan();
                if is_known {
                    if all.count > 0 {
                        let (n, m) = (all.count as f64, count as f64);
                        let apart = sum.over(m).minus(all.sum.over(n));
                        all.squares = never_nan(all.squares + squares + apart * apart * (n * m / (n + m)));
                    } else {
                        all.squares = squares;
                    }
                    all.sum = all.sum.plus_sum(sum);
                }
                is_known
            }
            Needs::Min => {
                let min = number(shape.min);
                all.min = all.min.min(min);
                !min.is_nan()
            }
            Needs::Max => {
                let max = number(shape.max);
                all.max = all.max.max(max);
                !max.is_nan()
            }
            Needs::Decayed => {
                let decayed = number(shape.decayed);
                if !decayed.is_nan() {
                    all.decayed += decayed * weight_of(hop);
                }
                !decayed.is_nan()
            }
        };
        all.count += if is_known { count } else { 0 };
    }
    all
}

/// Writes a group with other columns, in hops `factor` times shorter, after `words`.
pub(super) fn append_as(words: &[u64], group: Place, columns: Columns, factor: i64, out: &mut Vec<u64>) {
    let last = if group.length > 0 { group.hop(words, group.length - 1) * factor } else { 0 };
    // Hops that lie too far back for a header are older than anything that is still asked for.
    let base = (group.base * factor).max(last - OFFSET_MAX);
    let has_second = group.has_second && columns.sum;
    let mut new = Place { start: out.len(), base, length: 0, has_second, columns };
    out.push(EMPTY);
    let (from, to) = (group.shape(), new.shape());
    for i in group.first_from(words, base.div_euclid(factor))..group.length {
        let hop = group.hop(words, i) * factor;
        if hop < base {
            continue;
        }
        let at = out.len();
        out.resize(at + to.stride, f64::NAN.to_bits());
        let record = &words[group.record(i)..][..from.stride];
        out[at] = ((hop - new.base) as u64) << OFFSET_SHIFT | record[0] & COUNT_MASK;
        let mut copy = |was: bool, is: bool, from: usize, to: usize| {
            if was && is {
                out[at + to] = record[from];
            }
        };
        copy(group.columns.sum, columns.sum, from.sum, to.sum);
        copy(group.has_second, new.has_second, from.second, to.second);
        copy(group.columns.squares, columns.squares, from.squares, to.squares);
        copy(group.columns.min, columns.min, from.min, to.min);
        copy(group.columns.max, columns.max, from.max, to.max);
        copy(group.columns.decayed, columns.decayed, from.decayed, to.decayed);
        new.length += 1;
    }
    new.write_header(out);
}

/// Is the group as this code writes it? Answers where the next one begins.
///
/// `newest_hop`: no hop is after it.
pub(super) fn sound_end(words: &[u64], start: usize, columns: Columns, newest_hop: i64) -> Option<usize> {
    let group = Place::at(words, start, columns)?;
    let is_sound = group.end() <= words.len()
        && (columns.sum || !group.has_second)
        && (1..group.length).all(|i| group.hop(words, i - 1) < group.hop(words, i))
        && group.base.abs() < HOP_MAX - OFFSET_MAX
        && group.length.checked_sub(1).is_none_or(|last| group.hop(words, last) <= newest_hop)
        && (0..group.length).all(|i| words[group.record(i)] & COUNT_MASK > 0);
    is_sound.then(|| group.end())
}

//! A while that is forgotten in steps: what came in each of its last parts.

use bincode::{Decode, Encode};
use std::collections::VecDeque;

/// A while is cut into so many parts.
const STEPS: i64 = 48;

/// How much of what came is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Bounds {
    /// At most so many values, at least 8.
    pub values_max: u64,
    /// Nothing older than this, milliseconds; some is forgotten a 48th of it earlier. At least 48.
    pub age_ms_max: i64,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds { values_max: 10_000, age_ms_max: 24 * 3_600_000 }
    }
}

impl Bounds {
    /// Which part of time this moment belongs to.
    pub fn step_of(self, ms: i64) -> i64 {
        ms.div_euclid(self.step_ms())
    }

    fn step_ms(self) -> i64 {
        (self.age_ms_max / STEPS).max(1)
    }

    /// The first part that is not forgotten at this moment.
    pub(crate) fn first_step(self, now_ms: i64) -> i64 {
        first_beside(self.step_of(now_ms))
    }
}

/// The first part that is kept beside this one.
fn first_beside(newest: i64) -> i64 {
    newest.saturating_sub(STEPS - 1)
}

/// A part of the while.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub(crate) struct Step<S> {
    /// Which part of time it is.
    pub(crate) number: i64,
    /// Values that came.
    pub(crate) present: u64,
    /// Arrivals without a value.
    pub(crate) absent: u64,
    /// What else is kept of it.
    pub(crate) rest: S,
}

/// The parts that something came in, oldest first.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub(crate) struct Steps<S: 'static>(VecDeque<Step<S>>);

impl<S> Default for Steps<S> {
    fn default() -> Self {
        Steps(VecDeque::new())
    }
}

impl<S> Steps<S> {
    /// Would an arrival of this part begin it?
    pub(crate) fn is_new(&self, number: i64) -> bool {
        self.0.back().is_none_or(|step| step.number < number)
    }

    /// Begins a part; what it leaves too old is handed to `forget`.
    pub(crate) fn begin(&mut self, number: i64, rest: S, mut forget: impl FnMut(S)) {
        while self.0.front().is_some_and(|step| step.number < first_beside(number)) {
            self.0.pop_front().into_iter().for_each(|step| forget(step.rest));
        }
        self.0.push_back(Step { number, present: 0, absent: 0, rest });
    }

    /// The part that arrivals belong to. A clock that goes back changes nothing.
    pub(crate) fn newest(&mut self) -> Option<&mut Step<S>> {
        self.0.back_mut()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Step<S>> {
        self.0.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Step<S>> {
        self.0.iter_mut()
    }

    /// Counts an arrival, for who counts nothing else.
    pub(crate) fn count(&mut self, number: i64)
    where
        S: Default,
    {
        if self.is_new(number) {
            self.begin(number, S::default(), drop);
        }
        if let Some(step) = self.newest() {
            step.present += 1;
        }
    }

    /// How many values came since a part, and how many arrivals had none.
    pub(crate) fn arrivals_since(&self, first: i64) -> (u64, u64) {
        let left = self.0.iter().filter(|step| step.number >= first);
        left.fold((0, 0), |(present, absent), step| (present + step.present, absent + step.absent))
    }

    /// Time is cut otherwise from now on. Parts that fall together are merged.
    pub(crate) fn recut(&mut self, old: Bounds, new: Bounds, mut merge: impl FnMut(&mut S, S)) {
        for mut step in std::mem::take(&mut self.0) {
            step.number = new.step_of(step.number.saturating_mul(old.step_ms()));
            match self.0.back_mut().filter(|last| last.number >= step.number) {
                None => self.0.push_back(step),
                Some(last) => {
                    last.present += step.present;
                    last.absent += step.absent;
                    merge(&mut last.rest, step.rest);
                }
            }
        }
    }

    /// Do the parts stand in order? What was read from a file may not.
    pub(crate) fn are_in_order(&self) -> bool {
        self.0.iter().zip(self.0.iter().skip(1)).all(|(a, b)| a.number < b.number)
            && self.0.iter().all(|step| step.present.saturating_add(step.absent) < 1 << 56)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.0.capacity() * size_of::<Step<S>>()
    }
}

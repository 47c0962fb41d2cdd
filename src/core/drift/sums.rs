//! The vectors of a while: their sum, and how many came.

use super::sample::Arrival;
use super::steps::{Bounds, Steps};
use bincode::{Decode, Encode};

/// The mean of vectors.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct MeanVector {
    /// The mean of each component.
    pub mean: Vec<f64>,
    /// Mean square of the distances of the vectors from it.
    pub spread: f64,
    /// How many vectors, at least 1.
    pub n: u64,
}

/// The sum of vectors.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub(super) struct VectorSum {
    components: Vec<f64>,
    /// Of all components.
    squares: f64,
}

impl VectorSum {
    pub(super) fn new(dimensions: u32) -> Self {
        VectorSum { components: vec![0.0; dimensions as usize], squares: 0.0 }
    }

    /// Adds a vector; components that it has too many or too few are nothing.
    pub(super) fn add(&mut self, components: impl Iterator<Item = f32>) {
        for (sum, x) in self.components.iter_mut().zip(components.map(f64::from)) {
            *sum += x;
            self.squares += x * x;
        }
    }

    fn merge(&mut self, other: &VectorSum) {
        self.components.iter_mut().zip(&other.components).for_each(|(sum, x)| *sum += x);
        self.squares += other.squares;
    }

    /// The mean, if it is the sum of so many.
    pub(super) fn mean(mut self, n: u64) -> MeanVector {
        self.components.iter_mut().for_each(|sum| *sum /= n as f64);
        let spread = self.squares / n as f64 - self.components.iter().map(|x| x * x).sum::<f64>();
        // What is left of rounding is no spread.
        let spread = if spread * n as f64 <= self.squares * 1e-12 { 0.0 } else { spread };
        MeanVector { mean: self.components, spread, n }
    }
}

/// Sums of vectors by part of the while. Without components it counts arrivals alone.
#[derive(Debug, Clone, Default, PartialEq, Encode, Decode)]
pub struct Sums {
    dimensions: u32,
    steps: Steps<VectorSum>,
}

impl Sums {
    /// For vectors of so many components.
    pub fn new(dimensions: u32) -> Self {
        Sums { dimensions, steps: Steps::default() }
    }

    /// Takes in an arrival without a value.
    pub fn take_absent(&mut self, arrival: Arrival) {
        self.reach(arrival);
        if let Some(step) = self.steps.newest() {
            step.absent += 1;
        }
    }

    /// Takes in a vector.
    pub fn take(&mut self, arrival: Arrival, components: impl Iterator<Item = f32>) {
        self.reach(arrival);
        if let Some(step) = self.steps.newest() {
            step.present += 1;
            step.rest.add(components);
        }
    }

    fn reach(&mut self, arrival: Arrival) {
        if self.steps.is_new(arrival.step) {
            self.steps.begin(arrival.step, VectorSum::new(self.dimensions), drop);
        }
    }

    /// Begins a part.
    pub fn begin_step(&mut self, number: i64) {
        self.reach(Arrival { step: number, draw: 0, slack: 0 });
    }

    /// Takes on other bounds.
    pub fn rebound(&mut self, old: Bounds, new: Bounds) {
        self.steps.recut(old, new, |sum, more| sum.merge(&more));
    }

    /// The mean vector at this moment; `None` where none came, or vectors have no components.
    pub fn mean(&self, now_ms: i64, bounds: Bounds) -> Option<MeanVector> {
        let (present, _) = self.arrivals(now_ms, bounds);
        let first = bounds.first_step(now_ms);
        let mut all = VectorSum::new(self.dimensions);
        self.steps.iter().filter(|step| step.number >= first).for_each(|step| all.merge(&step.rest));
        (present > 0 && self.dimensions > 0).then(|| all.mean(present))
    }

    /// How many vectors came, and how many arrivals had none.
    pub fn arrivals(&self, now_ms: i64, bounds: Bounds) -> (u64, u64) {
        self.steps.arrivals_since(bounds.first_step(now_ms))
    }

    /// Are they sums of vectors of so many components? What was read from a file may not be.
    pub fn is_sound(&self, dimensions: u32) -> bool {
        self.dimensions == dimensions
            && self.steps.are_in_order()
            && self.steps.iter().all(|step| step.rest.components.len() == dimensions as usize)
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.steps.heap_bytes()
            + self.steps.iter().map(|step| step.rest.components.capacity() * size_of::<f64>()).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_that_of_what_is_left() {
        let bounds = Bounds { values_max: 100, age_ms_max: 480 };
        let mut sums = Sums::new(2);
        let at = |ms| Arrival { step: bounds.step_of(ms), draw: 0, slack: 0 };
        sums.take(at(0), [1.0, 2.0].into_iter());
        sums.take(at(100), [3.0, 6.0].into_iter());
        sums.take_absent(at(100));
        let both = MeanVector { mean: vec![2.0, 4.0], spread: 5.0, n: 2 };
        assert_eq!((sums.mean(100, bounds).as_ref(), sums.arrivals(100, bounds)), (Some(&both), (2, 1)));
        let last = MeanVector { mean: vec![3.0, 6.0], spread: 0.0, n: 1 };
        assert_eq!((sums.mean(480, bounds), sums.mean(600, bounds)), (Some(last), None));
        let longer = Bounds { values_max: 100, age_ms_max: 48_000 };
        sums.rebound(bounds, longer);
        assert_eq!((sums.mean(600, longer), sums.is_sound(2)), (Some(both), true));
    }
}

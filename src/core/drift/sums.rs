//! The vectors of a while: their sum, and how many came.

use super::sample::Arrival;
use super::steps::{Bounds, Steps};
use bincode::{Decode, Encode};

/// Sums of vectors by part of the while. Without components it counts arrivals alone.
#[derive(Debug, Clone, Default, PartialEq, Encode, Decode)]
pub struct Sums {
    dimensions: u32,
    steps: Steps<Vec<f64>>,
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

    /// Takes in a vector; components that it has too many or too few are nothing.
    pub fn take(&mut self, arrival: Arrival, components: impl Iterator<Item = f32>) {
        self.reach(arrival);
        if let Some(step) = self.steps.newest() {
            step.present += 1;
            step.rest.iter_mut().zip(components).for_each(|(sum, x)| *sum += f64::from(x));
        }
    }

    fn reach(&mut self, arrival: Arrival) {
        if self.steps.is_new(arrival.step) {
            self.steps.begin(arrival.step, vec![0.0; self.dimensions as usize], drop);
        }
    }

    /// Takes on other bounds.
    pub fn rebound(&mut self, old: Bounds, new: Bounds) {
        self.steps.recut(old, new, |sums, more| sums.iter_mut().zip(more).for_each(|(sum, x)| *sum += x));
    }

    /// The mean vector at this moment; `None` where none came.
    pub fn mean(&self, now_ms: i64, bounds: Bounds) -> Option<Vec<f64>> {
        let (present, _) = self.arrivals(now_ms, bounds);
        let first = bounds.first_step(now_ms);
        let mut mean = vec![0.0; self.dimensions as usize];
        for step in self.steps.iter().filter(|step| step.number >= first) {
            mean.iter_mut().zip(&step.rest).for_each(|(sum, x)| *sum += x);
        }
        mean.iter_mut().for_each(|sum| *sum /= present as f64);
        (present > 0).then_some(mean)
    }

    /// How many vectors came, and how many arrivals had none.
    pub fn arrivals(&self, now_ms: i64, bounds: Bounds) -> (u64, u64) {
        self.steps.arrivals_since(bounds.first_step(now_ms))
    }

    /// Are they sums of vectors of so many components? What was read from a file may not be.
    pub fn is_sound(&self, dimensions: u32) -> bool {
        self.dimensions == dimensions
            && self.steps.are_in_order()
            && self.steps.iter().all(|step| step.rest.len() == dimensions as usize)
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.steps.heap_bytes() + self.steps.iter().map(|step| step.rest.capacity() * size_of::<f64>()).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_that_of_what_is_left() {
        let bounds = Bounds { values_max: 100, age_ms_max: 480 };
        let mut sums = Sums::new(2);
        let at = |ms| Arrival { step: bounds.step_of(ms), draw: 0 };
        sums.take(at(0), [1.0, 2.0].into_iter());
        sums.take(at(100), [3.0, 6.0].into_iter());
        sums.take_absent(at(100));
        assert_eq!((sums.mean(100, bounds), sums.arrivals(100, bounds)), (Some(vec![2.0, 4.0]), (2, 1)));
        assert_eq!(sums.mean(480, bounds), Some(vec![3.0, 6.0]));
        assert_eq!(sums.mean(600, bounds), None);
        let longer = Bounds { values_max: 100, age_ms_max: 48_000 };
        sums.rebound(bounds, longer);
        assert_eq!((sums.mean(600, longer), sums.is_sound(2)), (Some(vec![2.0, 4.0]), true));
    }
}

//! Values that are compared by how often each comes.

use super::sample::{Arrival, Sample};
use super::steps::Bounds;
use bincode::{Decode, Encode};
use std::collections::{BTreeMap, HashSet};
use xxhash_rust::xxh3::xxh3_64;

/// Longer values are kept by their beginning and a hash.
const NAME_BYTES_MAX: usize = 64;

/// A value, for counting: a hash that stands for it.
pub type CategoryId = u64;

/// What stands for a value.
pub fn category_id(value: &[u8]) -> CategoryId {
    xxh3_64(value)
}

/// How a value is told: itself, or the beginning of a long one with its hash.
pub fn category_name(value: &[u8]) -> Vec<u8> {
    if value.len() <= NAME_BYTES_MAX {
        return value.to_vec();
    }
    let cut = NAME_BYTES_MAX - 20;
    // A cut inside a character would leave no text.
    let cut = (cut - 3..=cut).rev().find(|cut| value[*cut] & 0xc0 != 0x80).unwrap_or(cut);
    let mut name = value[..cut].to_vec();
    name.extend_from_slice(format!("...{:016x}", category_id(value)).as_bytes());
    name
}

/// A bounded sample of categories.
#[derive(Debug, Clone, Default, PartialEq, Encode, Decode)]
pub struct CategorySample {
    sample: Sample<CategoryId>,
    /// The names of all values in the sample, and of some that were in it.
    names: BTreeMap<CategoryId, Vec<u8>>,
}

impl CategorySample {
    /// Takes in an arrival without a value.
    pub fn take_absent(&mut self, arrival: Arrival, bounds: Bounds) {
        self.sample.take_absent(arrival, bounds);
    }

    /// Takes in a value.
    pub fn take(&mut self, arrival: Arrival, bounds: Bounds, value: &[u8]) {
        if !self.sample.take(arrival, bounds, || Some(category_id(value))) {
            return;
        }
        self.names.entry(category_id(value)).or_insert_with(|| category_name(value));
        if self.names.len() > 64 + 2 * self.sample.all().len() {
            self.forget_names();
        }
    }

    fn forget_names(&mut self) {
        let held: HashSet<CategoryId> = self.sample.all().iter().copied().collect();
        self.names.retain(|id, _| held.contains(id));
    }

    /// Takes on other bounds.
    pub fn rebound(&mut self, old: Bounds, new: Bounds) {
        self.sample.rebound(old, new);
        self.forget_names();
    }

    /// The name of a value that is, or was a moment ago, in the sample.
    pub fn name(&self, id: CategoryId) -> Option<&[u8]> {
        self.names.get(&id).map(Vec::as_slice)
    }

    /// The sample.
    pub fn sample(&self) -> &Sample<CategoryId> {
        &self.sample
    }

    /// Bytes on the heap, about.
    pub fn heap_bytes(&self) -> usize {
        let names: usize = self.names.values().map(|name| name.capacity() + 48).sum();
        self.sample.heap_bytes() + names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_value_is_told_by_its_beginning_and_a_hash() {
        assert_eq!(category_name(b"short"), b"short");
        let (a, b) = ("\u{e9}".repeat(50), format!("{}x", "\u{e9}".repeat(50)));
        let name = String::from_utf8(category_name(a.as_bytes())).expect("text");
        assert!(name.len() <= NAME_BYTES_MAX && name.starts_with("\u{e9}\u{e9}") && name != b, "{name}");
        assert_ne!(category_name(a.as_bytes()), category_name(b.as_bytes()));
    }

    #[test]
    fn names_of_values_that_left_are_forgotten() {
        let bounds = Bounds { values_max: 100, age_ms_max: 4_800 };
        let mut categories = CategorySample::default();
        for i in 0..10_000u64 {
            let arrival = Arrival { step: 0, draw: category_id(&i.to_le_bytes()) };
            categories.take(arrival, bounds, i.to_string().as_bytes());
        }
        assert!(categories.names.len() <= 264, "{}", categories.names.len());
        assert!(categories.sample.values(0, bounds).all(|id| categories.name(*id).is_some()));
    }
}

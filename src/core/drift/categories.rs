//! Values that are compared by how often each comes.

use super::sample::{Arrival, Sample};
use super::steps::Bounds;
use bincode::{Decode, Encode};
use std::collections::{BTreeMap, VecDeque};
use xxhash_rust::xxh3::xxh3_64;

/// Longer values are kept by their beginning and a hash.
const NAME_BYTES_MAX: usize = 64;
/// What a name takes beside its bytes, about.
const NAME_OVERHEAD_BYTES: usize = 48;
/// Names that an arrival lets go.
const NAMES_AT_A_TIME: usize = 8;

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
    names: Names,
}

/// The names of the values in a sample.
#[derive(Debug, Clone, Default, PartialEq, Encode, Decode)]
struct Names {
    by_id: BTreeMap<CategoryId, Name>,
    /// Values that have left the sample, and not their names yet: thousands leave at a time.
    leaving: VecDeque<CategoryId>,
    bytes: usize,
}

#[derive(Debug, Clone, PartialEq, Encode, Decode)]
struct Name {
    text: Box<[u8]>,
    /// How many values of the sample it names.
    values: u32,
}

impl Names {
    fn enter(&mut self, id: CategoryId, value: &[u8]) {
        let bytes = &mut self.bytes;
        let name = self.by_id.entry(id).or_insert_with(|| {
            let text = category_name(value).into_boxed_slice();
            *bytes += text.len() + NAME_OVERHEAD_BYTES;
            Name { text, values: 0 }
        });
        name.values += 1;
    }

    fn leave(&mut self, id: CategoryId) {
        let Some(name) = self.by_id.get_mut(&id) else { return };
        name.values = name.values.saturating_sub(1);
        if name.values == 0 {
            self.bytes = self.bytes.saturating_sub(name.text.len() + NAME_OVERHEAD_BYTES);
            self.by_id.remove(&id);
        }
    }

    /// Lets some of the names go whose values have left.
    fn work_off(&mut self) {
        for _ in 0..NAMES_AT_A_TIME {
            let Some(id) = self.leaving.pop_front() else { return };
            self.leave(id);
        }
    }
}

impl CategorySample {
    /// Takes in an arrival without a value.
    pub fn take_absent(&mut self, arrival: Arrival, bounds: Bounds) {
        let names = &mut self.names;
        self.sample.take_absent(arrival, bounds, |id| names.leaving.push_back(id));
        names.work_off();
    }

    /// Takes in a value.
    pub fn take(&mut self, arrival: Arrival, bounds: Bounds, value: &[u8]) {
        let names = &mut self.names;
        let mut entered = None;
        let id = || *entered.insert(Some(category_id(value)));
        self.sample.take(arrival, bounds, id, |id| names.leaving.push_back(id));
        // The sample may have let go of it already: it leaves after it has entered.
        entered.flatten().into_iter().for_each(|id| names.enter(id, value));
        names.work_off();
    }

    /// Counts values that were not kept, and begins a part.
    pub fn begin_step(&mut self, not_kept: u64, number: i64, bounds: Bounds) {
        let names = &mut self.names;
        self.sample.begin_step(not_kept, number, bounds, |id| names.leaving.push_back(id));
    }

    /// Takes on other bounds.
    pub fn rebound(&mut self, old: Bounds, new: Bounds) {
        let names = &mut self.names;
        self.sample.rebound(old, new, |id| names.leaving.push_back(id));
    }

    /// The name of a value in the sample.
    pub fn name(&self, id: CategoryId) -> Option<&[u8]> {
        self.names.by_id.get(&id).map(|name| &*name.text)
    }

    /// Does every value have its name? What was read from a file may not be so.
    pub fn is_sound(&self) -> bool {
        let mut counted: BTreeMap<CategoryId, u32> = BTreeMap::new();
        self.sample.all().chain(&self.names.leaving).for_each(|id| *counted.entry(*id).or_default() += 1);
        let named = self.names.by_id.iter().map(|(id, name)| (*id, name.values));
        self.sample.is_sound() && counted.into_iter().eq(named)
    }

    /// The sample.
    pub fn sample(&self) -> &Sample<CategoryId> {
        &self.sample
    }

    /// Bytes on the heap, about.
    pub fn heap_bytes(&self) -> usize {
        self.sample.heap_bytes() + self.names.bytes
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
            let arrival = Arrival { step: 0, draw: category_id(&i.to_le_bytes()), slack: 0 };
            categories.take(arrival, bounds, i.to_string().as_bytes());
        }
        assert!(categories.is_sound() && categories.names.by_id.len() <= 100);
        let names = categories.names.by_id.len();
        categories.take_absent(Arrival { step: 1_000, draw: 0, slack: 0 }, bounds);
        assert_eq!((categories.is_sound(), categories.names.by_id.len()), (true, names - NAMES_AT_A_TIME));
        (0..names).for_each(|_| categories.take_absent(Arrival { step: 1_000, draw: 0, slack: 0 }, bounds));
        assert_eq!((categories.is_sound(), categories.names.bytes), (true, 0));
    }
}

//! The current window of a feature: what came lately, as its type is compared.

use super::categories::{CategoryId, CategorySample};
use super::sample::{Arrival, Sample};
use super::steps::Bounds;
use super::sums::{MeanVector, Sums};
use crate::feature_type::FeatureType;
use crate::value::{finite, Value};
use bincode::{Decode, Encode};

/// What came lately.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum Current {
    /// INT, FLOAT, BOOL, TIMESTAMP.
    Numbers(Sample<f64>),
    /// STRING.
    Categories(CategorySample),
    /// VECTOR; a LIST is one without components.
    Sums(Sums),
}

/// What an arrival brings.
#[derive(Clone, Copy)]
pub enum Given<'a> {
    /// Nothing.
    Absent,
    /// The stored form of a value.
    Field(&'a [u8]),
    /// A value as it is served.
    Served(&'a Value<'a>),
}

/// What is copied out of a window for a test.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// The values.
    pub values: ObservedValues,
    /// How many came, sampled or not.
    pub present: u64,
    /// How many arrivals had none.
    pub absent: u64,
}

/// Values of a window.
#[derive(Debug, Clone, PartialEq)]
pub enum ObservedValues {
    /// In the order of arrival.
    Numbers(Vec<f64>),
    /// In the order of arrival.
    Categories(Vec<CategoryId>),
    /// The mean vector, where any came.
    Mean(Option<MeanVector>),
}

fn dimensions(ty: FeatureType) -> u32 {
    match ty {
        FeatureType::Vector(n) => n,
        _ => 0,
    }
}

impl Current {
    /// An empty one.
    pub fn of(ty: FeatureType) -> Self {
        match ty {
            FeatureType::Int | FeatureType::Float | FeatureType::Bool | FeatureType::Timestamp => {
                Current::Numbers(Sample::default())
            }
            FeatureType::String => Current::Categories(CategorySample::default()),
            FeatureType::Vector(_) | FeatureType::List => Current::Sums(Sums::new(dimensions(ty))),
        }
    }

    /// Takes in an arrival.
    pub fn take(&mut self, arrival: Arrival, bounds: Bounds, given: Given<'_>) {
        match (self, given) {
            (Current::Numbers(sample), Given::Absent) => sample.take_absent(arrival, bounds, drop),
            (Current::Numbers(sample), given) => {
                sample.take(arrival, bounds, || number(given), drop);
            }
            (Current::Categories(sample), Given::Field(text)) => sample.take(arrival, bounds, text),
            (Current::Categories(sample), Given::Served(Value::String(text))) => sample.take(arrival, bounds, text),
            (Current::Categories(sample), _) => sample.take_absent(arrival, bounds),
            (Current::Sums(sums), Given::Absent) => sums.take_absent(arrival),
            (Current::Sums(sums), Given::Field(raw)) => {
                let components = raw.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                sums.take(arrival, components);
            }
            (Current::Sums(sums), Given::Served(value)) => {
                let components: &[f32] = if let Value::Vector(components) = value { components } else { &[] };
                sums.take(arrival, components.iter().copied());
            }
        }
    }

    /// Draws beyond this are only counted.
    pub fn kept_up_to(&self) -> u64 {
        match self {
            Current::Numbers(sample) => sample.kept_up_to(),
            Current::Categories(categories) => categories.sample().kept_up_to(),
            Current::Sums(_) => u64::MAX,
        }
    }

    /// Counts values that were not kept, and begins a part of the while.
    pub fn begin_step(&mut self, not_kept: u64, number: i64, bounds: Bounds) {
        match self {
            Current::Numbers(sample) => sample.begin_step(not_kept, number, bounds, drop),
            Current::Categories(categories) => categories.begin_step(not_kept, number, bounds),
            Current::Sums(sums) => sums.begin_step(number),
        }
    }

    /// What there is at this moment.
    pub fn observe(&self, now_ms: i64, bounds: Bounds) -> Observed {
        let (values, (present, absent)) = match self {
            Current::Numbers(sample) => (
                ObservedValues::Numbers(sample.values(now_ms, bounds).copied().collect()),
                sample.arrivals(now_ms, bounds),
            ),
            Current::Categories(categories) => (
                ObservedValues::Categories(categories.sample().values(now_ms, bounds).copied().collect()),
                categories.sample().arrivals(now_ms, bounds),
            ),
            Current::Sums(sums) => (ObservedValues::Mean(sums.mean(now_ms, bounds)), sums.arrivals(now_ms, bounds)),
        };
        Observed { values, present, absent }
    }

    /// The name of a category that came lately.
    pub fn category_name(&self, id: CategoryId) -> Option<&[u8]> {
        match self {
            Current::Categories(categories) => categories.name(id),
            _ => None,
        }
    }

    /// Takes on other bounds.
    pub fn rebound(&mut self, old: Bounds, new: Bounds) {
        match self {
            Current::Numbers(sample) => sample.rebound(old, new, drop),
            Current::Categories(categories) => categories.rebound(old, new),
            Current::Sums(sums) => sums.rebound(old, new),
        }
    }

    /// Is it the window of a feature of this type? What was read from a file may not be.
    pub fn is_sound(&self, ty: FeatureType) -> bool {
        match (self, Current::of(ty)) {
            (Current::Numbers(sample), Current::Numbers(_)) => sample.is_sound() && sample.all().all(|x| x.is_finite()),
            (Current::Categories(categories), Current::Categories(_)) => categories.is_sound(),
            (Current::Sums(sums), Current::Sums(_)) => sums.is_sound(dimensions(ty)),
            _ => false,
        }
    }

    /// Bytes on the heap, about.
    pub fn heap_bytes(&self) -> usize {
        match self {
            Current::Numbers(sample) => sample.heap_bytes(),
            Current::Categories(categories) => categories.heap_bytes(),
            Current::Sums(sums) => sums.heap_bytes(),
        }
    }
}

fn number(given: Given<'_>) -> Option<f64> {
    match given {
        Given::Absent => None,
        Given::Field(text) => finite(text),
        Given::Served(value) => as_number(value),
    }
}

/// A value as the number that it is compared by; STRING, LIST and VECTOR have none.
pub(crate) fn as_number(value: &Value<'_>) -> Option<f64> {
    match value {
        Value::Int(v) | Value::Timestamp(v) => Some(*v as f64),
        Value::Float(v) => Some(*v),
        Value::Bool(v) => Some(f64::from(u8::from(*v))),
        Value::String(_) | Value::Vector(_) | Value::List(_) => None,
    }
}

//! The types a feature can have.

use crate::error::{shown, Error, Result};
use std::fmt;

/// Most components a VECTOR may have.
pub const VECTOR_DIMENSIONS_MAX: u32 = 65_536;

/// The type of a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum FeatureType {
    /// A signed 64-bit integer.
    Int,
    /// A finite double.
    Float,
    /// True or false.
    Bool,
    /// Any bytes.
    String,
    /// A unix time in milliseconds.
    Timestamp,
    /// That many finite float32 numbers.
    Vector(u32),
    /// A JSON array.
    List,
}

impl FeatureType {
    /// Reads a type's name, an alias included. `embedding` and `vector` come back with the dimension that is given, or
    /// `None` where it must follow from somewhere else.
    pub fn parse(word: &[u8]) -> Result<TypeWord> {
        let lower = word.to_ascii_lowercase();
        Ok(match lower.as_slice() {
            b"int" => TypeWord::Whole(FeatureType::Int),
            b"float" | b"numeric" => TypeWord::Whole(FeatureType::Float),
            b"bool" => TypeWord::Whole(FeatureType::Bool),
            b"string" | b"categorical" => TypeWord::Whole(FeatureType::String),
            b"timestamp" => TypeWord::Whole(FeatureType::Timestamp),
            b"list" => TypeWord::Whole(FeatureType::List),
            b"vector" | b"embedding" => TypeWord::Vector,
            _ => {
                return Err(Error::syntax(format!(
                    "type '{}' is none of INT, FLOAT, BOOL, STRING, TIMESTAMP, VECTOR n, LIST",
                    shown(word)
                )))
            }
        })
    }

    /// A vector type of checked dimension: 1 to 65536.
    pub fn vector(dimensions: u64) -> Result<Self> {
        match u32::try_from(dimensions) {
            Ok(n) if (1..=VECTOR_DIMENSIONS_MAX).contains(&n) => Ok(FeatureType::Vector(n)),
            _ => Err(Error::syntax(format!("VECTOR takes 1 to {VECTOR_DIMENSIONS_MAX} dimensions, got {dimensions}"))),
        }
    }

    /// Is a value of it one number? A BOOL is 0 or 1.
    pub fn is_number(self) -> bool {
        matches!(self, FeatureType::Int | FeatureType::Float | FeatureType::Bool | FeatureType::Timestamp)
    }

    /// Is a value of it several numbers?
    pub fn is_vector(self) -> bool {
        matches!(self, FeatureType::Vector(_))
    }

    /// The type's name without its dimension.
    pub fn name(self) -> &'static str {
        match self {
            FeatureType::Int => "INT",
            FeatureType::Float => "FLOAT",
            FeatureType::Bool => "BOOL",
            FeatureType::String => "STRING",
            FeatureType::Timestamp => "TIMESTAMP",
            FeatureType::Vector(_) => "VECTOR",
            FeatureType::List => "LIST",
        }
    }
}

/// What a type's name says: all of the type, or a vector whose dimension is told elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TypeWord {
    /// The word is the type.
    Whole(FeatureType),
    /// A vector; the dimension comes from the next word, from `dim` or from the default.
    Vector,
}

impl fmt::Display for FeatureType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FeatureType::Vector(n) => write!(f, "VECTOR {n}"),
            other => f.write_str(other.name()),
        }
    }
}

//! Feature views: what a feature is, what a view is, and which values each accepts.

use crate::drift::baseline::{Baseline, Expected};
use crate::error::{shown, Code, Error, Result};
use crate::feature_type::FeatureType;
use crate::keys::{checked_feature_name, checked_name};
use crate::packed::Packing;
use crate::value::{Refusal, Value};
use crate::windows::aggregation::{check_window, Window};
use crate::windows::layout::Layout;
use rustc_hash::FxHashMap;
use serde_json::value::RawValue;
use std::cmp::Ordering;

/// Log length of a view that names none.
pub const MAXLEN_DEFAULT: u64 = 10_000;
/// Most features a view may have.
pub const FEATURES_MAX: usize = 4_096;

/// Most bytes that the window state of one entity may come to.
const STATE_BYTES_MAX: u64 = 1 << 30;

/// The values that a STRING may have, in their order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Categories {
    list: Vec<String>,
    places: FxHashMap<String, usize>,
}

impl Categories {
    /// Adds one at the end. False: it is there already.
    pub fn push(&mut self, value: String) -> bool {
        let is_new = self.places.insert(value.clone(), self.list.len()).is_none();
        self.list.push(value);
        is_new
    }

    /// All, in their order. None: any value is allowed.
    pub fn as_slice(&self) -> &[String] {
        &self.list
    }

    /// The place of a value.
    pub fn index_of(&self, value: &[u8]) -> Option<usize> {
        self.places.get(std::str::from_utf8(value).ok()?).copied()
    }
}

/// One feature of a view.
#[derive(Debug, Clone, PartialEq)]
pub struct Feature {
    /// Its name.
    pub name: String,
    /// Its type.
    pub ty: FeatureType,
    /// Served where no value is.
    pub default: Option<Value<'static>>,
    /// Longest age at which a value is served, milliseconds.
    pub ttl_ms: Option<i64>,
    /// Least value allowed (INT, FLOAT, TIMESTAMP).
    pub min: Option<Value<'static>>,
    /// Greatest value allowed.
    pub max: Option<Value<'static>>,
    /// All values allowed (STRING); a value's index here is its number in a tensor. Empty: any.
    pub values: Categories,
    /// An event's field that is not served itself.
    pub input: bool,
    /// It is computed: the window over events that it is.
    pub window: Option<Window>,
    /// It weighs vectors of a window, so it must not be negative.
    pub is_weight: bool,
    /// What its values are expected to be like.
    pub expected: Option<Expected>,
    /// For people.
    pub description: String,
}

impl Feature {
    /// A feature with nothing but a checked name and a type.
    pub fn new(name: &[u8], ty: FeatureType) -> Result<Self> {
        Ok(Feature {
            name: checked_feature_name(name)?.to_owned(),
            ty,
            default: None,
            ttl_ms: None,
            min: None,
            max: None,
            values: Categories::default(),
            input: false,
            window: None,
            is_weight: false,
            expected: None,
            description: String::new(),
        })
    }

    /// Does it stand in rows? Inputs only feed windows, and windows have a state of their own.
    pub fn is_stored(&self) -> bool {
        !self.input && self.window.is_none()
    }

    /// How many columns of a tensor it fills; `None` for a feature that has no number.
    pub fn columns(&self) -> Option<usize> {
        match self.ty {
            FeatureType::Int | FeatureType::Float | FeatureType::Bool | FeatureType::Timestamp => Some(1),
            FeatureType::Vector(n) => Some(n as usize),
            FeatureType::String => (!self.values.list.is_empty()).then_some(1),
            FeatureType::List => None,
        }
    }

    /// Adds a value to VALUES.
    pub fn allow(&mut self, value: String) -> Result<()> {
        let shown = shown(value.as_bytes());
        match self.values.push(value) {
            true => Ok(()),
            false => Err(Error::syntax(format!("feature '{}': VALUES names '{shown}' twice", self.name))),
        }
    }

    /// Is this value inside MIN, MAX and VALUES? The error is the end of a sentence.
    pub fn check_range(&self, value: &Value<'_>) -> std::result::Result<(), Refusal> {
        if let Some(min) = &self.min {
            if compare(value, min) == Some(Ordering::Less) {
                return Err(Refusal::Because(format!("is below MIN {}", display(min))));
            }
        }
        if let Some(max) = &self.max {
            if compare(value, max) == Some(Ordering::Greater) {
                return Err(Refusal::Because(format!("is above MAX {}", display(max))));
            }
        }
        let is_negative = match value {
            Value::Int(v) | Value::Timestamp(v) => *v < 0,
            Value::Float(v) => *v < 0.0,
            _ => false,
        };
        if self.is_weight && is_negative {
            return Err(Refusal::Because("is negative, and it weighs vectors of a window".to_owned()));
        }
        if let (Value::String(text), false) = (value, self.values.list.is_empty()) {
            if self.values.index_of(text).is_none() {
                return Err(Refusal::Because("is none of VALUES".to_owned()));
            }
        }
        Ok(())
    }

    /// A value from a command's argument, checked. `view` is for the error.
    pub fn value_from_text<'a>(&self, view: &str, text: &'a [u8]) -> Result<Value<'a>> {
        Value::from_text(self.ty, text)
            .and_then(|value| self.check_range(&value).map(|()| value))
            .map_err(|refusal| self.refuse(view, refusal, text))
    }

    /// A value from a member of a JSON object, checked.
    pub fn value_from_json<'a>(&self, view: &str, raw: &'a RawValue) -> Result<Value<'a>> {
        Value::from_json(self.ty, raw)
            .and_then(|value| self.check_range(&value).map(|()| value))
            .map_err(|refusal| self.refuse(view, refusal, raw.get().as_bytes()))
    }

    fn refuse(&self, view: &str, refusal: Refusal, given: &[u8]) -> Error {
        let (name, ty, given) = (&self.name, self.ty, shown(given));
        Error::schema(match refusal {
            Refusal::Type => format!("feature '{name}' of view '{view}' expects {ty}, got '{given}'"),
            Refusal::Because(why) => {
                format!("feature '{name}' of view '{view}' expects {ty}, but '{given}' {why}")
            }
        })
    }

    /// Checks that the parts of the definition fit each other.
    fn check(&self, view: &str) -> Result<()> {
        let refuse = |why: String| Err(Error::syntax(format!("feature '{}' of view '{view}': {why}", self.name)));
        let ordered = matches!(self.ty, FeatureType::Int | FeatureType::Float | FeatureType::Timestamp);
        if (self.min.is_some() || self.max.is_some()) && !ordered {
            return refuse(format!("MIN and MAX need INT, FLOAT or TIMESTAMP, not {}", self.ty));
        }
        if let (Some(min), Some(max)) = (&self.min, &self.max) {
            if compare(min, max) == Some(Ordering::Greater) {
                return refuse(format!("MIN {} is above MAX {}", display(min), display(max)));
            }
        }
        if !self.values.list.is_empty() && self.ty != FeatureType::String {
            return refuse(format!("VALUES needs STRING, not {}", self.ty));
        }
        if self.window.is_some() {
            let banned = [
                (self.input, "INPUT"),
                (self.ttl_ms.is_some(), "TTL"),
                (self.min.is_some(), "MIN"),
                (self.max.is_some(), "MAX"),
            ];
            if let Some((_, word)) = banned.iter().find(|(is_given, _)| *is_given) {
                return refuse(format!("a feature with AGG takes no {word}"));
            }
        }
        if self.input && (self.default.is_some() || self.ttl_ms.is_some()) {
            return refuse("an INPUT is not served, so it takes no DEFAULT and no TTL".to_owned());
        }
        if let Some(expected) = &self.expected {
            Baseline::of_expected(view, self, expected)?;
        }
        if let Some(default) = &self.default {
            if let Err(Refusal::Because(why)) = self.check_range(default) {
                return refuse(format!("DEFAULT {} {why}", display(default)));
            }
        }
        Ok(())
    }
}

fn compare(a: &Value<'_>, b: &Value<'_>) -> Option<Ordering> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) | (Value::Timestamp(a), Value::Timestamp(b)) => Some(a.cmp(b)),
        (Value::Float(a), Value::Float(b)) => a.partial_cmp(b),
        _ => None,
    }
}

fn display(value: &Value<'_>) -> String {
    shown(&value.to_field())
}

/// What happens to fields that the schema does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extra {
    /// The update is refused.
    Refuse,
    /// They are dropped and counted.
    Ignore,
}

/// Where the values are sampled that drift is found in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleOn {
    /// Where they are published.
    Publish,
    /// Where they are served.
    Serve,
}

impl SampleOn {
    /// Both.
    pub const ALL: [SampleOn; 2] = [SampleOn::Publish, SampleOn::Serve];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            SampleOn::Publish => "publish",
            SampleOn::Serve => "serve",
        }
    }
}

/// Which values are sampled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Share of arrivals, 0 to 1.
    pub rate: f64,
    /// Of which arrivals.
    pub on: SampleOn,
}

impl Sampling {
    /// A checked one: the rate is 0 to 1.
    pub fn new(rate: f64, on: SampleOn) -> Result<Self> {
        match (0.0..=1.0).contains(&rate) {
            true => Ok(Sampling { rate, on }),
            false => Err(Error::syntax(format!("the rate of SAMPLE must be from 0 to 1, got '{rate}'"))),
        }
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { rate: 1.0, on: SampleOn::Publish }
    }
}

/// How rows are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// A hash: any client reads it field by field.
    Hash,
    /// One string of bytes: smaller and faster to read.
    Packed,
}

impl Storage {
    /// Both, in the order of [`Storage::WORDS`].
    pub const ALL: [Storage; 2] = [Storage::Hash, Storage::Packed];
    /// Their words in a command.
    pub const WORDS: [&'static str; 2] = ["HASH", "PACKED"];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Storage::Hash => "hash",
            Storage::Packed => "packed",
        }
    }
}

/// A version of a feature view.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureView {
    /// Its name.
    pub name: String,
    /// Its version, at least 1.
    pub version: u32,
    /// What its rows describe.
    pub entity: String,
    /// Longest age of each feature, milliseconds.
    pub ttl_ms: Option<i64>,
    /// Rows of this version may carry an expiry although it has no TTL now: it was altered away.
    pub ttl_was_removed: bool,
    /// Does FS.PUBLISH append to the log?
    pub log: bool,
    /// About how many entries the log keeps.
    pub maxlen: u64,
    /// Are plain XADDs materialized into this version?
    pub consumer: bool,
    /// What happens to unknown fields.
    pub extra: Extra,
    /// An event id that an entity saw within this time is not taken again, milliseconds.
    pub dedup_ms: Option<i64>,
    /// Which values are sampled.
    pub sample: Sampling,
    /// How rows are stored.
    pub storage: Storage,
    /// For people.
    pub description: String,
    /// The schema, in its order.
    features: Vec<Feature>,
    by_name: FxHashMap<String, usize>,
}

impl FeatureView {
    /// A view without features and with the defaults of every option.
    pub fn new(name: &[u8], version: u32, entity: &[u8]) -> Result<Self> {
        Ok(FeatureView {
            name: checked_name("view name", name)?.to_owned(),
            version,
            entity: checked_name("entity name", entity)?.to_owned(),
            ttl_ms: None,
            ttl_was_removed: false,
            log: true,
            maxlen: MAXLEN_DEFAULT,
            consumer: true,
            extra: Extra::Refuse,
            dedup_ms: None,
            sample: Sampling::default(),
            storage: Storage::Hash,
            description: String::new(),
            features: Vec::new(),
            by_name: FxHashMap::default(),
        })
    }

    /// Adds a feature at the end of the schema.
    pub fn add_feature(&mut self, feature: Feature) -> Result<()> {
        feature.check(&self.name)?;
        if self.by_name.contains_key(&feature.name) {
            return Err(Error::syntax(format!("feature '{}' of view '{}' is named twice", feature.name, self.name)));
        }
        if self.features.len() == FEATURES_MAX {
            return Err(Error::syntax(format!("view '{}' has more than {FEATURES_MAX} features", self.name)));
        }
        self.by_name.insert(feature.name.clone(), self.features.len());
        self.features.push(feature);
        Ok(())
    }

    /// Checks what can only be said of the whole view, and settles what follows from it.
    pub fn check(&mut self) -> Result<()> {
        self.settle_windows()?;
        if self.features.is_empty() {
            return Err(Error::syntax(format!("SCHEMA of view '{}' has no features", self.name)));
        }
        if self.storage == Storage::Packed {
            Packing::of(self)?;
        }
        if let (Some(ttl), Some(feature)) =
            (self.ttl_ms, self.features.iter().find(|f| f.ttl_ms > self.ttl_ms && self.ttl_ms.is_some()))
        {
            return Err(Error::syntax(format!(
                "feature '{}' of view '{}': its TTL may only be shorter than the view's ({})",
                feature.name,
                self.name,
                crate::time::format_duration(ttl)
            )));
        }
        Ok(())
    }

    fn settle_windows(&mut self) -> Result<()> {
        let has_inputs = self.features.iter().any(|f| f.input);
        for i in 0..self.features.len() {
            let Some(window) = self.features[i].window.clone() else { continue };
            let input_of = |name: &str| self.position(name.as_bytes(), 0).map(|i| &self.features[i]);
            let function = check_window(&self.name, &self.features[i], &window, has_inputs, input_of)?;
            if let Some(weight) = window.weight.as_ref().and_then(|w| self.position(w.as_bytes(), 0)) {
                self.features[weight].is_weight = true;
            }
            self.features[i].window = Some(Window { function, ..window });
        }
        let state_bytes = Layout::of(self).map_or(0, |layout| layout.bytes_max());
        if state_bytes > STATE_BYTES_MAX {
            return Err(Error::syntax(format!(
                "the windows of one entity of view '{}' could take {state_bytes} bytes, allowed are {STATE_BYTES_MAX}: \
                 give longer HOPs",
                self.name
            )));
        }
        Ok(())
    }

    /// The same definition? What an alteration left behind in rows is no part of it.
    pub fn is_same_definition(&self, other: &FeatureView) -> bool {
        FeatureView { ttl_was_removed: other.ttl_was_removed, ..self.clone() } == *other
    }

    /// The schema, in its order.
    pub fn features(&self) -> &[Feature] {
        &self.features
    }

    /// The features that a reader gets: all but the inputs, as indices in the schema's order.
    pub fn served(&self) -> impl Iterator<Item = usize> + '_ {
        self.features.iter().enumerate().filter(|(_, f)| !f.input).map(|(i, _)| i)
    }

    /// The features that rows hold, as indices in the schema's order.
    pub fn stored(&self) -> impl Iterator<Item = usize> + '_ {
        self.features.iter().enumerate().filter(|(_, f)| f.is_stored()).map(|(i, _)| i)
    }

    /// The index of a feature. `hint` is looked at first: writers and rows mostly keep the schema's order.
    pub fn position(&self, name: &[u8], hint: usize) -> Option<usize> {
        if self.features.get(hint).is_some_and(|f| f.name.as_bytes() == name) {
            return Some(hint);
        }
        self.by_name.get(std::str::from_utf8(name).ok()?).copied()
    }

    /// The index of a feature that a reader named.
    pub fn served_position(&self, name: &[u8], hint: usize) -> Result<usize> {
        match self.position(name, hint) {
            Some(i) if !self.features[i].input => Ok(i),
            Some(_) => Err(Error::new(
                Code::NoFeature,
                format!("feature '{}' of view '{}' is an INPUT and is not served", shown(name), self.name),
            )),
            None => Err(self.no_feature(name)),
        }
    }

    /// The features that a reader named, comma-separated, or `*` for all in the schema's order.
    pub fn served_positions(&self, names: &[u8]) -> Result<Vec<usize>> {
        if names == b"*" {
            return Ok(self.served().collect());
        }
        names
            .split(|b| *b == b',')
            .enumerate()
            .map(|(hint, name)| self.served_position(name.trim_ascii(), hint))
            .collect()
    }

    /// The error for a feature that the view does not have.
    pub fn no_feature(&self, name: &[u8]) -> Error {
        Error::new(Code::NoFeature, format!("view '{}' has no feature '{}'", self.name, shown(name)))
    }

    /// Longest age at which a feature is served, milliseconds: the shorter of its own and the view's.
    pub fn age_ms_max(&self, feature: usize) -> Option<i64> {
        match (self.ttl_ms, self.features[feature].ttl_ms) {
            (Some(view), Some(own)) => Some(view.min(own)),
            (view, own) => own.or(view),
        }
    }

    /// How many tensor columns each of these features fills. A feature without a number is an error.
    pub fn tensor_columns(&self, features: &[usize]) -> Result<Vec<usize>> {
        features
            .iter()
            .map(|i| {
                let feature = &self.features[*i];
                feature.columns().ok_or_else(|| {
                    let hint = if feature.ty == FeatureType::String { " (a STRING needs VALUES)" } else { "" };
                    Error::schema(format!(
                        "feature '{}' of view '{}' is {} and has no number{hint}",
                        feature.name, self.name, feature.ty
                    ))
                })
            })
            .collect()
    }
}

//! Packed rows: a row as one string of bytes instead of a hash. docs/PACKED.md tells clients the same.
//!
//! All numbers are little-endian. Offsets of slots depend on the definition alone, so a client reads them with a struct
//! format or a numpy dtype:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 1 | 1, or 129 for a row with times of its own |
//! | 1 | 2 | how many slots the row has: up to that of the last feature that it holds or has a time of |
//! | 3 | 3 | fingerprint of the features of these slots |
//! | 6 | 6 | newest event time, unix milliseconds, signed |
//! | 12 | | the slots, in the schema's order |
//! | | slots / 8, rounded up | which of them hold a value, the lowest bit of a byte first |
//! | | 2 + 10 each | only with times of its own: how many, then for each the slot (2) and its event time (8) |
//! | | | the texts of STRING and LIST |
//!
//! A slot is an INT, a TIMESTAMP (8 bytes), a FLOAT (8), a BOOL (1), a VECTOR n (n float32), a STRING with VALUES (its
//! index there, 4), or any other STRING or LIST: where in the row its text ends (4). It begins where the text of the
//! STRING or LIST before it ends, the first one before all texts. A slot without a value is zero, but for texts.

use crate::definition::{Feature, FeatureView};
use crate::error::{Error, Result};
use crate::feature_type::FeatureType;
use crate::materialize::{RowTimes, TimesChange, UNKNOWN_TIME_MS};
use crate::update::Update;
use crate::value::Value;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::hint::black_box;
use xxhash_rust::xxh3::Xxh3;

const FORMAT: u8 = 1;
const HAS_TIMES: u8 = 128;
const SLOTS_AT: usize = 1;
const FINGERPRINT_AT: usize = 3;
const TIME_AT: usize = 6;
const HEADER_BYTES: usize = 12;
const TIME_BYTES: usize = 10;
/// No event time lies farther from 1970: what does was no event time.
const UNIX_MS_MAX: u64 = 100_000_000_000_000;
/// Most that the slots of a view may take: every update writes the row anew.
pub const SLOTS_BYTES_MAX: usize = 1 << 20;
/// Most that all texts of a row may take.
const TEXTS_BYTES_MAX: usize = 128 << 20;
/// No row that was written here is longer; what is, is none.
const ROW_BYTES_MAX: usize = 384 << 20;

/// Where a feature stands in packed rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    /// Its index in the schema.
    feature: usize,
    /// From the row's start.
    offset: usize,
    size: usize,
    /// It tells where a text ends.
    is_text: bool,
    /// The text before.
    text_before: Option<usize>,
}

/// How the rows of a view are packed.
#[derive(Debug)]
pub struct Packing {
    slots: Vec<Slot>,
    /// By feature: its slot.
    slot_of: Vec<Option<usize>>,
    /// By number of slots: the fingerprint of their features.
    fingerprints: Vec<[u8; 3]>,
    texts: usize,
    /// Where the bits of what is present begin in a row that has all slots.
    present_at: usize,
}

/// A packed row, checked: all that it says lies inside of it.
#[derive(Debug, Clone, Copy)]
pub struct PackedRow<'a> {
    packing: &'a Packing,
    bytes: &'a [u8],
    slots: usize,
    /// Where the bits of what is present begin.
    present_at: usize,
    times: &'a [u8],
    texts_at: usize,
}

fn is_category(feature: &Feature) -> bool {
    feature.ty == FeatureType::String && !feature.values.as_slice().is_empty()
}

/// The bytes of a feature's slot, and whether it tells of a text.
fn slot_size(feature: &Feature) -> (usize, bool) {
    match feature.ty {
        FeatureType::Int | FeatureType::Float | FeatureType::Timestamp => (8, false),
        FeatureType::Bool => (1, false),
        FeatureType::Vector(n) => (n as usize * 4, false),
        FeatureType::String if is_category(feature) => (4, false),
        FeatureType::String | FeatureType::List => (4, true),
    }
}

/// The slot of a feature as numpy names its type.
fn slot_format(feature: &Feature) -> Cow<'static, str> {
    match feature.ty {
        FeatureType::Int | FeatureType::Timestamp => "<i8".into(),
        FeatureType::Float => "<f8".into(),
        FeatureType::Bool => "|u1".into(),
        FeatureType::Vector(n) => format!("({n},)<f4").into(),
        FeatureType::String if is_category(feature) => "<u4".into(),
        FeatureType::String | FeatureType::List => "<u4".into(),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The time in a row's header, and its fingerprint: cut to what they need.
fn time_at(bytes: &[u8]) -> Option<i64> {
    let [a, b, c, d, e, f] = bytes.get(TIME_AT..HEADER_BYTES)?.try_into().ok()?;
    // The upper half keeps the sign.
    Some(i64::from_le_bytes([0, 0, a, b, c, d, e, f]) >> 16)
}

fn fingerprint_of(hash: &Xxh3) -> [u8; 3] {
    let [a, b, c, ..] = hash.digest().to_le_bytes();
    [a, b, c]
}

fn i64_at(bytes: &[u8], at: usize) -> Option<i64> {
    Some(i64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

impl Packing {
    /// That of a view. An error: its rows would be too large.
    pub fn of(view: &FeatureView) -> Result<Self> {
        let mut packing = Packing {
            slots: Vec::new(),
            slot_of: vec![None; view.features().len()],
            fingerprints: Vec::new(),
            texts: 0,
            present_at: 0,
        };
        let mut fingerprint = Xxh3::new();
        let mut offset = HEADER_BYTES;
        for feature in view.stored() {
            let definition = &view.features()[feature];
            let (size, is_text) = slot_size(definition);
            packing.fingerprints.push(fingerprint_of(&fingerprint));
            packing.slot_of[feature] = Some(packing.slots.len());
            let text_before = packing.slots.iter().rposition(|slot| slot.is_text).filter(|_| is_text);
            packing.slots.push(Slot { feature, offset, size, is_text, text_before });
            packing.texts += usize::from(is_text);
            offset += size;
            let values = definition.values.as_slice().iter().map(String::as_str);
            for part in [definition.name.as_str(), &definition.ty.to_string()].into_iter().chain(values) {
                fingerprint.update(part.as_bytes());
                fingerprint.update(&[0]);
            }
            // Features are told apart from the values of the one before.
            fingerprint.update(&[0]);
        }
        packing.fingerprints.push(fingerprint_of(&fingerprint));
        packing.present_at = offset;
        if offset - HEADER_BYTES > SLOTS_BYTES_MAX {
            return Err(Error::syntax(format!(
                "a row of view '{}' would have slots of {} bytes, STORAGE PACKED allows {SLOTS_BYTES_MAX}",
                view.name,
                offset - HEADER_BYTES
            )));
        }
        Ok(packing)
    }

    /// The slots: feature, offset in the row, and type as numpy names it.
    pub fn slots<'p>(&'p self, view: &'p FeatureView) -> impl Iterator<Item = (&'p str, usize, Cow<'static, str>)> {
        self.slots.iter().map(|slot| {
            let feature = &view.features()[slot.feature];
            (feature.name.as_str(), slot.offset, slot_format(feature))
        })
    }

    fn slots_end(&self, slots: usize) -> usize {
        slots.checked_sub(1).map_or(HEADER_BYTES, |last| self.slots[last].offset + self.slots[last].size)
    }

    /// Reads a row. `None`: it is none of this view, or damaged.
    pub fn open<'a>(&'a self, bytes: &'a [u8]) -> Option<PackedRow<'a>> {
        // Rows lie anywhere in memory. Where the bits are is known by the header alone; asking for them now lets both
        // come at once instead of one after the other.
        black_box(bytes.get(self.present_at).copied());
        if !(HEADER_BYTES..=ROW_BYTES_MAX).contains(&bytes.len()) || bytes[0] & !HAS_TIMES != FORMAT {
            return None;
        }
        let slots = usize::from(u16_at(bytes, SLOTS_AT)?);
        if bytes[FINGERPRINT_AT..TIME_AT] != *self.fingerprints.get(slots)? {
            return None;
        }
        let present_at = self.slots_end(slots);
        let times_at = present_at + slots.div_ceil(8);
        let times = match bytes[0] & HAS_TIMES {
            HAS_TIMES => {
                let count = usize::from(u16_at(bytes, times_at)?);
                bytes.get(times_at + 2..times_at + 2 + count * TIME_BYTES)?
            }
            _ => bytes.get(times_at..times_at)?,
        };
        let texts_at = match times.is_empty() && bytes[0] & HAS_TIMES == 0 {
            true => times_at,
            false => times_at + 2 + times.len(),
        };
        let row = PackedRow { packing: self, bytes, slots, present_at, times, texts_at };
        let is_time = |time: Option<i64>| time.is_some_and(|ms| ms.unsigned_abs() <= UNIX_MS_MAX);
        let is_of_slot = |time: &[u8]| u16_at(time, 0).is_some_and(|slot| usize::from(slot) < slots);
        if !is_time(time_at(bytes)) || !times.chunks_exact(TIME_BYTES).all(|t| is_of_slot(t) && is_time(i64_at(t, 2))) {
            return None;
        }
        // Texts follow each other and end inside of the row.
        let mut end = texts_at;
        let mut follows = |slot: &Slot| {
            let begin = std::mem::replace(&mut end, u32_at(bytes, slot.offset).unwrap_or_default() as usize);
            begin <= end && end <= bytes.len()
        };
        let is_sound = self.texts == 0 || self.slots[..slots].iter().filter(|slot| slot.is_text).all(&mut follows);
        is_sound.then_some(row)
    }

    /// Refuses an update with a text so long that a row of such texts could not be stored, or that makes a row of so many
    /// bytes (0: none is there) too long.
    pub fn check_update(&self, view: &FeatureView, update: &Update, row_bytes: usize) -> Result<()> {
        if self.texts == 0 {
            return Ok(());
        }
        let most = TEXTS_BYTES_MAX / self.texts;
        let is_text = |feature: usize| self.slot_of[feature].is_some_and(|place| self.slots[place].is_text);
        let texts = update.changes().iter().filter(|c| is_text(c.feature));
        let mut all = row_bytes;
        for change in texts {
            let bytes = update.field(change).map_or(0, <[u8]>::len);
            let name = || format!("feature '{}' of view '{}'", view.features()[change.feature].name, view.name);
            if bytes > most {
                let why = format!("a text in a packed row has at most {most} bytes, got {bytes}");
                return Err(Error::schema(format!("{}: {why}", name())));
            }
            all += bytes;
            // Slots, bits and times take far less than what is left to texts.
            if all + 2 * SLOTS_BYTES_MAX > ROW_BYTES_MAX && bytes > 0 {
                let why = format!("with {bytes} bytes more its packed row, of {row_bytes}, would be too long");
                return Err(Error::schema(format!("{}: {why}", name())));
            }
        }
        Ok(())
    }

    /// The times of slots in the row that an update makes of another.
    fn new_times(&self, view: &FeatureView, old: Option<&PackedRow<'_>>, change: &TimesChange<'_>) -> Vec<(u16, i64)> {
        let exceptions = match (change, old) {
            (TimesChange::Set(text), _) => RowTimes::read(view, None, Some(text.as_bytes())),
            (TimesChange::Keep, Some(old)) => old.times(),
            (TimesChange::Keep, None) | (TimesChange::Remove, _) => return Vec::new(),
        };
        let exceptions = exceptions.exceptions().iter();
        exceptions.filter_map(|(feature, time_ms)| Some((self.slot_of[*feature]? as u16, *time_ms))).collect()
    }

    /// The row that an update makes of another. `fields`: by feature, the stored form as a hash has it; `None` removes.
    pub fn rewrite<'f>(
        &self,
        view: &FeatureView,
        old: Option<PackedRow<'_>>,
        updated_at_ms: Option<i64>,
        times: &TimesChange<'_>,
        fields: impl Iterator<Item = (usize, Option<&'f [u8]>)>,
    ) -> Vec<u8> {
        let mut row =
            Vec::with_capacity(old.map_or(0, |old| old.bytes.len()).max(self.slots_end(self.slots.len())) + 32);
        row.resize(HEADER_BYTES, 0);
        let mut present: SmallVec<[u8; 16]> = SmallVec::from_elem(0, self.slots.len().div_ceil(8));
        let mut texts: SmallVec<[(usize, &[u8]); 8]> = SmallVec::new();
        if let Some(old) = &old {
            row.extend_from_slice(&old.bytes[HEADER_BYTES..old.present_at]);
            let absent = self.slots[..old.slots].iter().enumerate().filter(|(place, _)| !old.holds_slot(*place));
            absent.for_each(|(_, slot)| row[slot.offset..slot.offset + slot.size].fill(0));
            present[..old.slots.div_ceil(8)].copy_from_slice(old.present());
            // Bits after the last slot are none of ours, whoever set them.
            (old.slots..old.slots.next_multiple_of(8)).for_each(|i| present[i / 8] &= !(1 << (i % 8)));
            texts.extend(old.texts());
        }
        row.resize(self.slots_end(self.slots.len()), 0);
        for (feature, field) in fields {
            let Some(place) = self.slot_of[feature] else { continue };
            let (slot, definition) = (self.slots[place], &view.features()[feature]);
            if slot.is_text {
                texts.retain(|(text_of, _)| *text_of != place);
            }
            let out = &mut row[slot.offset..slot.offset + slot.size];
            let value = field.and_then(|field| Value::from_field(definition.ty, field));
            match (&value, field) {
                (Some(_), Some(field)) if slot.is_text => texts.push((place, field)),
                (Some(value), _) => write_slot(definition, value, out),
                (None, _) => out.fill(0),
            }
            match value {
                Some(_) => present[place / 8] |= 1 << (place % 8),
                None => present[place / 8] &= !(1 << (place % 8)),
            }
        }
        let times = self.new_times(view, old.as_ref(), times);
        let last_named = times.iter().map(|(slot, _)| usize::from(*slot) + 1).max();
        let last_present =
            (0..self.slots.len()).rev().find(|i| present[i / 8] >> (i % 8) & 1 == 1).map(|last| last + 1);
        let slots = last_named.max(last_present).unwrap_or(0);
        row.truncate(self.slots_end(slots));
        row.extend_from_slice(&present[..slots.div_ceil(8)]);
        if !times.is_empty() {
            row[0] = HAS_TIMES;
            row.extend_from_slice(&(times.len() as u16).to_le_bytes());
            for (slot, time_ms) in &times {
                row.extend_from_slice(&slot.to_le_bytes());
                row.extend_from_slice(&time_ms.to_le_bytes());
            }
        }
        texts.sort_unstable_by_key(|(place, _)| *place);
        let mut texts = texts.into_iter().peekable();
        let of_texts = self.slots[..slots].iter().enumerate().filter(|(_, slot)| slot.is_text && self.texts > 0);
        for (place, slot) in of_texts {
            if let Some((_, text)) = texts.next_if(|(of, _)| *of == place) {
                row.extend_from_slice(text);
            }
            let end = row.len() as u32;
            row[slot.offset..slot.offset + 4].copy_from_slice(&end.to_le_bytes());
        }
        row[0] |= FORMAT;
        row[SLOTS_AT..FINGERPRINT_AT].copy_from_slice(&(slots as u16).to_le_bytes());
        row[FINGERPRINT_AT..TIME_AT].copy_from_slice(&self.fingerprints[slots]);
        let updated_at_ms = updated_at_ms.or(old.map(|old| old.updated_at_ms())).unwrap_or_default();
        row[TIME_AT..HEADER_BYTES].copy_from_slice(&updated_at_ms.to_le_bytes()[..HEADER_BYTES - TIME_AT]);
        row
    }
}

fn write_slot(feature: &Feature, value: &Value<'_>, out: &mut [u8]) {
    match value {
        Value::Int(v) | Value::Timestamp(v) => out.copy_from_slice(&v.to_le_bytes()),
        Value::Float(v) => out.copy_from_slice(&v.to_le_bytes()),
        Value::Bool(v) => out[0] = u8::from(*v),
        Value::Vector(v) => out.chunks_exact_mut(4).zip(v).for_each(|(out, x)| out.copy_from_slice(&x.to_le_bytes())),
        Value::String(text) => {
            // An update was checked against VALUES; the index of another value is beyond them, which reads as INVALID.
            let index = feature.values.index_of(text).map_or(u32::MAX, |i| i as u32);
            out.copy_from_slice(&index.to_le_bytes());
        }
        Value::List(_) => {}
    }
}

impl<'a> PackedRow<'a> {
    fn present(&self) -> &'a [u8] {
        &self.bytes[self.present_at..self.present_at + self.slots.div_ceil(8)]
    }

    fn holds_slot(&self, place: usize) -> bool {
        place < self.slots && self.bytes[self.present_at + place / 8] >> (place % 8) & 1 == 1
    }

    fn texts(&self) -> impl Iterator<Item = (usize, &'a [u8])> + '_ {
        let places = (0..if self.packing.texts > 0 { self.slots } else { 0 }).filter(|place| self.holds_slot(*place));
        places.filter(|place| self.packing.slots[*place].is_text).map(|place| (place, self.at_slot(place)))
    }

    /// What stands in a slot, or the text that it tells of.
    fn at_slot(&self, place: usize) -> &'a [u8] {
        let (start, end) = self.span(place);
        &self.bytes[start..end]
    }

    fn span(&self, place: usize) -> (usize, usize) {
        let slot = self.packing.slots[place];
        if !slot.is_text {
            return (slot.offset, slot.offset + slot.size);
        }
        // `open` has checked that they follow each other in the row.
        let end_of = |slot: Slot| u32_at(self.bytes, slot.offset).unwrap_or_default() as usize;
        (slot.text_before.map_or(self.texts_at, |before| end_of(self.packing.slots[before])), end_of(slot))
    }

    /// The newest event time, unix milliseconds.
    pub fn updated_at_ms(&self) -> i64 {
        time_at(self.bytes).unwrap_or_default()
    }

    /// Does it hold a value of this feature?
    pub fn holds(&self, feature: usize) -> bool {
        self.packing.slot_of[feature].is_some_and(|place| self.holds_slot(place))
    }

    /// Where in the row the value of a feature stands, for [`value_of`]. `None`: it holds none.
    pub fn span_of(&self, feature: usize) -> Option<(usize, usize)> {
        let place = self.packing.slot_of[feature]?;
        self.holds_slot(place).then(|| self.span(place))
    }

    /// The event time of a slot that has one of its own.
    fn time_of(&self, slot: usize) -> Option<i64> {
        let mut times = self.times.chunks_exact(TIME_BYTES);
        times.find(|time| u16_at(time, 0) == Some(slot as u16)).and_then(|time| i64_at(time, 2))
    }

    /// The event time of a feature that it holds. `None`: its writer left none.
    pub fn event_time_ms(&self, feature: usize) -> Option<i64> {
        let own = self.packing.slot_of[feature].and_then(|slot| self.time_of(slot));
        Some(own.unwrap_or(self.updated_at_ms())).filter(|time| *time != UNKNOWN_TIME_MS)
    }

    /// What stands there.
    pub fn value_bytes(&self, feature: usize) -> Option<&'a [u8]> {
        self.span_of(feature).map(|(start, end)| &self.bytes[start..end])
    }

    /// Its event times.
    pub fn times(&self) -> RowTimes {
        let slots = &self.packing.slots;
        let read = |time: &[u8]| Some((slots.get(usize::from(u16_at(time, 0)?))?.feature, i64_at(time, 2)?));
        let exceptions = self.times.chunks_exact(TIME_BYTES).filter_map(read).collect();
        RowTimes::new(Some(self.updated_at_ms()), exceptions)
    }
}

/// The value that stands at a feature's [`PackedRow::span_of`]. `None`: somebody wrote what is none of the type.
pub fn value_of<'a>(feature: &'a Feature, bytes: &'a [u8]) -> Option<Value<'a>> {
    let finite = |v: f64| v.is_finite().then_some(v);
    match feature.ty {
        FeatureType::Int => i64_at(bytes, 0).map(Value::Int),
        FeatureType::Timestamp => i64_at(bytes, 0).map(Value::Timestamp),
        FeatureType::Float => finite(f64::from_le_bytes(bytes.try_into().ok()?)).map(Value::Float),
        FeatureType::Bool => match bytes {
            [0] => Some(Value::Bool(false)),
            [1] => Some(Value::Bool(true)),
            _ => None,
        },
        FeatureType::Vector(_) => {
            let numbers = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            let numbers: Vec<f32> = numbers.collect();
            numbers.iter().all(|x| x.is_finite()).then_some(Value::Vector(numbers))
        }
        FeatureType::String if is_category(feature) => {
            let value = feature.values.as_slice().get(u32_at(bytes, 0)? as usize)?;
            Some(Value::String(Cow::Borrowed(value.as_bytes())))
        }
        FeatureType::String | FeatureType::List => Value::from_field(feature.ty, bytes),
    }
}

/// A feature whose numbers are read straight from packed rows, among those of a tensor's row.
#[derive(Debug, Clone, Copy)]
struct Step {
    /// Its place among what is read.
    place: usize,
    slot: usize,
    offset: usize,
    number: Number,
    /// Where its columns begin in the tensor's row, bytes.
    out: usize,
    /// A value older than this is not served as it is.
    age_ms_max: Option<i64>,
}

/// What stands in a slot that holds numbers.
#[derive(Debug, Clone, Copy)]
enum Number {
    Integer,
    Float,
    Bool,
    /// The index of a value among that many.
    Category(u32),
    /// So many bytes of float32.
    Vector(usize),
}

/// How some features are read from the packed rows of a view as the columns of a tensor.
#[derive(Debug, Clone, Default)]
pub struct Steps {
    steps: Vec<Step>,
    /// Places that no step reads: they have no slot.
    others: Vec<usize>,
}

impl Steps {
    /// `columns`: for each feature where its columns begin in the tensor's row, and how many they are.
    pub fn new(view: &FeatureView, packing: &Packing, features: &[usize], columns: &[(usize, usize)]) -> Self {
        let mut steps = Steps::default();
        for (place, (feature, (column, _))) in features.iter().zip(columns).enumerate() {
            let definition = &view.features()[*feature];
            let number = match definition.ty {
                FeatureType::Int | FeatureType::Timestamp => Number::Integer,
                FeatureType::Float => Number::Float,
                FeatureType::Bool => Number::Bool,
                FeatureType::Vector(n) => Number::Vector(n as usize * 4),
                FeatureType::String | FeatureType::List => Number::Category(definition.values.as_slice().len() as u32),
            };
            match packing.slot_of[*feature] {
                Some(slot) => {
                    let offset = packing.slots[slot].offset;
                    let age_ms_max = view.age_ms_max(*feature);
                    steps.steps.push(Step { place, slot, offset, number, out: column * 4, age_ms_max });
                }
                None => steps.others.push(place),
            }
        }
        steps
    }

    /// Places that are not read from the row.
    pub fn others(&self) -> &[usize] {
        &self.others
    }

    /// Writes all numbers that the row holds, fresh and sound, and tells the places of these, and of all others that it
    /// was to read.
    pub fn read(
        &self,
        row: &PackedRow<'_>,
        now_ms: i64,
        out: &mut [u8],
        mut own: impl FnMut(usize),
        mut other: impl FnMut(usize),
    ) {
        let updated_at_ms = row.updated_at_ms();
        for step in &self.steps {
            let time_ms = || row.time_of(step.slot).unwrap_or(updated_at_ms);
            let is_fresh = || match step.age_ms_max {
                None => true,
                Some(max) => matches!(time_ms(), UNKNOWN_TIME_MS) || now_ms.saturating_sub(time_ms()) <= max,
            };
            if row.holds_slot(step.slot)
                && is_fresh()
                && step.number.write(&row.bytes[step.offset..], &mut out[step.out..])
            {
                own(step.place);
            } else {
                other(step.place);
            }
        }
    }
}

impl Number {
    /// Writes the number or numbers that stand at the beginning of `bytes`. False: they are none of the type.
    fn write(self, bytes: &[u8], out: &mut [u8]) -> bool {
        let number = match self {
            Number::Integer => i64_at(bytes, 0).map(|v| v as f32),
            Number::Float => {
                i64_at(bytes, 0).map(|bits| f64::from_bits(bits as u64)).filter(|v| v.is_finite()).map(|v| v as f32)
            }
            Number::Bool => bytes.first().filter(|v| **v <= 1).map(|v| f32::from(*v)),
            Number::Category(count) => u32_at(bytes, 0).filter(|i| *i < count).map(|i| i as f32),
            Number::Vector(size) => {
                let (Some(bytes), Some(out)) = (bytes.get(..size), out.get_mut(..size)) else { return false };
                let numbers = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                if !numbers.fold(true, |all, x| all & x.is_finite()) {
                    return false;
                }
                out.copy_from_slice(bytes);
                return true;
            }
        };
        match (number, out.first_chunk_mut::<4>()) {
            (Some(number), Some(out)) => {
                *out = number.to_le_bytes();
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Arguments;
    use crate::row::write_columns;
    use crate::schema_syntax::parse_registration;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const SCHEMA: &str =
        "ENTITY u STORAGE PACKED SCHEMA i INT f FLOAT n INT INPUT s STRING b BOOL c STRING VALUES 3 x y z \
                          v VECTOR 2 t TIMESTAMP l LIST w INT AGG COUNT n WINDOW 1d z FLOAT";

    fn view(words: &str) -> FeatureView {
        let words: Vec<&[u8]> = words.split_whitespace().map(str::as_bytes).collect();
        parse_registration(b"v", &mut Arguments::new(&words)).expect("a definition")
    }

    /// A row's values by name, in the stored form of a hash.
    fn values(view: &FeatureView, packing: &Packing, row: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let open = packing.open(row).expect("a row");
        let features = view.features().iter().enumerate();
        features
            .filter_map(|(i, feature)| {
                let (start, end) = open.span_of(i)?;
                let value = value_of(feature, &row[start..end]).expect("a value");
                Some((feature.name.clone(), value.to_field()))
            })
            .collect()
    }

    fn field(view: &FeatureView, name: &str, text: &str) -> (usize, Vec<u8>) {
        let feature = view.position(name.as_bytes(), 0).expect("a feature");
        (feature, view.features()[feature].value_from_text("v", text.as_bytes()).expect("a value").to_field())
    }

    fn rewrite(view: &FeatureView, packing: &Packing, old: &[u8], changes: &[(usize, Option<Vec<u8>>)]) -> Vec<u8> {
        let changes = changes.iter().map(|(feature, field)| (*feature, field.as_deref()));
        packing.rewrite(view, packing.open(old), Some(5), &TimesChange::Keep, changes)
    }

    #[test]
    fn a_row_has_its_slots_where_the_documentation_says() {
        let view = view(SCHEMA);
        let packing = Packing::of(&view).expect("a packing");
        let slots: Vec<(&str, usize, String)> = packing.slots(&view).map(|(n, o, f)| (n, o, f.into_owned())).collect();
        let expected = [
            ("i", 12, "<i8"),
            ("f", 20, "<f8"),
            ("s", 28, "<u4"),
            ("b", 32, "|u1"),
            ("c", 33, "<u4"),
            ("v", 37, "(2,)<f4"),
            ("t", 45, "<i8"),
            ("l", 53, "<u4"),
            ("z", 57, "<f8"),
        ];
        assert_eq!(slots, expected.map(|(n, o, f)| (n, o, f.to_owned())));
        let changes = [("i", "-7"), ("s", "hi"), ("c", "z"), ("b", "1")].map(|(n, t)| field(&view, n, t));
        let changes = changes.map(|(feature, field)| (feature, Some(field)));
        let row = rewrite(&view, &packing, b"", &changes);
        // Five slots, one byte of bits, no times, then the text.
        assert_eq!(row.len(), 37 + 1 + 2);
        assert_eq!((row[0], row[1], row[6], row[37]), (1, 5, 5, 0b0001_1101));
        assert_eq!((&row[12..20], &row[20..28]), (&(-7i64).to_le_bytes()[..], &[0; 8][..]));
        assert_eq!((&row[28..32], &row[38..]), (&[40, 0, 0, 0][..], &b"hi"[..]));
        assert_eq!((row[32], &row[33..37]), (1, &2u32.to_le_bytes()[..]));
    }

    #[test]
    fn times_of_features_stand_in_the_row() {
        let view = view("ENTITY u STORAGE PACKED SCHEMA a INT b INT c STRING");
        let packing = Packing::of(&view).expect("a packing");
        let set = |text: &str| TimesChange::Set(Cow::Owned(text.to_owned()));
        let fields = [(0, Some(&b"1"[..])), (2, Some(&b"text"[..]))];
        let times = set(r#"{"a":1,"b":2.5}"#);
        let row = packing.rewrite(&view, None, Some(9_000), &times, fields.into_iter());
        let read = packing.open(&row).expect("a row").times();
        assert_eq!(
            (read.of_present(0), read.of_absent(1), read.of_present(2)),
            (Some(1_000), Some(2_500), Some(9_000))
        );
        // They stay, go and stay away.
        let kept = rewrite(&view, &packing, &row, &[(2, None)]);
        assert_eq!(packing.open(&kept).expect("a row").times().of_absent(1), Some(2_500));
        let none = packing.rewrite(&view, packing.open(&kept), None, &TimesChange::Remove, std::iter::empty());
        assert_eq!((packing.open(&none).expect("a row").times().of_absent(1), none[0]), (None, 1));
        assert_eq!(packing.open(&none).expect("a row").updated_at_ms(), 5);
    }

    #[test]
    fn a_view_may_grow_and_rows_of_another_view_are_told_apart() {
        let small = view("ENTITY u STORAGE PACKED SCHEMA a INT b STRING VALUES 2 x y");
        let grown = view("ENTITY u STORAGE PACKED SCHEMA a INT b STRING VALUES 2 x y c VECTOR 3");
        let others = [
            "ENTITY u STORAGE PACKED SCHEMA a FLOAT b STRING VALUES 2 x y",
            "ENTITY u STORAGE PACKED SCHEMA a INT b STRING VALUES 2 y x",
            "ENTITY u STORAGE PACKED SCHEMA a INT b STRING VALUES 3 x y z",
            "ENTITY u STORAGE PACKED SCHEMA d INT b STRING VALUES 2 x y",
        ];
        let packing = Packing::of(&small).expect("a packing");
        let row = rewrite(&small, &packing, b"", &[(0, Some(b"1".to_vec())), (1, Some(b"y".to_vec()))]);
        let wide = Packing::of(&grown).expect("a packing");
        assert_eq!(values(&grown, &wide, &row), values(&small, &packing, &row));
        let wider = rewrite(&grown, &wide, &row, &[(2, Some([0u8; 12].to_vec()))]);
        assert_eq!(values(&grown, &wide, &wider).len(), 3);
        assert!(packing.open(&wider).is_none());
        for other in others {
            assert!(Packing::of(&view(other)).expect("a packing").open(&row).is_none(), "{other}");
        }
    }

    #[test]
    fn removals_alone_are_of_the_features_that_they_name() {
        let of = |words: &str| view(&format!("ENTITY u STORAGE PACKED SCHEMA {words}"));
        let (ours, other) = (of("a INT b INT"), of("a INT z FLOAT"));
        let packing = Packing::of(&ours).expect("a packing");
        let times = TimesChange::Set(Cow::Borrowed(r#"{"b":1}"#));
        let row = packing.rewrite(&ours, None, Some(1_000), &times, [(0, Some(&b"1"[..])), (1, None)].into_iter());
        assert_eq!(packing.open(&row).expect("a row").times().of_absent(1), Some(1_000));
        assert!(Packing::of(&other).expect("a packing").open(&row).is_none());
    }

    #[test]
    fn a_view_too_wide_is_refused() {
        let mut words = String::from("ENTITY u STORAGE PACKED SCHEMA");
        (0..5).for_each(|i| words.push_str(&format!(" v{i} VECTOR 65536")));
        let words: Vec<&[u8]> = words.split_whitespace().map(str::as_bytes).collect();
        let error = parse_registration(b"v", &mut Arguments::new(&words)).expect_err("too wide");
        assert!(error.message.contains("STORAGE PACKED allows 1048576"), "{error}");
    }

    /// Values of each feature of SCHEMA, by an arbitrary number.
    fn some_value(view: &FeatureView, feature: usize, n: u64) -> Option<(usize, Vec<u8>)> {
        let name = view.features()[feature].name.clone();
        let text = match name.as_str() {
            "i" => (n as i64).to_string(),
            "f" | "z" => f64::from_bits(n).to_string(),
            "s" => format!("text {n} \u{e9}\0").repeat((n % 4) as usize),
            "b" => (n % 2).to_string(),
            "c" => ["x", "y", "z"][(n % 3) as usize].to_owned(),
            "v" => format!("{},{}", n as f32, 0.1),
            "t" => (200_000_000_000 + (n >> 24)).to_string(),
            "l" => format!("[{n},\"a\"]"),
            _ => return None,
        };
        view.features()[feature].value_from_text("v", text.as_bytes()).ok()?;
        Some(field(view, &name, &text))
    }

    proptest! {
        /// Whatever updates do to a row, it says what a map of the same updates says.
        #[test]
        fn a_row_is_what_its_updates_say(
            updates in proptest::collection::vec(
                proptest::collection::vec((0usize..11, proptest::option::of(any::<u64>())), 1..5), 1..12),
        ) {
            let view = view(SCHEMA);
            let packing = Packing::of(&view).expect("a packing");
            let (mut row, mut expected) = (Vec::new(), BTreeMap::new());
            for update in updates {
                let mut changes = Vec::new();
                for (feature, n) in update {
                    let name = view.features()[feature].name.clone();
                    match n.map(|n| some_value(&view, feature, n)) {
                        Some(None) => {}
                        Some(Some((feature, field))) => {
                            expected.insert(name, field.clone());
                            changes.push((feature, Some(field)));
                        }
                        None => {
                            expected.remove(&name);
                            changes.push((feature, None));
                        }
                    }
                }
                row = rewrite(&view, &packing, &row, &changes);
                prop_assert_eq!(&values(&view, &packing, &row), &expected);
                // Straight from the row, or over the value: the same columns.
                let open = packing.open(&row).expect("a row");
                let features: Vec<usize> = view.served().filter(|i| view.features()[*i].columns().is_some()).collect();
                let widths = view.tensor_columns(&features).expect("numbers");
                let columns: Vec<(usize, usize)> =
                    widths.iter().enumerate().map(|(i, n)| (widths[..i].iter().sum(), *n)).collect();
                let steps = Steps::new(&view, &packing, &features, &columns);
                let mut out = vec![0; widths.iter().sum::<usize>() * 4];
                let (mut own, mut others) = (Vec::new(), steps.others().to_vec());
                steps.read(&open, 0, &mut out, |place| own.push(place), |place| others.push(place));
                for place in own {
                    let (feature, (column, width)) = (features[place], columns[place]);
                    let (start, end) = open.span_of(feature).expect("a value");
                    let value = value_of(&view.features()[feature], &row[start..end]);
                    let mut by_value = vec![0; width * 4];
                    prop_assert!(write_columns(&view, feature, value.as_ref(), &mut by_value));
                    prop_assert_eq!(&out[column * 4..(column + width) * 4], &by_value);
                }
                prop_assert!(others.iter().all(|place| open.span_of(features[*place]).is_none()));
            }
        }

        #[test]
        fn damaged_rows_are_refused_or_read_without_a_panic(
            cut in any::<prop::sample::Index>(), flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        ) {
            let view = view(SCHEMA);
            let packing = Packing::of(&view).expect("a packing");
            let changes: Vec<_> = (0..11).filter_map(|i| some_value(&view, i, 7)).map(|(i, f)| (i, Some(f))).collect();
            let times = TimesChange::Set(Cow::Borrowed(r#"{"i":1,"f":2}"#));
            let fields = changes.iter().map(|(i, f)| (*i, f.as_deref()));
            let mut row = packing.rewrite(&view, None, Some(5), &times, fields);
            for (at, byte) in flips {
                let at = at.index(row.len());
                row[at] = byte;
            }
            row.truncate(cut.index(row.len() + 1));
            let Some(open) = packing.open(&row) else { return Ok(()) };
            let _ = open.times();
            let numbers: Vec<usize> = view.served().filter(|i| view.features()[*i].columns() == Some(1)).collect();
            let columns: Vec<(usize, usize)> = (0..numbers.len()).map(|i| (i, 1)).collect();
            let mut out = vec![0; numbers.len() * 4];
            Steps::new(&view, &packing, &numbers, &columns).read(&open, 0, &mut out, |_| (), |_| ());
            for (i, feature) in view.features().iter().enumerate() {
                if let Some((start, end)) = open.span_of(i) {
                    let _ = value_of(feature, &row[start..end]);
                }
            }
            // Whatever it was, it can be written again.
            let again = rewrite(&view, &packing, &row, &changes);
            prop_assert!(packing.open(&again).is_some());
        }
    }
}

//! What a writer says: an update of some features of one row, checked whole before anything is written.

use crate::definition::{Extra, FeatureView};
use crate::error::{shown, Error, Result};
use crate::time::checked_unix_ms;
use crate::value::Value;
use rustc_hash::FxHashMap;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::Deserialize;
use serde_json::value::RawValue;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::ops::Range;

/// A feature and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The feature's index in the schema.
    pub feature: usize,
    /// Where the stored form lies in the update's bytes; `None` removes the value.
    field: Option<Range<usize>>,
}

/// A checked update. Holds the stored forms of its values, so it can cross threads and outlive what it was read from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Update {
    changes: SmallVec<[Change; 4]>,
    /// Where each feature stands among the changes; only filled when they do not come in rising order.
    places: FxHashMap<usize, usize>,
    bytes: SmallVec<[u8; 64]>,
    /// Unknown fields that `EXTRA IGNORE` dropped.
    pub extra_dropped: u64,
}

impl Update {
    /// Reads `feature value [feature value ...]`.
    pub fn from_pairs(view: &FeatureView, pairs: &[&[u8]]) -> Result<Self> {
        let mut update = Update::default();
        if pairs.is_empty() {
            return Err(Error::syntax(format!("no feature of view '{}' is given", view.name)));
        }
        if pairs.len() % 2 == 1 {
            return Err(Error::syntax(format!(
                "feature '{}' of view '{}' is given without a value",
                shown(pairs[pairs.len() - 1]),
                view.name
            )));
        }
        update.changes.reserve(pairs.len() / 2);
        // A stored form is seldom longer than what was given.
        update.bytes.reserve(pairs.iter().skip(1).step_by(2).map(|value| value.len()).sum());
        for (hint, pair) in pairs.chunks_exact(2).enumerate() {
            let Some(feature) = update.known(view, pair[0], hint)? else { continue };
            let value = view.features()[feature].value_from_text(&view.name, pair[1])?;
            update.set(feature, Some(&value));
        }
        Ok(update)
    }

    /// An update of fields as another version of the view stores them; those that do not fit this one are left out and
    /// counted. `None` removes.
    pub fn of_fields(view: &FeatureView, fields: Vec<(usize, Option<Vec<u8>>)>) -> (Self, u64) {
        let (mut update, mut refused) = (Update::default(), 0);
        for (feature, field) in fields {
            match field {
                None => update.set(feature, None),
                Some(field) => match view.features()[feature].value_from_text(&view.name, &field) {
                    Ok(value) => update.set(feature, Some(&value)),
                    Err(_) => refused += 1,
                },
            }
        }
        (update, refused)
    }

    /// Reads a JSON object of feature to value; null removes.
    pub fn from_json(view: &FeatureView, text: &[u8]) -> Result<Self> {
        let members = Members::read(view, text)?;
        let mut update = Update::default();
        update.changes.reserve(members.0.len());
        update.bytes.reserve(text.len());
        for (hint, (name, raw)) in members.0.iter().enumerate() {
            update.take_member(view, name, raw, hint)?;
        }
        update.refuse_if_it_says_nothing(view)?;
        Ok(update)
    }

    fn take_member(&mut self, view: &FeatureView, name: &str, raw: &RawValue, hint: usize) -> Result<()> {
        let Some(feature) = self.known(view, name.as_bytes(), hint)? else { return Ok(()) };
        if raw.get() == "null" {
            self.set(feature, None);
        } else {
            let value = view.features()[feature].value_from_json(&view.name, raw)?;
            self.set(feature, Some(&value));
        }
        Ok(())
    }

    fn refuse_if_it_says_nothing(&self, view: &FeatureView) -> Result<()> {
        if self.changes.is_empty() && self.extra_dropped == 0 {
            return Err(Error::schema(format!("no feature of view '{}' is given", view.name)));
        }
        Ok(())
    }

    fn known(&mut self, view: &FeatureView, name: &[u8], hint: usize) -> Result<Option<usize>> {
        match (view.position(name, hint), view.extra) {
            (Some(feature), _) if view.features()[feature].window.is_some() => Err(Error::schema(format!(
                "feature '{}' of view '{}' is computed by AGG and takes no value",
                shown(name),
                view.name
            ))),
            (Some(feature), _) => Ok(Some(feature)),
            (None, Extra::Refuse) => Err(view.no_feature(name)),
            (None, Extra::Ignore) => {
                self.extra_dropped += 1;
                Ok(None)
            }
        }
    }

    /// The last word on a feature counts, as in HSET and in JSON readers.
    fn set(&mut self, feature: usize, value: Option<&Value<'_>>) {
        let field = value.map(|value| {
            let start = self.bytes.len();
            value.write_field(|part| self.bytes.extend_from_slice(part));
            start..self.bytes.len()
        });
        // Mostly features come in rising order, so that no earlier word can be about this one.
        if self.places.is_empty() && self.changes.last().is_none_or(|last| last.feature < feature) {
            self.changes.push(Change { feature, field });
            return;
        }
        if self.places.is_empty() {
            self.places = self.changes.iter().enumerate().map(|(place, c)| (c.feature, place)).collect();
        }
        match self.places.entry(feature) {
            Entry::Occupied(place) => self.changes[*place.get()].field = field,
            Entry::Vacant(place) => {
                place.insert(self.changes.len());
                self.changes.push(Change { feature, field });
            }
        }
    }

    /// The changes, one a feature.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// The stored form of a change's value; `None` removes it.
    pub fn field(&self, change: &Change) -> Option<&[u8]> {
        change.field.clone().map(|range| &self.bytes[range])
    }

    /// Does it give or take a value that stands in the row? Inputs alone leave the row as it is.
    pub fn is_of_row(&self, view: &FeatureView) -> bool {
        self.changes.iter().any(|c| view.features()[c.feature].is_stored())
    }

    /// True when every field was unknown and dropped.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// An update with the marks that FS.MPUBLISH allows inside the object: `_at` (milliseconds) and `_event`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StampedUpdate {
    /// The update.
    pub update: Update,
    /// Its event time, unix milliseconds.
    pub at_ms: Option<i64>,
    /// The event's id.
    pub event_id: Option<Vec<u8>>,
}

impl StampedUpdate {
    /// Reads a JSON object with the members `_at` and `_event` beside the features.
    pub fn from_json(view: &FeatureView, text: &[u8]) -> Result<Self> {
        let members = Members::read(view, text)?;
        let mut stamped = StampedUpdate { update: Update::default(), at_ms: None, event_id: None };
        let mut hint = 0;
        for (name, raw) in &members.0 {
            match name.as_ref() {
                "_at" => {
                    let ms = serde_json::from_str::<i64>(raw.get()).map_err(|_| {
                        Error::syntax(format!(
                            "_at must be a unix time in milliseconds, got {}",
                            shown(raw.get().as_bytes())
                        ))
                    })?;
                    stamped.at_ms = Some(checked_unix_ms("_at", ms)?);
                }
                "_event" => {
                    let id: Cow<'_, str> = serde_json::from_str(raw.get()).map_err(|_| {
                        Error::syntax(format!("_event must be a string, got {}", shown(raw.get().as_bytes())))
                    })?;
                    stamped.event_id = Some(checked_event_id(id.as_bytes())?.to_vec());
                }
                name => {
                    stamped.update.take_member(view, name, raw, hint)?;
                    hint += 1;
                }
            }
        }
        stamped.update.refuse_if_it_says_nothing(view)?;
        Ok(stamped)
    }
}

/// Longest event id, in bytes.
pub const EVENT_ID_BYTES_MAX: usize = 512;

/// An event id, checked: any bytes, 1 to 512 of them.
pub fn checked_event_id(id: &[u8]) -> Result<&[u8]> {
    if id.is_empty() || id.len() > EVENT_ID_BYTES_MAX {
        return Err(Error::syntax(format!(
            "event id '{}' has {} bytes, allowed are 1 to {EVENT_ID_BYTES_MAX}",
            shown(id),
            id.len()
        )));
    }
    Ok(id)
}

/// The members of a JSON object in their order, values unread.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    fn read(view: &FeatureView, text: &'a [u8]) -> Result<Self> {
        std::str::from_utf8(text)
            .map_err(|e| e.to_string())
            .and_then(|text| serde_json::from_str(text).map_err(|e| e.to_string()))
            .map_err(|why| {
                Error::schema(format!(
                    "features of view '{}' must be a JSON object, got '{}': {why}",
                    view.name,
                    shown(text)
                ))
            })
    }
}

/// A member's name, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<Self::Value, M::Error> {
                let mut members = Vec::with_capacity(8);
                while let Some(Name(name)) = map.next_key()? {
                    members.push((name, map.next_value()?));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Arguments;
    use crate::error::Code;
    use crate::schema_syntax::parse_registration;

    fn view(options: &str) -> FeatureView {
        let words = format!("ENTITY u {options} SCHEMA age INT MIN 0 name STRING score FLOAT on BOOL");
        let items: Vec<&[u8]> = words.split_whitespace().map(str::as_bytes).collect();
        parse_registration(b"profile", &mut Arguments::new(&items)).expect("a definition")
    }

    fn fields(update: &Update) -> Vec<(usize, Option<String>)> {
        update
            .changes()
            .iter()
            .map(|c| (c.feature, update.field(c).map(|f| String::from_utf8_lossy(f).into_owned())))
            .collect()
    }

    #[test]
    fn pairs_and_json_say_the_same() {
        let view = view("");
        let pairs: &[&[u8]] = &[b"score", b"0.50", b"age", b"7", b"name", b"x", b"age", b"8"];
        let from_pairs = Update::from_pairs(&view, pairs).expect("an update");
        let json = br#"{"score": 0.50, "age": 7, "n\u0061me": "x", "age": 8}"#;
        let from_json = Update::from_json(&view, json).expect("an update");
        assert_eq!(fields(&from_pairs), fields(&from_json));
        assert_eq!(fields(&from_json), [(2, Some("0.5".into())), (0, Some("8".into())), (1, Some("x".into()))]);
        let removal = Update::from_json(&view, br#"{"age": null}"#).expect("an update");
        assert_eq!(fields(&removal), [(0, None)]);
    }

    #[test]
    fn one_bad_field_refuses_the_whole_update_and_names_it() {
        let view = view("");
        let cases: &[(&[u8], Code, &str)] = &[
            (br#"{"age": "abc"}"#, Code::Schema, "feature 'age' of view 'profile' expects INT, got '\"abc\"'"),
            (br#"{"age": -1}"#, Code::Schema, "feature 'age' of view 'profile' expects INT, but '-1' is below MIN 0"),
            (br#"{"nonsense": 1}"#, Code::NoFeature, "view 'profile' has no feature 'nonsense'"),
            (b"[1]", Code::Schema, "must be a JSON object"),
            (b"{", Code::Schema, "must be a JSON object"),
            (b"{}", Code::Schema, "no feature of view 'profile' is given"),
            (b"\xff", Code::Schema, "must be a JSON object"),
            (b"{} x", Code::Schema, "must be a JSON object"),
        ];
        for (json, code, message) in cases {
            let error = Update::from_json(&view, json).expect_err("refused");
            assert!(error.code == *code && error.message.contains(message), "{error}");
        }
        assert!(Update::from_pairs(&view, &[b"age"]).is_err());
        assert!(Update::from_pairs(&view, &[]).is_err());
    }

    #[test]
    fn unknown_fields_can_be_dropped_and_are_counted() {
        let update = Update::from_json(&view("EXTRA IGNORE"), br#"{"x": [1], "age": 1}"#).expect("an update");
        assert_eq!((fields(&update), update.extra_dropped), (vec![(0, Some("1".into()))], 1));
    }

    #[test]
    fn stamps_stand_beside_the_features_only_where_allowed() {
        let view = view("");
        let json = br#"{"_at": 1700000000000, "_event": "e1", "age": 1}"#;
        let stamped = StampedUpdate::from_json(&view, json).expect("an update");
        assert_eq!((stamped.at_ms, stamped.event_id.as_deref()), (Some(1_700_000_000_000), Some(&b"e1"[..])));
        assert!(Update::from_json(&view, json).is_err());
        for bad in [r#"{"_at": 1700000000, "age": 1}"#, r#"{"_at": "x", "age": 1}"#, r#"{"_event": 5, "age": 1}"#] {
            assert!(StampedUpdate::from_json(&view, bad.as_bytes()).is_err(), "{bad}");
        }
    }
}

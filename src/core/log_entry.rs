//! Entries of a view's update log: what a plain XADD must bring, and what FS.PUBLISH writes.

use crate::definition::FeatureView;
use crate::error::{shown, Error, Result};
use crate::keys::checked_entity_id;
use crate::stream_id::StreamId;
use crate::time::{check_not_future, parse_unix_seconds};
use crate::update::{checked_event_id, Update};
use crate::value::{write_field_as_json, JsonKind};
use std::sync::Arc;

/// Field of a log entry: whose row it is about.
pub const ENTITY_ID: &str = "entity_id";
/// Field of a log entry: a JSON object of feature to value.
pub const FEATURES: &str = "features";
/// Field of a log entry: the event time, unix seconds; without it the entry's id tells the time.
pub const TIMESTAMP: &str = "timestamp";
/// Field of a log entry: the view, which must agree with the stream.
pub const FEATURE_VIEW: &str = "feature_view";
/// Field of a log entry: the event's id.
pub const EVENT_ID: &str = "event_id";
/// Field of a log entry that FS.PUBLISH wrote: its row is up to date already.
pub const APPLIED: &str = "applied";
/// Field of a dead letter: the id that the entry had in the log.
pub const SOURCE_ID: &str = "source_id";
/// Field of a dead letter: why.
pub const ERROR: &str = "error";

/// An entry as it stands in the stream. All of it lies in one buffer: entries are many and short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawEntry {
    /// Its id.
    pub id: StreamId,
    bytes: Vec<u8>,
    /// Where each field and each value ends, in turn.
    ends: Vec<usize>,
}

impl RawEntry {
    /// An entry without fields, with room for that many.
    pub fn new(id: StreamId, fields: usize) -> Self {
        RawEntry { id, bytes: Vec::with_capacity(192), ends: Vec::with_capacity(fields * 2) }
    }

    /// Adds a field at the end.
    pub fn push(&mut self, field: &[u8], value: &[u8]) {
        for part in [field, value] {
            self.bytes.extend_from_slice(part);
            self.ends.push(self.bytes.len());
        }
    }

    /// Its fields and their values, in order.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut start = 0;
        self.ends.chunks_exact(2).map(move |ends| {
            let (field, value) = (&self.bytes[start..ends[0]], &self.bytes[ends[0]..ends[1]]);
            start = ends[1];
            (field, value)
        })
    }

    fn get(&self, name: &str) -> Option<&[u8]> {
        // The last word counts, as in clients that read an entry into a dictionary.
        self.fields().filter(|(field, _)| *field == name.as_bytes()).map(|(_, value)| value).last()
    }

    /// True for an entry that FS.PUBLISH wrote together with its row.
    pub fn is_applied(&self) -> bool {
        self.get(APPLIED).is_some()
    }

    /// Bytes that it holds.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }
}

/// An entry, read and checked against versions of its view.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodedEntry {
    /// Whose row it is about.
    pub entity_id: Vec<u8>,
    /// When the fact was true, unix milliseconds.
    pub event_time_ms: i64,
    /// The event's id.
    pub event_id: Option<Vec<u8>>,
    /// For each version that was asked for, in that order: the update, or why there is none.
    pub updates: Vec<Result<Update>>,
}

/// Reads an entry for some versions of its view. An error says that the entry is no update of any of them.
pub fn decode_entry(
    entry: &RawEntry,
    versions: &[Arc<FeatureView>],
    now_ms: i64,
    clock_skew_ms_max: i64,
) -> Result<DecodedEntry> {
    let view = versions.first().map_or("", |v| v.name.as_str());
    let required = |name: &str| {
        entry.get(name).ok_or_else(|| Error::schema(format!("entry of view '{view}' lacks the field {name}")))
    };
    if let Some(named) = entry.get(FEATURE_VIEW).filter(|named| *named != view.as_bytes()) {
        return Err(Error::schema(format!("entry in the stream of view '{view}' names view '{}'", shown(named))));
    }
    let of_view = |error: Error| Error::new(error.code, format!("{} (entry of view '{view}')", error.message));
    let entity_id = checked_entity_id(required(ENTITY_ID)?).map_err(of_view)?.to_vec();
    let features = required(FEATURES)?;
    let event_id = entry.get(EVENT_ID).map(checked_event_id).transpose().map_err(of_view)?.map(<[u8]>::to_vec);
    let event_time_ms = match entry.get(TIMESTAMP) {
        Some(text) => parse_unix_seconds(&format!("timestamp of view '{view}'"), text)?,
        None => i64::try_from(entry.id.ms).unwrap_or(i64::MAX),
    };
    check_not_future(event_time_ms, now_ms, clock_skew_ms_max, view)?;
    let updates = versions.iter().map(|view| Update::from_json(view, features)).collect();
    Ok(DecodedEntry { entity_id, event_time_ms, event_id, updates })
}

/// Writes the JSON object of a log entry's `features`.
pub fn write_features<'a>(fields: impl Iterator<Item = (&'a str, JsonKind, Option<&'a [u8]>)>, out: &mut Vec<u8>) {
    out.push(b'{');
    for (i, (name, kind, field)) in fields.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        // A feature's name needs no escapes.
        out.push(b'"');
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":");
        match field {
            Some(field) => write_field_as_json(kind, field, out),
            None => out.extend_from_slice(b"null"),
        }
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Arguments;
    use crate::schema_syntax::parse_registration;

    const NOW_MS: i64 = 1_700_000_000_000;

    fn decode(fields: &[(&str, &str)]) -> Result<DecodedEntry> {
        let words: Vec<&[u8]> = "ENTITY u SCHEMA age INT".split(' ').map(str::as_bytes).collect();
        let view = Arc::new(parse_registration(b"profile", &mut Arguments::new(&words)).expect("a definition"));
        let mut entry = RawEntry::new(StreamId { ms: NOW_MS as u64 - 5, seq: 0 }, fields.len());
        fields.iter().for_each(|(field, value)| entry.push(field.as_bytes(), value.as_bytes()));
        decode_entry(&entry, &[view], NOW_MS, 1_000)
    }

    #[test]
    fn timestamp_and_view_may_be_left_out() {
        let entry = decode(&[("entity_id", "u1"), ("features", r#"{"age": 5}"#)]).expect("an entry");
        assert_eq!((entry.entity_id.as_slice(), entry.event_time_ms), (&b"u1"[..], NOW_MS - 5));
        let stamped = decode(&[
            ("timestamp", "1699999999.5"),
            ("feature_view", "profile"),
            ("entity_id", "u1"),
            ("features", r#"{"age": 5}"#),
        ]);
        assert_eq!(stamped.expect("an entry").event_time_ms, 1_699_999_999_500);
    }

    #[test]
    fn what_is_no_update_says_why() {
        let ok = ("features", r#"{"age": 5}"#);
        let cases: &[(&[(&str, &str)], &str)] = &[
            (&[ok], "lacks the field entity_id"),
            (&[("entity_id", "u1")], "lacks the field features"),
            (&[("entity_id", ""), ok], "has 0 bytes"),
            (&[("entity_id", "u1"), ok, ("feature_view", "other")], "names view 'other'"),
            (&[("entity_id", "u1"), ok, ("timestamp", "x")], "must be a unix time in seconds"),
            (&[("entity_id", "u1"), ok, ("timestamp", "1700000000000")], "looks like milliseconds"),
            (&[("entity_id", "u1"), ok, ("timestamp", "1700000002")], "ahead of the server's clock"),
        ];
        for (fields, message) in cases {
            let error = decode(fields).expect_err(message);
            assert!(error.message.contains(message), "{error}");
        }
        let refused = decode(&[("entity_id", "u1"), ("features", "[1]")]).expect("an entry").updates;
        assert!(refused[0].as_ref().expect_err("no object").message.contains("must be a JSON object"));
    }

    #[test]
    fn features_are_written_as_they_are_read() {
        let mut json = Vec::new();
        let fields: [(&str, JsonKind, Option<&[u8]>); 3] = [
            ("a", JsonKind::Verbatim, Some(b"1.5")),
            ("b", JsonKind::Text, Some(b"x\"y")),
            ("c", JsonKind::Bool, None),
        ];
        write_features(fields.into_iter(), &mut json);
        assert_eq!(json, br#"{"a":1.5,"b":"x\"y","c":null}"#);
    }
}

//! The one codec: effects as replicas and the AOF receive them, and the snapshot of definitions in an RDB.
//!
//! Every encoding begins with a format version. A reader refuses a version that it does not know, and never panics on
//! damaged bytes. Definitions inside a snapshot are their JSON documents, so that a schema's growth needs no new
//! format.

use crate::cursor::Cursor;
use crate::drift::baseline::Baseline;
use crate::drift::method::Method;
use crate::drift::steps::Bounds;
use crate::drift::view::ViewDrift;
use crate::materialize::TimesChange;
use crate::service::Service;
use crate::stream_id::StreamId;
use crate::value::JsonKind;
use crate::windows::seen::Sighting;
use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::error::DecodeError;
use std::fmt;
use std::sync::Arc;

const EFFECT_FORMAT: u8 = 4;
const SNAPSHOT_FORMAT: u8 = 3;
const DRIFT_FORMAT: u8 = 1;
/// More than any row, log slice or set of definitions takes; a damaged length cannot allocate beyond it.
const DECODED_BYTES_MAX: usize = 1 << 30;

fn configuration() -> Configuration<LittleEndian, Varint, Limit<DECODED_BYTES_MAX>> {
    bincode::config::standard().with_limit::<DECODED_BYTES_MAX>()
}

/// What happened to one key, with every clock reading and id resolved: all copies execute the same.
#[derive(Debug, Clone, PartialEq, bincode::Encode, bincode::BorrowDecode)]
pub enum Effect<'a> {
    /// A row was published or materialized. The key is the row's.
    Row(RowEffect<'a>),
    /// A row was deleted. The key is the row's. Log entries up to the id must not bring it back.
    Delete(Option<StreamId>),
    /// A log was consumed or trimmed. The key is the stream's.
    Log(LogEffect<'a>),
    /// The data of dropped versions is gone. The key is the stream's.
    DropDone,
    /// The window state of a deleted row went with it. The key is the row's.
    DeleteWindows,
    /// All window states of a version are void: those of an earlier generation. The key is the stream's.
    ClearWindows {
        /// The version.
        version: u32,
        /// Its new generation.
        generation: u32,
    },
    /// A window state, whole. The key is its own.
    WindowState(&'a [u8]),
    /// What drift is found by, of one feature. The key is the stream's.
    Drift(DriftEffect<'a>),
    /// The bounds of what updates feed. The key is the stream's.
    SampleBounds {
        /// The version.
        version: u32,
        /// The bounds.
        bounds: Bounds,
    },
    /// An alert started or ended. The key is that of the alerts.
    Alert(AlertEffect<'a>),
}

/// What FS.BASELINE changed.
#[derive(Debug, Clone, PartialEq, bincode::Encode, bincode::BorrowDecode)]
pub struct DriftEffect<'a> {
    /// The version.
    pub version: u32,
    /// The feature.
    pub feature: &'a str,
    /// What changed.
    pub change: DriftChange,
}

/// A change of what drift is found by.
#[derive(Debug, Clone, PartialEq, bincode::Encode, bincode::Decode)]
pub enum DriftChange {
    /// Another baseline, or none.
    Baseline(Option<Arc<Baseline>>),
    /// The current window is empty.
    ClearCurrent,
}

/// An alert that started or ended.
#[derive(Debug, Clone, PartialEq, bincode::Encode, bincode::BorrowDecode)]
pub struct AlertEffect<'a> {
    /// The view.
    pub view: &'a str,
    /// The version.
    pub version: u32,
    /// The feature.
    pub feature: &'a str,
    /// The method.
    pub method: Method,
    /// It started, or it ended.
    pub starts: bool,
    /// The entry that tells of it.
    pub entry: Option<StreamEntry<'a>>,
    /// To how many entries the stream was trimmed, exactly.
    pub trimmed_to: Option<u64>,
}

/// One field of an update.
#[derive(Debug, Clone, PartialEq, bincode::Encode, bincode::BorrowDecode)]
pub struct FieldEffect<'a> {
    /// The feature.
    pub name: &'a str,
    /// How its stored form becomes the log's JSON.
    pub kind: JsonKind,
    /// Its stored form; `None` removes it.
    pub field: Option<&'a [u8]>,
    /// Does it change the row? A superseded field, or an INPUT, only stands in the log.
    pub applied: bool,
}

/// What an update did to a row and its log.
#[derive(Debug, Clone, PartialEq, bincode::Encode, bincode::BorrowDecode)]
pub struct RowEffect<'a> {
    /// The update's event time, unix milliseconds.
    pub event_time_ms: i64,
    /// Its fields.
    pub fields: Vec<FieldEffect<'a>>,
    /// The entry that it appended to the log.
    pub log: Option<Append<'a>>,
    /// What it changed in the row; `None`: nothing.
    pub row: Option<RowChange<'a>>,
    /// What it changed in the window state; `None`: nothing.
    pub windows: Option<WindowEffect<'a>>,
    /// Its values are sampled: how long after its event time it came, milliseconds.
    pub sampled_after_ms: Option<i64>,
}

/// What an update did to the window state of its entity.
#[derive(Debug, Clone, PartialEq, bincode::Encode, bincode::BorrowDecode)]
pub struct WindowEffect<'a> {
    /// The clock when it came, unix milliseconds.
    pub arrived_ms: i64,
    /// Is the state that was there fed?
    pub state: StateChange<'a>,
    /// The event is counted: its inputs are among the update's fields.
    pub is_event: bool,
    /// The event's id is remembered.
    pub seen: Option<Sighting<'a>>,
    /// The state expires at this unix time in milliseconds from now on.
    pub expires_at_ms: Option<i64>,
}

/// What happens to a window state before an event is fed into it.
#[derive(Debug, Clone, PartialEq, bincode::Encode, bincode::BorrowDecode)]
pub enum StateChange<'a> {
    /// Nothing.
    Keep,
    /// It takes on this layout: the definition has grown.
    Relayout(&'a [u8]),
    /// A new one is made in its place, of this layout and generation.
    New(&'a [u8], u32),
}

/// An entry appended to a log.
#[derive(Debug, Clone, PartialEq, bincode::Encode, bincode::BorrowDecode)]
pub struct Append<'a> {
    /// Its id.
    pub id: StreamId,
    /// The event's id, if the writer gave one.
    pub event_id: Option<&'a [u8]>,
    /// To how many entries the log was trimmed afterwards, exactly.
    pub trimmed_to: Option<u64>,
}

/// What changed in a row beside its features.
#[derive(Debug, Clone, PartialEq, bincode::Encode, bincode::BorrowDecode)]
pub struct RowChange<'a> {
    /// The row is a packed one.
    pub is_packed: bool,
    /// The row is new, or nobody has said yet which view it belongs to: `_feature_view` is written.
    pub names_view: bool,
    /// The new `_updated_at`, unix milliseconds, where it moved.
    pub updated_at_ms: Option<i64>,
    /// What became of `_times`.
    pub times: TimesChange<'a>,
    /// What became of the key's expiry.
    pub expiry: Expiry,
}

/// What becomes of a row's expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum Expiry {
    /// It stays.
    Keep,
    /// The row no longer expires.
    Remove,
    /// The row expires at this unix time in milliseconds.
    At(i64),
}

/// An entry that is written to a stream beside the log.
#[derive(Debug, Clone, PartialEq, bincode::Encode, bincode::BorrowDecode)]
pub struct StreamEntry<'a> {
    /// Its id there.
    pub id: StreamId,
    /// All its fields.
    pub fields: Vec<(&'a [u8], &'a [u8])>,
}

/// What happened to a log.
#[derive(Debug, Clone, Default, PartialEq, bincode::Encode, bincode::BorrowDecode)]
pub struct LogEffect<'a> {
    /// Entries that became dead letters.
    pub dead_letters: Vec<StreamEntry<'a>>,
    /// To how many entries the dead letters were trimmed, exactly.
    pub dead_letters_trimmed_to: Option<u64>,
    /// The new cursor of the group `fs`.
    pub cursor: Option<Cursor>,
    /// To how many entries the log was trimmed, exactly.
    pub trimmed_to: Option<u64>,
}

/// All module-wide state.
#[derive(Debug, Clone, Default, PartialEq, bincode::Encode, bincode::Decode)]
pub struct Snapshot {
    /// The views, by name.
    pub views: Vec<ViewSnapshot>,
    /// The services, by name.
    pub services: Vec<Service>,
    /// Data that is still being deleted.
    pub drops: Vec<DropSnapshot>,
}

/// One view in a snapshot.
#[derive(Debug, Clone, Default, PartialEq, bincode::Encode, bincode::Decode)]
pub struct ViewSnapshot {
    /// Its name.
    pub name: String,
    /// Its versions: the JSON document, and whether rows may carry an expiry of a TTL that was altered away.
    pub versions: Vec<(String, bool)>,
    /// FS.CONSUMER STOP is in force.
    pub stopped: bool,
    /// Where the consumer stood.
    pub cursor: Option<Cursor>,
    /// Deleted rows that older log entries must not bring back: version, entity id, newest such entry.
    pub tombstones: Vec<(u32, Vec<u8>, StreamId)>,
    /// The generation of the windows of versions that were cleared: version, generation.
    pub window_generations: Vec<(u32, u32)>,
}

/// Rows and streams of dropped versions that are still being deleted.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct DropSnapshot {
    /// The view.
    pub view: String,
    /// The dropped versions.
    pub versions: Vec<u32>,
    /// The streams go too: no version is left.
    pub streams: bool,
}

/// Bytes that are none of ours: damaged, or written by a later version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodecError(String);

impl CodecError {
    /// What is wrong with the bytes.
    pub(crate) fn new(why: String) -> Self {
        CodecError(why)
    }
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CodecError {}

fn encode<T: bincode::Encode>(format: u8, value: &T, out: &mut Vec<u8>) {
    out.push(format);
    bincode::encode_into_std_write(value, out, configuration()).expect("plain values encode into memory");
}

fn decode<'a, T: bincode::BorrowDecode<'a, ()>>(what: &str, format: u8, bytes: &'a [u8]) -> Result<T, CodecError> {
    match bytes.split_first() {
        Some((first, rest)) if *first == format => match bincode::borrow_decode_from_slice(rest, configuration()) {
            Ok((value, read)) if read == rest.len() => Ok(value),
            Ok(_) => Err(CodecError(format!("{what} has bytes after its end"))),
            Err(error) => Err(CodecError(format!("{what} is damaged: {error}"))),
        },
        Some((first, _)) => Err(CodecError(format!("{what} has format {first}, this version reads {format}"))),
        None => Err(CodecError(format!("{what} is empty"))),
    }
}

/// A value without a format of its own, to be embedded.
pub(crate) fn encode_plain<T: bincode::Encode>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    bincode::encode_into_std_write(value, &mut bytes, configuration()).expect("plain values encode into memory");
    bytes
}

/// Reads such a value. A damaged length cannot allocate more than a multiple of what is there.
pub(crate) fn decode_plain<T: bincode::Decode<()>>(bytes: &[u8]) -> Result<T, CodecError> {
    fn within<T: bincode::Decode<()>, const LIMIT: usize>(bytes: &[u8]) -> Result<(T, usize), DecodeError> {
        bincode::decode_from_slice(bytes, bincode::config::standard().with_limit::<LIMIT>())
    }
    // An element of at least one byte becomes at most 64 in memory.
    let decoded = match bytes.len() {
        0..=0x3ff => within::<T, { 1 << 16 }>(bytes),
        0x400..=0x3fff => within::<T, { 1 << 20 }>(bytes),
        0x4000..=0x3_ffff => within::<T, { 1 << 24 }>(bytes),
        0x4_0000..=0x3f_ffff => within::<T, { 1 << 28 }>(bytes),
        _ => within::<T, DECODED_BYTES_MAX>(bytes),
    };
    match decoded {
        Ok((value, read)) if read == bytes.len() => Ok(value),
        Ok(_) => Err(CodecError("there are bytes after its end".to_owned())),
        Err(error) => Err(CodecError(format!("damaged: {error}"))),
    }
}

/// Writes an effect and shows its bytes. Most are short: they need no allocation.
pub fn encode_effect<T>(effect: &Effect<'_>, see: impl FnOnce(&[u8]) -> T) -> T {
    let mut short = [EFFECT_FORMAT; 256];
    if let Ok(written) = bincode::encode_into_slice(effect, &mut short[1..], configuration()) {
        return see(&short[..=written]);
    }
    let mut bytes = Vec::new();
    encode(EFFECT_FORMAT, effect, &mut bytes);
    see(&bytes)
}

/// Reads an effect.
pub fn decode_effect(bytes: &[u8]) -> Result<Effect<'_>, CodecError> {
    decode("effect", EFFECT_FORMAT, bytes)
}

/// Writes a snapshot.
pub fn encode_snapshot(snapshot: &Snapshot) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(SNAPSHOT_FORMAT, snapshot, &mut bytes);
    bytes
}

/// Reads a snapshot.
pub fn decode_snapshot(bytes: &[u8]) -> Result<Snapshot, CodecError> {
    decode("snapshot of definitions", SNAPSHOT_FORMAT, bytes)
}

/// The drift state of a version of a view, as it is read back.
#[derive(Debug, Clone, PartialEq, bincode::Decode)]
pub struct DriftSnapshot {
    /// The view.
    pub view: String,
    /// The version.
    pub version: u32,
    /// The state.
    pub drift: ViewDrift,
}

/// Writes the drift state of all views; it is large, so it is not copied first.
pub fn encode_drift(all: &[(&str, u32, &ViewDrift)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(DRIFT_FORMAT, &all, &mut bytes);
    bytes
}

/// Reads it back.
pub fn decode_drift(bytes: &[u8]) -> Result<Vec<DriftSnapshot>, CodecError> {
    decode("snapshot of drift", DRIFT_FORMAT, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::borrow::Cow;

    fn effect<'a>(name: &'a str, field: Option<&'a [u8]>, id: StreamId, times: &'a str) -> Effect<'a> {
        Effect::Row(RowEffect {
            event_time_ms: 1_700_000_000_000,
            fields: vec![FieldEffect { name, kind: JsonKind::Text, field, applied: true }],
            log: Some(Append { id, event_id: Some(b"e"), trimmed_to: Some(3) }),
            row: Some(RowChange {
                is_packed: false,
                names_view: true,
                updated_at_ms: Some(5),
                times: TimesChange::Set(Cow::Borrowed(times)),
                expiry: Expiry::At(7),
            }),
            windows: Some(WindowEffect {
                arrived_ms: 9,
                state: StateChange::New(b"layout", 3),
                is_event: true,
                seen: Some(Sighting { id: b"e", arrived_ms: 9, entry: Some(id), forget_before_ms: 1, ids_max: 8 }),
                expires_at_ms: Some(11),
            }),
            sampled_after_ms: Some(13),
        })
    }

    fn encoded(effect: &Effect<'_>) -> Vec<u8> {
        encode_effect(effect, <[u8]>::to_vec)
    }

    proptest! {
        #[test]
        fn effects_and_snapshots_round_trip(name in "[a-z]{1,9}", field in any::<Option<Vec<u8>>>(), ms in any::<u64>(),
                                            times in any::<String>(), stopped in any::<bool>()) {
            let id = StreamId { ms, seq: 1 };
            let effect = effect(&name, field.as_deref(), id, &times);
            let encoded = encoded(&effect);
            prop_assert_eq!(decode_effect(&encoded), Ok(effect));
            let snapshot = Snapshot {
                views: vec![ViewSnapshot {
                    name: name.clone(), versions: vec![(times, stopped)], stopped,
                    cursor: Some(Cursor { id, entries_read: None }),
                    tombstones: vec![(1, field.unwrap_or_default(), id)],
                    window_generations: vec![(1, 2)],
                }],
                services: vec![],
                drops: vec![DropSnapshot { view: name, versions: vec![1, 2], streams: true }],
            };
            prop_assert_eq!(decode_snapshot(&encode_snapshot(&snapshot)), Ok(snapshot));
        }

        #[test]
        fn damaged_bytes_are_refused_without_a_panic(bytes in any::<Vec<u8>>(), cut in any::<prop::sample::Index>()) {
            let _ = decode_effect(&bytes);
            let _ = decode_snapshot(&bytes);
            let whole = encoded(&effect("age", Some(b"x"), StreamId::ZERO, "{}"));
            prop_assert!(decode_effect(&whole[..cut.index(whole.len())]).is_err());
        }
    }

    #[test]
    fn another_format_is_refused_by_number() {
        let error = decode_effect(&[9, 0]).expect_err("format 9");
        assert!(error.to_string().contains("format 9"), "{error}");
    }
}

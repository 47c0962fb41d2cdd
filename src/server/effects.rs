//! Effects: what replicas and the AOF are told, and how they execute it.
//!
//! All writes of a command or of a slice of background work travel as one `FS.EFFECT key effect [key effect ...]`, so
//! rows, logs and cursors move together on every copy.

use crate::server::api::{Context, ServerString};
use crate::server::events::quietly;
use crate::server::key::{Key, KeyType, Mode, Precision};
use crate::server::row_change;
use crate::server::state::{words, PreparedView, STATE};
use crate::server::streams;
use crate::server::{alerts, samples, window_type, windows};
use feature_store_core::codec::{
    decode_effect, encode_effect, Append, DriftChange, DriftEffect, Effect, LogEffect, RowEffect,
};
use feature_store_core::keys::RowKey;
use feature_store_core::log_entry::write_features;
use feature_store_core::stream_id::StreamId;
use feature_store_core::time::format_unix_seconds;
use redis_module::raw;
use smallvec::SmallVec;
use std::ffi::CStr;
use std::rc::Rc;

/// The command that carries effects.
pub(crate) const COMMAND: &CStr = c"FS.EFFECT";

/// Effects of one unit, gathered in order. They are sent when this goes away, at the latest: what was written here is
/// told to all copies even if an error or a panic ends the unit early.
pub(crate) struct Effects<'a> {
    context: Context<'a>,
    arguments: SmallVec<[ServerString; 4]>,
}

impl Drop for Effects<'_> {
    fn drop(&mut self) {
        if !self.arguments.is_empty() {
            self.context.replicate(COMMAND, &self.arguments);
        }
    }
}

impl<'a> Effects<'a> {
    pub(crate) fn new(context: Context<'a>) -> Self {
        Effects { context, arguments: SmallVec::new() }
    }

    /// Adds what happened to a key.
    pub(crate) fn push(&mut self, key: &ServerString, effect: &Effect<'_>) {
        // SAFETY: the key's string is alive.
        self.arguments.push(unsafe { ServerString::retained(key.as_ptr()) });
        self.arguments.push(encode_effect(effect, ServerString::new));
    }

    /// Sends them as one command; nothing if nothing happened.
    pub(crate) fn replicate(self) {}
}

/// An entry of the log that tells of a publish.
pub(crate) struct PublishEntry<'a> {
    /// Whose row it is about.
    pub(crate) entity_id: &'a [u8],
    /// The view's name.
    pub(crate) view_name: &'a ServerString,
    /// What was published.
    pub(crate) effect: &'a RowEffect<'a>,
    /// The event's id, if the writer gave one.
    pub(crate) event_id: Option<&'a [u8]>,
    /// The entry's id; `None` on the primary, where the server chooses it.
    pub(crate) id: Option<StreamId>,
}

/// Appends it. `None`: the stream takes no more entries.
pub(crate) fn append_publish(
    context: Context<'_>,
    stream: &Key<'_>,
    stream_name: &ServerString,
    entry: &PublishEntry<'_>,
) -> Option<StreamId> {
    let PublishEntry { entity_id, view_name, effect, event_id, id } = entry;
    let words = words(context);
    let mut json = Vec::with_capacity(256);
    write_features(effect.fields.iter().map(|f| (f.name, f.kind, f.field)), &mut json);
    let entity = ServerString::new(entity_id);
    let features = ServerString::new(&json);
    let timestamp = ServerString::new(format_unix_seconds(effect.event_time_ms).as_bytes());
    let event = event_id.map(ServerString::new);
    let mut fields = vec![
        &words.entity_id,
        &entity,
        &words.features,
        &features,
        &words.timestamp,
        &timestamp,
        &words.entry_view,
        view_name,
        &words.applied,
        &words.one,
    ];
    if let Some(event) = &event {
        fields.extend([&words.event_id, event]);
    }
    streams::append(context, stream, stream_name, *id, &fields)
}

/// Executes an effect that came from the primary or from the AOF. An error is a diverged copy, told in the log.
pub(crate) fn execute(context: Context<'_>, name: &ServerString, bytes: &[u8]) -> Result<(), String> {
    let effect = decode_effect(bytes).map_err(|e| e.to_string())?;
    quietly(|| match effect {
        Effect::Row(effect) => execute_row(context, name, &effect),
        Effect::Delete(buried_to) => execute_delete(context, name, buried_to),
        Effect::Log(effect) => execute_log(context, name, &effect),
        Effect::DeleteWindows => {
            let key = RowKey::parse(name.bytes()).map_err(|e| e.to_string())?;
            windows::delete(context, &key);
            Ok(())
        }
        Effect::ClearWindows { version, generation } => {
            let view = streams::view_of(name.bytes()).ok_or("the key is no view's log")?;
            STATE.borrow_mut(context).clear_windows(view, version, generation);
            Ok(())
        }
        Effect::WindowState(bytes) => window_type::restore(context, name, bytes),
        Effect::Drift(effect) => execute_drift(context, name, effect),
        Effect::SampleBounds { version, bounds } => {
            let prepared = version_of_log(context, name, version)?;
            prepared.samples.drift_mut(context).rebound_published(bounds);
            Ok(())
        }
        Effect::Alert(effect) => alerts::execute(context, name, &effect),
        Effect::DropDone => {
            if let Some(view) = streams::view_of(name.bytes()) {
                STATE.borrow_mut(context).finish_drop(view);
            }
            Ok(())
        }
    })
}

/// The version of the view that a log's key belongs to.
fn version_of_log(context: Context<'_>, name: &ServerString, version: u32) -> Result<Rc<PreparedView>, String> {
    let view = streams::view_of(name.bytes()).ok_or("the key is no view's log")?;
    STATE
        .borrow(context)
        .prepared_version(view, version)
        .ok_or_else(|| format!("view '{view}' has no version {version}"))
}

fn execute_drift(context: Context<'_>, name: &ServerString, effect: DriftEffect<'_>) -> Result<(), String> {
    let prepared = version_of_log(context, name, effect.version)?;
    let feature = prepared.view.position(effect.feature.as_bytes(), 0);
    let feature = feature.ok_or_else(|| format!("there is no feature '{}'", effect.feature))?;
    if let DriftChange::Baseline(Some(baseline)) = &effect.change {
        if !baseline.is_sound(prepared.view.features()[feature].ty) {
            return Err(format!("the baseline does not fit feature '{}'", effect.feature));
        }
    }
    samples::change(context, &prepared, feature, effect.change);
    Ok(())
}

/// Takes a publish into the sample of this copy.
fn execute_sample(context: Context<'_>, key: &RowKey<'_>, effect: &RowEffect<'_>, arrived_ms: i64) {
    let Ok(prepared) = STATE.borrow(context).view_of(key) else { return };
    let fields = effect.fields.iter().enumerate();
    let known = fields.filter_map(|(hint, f)| Some((prepared.view.position(f.name.as_bytes(), hint)?, f.field)));
    prepared.samples.publish(known, arrived_ms);
}

fn execute_row(context: Context<'_>, name: &ServerString, effect: &RowEffect<'_>) -> Result<(), String> {
    let key = RowKey::parse(name.bytes()).map_err(|e| e.to_string())?;
    let view_name = ServerString::new(key.view.as_bytes());
    if let Some(Append { id, event_id, trimmed_to }) = &effect.log {
        let stream_name = ServerString::new(feature_store_core::keys::stream_key(key.view).as_bytes());
        let stream = Key::open(context, &stream_name, Mode::Write);
        let entry = PublishEntry {
            entity_id: key.entity_id,
            view_name: &view_name,
            effect,
            event_id: *event_id,
            id: Some(*id),
        };
        append_publish(context, &stream, &stream_name, &entry)
            .ok_or_else(|| format!("entry {id} does not fit the log of view '{}'", key.view))?;
        if let Some(length) = trimmed_to {
            streams::trim(context, &stream, &stream_name, *length, Precision::Exact);
        }
    }
    if let Some(change) = &effect.row {
        let fields = effect.fields.iter().filter(|f| f.applied).map(|f| (f.name, f.field));
        row_change::execute(context, name, &key, change, effect.event_time_ms, fields)?;
    }
    if let Some(change) = &effect.windows {
        let fields = effect.fields.iter().map(|f| (f.name, f.field));
        windows::execute_from_primary(context, name, &key, change, effect.event_time_ms, fields)?;
    }
    if let Some(after_ms) = effect.sampled_after_ms {
        execute_sample(context, &key, effect, effect.event_time_ms.saturating_add(after_ms));
    }
    Ok(())
}

/// Deletes a row with its window state, on any copy.
pub(crate) fn execute_delete(
    context: Context<'_>,
    name: &ServerString,
    buried_to: Option<StreamId>,
) -> Result<(), String> {
    let key = RowKey::parse(name.bytes()).map_err(|e| e.to_string())?;
    if let Some(id) = buried_to {
        if let Ok(view) = STATE.borrow_mut(context).registry.view_mut(key.view.as_bytes()) {
            view.bury(key.version, key.entity_id, id);
        }
    }
    let row = Key::open(context, name, Mode::Write);
    if row.key_type() != KeyType::Empty {
        row.unlink();
        drop(row);
        context.notify(raw::REDISMODULE_NOTIFY_GENERIC, c"del", name);
    }
    windows::delete(context, &key);
    Ok(())
}

fn execute_log(context: Context<'_>, name: &ServerString, effect: &LogEffect<'_>) -> Result<(), String> {
    let view = streams::view_of(name.bytes()).ok_or("the key is no view's log")?;
    if !effect.dead_letters.is_empty() {
        let letters_name = ServerString::new(feature_store_core::keys::dead_letter_key(view).as_bytes());
        let letters = Key::open(context, &letters_name, Mode::Write);
        for letter in &effect.dead_letters {
            append_entry(context, &letters, &letters_name, letter.fields.iter().copied(), Some(letter.id));
        }
        if let Some(length) = effect.dead_letters_trimmed_to {
            streams::trim(context, &letters, &letters_name, length, Precision::Exact);
        }
    }
    if let Some(cursor) = &effect.cursor {
        streams::move_group_cursor(context, name, cursor);
        if let Ok(view) = STATE.borrow_mut(context).registry.view_mut(view.as_bytes()) {
            view.cursor = Some(*cursor);
            view.forget_tombstones(cursor.id);
        }
    }
    if let Some(length) = effect.trimmed_to {
        let stream = Key::open(context, name, Mode::Write);
        streams::trim(context, &stream, name, length, Precision::Exact);
    }
    Ok(())
}

/// Appends an entry to a stream beside the log. `None`: the key holds something else, or takes no more.
pub(crate) fn append_entry<'f>(
    context: Context<'_>,
    stream: &Key<'_>,
    stream_name: &ServerString,
    fields: impl Iterator<Item = (&'f [u8], &'f [u8])>,
    id: Option<StreamId>,
) -> Option<StreamId> {
    if !matches!(stream.key_type(), KeyType::Stream | KeyType::Empty) {
        return None;
    }
    let strings: Vec<ServerString> =
        fields.flat_map(|(field, value)| [ServerString::new(field), ServerString::new(value)]).collect();
    let strings: Vec<&ServerString> = strings.iter().collect();
    streams::append(context, stream, stream_name, id, &strings)
}

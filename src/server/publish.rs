//! Applying an update on the primary: log, row and expiry in one unit.

use crate::server::api::{Context, LogLevel, ServerString};
use crate::server::background;
use crate::server::columns::Approach;
use crate::server::config;
use crate::server::consumer;
use crate::server::effects::{append_publish, Effects, PublishEntry};
use crate::server::events::quietly;
use crate::server::key::{Key, KeyType, Mode, Precision};
use crate::server::logs::{add, Log};
use crate::server::row_change::RowToChange;
use crate::server::state::{PreparedView, Words, STATE};
use crate::server::streams;
use crate::server::windows::{Identity, Target};
use feature_store_core::codec::{Append, Effect, Expiry, FieldEffect, LogEffect, RowChange, RowEffect};
use feature_store_core::cursor::{trim_target, Cursor};
use feature_store_core::error::shown;
use feature_store_core::materialize::{is_expired_on_arrival, plan, unstamped_time};
use feature_store_core::stream_id::StreamId;
use feature_store_core::update::Update;
use feature_store_core::value::JsonKind;
use feature_store_core::{Code, Error, Result};

/// The cursor is written to the group at the latest after this many entries that FS.PUBLISH applied itself.
const UNFLUSHED_ENTRIES_MAX: u64 = 1_000;

/// An update on its way into a row.
pub(crate) struct Publication<'a> {
    /// The row's key.
    pub(crate) key: &'a ServerString,
    /// The entity's id, as the key has it.
    pub(crate) entity_id: &'a [u8],
    /// The view's version that the key names.
    pub(crate) prepared: &'a PreparedView,
    /// What changes.
    pub(crate) update: &'a Update,
    /// The event time; `None`: now, or later if that is what takes effect.
    pub(crate) event_time_ms: Option<i64>,
    /// The event's id.
    pub(crate) event_id: Option<&'a [u8]>,
    /// Where it comes from.
    pub(crate) source: Source,
}

/// Where an update comes from, which decides what it does beside changing its row.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// A command that logs it.
    Command,
    /// A command that does not: NOLOG, LOG OFF.
    CommandWithoutLog,
    /// This entry of the log.
    Log(StreamId),
    /// This entry of the log, again: windows have counted it.
    Replay,
    /// This entry of the log, again: windows have forgotten it.
    ReplayWithWindows(StreamId),
}

impl Source {
    /// Does it come for the first time?
    fn is_arrival(self) -> bool {
        matches!(self, Source::Command | Source::CommandWithoutLog | Source::Log(_))
    }

    /// When an event came, for the memory of events, and the entry that it has already.
    fn arrival(self, now_ms: i64) -> (i64, Option<StreamId>) {
        match self {
            Source::Log(id) | Source::ReplayWithWindows(id) => {
                (i64::try_from(id.ms).unwrap_or(i64::MAX).min(now_ms), Some(id))
            }
            Source::Command | Source::CommandWithoutLog | Source::Replay => (now_ms, None),
        }
    }
}

fn wrong_log(log: &Log) -> Error {
    Error::new(Code::WrongType, format!("key '{}' does not hold a stream", shown(log.stream_key.bytes())))
}

/// Refuses when the log's key holds something that is no stream.
pub(crate) fn check_log(context: Context<'_>, log: &Log) -> Result<()> {
    match Key::open(context, &log.stream_key, Mode::Read).key_type() {
        KeyType::Stream | KeyType::Empty => Ok(()),
        KeyType::String | KeyType::Hash | KeyType::Other => Err(wrong_log(log)),
    }
}

/// Refuses when a log has no ids left for that many entries. Whoever may XADD can use them up.
pub(crate) fn check_room(context: Context<'_>, log: &Log, entries: u64) -> Result<()> {
    let last = streams::facts(context, &log.stream_key).unwrap_or_default().last_generated;
    if last.ms == u64::MAX && u64::MAX - last.seq < entries {
        return Err(full_log(log));
    }
    Ok(())
}

fn full_log(log: &Log) -> Error {
    Error::syntax(format!("the log of view '{}' has used up its ids and takes no more entries", log.view))
}

/// Applies an update. An error means that nothing was changed. Answers the id of the log's entry; of an event that was
/// seen before, that of its first one.
pub(crate) fn apply(
    context: Context<'_>,
    words: &Words,
    publication: &Publication<'_>,
    now_ms: i64,
    effects: &mut Effects<'_>,
) -> Result<Option<StreamId>> {
    let Publication { key, entity_id, prepared, update, event_time_ms, event_id, source } = publication;
    let (view, log) = (&prepared.view, &prepared.log);
    add(&log.counters.extra_dropped, update.extra_dropped);
    if update.is_empty() {
        return Ok(None);
    }
    prepared.columns.approach(entity_id, Approach::First);
    let (arrived_ms, mut entry) = source.arrival(now_ms);
    let windows = prepared.windows.as_ref().filter(|_| *source != Source::Replay);
    let identity = event_id.map(|id| Identity { id, arrived_ms });
    let target = windows.and_then(|w| Target::of(context, w, entity_id, update, identity));
    // An update that carries nothing but inputs leaves its row alone.
    let is_of_row = update.is_of_row(view);
    // Where nothing else is written, feeding finds out by itself what else could be wrong.
    let to_check = target.as_ref().filter(|t| is_of_row || *source == Source::Command || t.is_remembered());
    if let Some(first) = to_check.map(Target::check).transpose()?.flatten() {
        add(&log.counters.duplicates, 1);
        return Ok(first);
    }
    let mut row = is_of_row.then(|| RowToChange::open(context, words, key, prepared)).transpose()?;
    if let (Some(packing), Some(row)) = (&prepared.packing, &row) {
        packing.check_update(view, update, row.packed_bytes())?;
    }
    prepared.columns.approach(entity_id, Approach::Second);
    let times = row.as_ref().map(|row| row.times.clone()).unwrap_or_default();
    let event_time_ms = event_time_ms.unwrap_or_else(|| match &mut row {
        Some(row) => unstamped_time(view, &times, row, update, now_ms),
        None => now_ms,
    });
    let is_expired = is_of_row && is_expired_on_arrival(view, event_time_ms, now_ms);
    let planned = match &mut row {
        Some(row) if !is_expired => plan(view, &times, row, update, event_time_ms),
        _ => None,
    };

    let fields = update.changes().iter().enumerate().map(|(i, change)| {
        let feature = &view.features()[change.feature];
        FieldEffect {
            name: &feature.name,
            kind: JsonKind::from(feature.ty),
            field: update.field(change),
            applied: !feature.input && planned.as_ref().is_some_and(|p| p.applied[i]),
        }
    });
    let mut effect = RowEffect {
        event_time_ms,
        fields: fields.collect(),
        log: None,
        row: None,
        windows: None,
        sampled_after_ms: None,
    };

    // The log comes first: it is the only step that can still fail.
    let mut appended_id = None;
    if *source == Source::Command {
        let event_id = *event_id;
        let stream = Key::open(context, &log.stream_key, Mode::Write);
        if !matches!(stream.key_type(), KeyType::Stream | KeyType::Empty) {
            return Err(wrong_log(log));
        }
        let told = PublishEntry { entity_id, view_name: &log.view_name, effect: &effect, event_id, id: None };
        let appended = quietly(|| append_publish(context, &stream, &log.stream_key, &told));
        let appended = appended.ok_or_else(|| full_log(log))?;
        let trimmed_to = after_append(context, log, &stream, appended);
        effect.log = Some(Append { id: appended, event_id, trimmed_to });
        (appended_id, entry) = (Some(appended), Some(appended));
    }

    if is_expired {
        add(&log.counters.expired_on_arrival, 1);
    } else if effect.fields.iter().zip(update.changes()).any(|(f, c)| !f.applied && !view.features()[c.feature].input) {
        add(&log.counters.superseded, 1);
    }
    if let (Some(plan), Some(row)) = (planned, row) {
        let newest = plan.updated_at_ms.or(times.updated_at_ms);
        let expiry = match (newest, view.ttl_ms) {
            (Some(newest), Some(ttl)) => {
                // Where the time stays, the expiry may still be that of another TTL, or of a row written by hand.
                let at_ms = newest.saturating_add(ttl);
                let stays = plan.updated_at_ms.is_none() && row.key().expires_at_ms() == Some(at_ms);
                if stays {
                    Expiry::Keep
                } else {
                    Expiry::At(at_ms)
                }
            }
            (_, None) if view.ttl_was_removed && row.key().expires_at_ms().is_some() => Expiry::Remove,
            _ => Expiry::Keep,
        };
        let change = RowChange {
            is_packed: prepared.packing.is_some(),
            names_view: row.is_unnamed(),
            updated_at_ms: plan.updated_at_ms,
            times: plan.times,
            expiry,
        };
        let applied = update.changes().iter().zip(&effect.fields).filter(|(_, f)| f.applied);
        let fields = applied.map(|(c, f)| (c.feature, f.field));
        quietly(|| row.write(context, words, key, &change, event_time_ms, fields));
        effect.row = Some(change);
    }
    if let Some(target) = &target {
        match target.feed(key, log, event_time_ms, now_ms, entry) {
            Ok(change) => effect.windows = Some(change),
            Err(error) if effect.log.is_none() && effect.row.is_none() => return Err(error),
            // Only somebody who heard of our own events can have changed the key since it was checked.
            Err(error) => context.log(LogLevel::Warning, &format!("fs: windows were not fed: {error}")),
        }
    }
    if source.is_arrival() && prepared.samples.wants_update() {
        if let Some(bounds) = prepared.samples.changed_bounds() {
            effects.push(&log.stream_key, &Effect::SampleBounds { version: view.version, bounds });
        }
        prepared.samples.publish(update.changes().iter().map(|c| (c.feature, update.field(c))), now_ms);
        effect.sampled_after_ms = Some(now_ms.saturating_sub(event_time_ms));
    }
    let is_nothing = effect.log.is_none() && effect.row.is_none() && effect.windows.is_none();
    if !is_nothing || effect.sampled_after_ms.is_some() {
        effects.push(key, &Effect::Row(effect));
    }
    if appended_id.is_some() {
        flush_if_due(context, log, effects);
    }
    Ok(appended_id)
}

/// Writes the position to the group every so often: trimming must never pass the cursor that a restart would find.
fn flush_if_due(context: Context<'_>, log: &Log, effects: &mut Effects<'_>) {
    let read = |cursor: Option<Cursor>| cursor.and_then(|c| c.entries_read).unwrap_or(0);
    let unflushed = read(log.position.get()).saturating_sub(read(log.flushed.get()));
    // The first entry of all makes the group: whatever happens to the log before the next look, it tells where it
    // began.
    if unflushed >= UNFLUSHED_ENTRIES_MAX.min(log.maxlen.get() / 2).max(1) || log.flushed.get().is_none() {
        flush_cursor(context, log, LogEffect::default(), effects);
    }
}

/// Keeps the position with entries that are applied already, and trims. Answers the exact length if entries went.
fn after_append(context: Context<'_>, log: &Log, stream: &Key<'_>, appended: StreamId) -> Option<u64> {
    let mut unconsumed = 0;
    if log.consumes.get() {
        let is_first = log.position.get().is_none()
            && stream.length() == 1
            && (!log.needs_look.get() || consumer::is_first_entry(context, log));
        if is_first {
            log.needs_look.set(false);
        }
        let position = log.position.get().or(is_first.then(Cursor::before_all));
        let Some(mut position) = position else {
            // Nothing is trimmed before the stream was looked at, which comes next.
            log.needs_look.set(true);
            background::wake(context);
            return None;
        };
        if log.pending.get() == 0 {
            position.advance(appended, 1);
            log.position.set(Some(position));
        } else {
            add(&log.pending, 1);
        }
        unconsumed = log.pending.get();
    }
    let target = trim_target(log.maxlen.get(), unconsumed, config::LOG_HARD_CAP.get_u64());
    quietly(|| streams::trim(context, stream, &log.stream_key, target, Precision::Approximate))
}

/// Writes the consumer's position to the group `fs`, with whatever else happened to the log.
pub(crate) fn flush_cursor(context: Context<'_>, log: &Log, mut effect: LogEffect<'_>, effects: &mut Effects<'_>) {
    if let Some(position) = log.position.get().filter(|p| log.flushed.get() != Some(*p)) {
        if quietly(|| streams::move_group_cursor(context, &log.stream_key, &position)) {
            log.flushed.set(Some(position));
            effect.cursor = Some(position);
            if let Ok(view) = STATE.borrow_mut(context).registry.view_mut(log.view.as_bytes()) {
                view.cursor = Some(position);
            }
        } else {
            // The stream is gone.
            log.forget_position();
        }
    }
    if effect != LogEffect::default() {
        effects.push(&log.stream_key, &Effect::Log(effect));
    }
}

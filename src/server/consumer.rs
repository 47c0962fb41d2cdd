//! The consumer: turns the entries of a log into rows, on the primary.
//!
//! Entries flow stream -> decoding thread -> rows, in order. A slice applies what is decoded, moves the cursor, writes
//! dead letters and trims; all of it is one replicated unit.

use crate::server::api::{Context, LogLevel, ServerString};
use crate::server::background::{self, Deadline, Left};
use crate::server::config;
use crate::server::decoder::{self, decode, Against, Decoded, Outcome};
use crate::server::effects::{append_entry, Effects};
use crate::server::events::quietly;
use crate::server::key::{End, Key, Mode, Precision};
use crate::server::logs::{add, Log, Shape};
use crate::server::publish::{self, flush_cursor, Publication, Source};
use crate::server::state::{words, PreparedView, Words, STATE};
use crate::server::streams;
use feature_store_core::codec::{LogEffect, StreamEntry};
use feature_store_core::cursor::{trim_target, Cursor};
use feature_store_core::definition::FeatureView;
use feature_store_core::log_entry::{DecodedEntry, RawEntry, ERROR, SOURCE_ID};
use feature_store_core::stream_id::StreamId;
use feature_store_core::{Error, Result};
use std::rc::Rc;
use std::sync::Arc;

/// Entries that go to the decoding thread together.
const BATCH_ENTRIES: usize = 128;
/// Entries and bytes of one log that are read ahead of the rows.
const READ_AHEAD_ENTRIES_MAX: usize = 1_024;
const READ_AHEAD_BYTES_MAX: usize = 8 << 20;

/// A unit of consumption: gathers what happens until it is sealed.
struct Unit<'a> {
    context: Context<'a>,
    words: &'a Words,
    log: &'a Log,
    now_ms: i64,
    /// The versions that entries are for, prepared; `None`: dropped meanwhile.
    versions: Vec<Option<Rc<PreparedView>>>,
    /// Some rows were deleted with entries ahead that must not bring them back.
    has_tombstones: bool,
    /// For keys of rows.
    buffer: Vec<u8>,
    effects: Effects<'a>,
    /// Dead letters that were written, with the ids that they have there.
    letters: Vec<RawEntry>,
}

impl<'a> Unit<'a> {
    fn new(context: Context<'a>, words: &'a Words, log: &'a Log, versions: &[Arc<FeatureView>]) -> Self {
        let state = STATE.borrow(context);
        Unit {
            context,
            words,
            log,
            now_ms: context.now_ms(),
            versions: versions.iter().map(|v| state.prepared_version(&v.name, v.version)).collect(),
            has_tombstones: state.registry.view(log.view.as_bytes()).is_ok_and(|v| v.tombstones() > 0),
            buffer: Vec::new(),
            effects: Effects::new(context),
            letters: Vec::new(),
        }
    }

    /// Takes in one entry.
    fn consume(&mut self, decoded: &Decoded) {
        let entry = &decoded.entry;
        match &decoded.outcome {
            Outcome::Applied => return,
            Outcome::Read(Err(error)) => self.bury_in_dead_letters(entry, error),
            Outcome::Read(Ok(update)) => {
                for version in 0..self.versions.len() {
                    if let Err(mut error) = self.materialize(entry.id, update, version) {
                        if let ([_, _, ..], Some(prepared)) = (&self.versions[..], &self.versions[version]) {
                            error.message = format!("{} (version {})", error.message, prepared.view.version);
                        }
                        self.bury_in_dead_letters(entry, &error);
                    }
                }
            }
        }
        add(&self.log.counters.consumed, 1);
    }

    /// Brings an entry into the row of one version.
    fn materialize(&mut self, id: StreamId, entry: &DecodedEntry, version: usize) -> Result<()> {
        let update = entry.updates[version].as_ref().map_err(Clone::clone)?;
        // A version that was dropped while its entries were decoded has no rows to bring them into.
        let Some(prepared) = self.versions[version].clone() else { return Ok(()) };
        let view = &prepared.view;
        if self.has_tombstones {
            let state = STATE.borrow(self.context);
            if state.registry.view(view.name.as_bytes())?.is_buried(view.version, &entry.entity_id, id) {
                return Ok(());
            }
        }
        self.buffer.clear();
        self.buffer.extend_from_slice(prepared.row_prefix.as_bytes());
        self.buffer.extend_from_slice(&entry.entity_id);
        let publication = Publication {
            key: &ServerString::new(&self.buffer),
            entity_id: &entry.entity_id,
            prepared: &prepared,
            update,
            event_time_ms: Some(entry.event_time_ms),
            event_id: entry.event_id.as_deref(),
            source: Source::Log(id),
        };
        publish::apply(self.context, self.words, &publication, self.now_ms, &mut self.effects).map(|_| ())
    }

    fn bury_in_dead_letters(&mut self, entry: &RawEntry, error: &Error) {
        let mut letter = entry.clone();
        letter.push(SOURCE_ID.as_bytes(), entry.id.to_string().as_bytes());
        letter.push(ERROR.as_bytes(), error.to_string().as_bytes());
        add(&self.log.counters.dead_letters, 1);
        let name = &self.log.dead_letter_key;
        let key = Key::open(self.context, name, Mode::Write);
        let written = quietly(|| append_entry(self.context, &key, name, letter.fields(), None));
        match written {
            Some(id) => {
                letter.id = id;
                self.letters.push(letter);
            }
            None => self.context.log(
                LogLevel::Warning,
                &format!(
                    "fs: entry {} of view '{}' has no place among the dead letters: {error}",
                    entry.id, self.log.view
                ),
            ),
        }
    }

    /// Moves the cursor, trims, and sends all of it as one unit.
    fn seal(mut self) {
        let (context, log) = (self.context, self.log);
        let mut effect = LogEffect::default();
        if !self.letters.is_empty() {
            let key = Key::open(context, &log.dead_letter_key, Mode::Write);
            effect.dead_letters_trimmed_to = quietly(|| {
                streams::trim(context, &key, &log.dead_letter_key, log.maxlen.get(), Precision::Approximate)
            });
        }
        effect.dead_letters = self
            .letters
            .iter()
            .map(|letter| StreamEntry { id: letter.id, fields: letter.fields().collect() })
            .collect();
        effect.trimmed_to = trim(context, log);
        flush_cursor(context, log, effect, &mut self.effects);
        self.effects.replicate();
    }
}

/// Trims a log to what it may keep; answers the exact length if entries went.
fn trim(context: Context<'_>, log: &Log) -> Option<u64> {
    let target = trim_target(log.maxlen.get(), log.pending.get(), config::LOG_HARD_CAP.get_u64());
    if Key::open(context, &log.stream_key, Mode::Read).length() <= target {
        return None;
    }
    // Opened for writing only when something goes: closing tells watchers.
    let key = Key::open(context, &log.stream_key, Mode::Write);
    quietly(|| streams::trim(context, &key, &log.stream_key, target, Precision::Approximate))
}

/// The versions that a log's entries are for.
fn consuming_versions(context: Context<'_>, log: &Log) -> Arc<Vec<Arc<FeatureView>>> {
    let state = STATE.borrow(context);
    Arc::new(state.registry.view(log.view.as_bytes()).map(|v| v.consuming()).unwrap_or_default())
}

pub(crate) fn against(context: Context<'_>, versions: Arc<Vec<Arc<FeatureView>>>) -> Against {
    Against { versions, now_ms: context.now_ms(), clock_skew_ms_max: config::CLOCK_SKEW_MS_MAX.get() }
}

/// Is the entry that was just added the first that the stream ever had?
pub(crate) fn is_first_entry(context: Context<'_>, log: &Log) -> bool {
    // The facts cost more than the length, which rules out nearly all.
    Key::open(context, &log.stream_key, Mode::Read).length() == 1
        && streams::facts(context, &log.stream_key).is_some_and(|facts| facts.entries_added == 1)
}

/// Counts entries that went before they were consumed, and says so.
pub(crate) fn count_lost(context: Context<'_>, log: &Log, lost: u64) {
    if lost > 0 {
        add(&log.counters.lost, lost);
        context.log(
            LogLevel::Warning,
            &format!("fs: {lost} entries of view '{}' were removed from the log before they were consumed", log.view),
        );
    }
}

/// Looks at a log whose view was just registered.
pub(crate) fn look(context: Context<'_>, log: &Log) {
    if log.consumes.get() && background::may_write(context) {
        locate(context, log);
    }
}

/// Finds out where the consumer stands, making its group where that is missing. `None`: there is no stream.
fn locate(context: Context<'_>, log: &Log) -> Option<Cursor> {
    if !log.needs_look.replace(false) {
        return log.position.get();
    }
    log.position.set(None);
    log.pending.set(0);
    log.waiting.set(0);
    let facts = streams::facts(context, &log.stream_key)?;
    let group = streams::group_cursor(context, &log.stream_key);
    log.flushed.set(group);
    let begins_empty = log.begins_empty.take();
    let mut cursor = group.unwrap_or_else(|| {
        if begins_empty {
            return Cursor::before_all();
        }
        let stood = STATE.borrow(context).registry.view(log.view.as_bytes()).ok().and_then(|v| v.cursor);
        stood.filter(|cursor| cursor.fits(&facts)).unwrap_or_else(|| Cursor::at_start(&facts))
    });
    let lost = cursor.notice_removed(&facts);
    if !log.begins_anew.take() {
        count_lost(context, log, lost);
    }
    log.position.set(Some(cursor));
    log.pending.set(cursor.lag_entries(&facts));
    // What is counted as lost is behind the group from now on: the next look must not count it again.
    flush(context, log);
    log.position.get()
}

/// Works on a log until the deadline.
pub(crate) fn slice(context: Context<'_>, log: &Log, deadline: Deadline) -> Left {
    if deadline.is_over() {
        return Left::Work;
    }
    if locate(context, log).is_none() || !log.is_running() {
        return Left::Nothing;
    }
    let words = words(context);
    let versions = consuming_versions(context, log);
    let against = against(context, Arc::clone(&versions));
    let mut unit = Unit::new(context, &words, log, &versions);
    let (mut consumed, mut finished) = (0, Vec::new());
    // Reading and applying take turns, so that neither uses up all the time.
    loop {
        let read = read_ahead(context, log, &against, &mut finished);
        let applied = apply_decoded(&mut unit, deadline, &mut finished);
        consumed += applied;
        if deadline.is_over() || read + applied == 0 {
            break;
        }
    }
    if consumed > 0 {
        unit.seal();
    }
    if log.in_flight.borrow().is_empty() {
        settle(context, log);
    }
    if log.has_work() {
        Left::Work
    } else {
        Left::Nothing
    }
}

/// Applies a batch of what the decoding thread has brought back, in order. Answers how many entries.
fn apply_decoded(unit: &mut Unit<'_>, deadline: Deadline, finished: &mut Vec<Decoded>) -> usize {
    let log = unit.log;
    let epoch = log.epoch.get();
    let mut applied = 0;
    // Each step takes its entry out of the queue and lets go of it: applying can fire events that look at the log.
    while applied < BATCH_ENTRIES && log.epoch.get() == epoch {
        let next = {
            let mut in_flight = log.in_flight.borrow_mut();
            let Some(job) = in_flight.front_mut() else { break };
            let Some(decoded) = job.decoded.as_mut() else { break };
            match decoded.next() {
                Some(next) => next,
                None => {
                    in_flight.pop_front();
                    continue;
                }
            }
        };
        unit.consume(&next);
        step(log, next.entry.id);
        finished.push(next);
        applied += 1;
        // Looking at the clock costs as much as a field; a few rows more do not matter.
        if applied % 4 == 0 && deadline.is_over() {
            break;
        }
    }
    applied
}

/// Moves the position past one entry.
fn step(log: &Log, id: StreamId) {
    if let Some(mut position) = log.position.get() {
        position.advance(id, 1);
        log.position.set(Some(position));
    }
    log.pending.set(log.pending.get().saturating_sub(1));
}

/// Gives the decoding thread one more batch if it may hold it. Answers how many entries.
fn read_ahead(context: Context<'_>, log: &Log, against: &Against, finished: &mut Vec<Decoded>) -> usize {
    let Some(position) = log.position.get() else { return 0 };
    let (after, entries, bytes) = {
        let in_flight = log.in_flight.borrow();
        let ahead = in_flight.iter().fold((0, 0), |(n, size), job| (n + job.entries, size + job.size));
        (in_flight.back().map_or(position.id, |job| job.end), ahead.0, ahead.1)
    };
    if entries >= READ_AHEAD_ENTRIES_MAX || bytes >= READ_AHEAD_BYTES_MAX {
        return 0;
    }
    let batch = read_batch(context, &log.stream_key, after, BATCH_ENTRIES);
    let read = batch.len();
    if read > 0 {
        let job = decoder::submit(log, batch, against, std::mem::take(finished));
        log.in_flight.borrow_mut().push_back(job);
    }
    read
}

/// Up to `count` entries after an id; fewer if they are large.
pub(crate) fn read_batch(context: Context<'_>, stream: &ServerString, after: StreamId, count: usize) -> Vec<RawEntry> {
    let key = Key::open(context, stream, Mode::Read);
    let mut batch = Vec::with_capacity(count);
    let mut size = 0;
    key.stream_read(after, |entry| {
        size += entry.size();
        batch.push(entry);
        batch.len() < count && size < READ_AHEAD_BYTES_MAX / 4
    });
    batch
}

/// When nothing is left to read: counts what was removed unread, and writes the cursor.
fn settle(context: Context<'_>, log: &Log) {
    let Some(mut position) = log.position.get() else { return };
    let Some(facts) = streams::facts(context, &log.stream_key) else {
        log.forget_position();
        return;
    };
    if position.is_at_end(&facts) {
        count_lost(context, log, position.settle(&facts));
        forget_tombstones(context, log, position.id);
    } else {
        count_lost(context, log, position.notice_removed(&facts));
    }
    log.position.set(Some(position));
    log.pending.set(position.lag_entries(&facts));
    flush(context, log);
}

/// Writes the position to the group if it is ahead of it.
pub(crate) fn flush(context: Context<'_>, log: &Log) {
    let mut effects = Effects::new(context);
    flush_cursor(context, log, LogEffect::default(), &mut effects);
    effects.replicate();
}

/// Looks whether the stream is where we left it. Entries, groups and whole streams can come without an event.
pub(crate) fn sweep(context: Context<'_>, log: &Log) {
    prune_tombstones(context, log);
    if !log.consumes.get() || !background::may_write(context) {
        return;
    }
    let Some(mut position) = log.position.get() else {
        log.needs_look.set(true);
        return;
    };
    // Asking for the facts copies the first and the last entry: only where something moved.
    let shape = shape(context, log);
    let group = streams::group_cursor(context, &log.stream_key);
    if group.map(|g| g.id) != log.flushed.get().map(|f| f.id) {
        log.forget_position();
        return;
    }
    if log.swept.replace(Some((shape, position.id))) == Some((shape, position.id)) {
        return;
    }
    let Some(facts) = streams::facts(context, &log.stream_key).filter(|facts| position.fits(facts)) else {
        log.forget_position();
        return;
    };
    log.pending.set(position.lag_entries(&facts).max(log.pending.get()));
    // What was read ahead is not lost, even if it is gone from the stream.
    if !log.in_flight.borrow().is_empty() {
        return;
    }
    if position.is_at_end(&facts) {
        settle(context, log);
        return;
    }
    // A stopped consumer's log keeps to the hard cap, and what goes is counted as it goes.
    let trimmed_to = trim(context, log);
    if trimmed_to.is_none() {
        return;
    }
    if let Some(facts) = streams::facts(context, &log.stream_key) {
        count_lost(context, log, position.notice_removed(&facts));
        log.position.set(Some(position));
        log.pending.set(position.lag_entries(&facts));
    }
    let mut effects = Effects::new(context);
    flush_cursor(context, log, LogEffect { trimmed_to, ..LogEffect::default() }, &mut effects);
    effects.replicate();
}

/// What tells cheaply that a stream changed: its length, its first and its newest entry.
fn shape(context: Context<'_>, log: &Log) -> Shape {
    let key = Key::open(context, &log.stream_key, Mode::Read);
    (key.length(), key.stream_id(End::After(StreamId::ZERO)), key.stream_id(End::Newest))
}

/// Forgets deletions that no entry can undo any more, because all entries that are left are newer. Every copy does so
/// by itself, also for views that nobody consumes.
fn prune_tombstones(context: Context<'_>, log: &Log) {
    let has_tombstones = STATE.borrow(context).registry.view(log.view.as_bytes()).is_ok_and(|v| v.tombstones() > 0);
    if has_tombstones {
        let first = Key::open(context, &log.stream_key, Mode::Read).stream_id(End::After(StreamId::ZERO));
        forget_tombstones(context, log, first.map_or(StreamId::MAX, StreamId::before));
    }
    if let (true, Some(position)) = (has_tombstones && log.consumes.get(), log.position.get()) {
        forget_tombstones(context, log, position.id);
    }
}

/// Forgets deletions that nothing which is still to be read can undo.
fn forget_tombstones(context: Context<'_>, log: &Log, consumed: StreamId) {
    let mut state = STATE.borrow_mut(context);
    let is_replaying = state.background.replays.iter().any(|r| r.is_of(&log.view));
    if let (false, Ok(view)) = (is_replaying, state.registry.view_mut(log.view.as_bytes())) {
        view.forget_tombstones(consumed);
    }
}

/// Consumes up to `count` entries in the running command. Answers how many, and the cursor.
pub(crate) fn consume_now(context: Context<'_>, log: &Log, count: u64) -> (u64, Option<StreamId>) {
    log.discard_in_flight();
    log.needs_look.set(true);
    let words = words(context);
    let versions = consuming_versions(context, log);
    let against = against(context, Arc::clone(&versions));
    let mut consumed = 0;
    while consumed < count {
        let Some(position) = locate(context, log) else { return (consumed, None) };
        let wanted = usize::try_from(count - consumed).unwrap_or(usize::MAX).min(BATCH_ENTRIES);
        let batch = read_batch(context, &log.stream_key, position.id, wanted);
        if batch.is_empty() {
            settle(context, log);
            break;
        }
        let mut unit = Unit::new(context, &words, log, &versions);
        for entry in batch {
            let decoded = decode(entry, &against);
            unit.consume(&decoded);
            step(log, decoded.entry.id);
            consumed += 1;
        }
        unit.seal();
    }
    // What is left is the background's, unless it was stopped.
    if log.is_running() {
        background::wake(context);
    }
    (consumed, log.position.get().map(|p| p.id))
}

/// How many entries lie ahead of the consumer, and how old the first is, milliseconds. `None`: nobody consumes.
pub(crate) fn lag(context: Context<'_>, log: &Log) -> Option<(u64, u64)> {
    if !log.consumes.get() {
        return None;
    }
    let Some(facts) = streams::facts(context, &log.stream_key) else { return Some((0, 0)) };
    let position = log
        .position
        .get()
        .or_else(|| streams::group_cursor(context, &log.stream_key))
        .unwrap_or_else(|| Cursor::at_start(&facts));
    if position.is_at_end(&facts) {
        return Some((0, 0));
    }
    let next = Key::open(context, &log.stream_key, Mode::Read).stream_id(End::After(position.id));
    let now_ms = u64::try_from(context.now_ms()).unwrap_or(0);
    let waited_ms = next.map_or(0, |id| now_ms.saturating_sub(id.ms));
    Some((position.lag_entries(&facts), waited_ms))
}

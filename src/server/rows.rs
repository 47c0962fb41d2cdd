//! Rows: reading them for serving, and changing them for an update.

use crate::server::api::{Context, ServerString};
use crate::server::key::{Key, KeyType, Mode};
use crate::server::state::{PreparedView, Words, STATE};
use crate::server::window_type::OtherType;
use crate::server::windows::wrong_type as wrong_type_of_state;
use feature_store_core::codec::{Expiry, RowChange};
use feature_store_core::definition::FeatureView;
use feature_store_core::error::shown;
use feature_store_core::keys::{TIMES, UPDATED_AT};
use feature_store_core::materialize::{RowFields, RowTimes, TimesChange};
use feature_store_core::row::{serve, serve_window, Served};
use feature_store_core::time::format_unix_seconds;
use feature_store_core::windows::state::{ReadAt, TooOld, WindowState};
use feature_store_core::{Code, Error, Result};
use redis_module::raw;
use smallvec::SmallVec;
use std::borrow::Cow;

/// From this many look-ups on, one pass over the row beats looking each field up.
const SCAN_FROM_LOOK_UPS: usize = 7;

/// Does the reader need event times although no TTL rules the features?
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Times {
    /// Only where a TTL rules.
    IfAged,
    /// Always: they are part of the answer.
    Always,
}

fn wrong_type(key: &ServerString) -> Error {
    Error::new(Code::WrongType, format!("key '{}' does not hold a row (a hash)", shown(key.bytes())))
}

/// Where a stored field lies among the copied bytes; `start > end` for one that is not there.
#[derive(Clone, Copy)]
struct Span {
    start: usize,
    end: usize,
}

/// A feature that was not asked for.
const NOT_ASKED: usize = usize::MAX;

const ABSENT: Span = Span { start: 1, end: 0 };

/// Rows as they were read: the fields that a reader asked for, copied out. One row needs no allocation.
pub(crate) struct Rows<'v> {
    prepared: &'v PreparedView,
    /// What was asked for.
    features: &'v [usize],
    needs_times: bool,
    /// For a pass over a row, by feature index: its first place in what was asked for. Empty when rows are looked up.
    places: SmallVec<[usize; 32]>,
    bytes: SmallVec<[u8; 512]>,
    /// Row by row, as many as features.
    fields: SmallVec<[Span; 32]>,
    rows: SmallVec<[RowFacts; 1]>,
    /// By place: which of the windows asked for stands there. Empty when none is.
    window_at: SmallVec<[Option<usize>; 8]>,
    /// How many windows were asked for.
    windows: usize,
    /// What is served for them, row by row.
    window_values: Vec<Served<'static>>,
    /// The hash is read: there is something in it that was asked for.
    reads_row: bool,
    at: ReadAt,
}

struct RowFacts {
    exists: bool,
    times: RowTimes,
}

impl<'v> Rows<'v> {
    pub(crate) fn new(prepared: &'v PreparedView, features: &'v [usize], times: Times, at: ReadAt) -> Self {
        let schema = prepared.view.features();
        let (mut windows, mut window_at) = (0, SmallVec::new());
        if prepared.windows.is_some() && features.iter().any(|f| schema[*f].window.is_some()) {
            window_at.extend(features.iter().map(|f| {
                schema[*f].window.is_some().then(|| {
                    windows += 1;
                    windows - 1
                })
            }));
        }
        let ages = |f: &usize| prepared.view.age_ms_max(*f).is_some() && schema[*f].is_stored();
        let needs_times = times == Times::Always || matches!(at, ReadAt::Named(_)) || features.iter().any(ages);
        let look_ups = features.len() - windows + if needs_times { 2 } else { 0 };
        let mut places = SmallVec::new();
        if look_ups >= SCAN_FROM_LOOK_UPS {
            places.resize(prepared.view.features().len(), NOT_ASKED);
            features.iter().enumerate().rev().for_each(|(place, feature)| places[*feature] = place);
        }
        Rows {
            prepared,
            features,
            needs_times,
            places,
            bytes: SmallVec::new(),
            fields: SmallVec::new(),
            rows: SmallVec::new(),
            window_at,
            windows,
            window_values: Vec::new(),
            reads_row: times == Times::Always || windows < features.len(),
            at,
        }
    }

    /// Forgets the rows that were read.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.fields.clear();
        self.rows.clear();
        self.window_values.clear();
    }

    /// Reads one more row. A missing row is a row without values.
    pub(crate) fn read(&mut self, context: Context<'_>, words: &Words, name: &ServerString) -> Result<()> {
        let first = self.fields.len();
        self.fields.resize(first + self.features.len(), ABSENT);
        if self.windows > 0 {
            self.read_windows(context, name)?;
        }
        if !self.reads_row {
            self.rows.push(RowFacts { exists: false, times: RowTimes::default() });
            return Ok(());
        }
        let key = Key::open(context, name, Mode::Read);
        let (exists, times) = match key.key_type() {
            KeyType::Hash if !self.places.is_empty() => (true, self.scan(&key, first)),
            KeyType::Hash => (true, self.look_up(&key, words, first)),
            KeyType::Empty => (false, RowTimes::default()),
            KeyType::Stream | KeyType::Other => return Err(wrong_type(name)),
        };
        self.rows.push(RowFacts { exists, times });
        Ok(())
    }

    fn read_windows(&mut self, context: Context<'_>, name: &ServerString) -> Result<()> {
        let PreparedView { view, windows, row_prefix, .. } = self.prepared;
        let Some(windows) = windows else { return Ok(()) };
        let state_name = windows.key_of(&name.bytes()[row_prefix.len()..]);
        let mut key = Key::open(context, &state_name, Mode::Read);
        let state = key.window_state().map_err(|OtherType| wrong_type_of_state(&state_name))?;
        let state = state.as_deref().filter(|state| windows.counts(state));
        let newest_ms = state.and_then(WindowState::newest_ms);
        for (place, feature) in self.features.iter().enumerate() {
            if self.window_at[place].is_none() {
                continue;
            }
            let Some(window) = &view.features()[*feature].window else { continue };
            let value = match state.and_then(|state| Some((state, windows.reading(view, *feature, state)?))) {
                Some((state, reading)) => {
                    state.read(&reading, self.at).map_err(|TooOld| too_old(view, *feature, name, self.at))?
                }
                None => window.function.over_no_events(),
            };
            self.window_values.push(serve_window(view, *feature, value, newest_ms));
        }
        Ok(())
    }

    fn scan(&mut self, key: &Key<'_>, first: usize) -> RowTimes {
        let Rows { prepared, features, needs_times, places, bytes, fields, .. } = self;
        let (mut updated_at, mut row_times) = (None, None);
        let mut expected = 0;
        key.hash_scan(|field, value| {
            // Features cannot begin with an underscore.
            if field.first() == Some(&b'_') {
                if *needs_times && field == UPDATED_AT.as_bytes() {
                    updated_at = Some(keep(bytes, value));
                } else if *needs_times && field == TIMES.as_bytes() {
                    row_times = Some(keep(bytes, value));
                }
                return;
            }
            let hint = features.get(expected).copied().unwrap_or(usize::MAX);
            let Some(place) = prepared.view.position(field, hint).map(|feature| places[feature]) else { return };
            if place != NOT_ASKED {
                fields[first + place] = keep(bytes, value);
                expected = place + 1;
            }
        });
        // A feature that was asked for again stands where it stood first.
        for (place, feature) in features.iter().enumerate().filter(|(place, feature)| places[**feature] != *place) {
            fields[first + place] = fields[first + places[*feature]];
        }
        self.read_times(updated_at, row_times)
    }

    fn look_up(&mut self, key: &Key<'_>, words: &Words, first: usize) -> RowTimes {
        let Rows { prepared, features, needs_times, bytes, fields, window_at, .. } = self;
        // Windows stand in no hash.
        let is_window = |place: usize| window_at.get(place).is_some_and(Option::is_some);
        let stored: SmallVec<[usize; 16]> = (0..features.len()).filter(|place| !is_window(*place)).collect();
        let mut names: SmallVec<[&ServerString; 16]> =
            stored.iter().map(|place| &prepared.names[features[*place]]).collect();
        if *needs_times {
            names.extend([&words.updated_at, &words.times]);
        }
        let (mut updated_at, mut row_times) = (None, None);
        key.hash_get_each(&names, |i, value| {
            let span = keep(bytes, value);
            match stored.get(i) {
                Some(place) => fields[first + place] = span,
                None if i == stored.len() => updated_at = Some(span),
                None => row_times = Some(span),
            }
        });
        self.read_times(updated_at, row_times)
    }

    fn read_times(&self, updated_at: Option<Span>, row_times: Option<Span>) -> RowTimes {
        let text = |span: Option<Span>| span.map(|s| &self.bytes[s.start..s.end]);
        RowTimes::read(&self.prepared.view, text(updated_at), text(row_times))
    }

    /// The features that were asked for.
    pub(crate) fn features(&self) -> &'v [usize] {
        self.features
    }

    /// How many rows were read.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Is the row there?
    pub(crate) fn exists(&self, row: usize) -> bool {
        self.rows[row].exists
    }

    /// The row's times.
    pub(crate) fn times(&self, row: usize) -> &RowTimes {
        &self.rows[row].times
    }

    /// The rows were given to a reader: counts them, and takes their values into the sample where the view wants that.
    pub(crate) fn note_served(&self, context: Context<'_>) {
        STATE.borrow_mut(context).counters.rows_served += self.rows.len() as u64;
        // What was true at another time says nothing of the present.
        if let ReadAt::Clock(now_ms) = self.at {
            for row in 0..self.rows.len() {
                self.prepared.samples.serve(self.features, now_ms, |place| self.serve(row, place));
            }
        }
    }

    /// The stored form of the feature at a place of what was asked for.
    pub(crate) fn field(&self, row: usize, place: usize) -> Option<&[u8]> {
        // A field of a window's name in the hash is somebody else's.
        if matches!(self.window_at.get(place), Some(Some(_))) {
            return None;
        }
        let span = self.fields[row * self.features.len() + place];
        (span.start <= span.end).then(|| &self.bytes[span.start..span.end])
    }

    /// What a reader gets for it.
    pub(crate) fn serve(&self, row: usize, place: usize) -> Cow<'_, Served<'_>> {
        if let Some(Some(window)) = self.window_at.get(place) {
            return Cow::Borrowed(&self.window_values[row * self.windows + window]);
        }
        let field = self.field(row, place);
        Cow::Owned(serve(&self.prepared.view, self.features[place], field, &self.rows[row].times, self.at))
    }
}

fn too_old(view: &FeatureView, feature: usize, key: &ServerString, at: ReadAt) -> Error {
    Error::new(
        Code::TooOld,
        format!(
            "feature '{}' of view '{}': the windows of key '{}' do not reach back to AT {}",
            view.features()[feature].name,
            view.name,
            shown(key.bytes()),
            at.ms()
        ),
    )
}

fn keep(bytes: &mut SmallVec<[u8; 512]>, value: &[u8]) -> Span {
    let start = bytes.len();
    bytes.extend_from_slice(value);
    Span { start, end: bytes.len() }
}

/// A row that an update is about to change.
pub(crate) struct RowToChange<'a, 'p> {
    key: Key<'a>,
    prepared: &'p PreparedView,
    /// The times that it holds.
    pub(crate) times: RowTimes,
    is_empty: bool,
    /// Which features are there; filled in one pass when looking each up would cost more.
    present: Option<Vec<bool>>,
    looked_up: usize,
}

/// After this many single look-ups the rest is found out in one pass.
const LOOK_UPS_MAX: usize = 8;

impl RowFields for RowToChange<'_, '_> {
    fn holds(&mut self, feature: usize) -> bool {
        if self.is_empty {
            return false;
        }
        if self.present.is_none() && self.looked_up < LOOK_UPS_MAX {
            self.looked_up += 1;
            return self.key.hash_has(&self.prepared.names[feature]);
        }
        let (key, prepared) = (&self.key, self.prepared);
        let present = self.present.get_or_insert_with(|| {
            let mut present = vec![false; prepared.view.features().len()];
            let mut hint = 0;
            key.hash_scan(|field, _| {
                if let Some(feature) = prepared.view.position(field, hint) {
                    present[feature] = true;
                    hint = feature + 1;
                }
            });
            present
        });
        present[feature]
    }
}

impl<'a, 'p> RowToChange<'a, 'p> {
    pub(crate) fn open(
        context: Context<'a>,
        words: &Words,
        name: &ServerString,
        prepared: &'p PreparedView,
    ) -> Result<Self> {
        let key = Key::open(context, name, Mode::Write);
        let (times, is_empty) = match key.key_type() {
            KeyType::Empty => (RowTimes::default(), true),
            KeyType::Hash => {
                let [updated_at, times] = key.hash_get_many([&words.updated_at, &words.times]);
                let updated_at = updated_at.as_ref().map(ServerString::bytes);
                let times = times.as_ref().map(ServerString::bytes);
                (RowTimes::read(&prepared.view, updated_at, times), false)
            }
            KeyType::Stream | KeyType::Other => return Err(wrong_type(name)),
        };
        Ok(RowToChange { key, prepared, times, is_empty, present: None, looked_up: 0 })
    }

    /// True for a row that does not say yet which view it belongs to.
    pub(crate) fn is_unnamed(&self) -> bool {
        self.is_empty || self.times.updated_at_ms.is_none()
    }

    pub(crate) fn key(&self) -> &Key<'a> {
        &self.key
    }
}

/// Executes a change of a row, as it was decided here or as it came from the primary.
pub(crate) fn write<'f>(
    context: Context<'_>,
    words: &Words,
    key: &Key<'_>,
    name: &ServerString,
    view_name: &ServerString,
    change: &RowChange<'_>,
    fields: impl Iterator<Item = (&'f ServerString, Option<&'f [u8]>)>,
) {
    // A new row begins with its time and its view: readers look for the time first.
    let mut pairs: SmallVec<[(&ServerString, ServerString); 16]> = SmallVec::new();
    let mut deleted = false;
    if let Some(updated_at_ms) = change.updated_at_ms {
        pairs.push((&words.updated_at, ServerString::new(format_unix_seconds(updated_at_ms).as_bytes())));
    }
    if change.names_view {
        pairs.push((&words.feature_view, ServerString::new(view_name.bytes())));
    }
    for (feature, field) in fields {
        match field {
            Some(field) => pairs.push((feature, ServerString::new(field))),
            None => deleted |= key.hash_delete(feature),
        }
    }
    match &change.times {
        TimesChange::Keep => {}
        TimesChange::Remove => deleted |= key.hash_delete(&words.times),
        TimesChange::Set(text) => pairs.push((&words.times, ServerString::new(text.as_bytes()))),
    }
    key.hash_set(&pairs);
    let set = !pairs.is_empty();
    match change.expiry {
        Expiry::Keep => {}
        Expiry::Remove => key.set_expiry(None),
        Expiry::At(at_ms) => key.set_expiry(Some(at_ms)),
    }
    if set {
        context.notify(raw::REDISMODULE_NOTIFY_HASH, c"hset", name);
    }
    if deleted {
        context.notify(raw::REDISMODULE_NOTIFY_HASH, c"hdel", name);
    }
    match change.expiry {
        Expiry::Keep => {}
        Expiry::Remove => context.notify(raw::REDISMODULE_NOTIFY_GENERIC, c"persist", name),
        Expiry::At(_) => context.notify(raw::REDISMODULE_NOTIFY_GENERIC, c"expire", name),
    }
}

/// Refuses a key that holds something that is no row.
pub(crate) fn check_row(context: Context<'_>, name: &ServerString) -> Result<()> {
    match Key::open(context, name, Mode::Read).key_type() {
        KeyType::Empty | KeyType::Hash => Ok(()),
        KeyType::Stream | KeyType::Other => Err(wrong_type(name)),
    }
}

//! Rows: reading them for serving, and changing them for an update.

use crate::server::api::{Context, Key, KeyType, Mode, ServerString};
use crate::server::state::{PreparedView, Words};
use feature_store_core::codec::{Expiry, RowChange};
use feature_store_core::error::shown;
use feature_store_core::keys::{TIMES, UPDATED_AT};
use feature_store_core::materialize::{RowFields, RowTimes, TimesChange};
use feature_store_core::row::{serve, Served};
use feature_store_core::time::format_unix_seconds;
use feature_store_core::{Code, Error, Result};
use redis_module::raw;
use std::ops::Range;

/// From this many wanted fields on, one pass over the row beats looking each up.
const SCAN_FROM_FIELDS: usize = 5;

/// The fields of a row that a reader asked for, copied out.
pub(crate) struct RowImage {
    bytes: Vec<u8>,
    /// By feature index; only the asked ones are there.
    fields: Vec<Option<Range<usize>>>,
    times: RowTimes,
    /// When the key expires, unix milliseconds; read only where asked for.
    pub(crate) exists: bool,
}

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

impl RowImage {
    /// Reads some features of a row. A missing row is a row without values.
    pub(crate) fn read(
        context: Context<'_>,
        words: &Words,
        name: &ServerString,
        prepared: &PreparedView,
        features: &[usize],
        times: Times,
    ) -> Result<Self> {
        let view = &prepared.view;
        let key = Key::open(context, name, Mode::Read);
        let mut image = RowImage {
            bytes: Vec::with_capacity(128),
            fields: vec![None; view.features().len()],
            times: RowTimes::default(),
            exists: true,
        };
        match key.key_type() {
            KeyType::Hash => {}
            KeyType::Empty => {
                image.exists = false;
                return Ok(image);
            }
            KeyType::Stream | KeyType::Other => return Err(wrong_type(name)),
        }
        let needs_times = times == Times::Always || features.iter().any(|f| view.age_ms_max(*f).is_some());
        if features.len() >= SCAN_FROM_FIELDS {
            image.scan(&key, prepared, needs_times);
        } else {
            image.look_up(&key, words, prepared, features, needs_times);
        }
        Ok(image)
    }

    fn keep(&mut self, value: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(value);
        start..self.bytes.len()
    }

    fn scan(&mut self, key: &Key<'_>, prepared: &PreparedView, needs_times: bool) {
        let (mut updated_at, mut row_times) = (None, None);
        let mut hint = 0;
        key.hash_scan(|field, value| {
            // Features cannot begin with an underscore.
            if field.first() == Some(&b'_') {
                if needs_times && field == UPDATED_AT.as_bytes() {
                    updated_at = Some(self.keep(value));
                } else if needs_times && field == TIMES.as_bytes() {
                    row_times = Some(self.keep(value));
                }
            } else if let Some(feature) = prepared.view.position(field, hint) {
                self.fields[feature] = Some(self.keep(value));
                hint = feature + 1;
            }
        });
        self.read_times(prepared, updated_at, row_times);
    }

    fn look_up(
        &mut self,
        key: &Key<'_>,
        words: &Words,
        prepared: &PreparedView,
        features: &[usize],
        needs_times: bool,
    ) {
        let mut names: Vec<&ServerString> = features.iter().map(|f| &prepared.names[*f]).collect();
        if needs_times {
            names.extend([&words.updated_at, &words.times]);
        }
        let (mut updated_at, mut row_times) = (None, None);
        key.hash_get_each(&names, |i, value| {
            let range = self.keep(value);
            match features.get(i) {
                Some(feature) => self.fields[*feature] = Some(range),
                None if i == features.len() => updated_at = Some(range),
                None => row_times = Some(range),
            }
        });
        self.read_times(prepared, updated_at, row_times);
    }

    fn read_times(
        &mut self,
        prepared: &PreparedView,
        updated_at: Option<Range<usize>>,
        row_times: Option<Range<usize>>,
    ) {
        self.times =
            RowTimes::read(&prepared.view, updated_at.map(|r| &self.bytes[r]), row_times.map(|r| &self.bytes[r]));
    }

    /// The stored form of a feature that was asked for.
    pub(crate) fn field(&self, feature: usize) -> Option<&[u8]> {
        self.fields[feature].clone().map(|range| &self.bytes[range])
    }

    /// What a reader gets for a feature that was asked for.
    pub(crate) fn serve<'a>(&'a self, prepared: &'a PreparedView, feature: usize, now_ms: i64) -> Served<'a> {
        serve(&prepared.view, feature, self.field(feature), &self.times, now_ms)
    }

    /// The row's times.
    pub(crate) fn times(&self) -> &RowTimes {
        &self.times
    }
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
    let (mut set, mut deleted) = (false, false);
    if let Some(updated_at_ms) = change.updated_at_ms {
        key.hash_set(&words.updated_at, &ServerString::new(format_unix_seconds(updated_at_ms).as_bytes()));
        set = true;
    }
    if change.names_view {
        key.hash_set(&words.feature_view, view_name);
        set = true;
    }
    for (feature, field) in fields {
        match field {
            Some(field) => {
                key.hash_set(feature, &ServerString::new(field));
                set = true;
            }
            None => deleted |= key.hash_delete(feature),
        }
    }
    match &change.times {
        TimesChange::Keep => {}
        TimesChange::Remove => deleted |= key.hash_delete(&words.times),
        TimesChange::Set(text) => {
            key.hash_set(&words.times, &ServerString::new(text.as_bytes()));
            set = true;
        }
    }
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

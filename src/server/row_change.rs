//! Rows: changing them for an update.

use crate::server::api::{Context, ServerString};
use crate::server::columns;
use crate::server::key::{Key, KeyType, Mode};
use crate::server::rows::wrong_type;
use crate::server::state::{words, PreparedView, Words, STATE};
use feature_store_core::codec::{Expiry, RowChange};
use feature_store_core::keys::RowKey;
use feature_store_core::materialize::{RowFields, RowTimes, TimesChange};
use feature_store_core::time::format_unix_seconds;
use feature_store_core::update::Update;
use feature_store_core::Result;
use redis_module::raw;
use smallvec::SmallVec;
use std::ffi::CStr;

/// A row that an update is about to change.
pub(crate) struct RowToChange<'a, 'p> {
    key: Key<'a>,
    prepared: &'p PreparedView,
    /// The times that it holds.
    pub(crate) times: RowTimes,
    is_empty: bool,
    /// The bytes of a packed row.
    packed: SmallVec<[u8; 256]>,
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
        if let Some(packing) = &self.prepared.packing {
            return packing.open(&self.packed).is_some_and(|row| row.holds(feature));
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
        let mut packed = SmallVec::new();
        let (times, is_empty) = match (key.key_type(), &prepared.packing) {
            (KeyType::Empty, _) => (RowTimes::default(), true),
            (KeyType::String, Some(packing)) => {
                packed.extend_from_slice(key.string().unwrap_or_default());
                let row = packing.open(&packed).ok_or_else(|| wrong_type(name, prepared))?;
                (row.times(), false)
            }
            (KeyType::Hash, None) => {
                let [updated_at, times] = key.hash_get_many([&words.updated_at, &words.times]);
                let updated_at = updated_at.as_ref().map(ServerString::bytes);
                let times = times.as_ref().map(ServerString::bytes);
                (RowTimes::read(&prepared.view, updated_at, times), false)
            }
            _ => return Err(wrong_type(name, prepared)),
        };
        Ok(RowToChange { key, prepared, times, is_empty, packed, present: None, looked_up: 0 })
    }

    /// True for a row that does not say yet which view it belongs to.
    pub(crate) fn is_unnamed(&self) -> bool {
        self.is_empty || self.times.updated_at_ms.is_none()
    }

    pub(crate) fn key(&self) -> &Key<'a> {
        &self.key
    }

    /// How long a packed row is; 0: there is none.
    pub(crate) fn packed_bytes(&self) -> usize {
        self.packed.len()
    }

    /// Executes a change as it was decided here. `fields`: by feature, the stored form; `None` removes.
    pub(crate) fn write<'f>(
        mut self,
        context: Context<'_>,
        words: &Words,
        name: &ServerString,
        change: &RowChange<'_>,
        event_time_ms: i64,
        fields: impl Iterator<Item = (usize, Option<&'f [u8]>)> + Clone,
    ) {
        let prepared = self.prepared;
        let PreparedView { view, log, names, packing, .. } = prepared;
        let events = match packing {
            Some(packing) => {
                let old = packing.open(&self.packed);
                let row = packing.rewrite(view, old, change.updated_at_ms, &change.times, fields.clone());
                write_packed(&mut self.key, &row, change)
            }
            None => {
                let fields = fields.clone().map(|(feature, field)| (&names[feature], field));
                write_hash(words, &self.key, &log.view_name, change, fields)
            }
        };
        tell(context, Some(prepared), name, self.key, event_time_ms, fields, &events);
    }
}

/// Executes a change of a hash, as it was decided here or as it came from the primary.
fn write_hash<'f>(
    words: &Words,
    key: &Key<'_>,
    view_name: &ServerString,
    change: &RowChange<'_>,
    fields: impl Iterator<Item = (&'f ServerString, Option<&'f [u8]>)>,
) -> Events {
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
    set_expiry(key, change.expiry);
    let (set, deletion) = ((raw::REDISMODULE_NOTIFY_HASH, c"hset"), (raw::REDISMODULE_NOTIFY_HASH, c"hdel"));
    match (pairs.is_empty(), deleted) {
        (false, false) => Events::of(&[set], change.expiry),
        (false, true) => Events::of(&[set, deletion], change.expiry),
        (true, true) => Events::of(&[deletion], change.expiry),
        (true, false) => Events::of(&[], change.expiry),
    }
}

/// Puts a packed row in place. The key holds one, or nothing.
fn write_packed(key: &mut Key<'_>, row: &[u8], change: &RowChange<'_>) -> Events {
    let is_stored = key.set_string(row);
    debug_assert!(is_stored, "the key holds a row or nothing, and rows are shorter than strings may be");
    set_expiry(key, change.expiry);
    Events::of(&[(raw::REDISMODULE_NOTIFY_STRING, c"set")], change.expiry)
}

/// What those who listen are to hear of a change.
struct Events {
    list: SmallVec<[(i32, &'static CStr); 3]>,
    expiry: Expiry,
}

impl Events {
    fn of(written: &[(i32, &'static CStr)], expiry: Expiry) -> Self {
        let mut list = SmallVec::from_slice(written);
        match expiry {
            Expiry::Keep => {}
            Expiry::Remove => list.push((raw::REDISMODULE_NOTIFY_GENERIC, c"persist")),
            Expiry::At(_) => list.push((raw::REDISMODULE_NOTIFY_GENERIC, c"expire")),
        }
        Events { list, expiry }
    }

    /// Tells them. Answers how many there were.
    fn tell(&self, context: Context<'_>, name: &ServerString) -> u32 {
        self.list.iter().for_each(|(class, event)| context.notify(*class, event, name));
        self.list.len() as u32
    }
}

fn set_expiry(key: &Key<'_>, expiry: Expiry) {
    match expiry {
        Expiry::Keep => {}
        Expiry::Remove => key.set_expiry(None),
        Expiry::At(at_ms) => key.set_expiry(Some(at_ms)),
    }
}

/// Executes a change that came from the primary. `fields`: by name, the stored form; `None` removes.
pub(crate) fn execute<'f>(
    context: Context<'_>,
    name: &ServerString,
    row: &RowKey<'_>,
    change: &RowChange<'_>,
    event_time_ms: i64,
    fields: impl Iterator<Item = (&'f str, Option<&'f [u8]>)> + Clone,
) -> std::result::Result<(), &'static str> {
    let prepared = STATE.borrow(context).view_of(row).ok();
    let prepared = prepared.as_deref();
    let mut key = Key::open(context, name, Mode::Write);
    let position = |(feature, field): (&str, _)| Some((prepared?.view.position(feature.as_bytes(), 0)?, field));
    if !change.is_packed {
        if !matches!(key.key_type(), KeyType::Hash | KeyType::Empty) {
            return Err("the key does not hold a row");
        }
        let named: Vec<_> =
            fields.clone().map(|(feature, field)| (ServerString::new(feature.as_bytes()), field)).collect();
        let named = named.iter().map(|(feature, field)| (feature, *field));
        let view_name = ServerString::new(row.view.as_bytes());
        let events = write_hash(&words(context), &key, &view_name, change, named);
        tell(context, prepared, name, key, event_time_ms, fields.filter_map(position), &events);
        return Ok(());
    }
    // The definitions are replicated too, and came before.
    let prepared = prepared.ok_or("the view of a packed row is not registered")?;
    let packing = prepared.packing.as_ref().ok_or("the rows of the view are not packed")?;
    let old = match key.key_type() {
        KeyType::Empty => None,
        _ => Some(key.string().and_then(|row| packing.open(row)).ok_or("the key does not hold a row")?),
    };
    let fields = fields.filter_map(|(feature, field)| Some((prepared.view.position(feature.as_bytes(), 0)?, field)));
    let row = packing.rewrite(&prepared.view, old, change.updated_at_ms, &change.times, fields.clone());
    let events = write_packed(&mut key, &row, change);
    tell(context, Some(prepared), name, key, event_time_ms, fields, &events);
    Ok(())
}

/// Tells the column cache of a change, and then all others.
fn tell<'f>(
    context: Context<'_>,
    prepared: Option<&PreparedView>,
    name: &ServerString,
    key: Key<'_>,
    event_time_ms: i64,
    fields: impl Iterator<Item = (usize, Option<&'f [u8]>)>,
    events: &Events,
) {
    if let Some(prepared) = prepared {
        let id = &name.bytes()[prepared.row_prefix.len()..];
        prepared.columns.follow(context, id, &key, event_time_ms, events.expiry, fields);
    }
    // Whoever hears of it may delete the row: no key of it may be open then.
    drop(key);
    let Some(prepared) = prepared else {
        events.tell(context, name);
        return;
    };
    columns::while_telling(context, prepared, name, || events.tell(context, name));
}

/// Refuses a key that holds something that is no row, and an update that its row cannot hold.
pub(crate) fn check_row(
    context: Context<'_>,
    name: &ServerString,
    prepared: &PreparedView,
    update: &Update,
) -> Result<()> {
    check_type(context, name, prepared)?;
    let Some(packing) = &prepared.packing else { return Ok(()) };
    let key = Key::open(context, name, Mode::Read);
    let row = key.string();
    if row.is_some_and(|row| packing.open(row).is_none()) {
        return Err(wrong_type(name, prepared));
    }
    packing.check_update(&prepared.view, update, row.map_or(0, <[u8]>::len))
}

/// Refuses a key of another type than rows are of.
pub(crate) fn check_type(context: Context<'_>, name: &ServerString, prepared: &PreparedView) -> Result<()> {
    match (Key::open(context, name, Mode::Read).key_type(), &prepared.packing) {
        (KeyType::Empty, _) | (KeyType::Hash, None) | (KeyType::String, Some(_)) => Ok(()),
        _ => Err(wrong_type(name, prepared)),
    }
}

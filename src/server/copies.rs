//! FS.COPY: brings the rows of one version of a view into another, in slices, while its caller waits.

use crate::server::api::{Context, Replication, ServerString};
use crate::server::background::{may_write, Deadline, Left};
use crate::server::blocked::BlockedCaller;
use crate::server::effects::Effects;
use crate::server::key::Mode;
use crate::server::publish::{apply, Publication, Source};
use crate::server::rows::{Rows, Times};
use crate::server::state::{words, PreparedView, STATE};
use feature_store_core::feature_type::FeatureType;
use feature_store_core::keys::{row_of_window_key, version_pattern, RowKey};
use feature_store_core::materialize::is_expired_on_arrival;
use feature_store_core::row::Stored;
use feature_store_core::update::Update;
use feature_store_core::windows::state::ReadAt;
use feature_store_core::{Code, Error, Result};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Keys that one step of the scan looks at.
const SCAN_COUNT: &[u8] = b"32";
/// The event time of a value whose writer left none: every event is newer.
const UNKNOWN_TIME_MS: i64 = 0;

/// Features with the stored form of their values; `None`: it was removed.
type Fields = Vec<(usize, Option<Vec<u8>>)>;

/// A copy that is under way.
pub(crate) struct Copy {
    /// The view.
    pub(crate) view: String,
    /// The version whose rows are read.
    pub(crate) from: u32,
    /// The version that they are brought into.
    pub(crate) to: u32,
    /// Where the scan of the keys stands, and what it found that is still to be looked at.
    pub(crate) cursor: Vec<u8>,
    pub(crate) keys: Vec<Vec<u8>>,
    /// Rows of which something was brought over so far.
    pub(crate) rows: u64,
    /// Values that the other version does not take.
    pub(crate) refused: u64,
    /// Who waits for it.
    pub(crate) caller: BlockedCaller,
}

/// Ends all copies: this server does not write any more.
pub(crate) fn abort_all(context: Context<'_>) {
    let aborted = std::mem::take(&mut STATE.borrow_mut(context).background.copies);
    let error = Error::syntax("the copy ended early: this server is not the primary any more");
    aborted.into_iter().for_each(|copy| copy.caller.reply(|context| context.reply_error(&error)));
}

/// Works on the oldest copy until the deadline.
pub(crate) fn slice(context: Context<'_>, deadline: Deadline) -> Left {
    let Some(mut copy) = STATE.borrow_mut(context).background.copies.pop_front() else { return Left::Nothing };
    debug_assert!(may_write(context));
    loop {
        match step(context, &mut copy, deadline) {
            Ok(true) => {
                let (rows, refused) = (copy.rows, copy.refused);
                copy.caller.reply(|context| {
                    context.reply_array(2);
                    context.reply_count(Some(rows));
                    context.reply_count(Some(refused));
                });
                break;
            }
            Ok(false) if deadline.is_over() => {
                STATE.borrow_mut(context).background.copies.push_front(copy);
                break;
            }
            Ok(false) => {}
            Err(error) => {
                copy.caller.reply(|context| context.reply_error(&error));
                break;
            }
        }
    }
    match STATE.borrow(context).background.copies.is_empty() {
        true => Left::Nothing,
        false => Left::Work,
    }
}

fn version(context: Context<'_>, copy: &Copy, version: u32) -> Result<Rc<PreparedView>> {
    STATE.borrow(context).prepared_version(&copy.view, version).ok_or_else(|| {
        let what = format!("version {version} of view '{}' was dropped while it was copied", copy.view);
        Error::new(Code::NoView, what)
    })
}

/// Answers true at the end.
fn step(context: Context<'_>, copy: &mut Copy, deadline: Deadline) -> Result<bool> {
    let (from, to) = (version(context, copy, copy.from)?, version(context, copy, copy.to)?);
    let mut effects = Effects::new(context);
    while let Some(key) = copy.keys.pop() {
        if let Ok(row) = RowKey::parse(&key) {
            copy_row(context, copy, (&from, &to), row.entity_id, &mut effects);
        } else if let Some(row) = row_of_window_key(&key) {
            copy_windows(context, (&from, &to), &key, &row);
        }
        if deadline.is_over() {
            return Ok(false);
        }
    }
    effects.replicate();
    if copy.cursor.is_empty() {
        return Ok(true);
    }
    let pattern = version_pattern(&copy.view, copy.from);
    let arguments: [&[u8]; 5] = [&copy.cursor, b"MATCH", pattern.as_bytes(), b"COUNT", SCAN_COUNT];
    let reply = context.call(c"SCAN", &arguments, Replication::Local);
    let mut parts = reply.as_element().elements();
    let (Some(next), Some(keys)) = (parts.next().and_then(|c| c.bytes()), parts.next()) else {
        return Err(Error::syntax(format!("the keys of view '{}' cannot be scanned", copy.view)));
    };
    copy.cursor = if next == b"0" { Vec::new() } else { next.to_vec() };
    copy.keys.extend(keys.elements().filter_map(|key| key.bytes()).map(<[u8]>::to_vec));
    Ok(false)
}

/// May values of one type become values of the other? A text that happens to read as a number is none.
fn fits(from: FeatureType, to: FeatureType) -> bool {
    from == to || (from.is_number() && to.is_number())
}

/// Brings over what a row holds, with the event time of each value. What is newer there stays.
fn copy_row(
    context: Context<'_>,
    copy: &mut Copy,
    (from, to): (&PreparedView, &PreparedView),
    entity_id: &[u8],
    effects: &mut Effects<'_>,
) {
    let named = |prefix: &str| ServerString::new(&[prefix.as_bytes(), entity_id].concat());
    let (source, target) = (named(&from.row_prefix), named(&to.row_prefix));
    let features: Vec<usize> = from.view.stored().collect();
    let there: Vec<usize> = to.view.stored().collect();
    let now_ms = context.now_ms();
    let words = words(context);
    let read = |view, features, name| {
        let mut rows = Rows::new(view, features, Times::Always, ReadAt::Clock(now_ms)).opened_for(Mode::Peek);
        rows.read(context, &words, name).is_ok().then_some(rows)
    };
    // A key that is no row is left where it is.
    let Some(rows) = read(from, &features, &source).filter(|rows| rows.exists(0)) else { return };
    let known = read(to, &there, &target);
    let mut by_time: BTreeMap<i64, Fields> = BTreeMap::new();
    for (place, feature) in features.iter().enumerate() {
        let definition = &from.view.features()[*feature];
        let here = to.view.position(definition.name.as_bytes(), *feature);
        let Some(here) = here.filter(|i| to.view.features()[*i].is_stored()) else { continue };
        let stored = rows.stored(0, place);
        let value = stored.value(definition);
        let time_ms = match &value {
            Some(_) => Some(rows.times(0).of_present(*feature).unwrap_or(UNKNOWN_TIME_MS)),
            None if stored == Stored::Absent => rows.times(0).of_absent(*feature),
            // Nobody reads it, here or there.
            None => {
                copy.refused += 1;
                None
            }
        };
        let Some(time_ms) = time_ms else { continue };
        let is_refused = known.is_none()
            || is_expired_on_arrival(&to.view, time_ms, now_ms)
            || (value.is_some() && !fits(definition.ty, to.view.features()[here].ty));
        // What is there and as new stays: a copy is a fact of the past.
        let is_known = known.as_ref().is_some_and(|rows| {
            let holds = there.iter().position(|f| *f == here).is_some_and(|p| rows.stored(0, p) != Stored::Absent);
            let times = rows.times(0);
            let own =
                if holds { Some(times.of_present(here).unwrap_or(UNKNOWN_TIME_MS)) } else { times.of_absent(here) };
            own.is_some_and(|own| own >= time_ms)
        });
        if is_refused {
            copy.refused += u64::from(value.is_some());
        } else if !is_known {
            by_time.entry(time_ms).or_default().push((here, value.map(|value| value.to_field())));
        }
    }
    let mut is_brought = false;
    for (event_time_ms, fields) in by_time {
        let (update, refused) = Update::of_fields(&to.view, fields);
        copy.refused += refused;
        let publication = Publication {
            key: &target,
            entity_id,
            prepared: to,
            update: &update,
            event_time_ms: Some(event_time_ms),
            event_id: None,
            source: Source::Replay,
        };
        match apply(context, &words, &publication, now_ms, effects) {
            Ok(_) => is_brought |= !update.is_empty(),
            Err(_) => copy.refused += update.changes().len() as u64,
        }
    }
    copy.rows += u64::from(is_brought);
}

/// A window state tells itself what it counts, so it is copied as it is, where there is none that counts.
fn copy_windows(context: Context<'_>, (from, to): (&PreparedView, &PreparedView), key: &[u8], row: &[u8]) {
    let (Ok(row), Some(source), Some(windows)) = (RowKey::parse(row), &from.windows, &to.windows) else { return };
    let target = windows.key_of(row.entity_id);
    let name = ServerString::new(key);
    // One that was cleared stays so, in both versions.
    let counts = source.are_held(context, &name) && windows.are_held(context, &name);
    if counts && !windows.are_held(context, &target) {
        context.call(c"COPY", &[key, target.bytes(), b"REPLACE"], Replication::Replicated);
    }
}

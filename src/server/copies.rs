//! FS.COPY: brings the rows of one version of a view into another, in slices, while its caller waits.

use crate::server::api::{Context, Replication, ServerString};
use crate::server::background::{may_write, Deadline, Left};
use crate::server::blocked::BlockedCaller;
use crate::server::effects::Effects;
use crate::server::key::Mode;
use crate::server::publish::{apply, Publication, Source};
use crate::server::rows::{Rows, Times};
use crate::server::state::{words, PreparedView, STATE};
use feature_store_core::keys::{row_of_window_key, row_prefix, version_pattern, RowKey};
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
    /// Where the scan of the keys stands.
    pub(crate) cursor: Vec<u8>,
    /// Rows brought over so far.
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
        match step(context, &mut copy) {
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
fn step(context: Context<'_>, copy: &mut Copy) -> Result<bool> {
    let (from, to) = (version(context, copy, copy.from)?, version(context, copy, copy.to)?);
    let pattern = version_pattern(&copy.view, copy.from);
    let arguments: [&[u8]; 5] = [&copy.cursor, b"MATCH", pattern.as_bytes(), b"COUNT", SCAN_COUNT];
    let reply = context.call(c"SCAN", &arguments, Replication::Local);
    let mut parts = reply.as_element().elements();
    let next = parts.next().and_then(|c| c.bytes()).unwrap_or(b"0").to_vec();
    let mut effects = Effects::new(context);
    for key in parts.next().iter().flat_map(|keys| keys.elements()).filter_map(|key| key.bytes()) {
        if let Ok(row) = RowKey::parse(key) {
            copy_row(context, copy, (&from, &to), row.entity_id, &mut effects);
        } else if let (Some(row), true) = (row_of_window_key(key), to.windows.is_some()) {
            copy_windows(context, copy, key, &row);
        }
    }
    effects.replicate();
    copy.cursor = next;
    Ok(copy.cursor == b"0")
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
    let now_ms = context.now_ms();
    let words = words(context);
    let mut rows = Rows::new(from, &features, Times::Always, ReadAt::Clock(now_ms)).opened_for(Mode::Peek);
    // A key that is no row is left where it is.
    if rows.read(context, &words, &source).is_err() || !rows.exists(0) {
        return;
    }
    let mut by_time: BTreeMap<i64, Fields> = BTreeMap::new();
    for (place, feature) in features.iter().enumerate() {
        let definition = &from.view.features()[*feature];
        let here = to.view.position(definition.name.as_bytes(), *feature);
        let Some(here) = here.filter(|i| to.view.features()[*i].is_stored()) else { continue };
        let value = rows.stored(0, place).value(definition);
        let time_ms = match &value {
            Some(_) => Some(rows.times(0).of_present(*feature).unwrap_or(UNKNOWN_TIME_MS)),
            None => rows.times(0).of_absent(*feature),
        };
        if let Some(time_ms) = time_ms {
            by_time.entry(time_ms).or_default().push((here, value.map(|value| value.to_field())));
        }
    }
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
        if apply(context, &words, &publication, now_ms, effects).is_err() {
            copy.refused += update.changes().len() as u64;
        }
    }
    copy.rows += 1;
}

/// A window state tells itself what it counts, so it is copied as it is, where there is none yet.
fn copy_windows(context: Context<'_>, copy: &Copy, key: &[u8], row: &[u8]) {
    let Ok(row) = RowKey::parse(row) else { return };
    let rows = row_prefix(&copy.view, copy.to);
    // `fs:v2:view:id` is `fs:w2:view:id` for its windows.
    let mut target = [rows.as_bytes(), row.entity_id].concat();
    target[3] = b'w';
    context.call(c"COPY", &[key, &target], Replication::Replicated);
}

//! FS.REPLAY: re-materializes rows from the log, in slices, while its caller waits.

use crate::server::api::{Context, ServerString};
use crate::server::background::{may_write, Deadline, Left};
use crate::server::blocked::BlockedCaller;
use crate::server::consumer::{against, read_batch};
use crate::server::decoder::{decode_for_replay, Outcome};
use crate::server::effects::Effects;
use crate::server::publish::{apply, Publication, Source};
use crate::server::state::{words, STATE};
use feature_store_core::keys::row_key;
use feature_store_core::stream_id::StreamId;
use feature_store_core::{Code, Error};
use std::sync::Arc;

/// Entries that are read together.
const BATCH_ENTRIES: usize = 32;

/// A replay that is under way.
pub(crate) struct Replay {
    /// The view.
    pub(crate) view: String,
    /// The version whose rows are made again.
    pub(crate) version: u32,
    /// The last entry that was replayed.
    pub(crate) position: StreamId,
    /// The last entry that will be: the newest when the replay began.
    pub(crate) end: StreamId,
    /// Entries replayed so far.
    pub(crate) replayed: u64,
    /// Entries that were no update of this version.
    pub(crate) refused: u64,
    /// Windows count again what was counted before they were cleared: entries up to this one, and those that FS.PUBLISH
    /// wrote. The consumer will count the others. `None`: windows are left alone.
    pub(crate) windows: Option<StreamId>,
    /// Who waits for it.
    pub(crate) caller: BlockedCaller,
}

impl Replay {
    pub(crate) fn is_of(&self, view: &str) -> bool {
        self.view == view
    }

    fn finish(self) {
        let replayed = self.replayed;
        self.caller.reply(|context| context.reply_count(Some(replayed)));
    }

    fn fail(self, error: &Error) {
        self.caller.reply(|context| context.reply_error(error));
    }
}

/// Ends all replays: this server does not write any more.
pub(crate) fn abort_all(context: Context<'_>) {
    let aborted = std::mem::take(&mut STATE.borrow_mut(context).background.replays);
    let error = Error::syntax("the replay ended early: this server is not the primary any more");
    aborted.into_iter().for_each(|replay| replay.fail(&error));
}

/// Works on the oldest replay until the deadline.
pub(crate) fn slice(context: Context<'_>, deadline: Deadline) -> Left {
    let Some(mut replay) = STATE.borrow_mut(context).background.replays.pop_front() else { return Left::Nothing };
    debug_assert!(may_write(context));
    match step(context, &mut replay, deadline) {
        Ok(true) => replay.finish(),
        Ok(false) => STATE.borrow_mut(context).background.replays.push_front(replay),
        Err(error) => replay.fail(&error),
    }
    match STATE.borrow(context).background.replays.is_empty() {
        true => Left::Nothing,
        false => Left::Work,
    }
}

/// Answers true at the end.
fn step(context: Context<'_>, replay: &mut Replay, deadline: Deadline) -> Result<bool, Error> {
    let prepared = STATE
        .borrow(context)
        .prepared_version(&replay.view, replay.version)
        .ok_or_else(|| Error::new(Code::NoView, format!("view '{}' was dropped while it was replayed", replay.view)))?;
    let words = words(context);
    let against = against(context, Arc::new(vec![Arc::clone(&prepared.view)]));
    let mut effects = Effects::new(context);
    let mut at_end = false;
    // At least one batch a slice: the consumers may have used up the time.
    loop {
        let batch = read_batch(context, &prepared.log.stream_key, replay.position, BATCH_ENTRIES);
        at_end |= batch.is_empty();
        for entry in batch {
            if entry.id > replay.end {
                at_end = true;
                break;
            }
            let id = entry.id;
            let counts = replay.windows.is_some_and(|consumed_to| id <= consumed_to || entry.is_applied());
            let decoded = decode_for_replay(entry, &against);
            let Outcome::Read(Ok(entry)) = decoded.outcome else {
                replay.refused += 1;
                replay.position = id;
                continue;
            };
            let buried = STATE.borrow(context).registry.view(replay.view.as_bytes())?.is_buried(
                replay.version,
                &entry.entity_id,
                id,
            );
            match &entry.updates[0] {
                Ok(update) if !buried => {
                    let publication = Publication {
                        key: &ServerString::new(&row_key(&replay.view, replay.version, &entry.entity_id)),
                        entity_id: &entry.entity_id,
                        prepared: &prepared,
                        update,
                        event_time_ms: Some(entry.event_time_ms),
                        event_id: entry.event_id.as_deref(),
                        source: if counts { Source::ReplayWithWindows(id) } else { Source::Replay },
                    };
                    match apply(context, &words, &publication, context.now_ms(), &mut effects) {
                        Ok(_) => replay.replayed += 1,
                        Err(_) => replay.refused += 1,
                    }
                }
                Ok(_) => {}
                Err(_) => replay.refused += 1,
            }
            replay.position = id;
        }
        if at_end || deadline.is_over() {
            break;
        }
    }
    effects.replicate();
    Ok(at_end)
}

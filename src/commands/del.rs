//! FS.DEL.

use super::{FIRST, KEYS};
use crate::server::api::Context;
use crate::server::command::{Call, Command, KeyAccess, Keys, Spec};
use crate::server::effects::{execute_delete, Effects};
use crate::server::events::quietly;
use crate::server::key::{End, Key, KeyType, Mode};
use crate::server::logs::Log;
use crate::server::row_change::check_type;
use crate::server::state::STATE;
use crate::server::windows;
use feature_store_core::codec::Effect;
use feature_store_core::keys::RowKey;
use feature_store_core::stream_id::StreamId;
use feature_store_core::Result;
use std::collections::HashMap;

/// The newest entry that somebody may still read, and so bring a row back.
fn backlog_end(context: Context<'_>, log: &Log) -> Option<StreamId> {
    let is_replaying = STATE.borrow(context).background.replays.iter().any(|r| r.is_of(&log.view));
    if log.is_drained() && !is_replaying {
        return None;
    }
    Key::open(context, &log.stream_key, Mode::Read).stream_id(End::Newest)
}

/// Deletes rows.
pub(super) struct Del;

impl Command for Del {
    const SPEC: Spec = Spec {
        name: c"FS.DEL",
        summary: c"Deletes rows with their windows so that the backlog cannot bring them back.",
        complexity: c"O(N), N the number of rows.",
        since: FIRST,
        flags: c"write",
        categories: c"fs write slow",
        arity: -2,
        keys: Keys::From(1, 1, KeyAccess::Delete),
        arguments: &[KEYS],
        reply: "The number of entities that had a row or window state.",
        notes: "A row's window state and its memory of event ids go with it. Log entries that were not consumed yet \
                when the row was deleted do not bring it back; later ones do. The log itself keeps its entries, so \
                `FS.REPLAY` over them makes the row again.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let context = call.context;
        let count = call.arguments().len();
        let mut rows = Vec::with_capacity(count);
        for place in 1..=count {
            let (_, prepared) = call.row(place)?;
            let name = call.string(place);
            check_type(context, name, &prepared)?;
            rows.push((name, prepared));
        }
        let mut effects = Effects::new(context);
        let mut deleted = 0;
        // By view: up to which entry the backlog must not bring its rows back.
        let mut backlogs: HashMap<&str, Option<StreamId>> = HashMap::new();
        for (name, prepared) in &rows {
            let buried_to = *backlogs.entry(&prepared.view.name).or_insert_with(|| backlog_end(context, &prepared.log));
            let existed = Key::open(context, name, Mode::Read).key_type() != KeyType::Empty
                || RowKey::parse(name.bytes()).is_ok_and(|row| windows::are_there(context, &row));
            deleted += i64::from(existed);
            if existed || buried_to.is_some() {
                // The key was parsed above; what is left cannot fail.
                let _ = quietly(|| execute_delete(context, name, buried_to));
                effects.push(name, &Effect::Delete(buried_to));
            }
        }
        effects.replicate();
        context.reply_integer(deleted);
        Ok(())
    }
}

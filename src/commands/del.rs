//! FS.DEL.

use super::{FIRST, KEYS};
use crate::server::api::{Key, Mode};
use crate::server::command::{Call, Command, KeyAccess, Keys, Spec};
use crate::server::effects::{execute_delete, Effects};
use crate::server::events::quietly;
use crate::server::rows::check_row;
use crate::server::state::STATE;
use crate::server::{api, streams};
use feature_store_core::codec::Effect;
use feature_store_core::Result;

/// Deletes rows.
pub(super) struct Del;

impl Command for Del {
    const SPEC: Spec = Spec {
        name: c"FS.DEL",
        summary: c"Deletes rows so that the backlog cannot bring them back.",
        complexity: c"O(N), N the number of rows.",
        since: FIRST,
        flags: c"write",
        categories: c"fs write slow",
        arity: -2,
        keys: Keys::From(1, 1, KeyAccess::Delete),
        arguments: &[KEYS],
        reply: "The number of rows that were there.",
        notes: "Log entries that were not consumed yet when the row was deleted do not bring it back; later ones do. The log \
                itself keeps its entries, so `FS.REPLAY` over them makes the row again.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let context = call.context;
        let count = call.arguments().len();
        let mut rows = Vec::with_capacity(count);
        for place in 1..=count {
            let (_, prepared) = call.row(place)?;
            let name = call.string(place);
            check_row(context, name)?;
            rows.push((name, prepared));
        }
        let mut effects = Effects::default();
        let mut deleted = 0;
        for (name, prepared) in &rows {
            let log = &prepared.log;
            let is_replaying = STATE.borrow(context).background.replays.iter().any(|r| r.is_of(&log.view));
            // Only entries that somebody may still read can bring the row back.
            let buried_to = if log.is_drained() && !is_replaying {
                None
            } else {
                streams::facts(context, &log.stream_key).map(|facts| facts.last_generated)
            };
            let existed = Key::open(context, name, Mode::Read).key_type() != api::KeyType::Empty;
            deleted += i64::from(existed);
            if existed || buried_to.is_some() {
                // The key was parsed above; what is left cannot fail.
                let _ = quietly(|| execute_delete(context, name, buried_to));
                effects.push(name, &Effect::Delete(buried_to));
            }
        }
        effects.replicate(context);
        context.reply_integer(deleted);
        Ok(())
    }
}

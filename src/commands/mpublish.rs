//! FS.MPUBLISH.

use super::{FIRST, KEY};
use crate::server::acl::{Access, Caller};
use crate::server::command::{Argument, Call, Command, KeyAccess, Keys, Spec};
use crate::server::config;
use crate::server::effects::Effects;
use crate::server::logs::add;
use crate::server::publish::{apply, check_log, check_room, Publication, Source};
use crate::server::row_change::check_row;
use crate::server::state::{words, PreparedView};
use crate::server::windows::check_windows;
use feature_store_core::time::check_not_future;
use feature_store_core::update::StampedUpdate;
use feature_store_core::{Error, Result};
use std::collections::HashMap;
use std::rc::Rc;

/// Publishes several rows.
pub(super) struct Mpublish;

impl Command for Mpublish {
    const SPEC: Spec = Spec {
        name: c"FS.MPUBLISH",
        summary: c"Publishes several rows, all or none, in order.",
        complexity: c"O(N*F), N the number of rows, F the number of features of a row.",
        since: FIRST,
        flags: c"write deny-oom",
        categories: c"fs write slow",
        arity: -3,
        keys: Keys::From(1, 2, KeyAccess::Write),
        arguments: &[Argument::block(c"row", &[KEY, Argument::text(c"object")]).multiple()],
        reply: "The number of rows.",
        notes: "Each object is JSON, feature to value; its members `_at` (event time, unix milliseconds) and `_event` \
                (event id) stand beside the features. All objects are checked before the first row is written. Rows \
                may belong to different views.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let context = call.context;
        let objects = call.arguments().rest();
        if objects.len() % 2 == 1 {
            return Err(Error::syntax("each key must be followed by a JSON object"));
        }
        let (now_ms, clock_skew_ms_max) = (context.now_ms(), config::CLOCK_SKEW_MS_MAX.get());
        let caller = Caller::of(context);
        let mut rows = Vec::with_capacity(objects.len() / 2);
        for (i, pair) in objects.chunks_exact(2).enumerate() {
            let place = 1 + 2 * i;
            let (entity_id, prepared) = call.row(place)?;
            let stamped = StampedUpdate::from_json(&prepared.view, pair[1])?;
            if let Some(at_ms) = stamped.at_ms {
                check_not_future(at_ms, now_ms, clock_skew_ms_max, &prepared.view.name)?;
            }
            let name = call.string(place);
            if stamped.update.is_of_row(&prepared.view) {
                check_row(context, name, &prepared, &stamped.update)?;
            }
            check_windows(context, &prepared, entity_id)?;
            if prepared.view.log {
                caller.require(context, &prepared.log.stream_key, Access::Insert)?;
                check_log(context, &prepared.log)?;
            }
            rows.push((entity_id, name, prepared, stamped));
        }
        let mut entries: HashMap<&str, (&Rc<PreparedView>, u64)> = HashMap::new();
        for (_, _, prepared, _) in rows.iter().filter(|(_, _, prepared, _)| prepared.view.log) {
            entries.entry(&prepared.view.name).or_insert((prepared, 0)).1 += 1;
        }
        for (prepared, count) in entries.into_values() {
            check_room(context, &prepared.log, count)?;
        }
        let words = words(context);
        let mut effects = Effects::new(context);
        for (entity_id, name, prepared, stamped) in &rows {
            let publication = Publication {
                key: name,
                entity_id,
                prepared,
                update: &stamped.update,
                event_time_ms: stamped.at_ms,
                event_id: stamped.event_id.as_deref(),
                source: if prepared.view.log { Source::Command } else { Source::CommandWithoutLog },
            };
            // All that can be refused was checked above.
            apply(context, &words, &publication, now_ms, &mut effects)?;
            add(&prepared.log.counters.published, 1);
        }
        effects.replicate();
        context.reply_count(Some(rows.len() as u64));
        Ok(())
    }
}

//! FS.PUBLISH.

use super::{FEATURE_VALUES, FIRST, KEY};
use crate::server::acl::{Access, Caller};
use crate::server::command::{Argument, Call, Command, KeyAccess, Keys, Spec};
use crate::server::config;
use crate::server::effects::Effects;
use crate::server::logs::add;
use crate::server::publish::{apply, Publication, Source};
use crate::server::state::words;
use feature_store_core::time::{check_not_future, parse_unix_ms};
use feature_store_core::update::{checked_event_id, Update};
use feature_store_core::Result;

/// Publishes one row.
pub(super) struct Publish;

impl Command for Publish {
    const SPEC: Spec = Spec {
        name: c"FS.PUBLISH",
        summary: c"Validates an update, logs it and brings it into its row, as one unit.",
        complexity: c"O(F), F the number of features of the row.",
        since: FIRST,
        flags: c"write deny-oom fast",
        categories: c"fs write fast",
        arity: -4,
        keys: Keys::At(1, KeyAccess::Write),
        arguments: &[
            KEY,
            Argument::unix_time_ms(c"milliseconds").after(c"AT").optional(),
            Argument::text(c"id").after(c"EVENT").optional(),
            Argument::word(c"NOLOG").optional(),
            Argument::one_of(c"update", &[FEATURE_VALUES, Argument::text(c"object").after(c"JSON")]),
        ],
        reply: "The id of the log's entry; nil when nothing was logged. For an event that the entity saw before (see \
                `EVENT`), that of its first entry.",
        notes: "`AT` is the event time in unix milliseconds. Without it the event time is now, or the newest event \
                time of the named features if that is later, so such an update always takes effect. A feature that \
                already has a later event time keeps its value; the update is logged all the same. A JSON `null` \
                removes a value. The whole update is applied or, on any error, none of it.\n\n`EVENT` is kept in the \
                log's entry. In a view with `DEDUP`, an id that the same entity saw within that time has no second \
                effect: nothing is logged, written or counted again. So a publish whose reply was lost can be sent \
                again.\n\nWindows count every event, also a late or superseded one. An update that carries only inputs \
                makes no row.\n\nNeeds permission to write the row's key and, unless `NOLOG`, to add to the view's \
                stream.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let context = call.context;
        let (entity_id, prepared) = call.row(1)?;
        let mut arguments = call.arguments();
        arguments.next("key")?;
        let (mut at_ms, mut event_id, mut log) = (None, None, prepared.view.log);
        loop {
            if arguments.take_word("AT") {
                at_ms = Some(parse_unix_ms("AT", arguments.next("AT")?)?);
            } else if arguments.take_word("EVENT") {
                event_id = Some(checked_event_id(arguments.next("EVENT")?)?);
            } else if arguments.take_word("NOLOG") {
                log = false;
            } else {
                break;
            }
        }
        let update = if arguments.take_word("JSON") {
            let object = arguments.next("object")?;
            arguments.finish()?;
            Update::from_json(&prepared.view, object)?
        } else {
            Update::from_pairs(&prepared.view, arguments.rest())?
        };
        let now_ms = context.now_ms();
        if let Some(at_ms) = at_ms {
            check_not_future(at_ms, now_ms, config::CLOCK_SKEW_MS_MAX.get(), &prepared.view.name)?;
        }
        if log {
            Caller::of(context).require(context, &prepared.log.stream_key, Access::Insert)?;
        }
        let publication = Publication {
            key: call.string(1),
            entity_id,
            prepared: &prepared,
            update: &update,
            event_time_ms: at_ms,
            event_id,
            source: if log { Source::Command } else { Source::CommandWithoutLog },
        };
        let mut effects = Effects::new(context);
        let id = apply(context, &words(context), &publication, now_ms, &mut effects)?;
        effects.replicate();
        add(&prepared.log.counters.published, 1);
        context.reply_optional_text(id.map(|id| id.to_string()).as_deref());
        Ok(())
    }
}

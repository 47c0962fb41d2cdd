//! FS.TRIM.

use super::{FIRST, VIEW};
use crate::server::acl::{Access, Caller};
use crate::server::command::{Argument, Call, Command, Keys, Spec};
use crate::server::consumer;
use crate::server::effects::Effects;
use crate::server::events::quietly;
use crate::server::key::{Key, Mode, Precision};
use crate::server::publish::check_log;
use crate::server::state::STATE;
use crate::server::streams;
use feature_store_core::codec::{Effect, LogEffect};
use feature_store_core::{Error, Result};

/// Trims a log.
pub(super) struct Trim;

impl Command for Trim {
    const SPEC: Spec = Spec {
        name: c"FS.TRIM",
        summary: c"Trims a view's log, but never what is not consumed yet.",
        complexity: c"O(N), N the number of entries that go.",
        since: FIRST,
        flags: c"write admin",
        categories: c"fs write slow admin dangerous",
        arity: 4,
        keys: Keys::None,
        arguments: &[VIEW, Argument::integer(c"entries").after(c"MAXLEN")],
        reply: "The number of entries that were removed.",
        notes: "Exact. Entries that the view's consumer has not read yet stay; `XTRIM` on the stream has no such regard, and \
                what it takes is counted under `lost_entries`.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let context = call.context;
        let mut arguments = call.arguments();
        let view = arguments.next("view")?;
        if !arguments.take_word("MAXLEN") {
            return Err(Error::syntax("MAXLEN is missing"));
        }
        let maxlen = arguments.number("MAXLEN", 0)?;
        arguments.finish()?;
        let log = STATE.borrow(context).require_log(view)?;
        Caller::of(context).require(context, &log.stream_key, Access::Update)?;
        check_log(context, &log)?;
        // A restart must find the cursor behind nothing that goes now.
        consumer::flush(context, &log);
        let unconsumed = consumer::lag(context, &log).map_or(0, |(entries, _)| entries);
        let target = maxlen.max(unconsumed);
        let key = Key::open(context, &log.stream_key, Mode::Write);
        let before = key.length();
        let trimmed_to = quietly(|| streams::trim(context, &key, &log.stream_key, target, Precision::Exact));
        if trimmed_to.is_some() {
            let mut effects = Effects::new(context);
            effects.push(&log.stream_key, &Effect::Log(LogEffect { trimmed_to, ..LogEffect::default() }));
            effects.replicate();
        }
        context.reply_count(Some(before - trimmed_to.unwrap_or(before)));
        Ok(())
    }
}

//! FS.CONSUME.

use super::{FIRST, VIEW};
use crate::server::acl::{Access, Caller};
use crate::server::command::{Argument, Call, Command, Keys, Spec};
use crate::server::consumer::consume_now;
use crate::server::publish::check_log;
use crate::server::state::STATE;
use feature_store_core::{Error, Result};

/// Consumes now.
pub(super) struct Consume;

impl Command for Consume {
    const SPEC: Spec = Spec {
        name: c"FS.CONSUME",
        summary: c"Materializes pending entries of a view's log now, in the call.",
        complexity: c"O(N*F), N the number of entries, F the number of features of a row.",
        since: FIRST,
        flags: c"write deny-oom admin",
        categories: c"fs write slow admin dangerous",
        arity: -2,
        keys: Keys::None,
        arguments: &[VIEW, Argument::integer(c"entries").after(c"COUNT").optional()],
        reply: "Two elements: how many entries were taken in (those that `FS.PUBLISH` had applied included), and the cursor, \
                nil when there is no log.",
        notes: "`COUNT` is 1000 if not given. Works on a stopped consumer too. Needs permission to write the view's stream: \
                whoever may add to it may write all rows of the view.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let context = call.context;
        let mut arguments = call.arguments();
        let view = arguments.next("view")?;
        let count = if arguments.take_word("COUNT") { arguments.number("COUNT", 1)? } else { 1_000 };
        arguments.finish()?;
        let log = STATE.borrow(context).require_log(view)?;
        if !log.consumes.get() {
            return Err(Error::syntax(format!("no version of view '{}' has CONSUMER ON", log.view)));
        }
        Caller::of(context).require(context, &log.stream_key, Access::Update)?;
        check_log(context, &log)?;
        let (consumed, cursor) = consume_now(context, &log, count);
        context.reply_array(2);
        context.reply_count(Some(consumed));
        context.reply_optional_text(cursor.map(|id| id.to_string()).as_deref());
        Ok(())
    }
}

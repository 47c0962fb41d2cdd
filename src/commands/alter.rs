//! FS.ALTER.

use super::register::{CONSUMER, DESCRIPTION, EXTRA, FEATURE, LOG, MAXLEN, SAMPLE, TTL};
use super::{FIRST, VERSION, VIEW};
use crate::server::background;
use crate::server::command::{Argument, Call, Command, Keys, Spec};
use crate::server::state::STATE;
use feature_store_core::arguments::parse_version;
use feature_store_core::schema_syntax::Alteration;
use feature_store_core::Result;

/// Changes what may change in place.
pub(super) struct Alter;

impl Command for Alter {
    const SPEC: Spec = Spec {
        name: c"FS.ALTER",
        summary: c"Changes what may change in place of a feature view.",
        complexity: c"O(F), F the number of features.",
        since: FIRST,
        flags: c"write deny-oom admin",
        categories: c"fs write slow admin dangerous",
        arity: -4,
        keys: Keys::None,
        arguments: &[
            VIEW,
            VERSION,
            TTL,
            LOG,
            MAXLEN,
            CONSUMER,
            EXTRA,
            SAMPLE,
            DESCRIPTION,
            Argument::block(c"feature-to-add", FEATURE).after(c"ADD").optional().multiple(),
        ],
        reply: "`OK`.",
        notes: "A window that is added begins with what the states keep of its input already, if anything, and counts \
                from then on. `TTL NONE` takes the TTL away. A new TTL rules reads at once; the expiry of a row's key \
                follows with the row's next update. Everything else (types, names, ranges, an order) is a new version: \
                `FS.REGISTER view VERSION n`. Without `VERSION` the newest version is changed.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let mut arguments = call.arguments();
        let view = arguments.next("view")?;
        let version =
            if arguments.take_word("VERSION") { Some(parse_version(arguments.next("VERSION")?)?) } else { None };
        let name = STATE.borrow(call.context).registry.version(view, version)?.name.clone();
        let alteration = Alteration::parse(view, &mut arguments)?;
        {
            let mut state = STATE.borrow_mut(call.context);
            state.registry.alter(view, version, &alteration)?;
            state.prepare(&name);
        }
        call.context.replicate_verbatim();
        background::wake(call.context);
        call.context.reply_ok();
        Ok(())
    }
}

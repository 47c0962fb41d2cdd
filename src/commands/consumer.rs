//! FS.CONSUMER.

use super::{FIRST, VIEW};
use crate::server::background;
use crate::server::command::{Argument, Call, Command, Keys, Spec};
use crate::server::state::STATE;
use feature_store_core::Result;

/// Stops and starts a view's consumer.
pub(super) struct Consumer;

impl Command for Consumer {
    const SPEC: Spec = Spec {
        name: c"FS.CONSUMER",
        summary: c"Starts or stops the background consumer of a view's log.",
        complexity: c"O(1)",
        since: FIRST,
        flags: c"write admin",
        categories: c"fs write slow admin dangerous",
        arity: 3,
        keys: Keys::None,
        arguments: &[Argument::one_of(c"action", &[Argument::word(c"START"), Argument::word(c"STOP")]), VIEW],
        reply: "`OK`.",
        notes: "A stopped consumer stays stopped across restarts and failovers. Entries wait in the log (up to \
                `fs.log-hard-cap`), and `FS.CONSUME` still takes them in by hand.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let mut arguments = call.arguments();
        let stop = arguments.one_of("FS.CONSUMER", &["START", "STOP"])? == 1;
        let view = arguments.next("view")?;
        {
            let mut state = STATE.borrow_mut(call.context);
            let registered = state.registry.view_mut(view)?;
            registered.stopped = stop;
            let name = registered.newest().name.clone();
            state.prepare(&name);
        }
        call.context.replicate_verbatim();
        background::wake(call.context);
        call.context.reply_ok();
        Ok(())
    }
}

//! FS.EFFECT: how replicas and the AOF hear what happened. Not for clients.

use super::{FIRST, KEY};
use crate::server::api::LogLevel;
use crate::server::command::{Argument, Call, Command, KeyAccess, Keys, Spec};
use crate::server::effects;
use feature_store_core::error::shown;
use feature_store_core::{Code, Error, Result};

/// Executes effects of the primary.
pub(super) struct Effect;

impl Command for Effect {
    const SPEC: Spec = Spec {
        name: c"FS.EFFECT",
        summary: c"Carries effects to replicas and the AOF. Not for clients.",
        complexity: c"O(N), N the number of effects.",
        since: FIRST,
        flags: c"write admin",
        categories: c"fs write slow admin dangerous",
        arity: -3,
        keys: Keys::From(1, 2, KeyAccess::Write),
        arguments: &[Argument::block(c"effect", &[KEY, Argument::text(c"bytes")]).multiple()],
        reply: "`OK`.",
        notes: "Each effect is what happened to one key, with clock readings and ids resolved. From a client it is refused \
                with `NOPERM`.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let context = call.context;
        if !context.flags().has_no_user() {
            return Err(Error::new(Code::NoPerm, "FS.EFFECT is for replication alone"));
        }
        for (i, pair) in call.arguments().rest().chunks(2).enumerate() {
            let name = call.string(1 + 2 * i);
            let executed = match pair {
                [_, effect] => effects::execute(context, name, effect),
                _ => Err("the effect is missing".to_owned()),
            };
            if let Err(why) = executed {
                let key = shown(name.bytes());
                context.log(LogLevel::Warning, &format!("fs: an effect on key '{key}' was not executed: {why}"));
            }
        }
        // For this replica's own AOF: replicas of a replica get the primary's stream as it is.
        if !context.flags().is_loading() {
            context.replicate_verbatim();
        }
        context.reply_ok();
        Ok(())
    }
}

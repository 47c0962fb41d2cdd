//! FS.DROP.

use super::{FIRST, VERSION, VIEW};
use crate::server::acl::{Access, Caller};
use crate::server::alerts;
use crate::server::api::ServerString;
use crate::server::background;
use crate::server::command::{Argument, Call, Command, Keys, Spec};
use crate::server::effects::Effects;
use crate::server::state::STATE;
use feature_store_core::arguments::parse_version;
use feature_store_core::keys::{dead_letter_key, row_prefix, stream_key};
use feature_store_core::Result;

/// Drops a view.
pub(super) struct Drop;

impl Command for Drop {
    const SPEC: Spec = Spec {
        name: c"FS.DROP",
        summary: c"Drops a version of a feature view, or all of them.",
        complexity: c"O(1); with DATA, the background deletes in slices and looks at every key once.",
        since: FIRST,
        flags: c"write admin",
        categories: c"fs write slow admin dangerous",
        arity: -2,
        keys: Keys::None,
        arguments: &[VIEW, VERSION, Argument::word(c"DATA").optional()],
        reply: "`OK`, as soon as the definition is gone.",
        notes: "Without `DATA` rows and streams stay as they are. With it they are deleted in the background, also across a \
                restart or failover; until that is done, registering the name answers `BUSY` and `FS.INFO` counts it under \
                `dropping`. Log and dead letters go with the last version. `DATA` asks for write permission on all of \
                the view's keys.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let mut arguments = call.arguments();
        let view = arguments.next("view")?;
        let version =
            if arguments.take_word("VERSION") { Some(parse_version(arguments.next("VERSION")?)?) } else { None };
        let with_data = arguments.take_word("DATA");
        arguments.finish()?;
        let context = call.context;
        let definition = std::sync::Arc::clone(STATE.borrow(context).registry.version(view, version)?);
        let versions: Vec<u32> = match version {
            Some(version) => vec![version],
            None => STATE.borrow(context).registry.view(view)?.versions.keys().copied().collect(),
        };
        if with_data {
            let caller = Caller::of(context);
            for version in &versions {
                caller.require_prefix(context, &row_prefix(&definition.name, *version))?;
            }
            for key in [stream_key(&definition.name), dead_letter_key(&definition.name)] {
                caller.require(context, &ServerString::new(key.as_bytes()), Access::Update)?;
            }
        }
        // Copies are told by the primary.
        if !context.flags().has_no_user() {
            let mut effects = Effects::new(context);
            for version in versions {
                let prepared = STATE.borrow(context).prepared_version(&definition.name, version);
                prepared.iter().for_each(|prepared| alerts::end_all(context, prepared, &mut effects));
            }
            effects.replicate();
        }
        {
            let mut state = STATE.borrow_mut(context);
            state.registry.drop_view(view, version, with_data)?;
            state.prepare(&definition.name);
        }
        context.replicate_verbatim();
        background::wake(context);
        context.reply_ok();
        Ok(())
    }
}

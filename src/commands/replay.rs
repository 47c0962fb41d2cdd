//! FS.REPLAY.

use super::{FIRST, VERSION, VIEW};
use crate::server::acl::{Access, Caller};
use crate::server::api::Context;
use crate::server::background;
use crate::server::blocked::BlockedCaller;
use crate::server::command::{Argument, Call, Command, Keys, Spec};
use crate::server::consumer;
use crate::server::effects::Effects;
use crate::server::logs::Log;
use crate::server::publish::check_log;
use crate::server::replay;
use crate::server::state::STATE;
use crate::server::streams;
use feature_store_core::arguments::parse_version;
use feature_store_core::codec::Effect;
use feature_store_core::definition::FeatureView;
use feature_store_core::keys::row_prefix;
use feature_store_core::stream_id::StreamId;
use feature_store_core::{Code, Error, Result};
use std::sync::Arc;

/// Replays a log.
pub(super) struct Replay;

impl Command for Replay {
    const SPEC: Spec = Spec {
        name: c"FS.REPLAY",
        summary: c"Materializes rows again from a view's log.",
        complexity: c"O(N*F), N the number of entries, F the number of features of a row; in slices.",
        since: FIRST,
        flags: c"write deny-oom admin",
        categories: c"fs write slow admin dangerous",
        arity: -4,
        keys: Keys::None,
        arguments: &[VIEW, Argument::text(c"id").after(c"FROM"), VERSION, Argument::word(c"WINDOWS").optional()],
        reply: "The number of entries that were replayed, at the end. The caller waits, the server does not.",
        notes: "All entries from that id on are replayed, those that `FS.PUBLISH` applied included, into one version (the \
                newest if none is named): so a new version fills from the log of the old one. Event time wins as always: \
                rows never go back. With `WINDOWS`, that version's window state and its memory of event ids are cleared and \
                counted again from the entries that are left in the log from that id on; events that were never logged or \
                are trimmed are gone from the windows. If it ends early they hold what was counted until then: call it \
                again. `BUSY` while another one counts. Without `WINDOWS` windows are left alone. Entries that are no update of that version are skipped. A replay goes on when its \
                caller goes away, and ends early when the server stops being the primary. Not inside MULTI or a script.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let context = call.context;
        let mut arguments = call.arguments();
        let view = arguments.next("view")?;
        if !arguments.take_word("FROM") {
            return Err(Error::syntax("FROM is missing"));
        }
        let from = StreamId::parse(arguments.next("id")?)?;
        let version =
            if arguments.take_word("VERSION") { Some(parse_version(arguments.next("VERSION")?)?) } else { None };
        let with_windows = arguments.take_word("WINDOWS");
        arguments.finish()?;
        let (definition, log) = {
            let state = STATE.borrow(context);
            (Arc::clone(state.registry.version(view, version)?), state.require_log(view)?)
        };
        let caller = Caller::of(context);
        caller.require(context, &log.stream_key, Access::Read)?;
        caller.require_prefix(context, &row_prefix(&definition.name, definition.version))?;
        check_log(context, &log)?;
        if context.flags().denies_blocking() {
            return Err(Error::syntax("FS.REPLAY works in the background and cannot run inside MULTI or a script"));
        }
        let end = streams::facts(context, &log.stream_key).map_or(StreamId::ZERO, |facts| facts.last_generated);
        let is_counting =
            |r: &replay::Replay| r.is_of(&definition.name) && r.version == definition.version && r.windows.is_some();
        if with_windows && STATE.borrow(context).background.replays.iter().any(is_counting) {
            return Err(Error::new(
                Code::Busy,
                format!("the windows of view '{}' are being counted again already", definition.name),
            ));
        }
        let windows = with_windows.then(|| clear_windows(context, &definition, &log));
        let replay = replay::Replay {
            windows,
            view: definition.name.clone(),
            version: definition.version,
            position: from.before(),
            end,
            replayed: 0,
            refused: 0,
            caller: BlockedCaller::of(context),
        };
        STATE.borrow_mut(context).background.replays.push_back(replay);
        background::wake(context);
        Ok(())
    }
}

/// Makes all window states of a version void, on all copies. Answers up to which entry they had counted.
fn clear_windows(context: Context<'_>, view: &FeatureView, log: &Log) -> StreamId {
    consumer::look(context, log);
    let mut state = STATE.borrow_mut(context);
    let generations = state.registry.view(view.name.as_bytes()).map(|v| v.window_generations.clone());
    let before = generations.unwrap_or_default().get(&view.version).copied().unwrap_or_default();
    // The clock makes it greater than what a dropped view of that name had, whose states may still be there.
    let seconds = u32::try_from(context.now_ms() / 1_000).unwrap_or(u32::MAX);
    let generation = seconds.max(before.saturating_add(1));
    state.clear_windows(&view.name, view.version, generation);
    drop(state);
    let mut effects = Effects::new(context);
    effects.push(&log.stream_key, &Effect::ClearWindows { version: view.version, generation });
    effects.replicate();
    match view.consumer {
        true => log.position.get().map_or(StreamId::ZERO, |position| position.id),
        // Nobody else will count what is in the log.
        false => StreamId::MAX,
    }
}

//! FS.INFO.

use super::FIRST;
use crate::server::acl::{Access, Caller};
use crate::server::api::Context;
use crate::server::background::may_write;
use crate::server::command::{Argument, Call, Command, Keys, Spec};
use crate::server::info::figures;
use crate::server::key::{Key, Mode};
use crate::server::logs::{Log, LogCounters};
use crate::server::state::STATE;
use crate::server::{consumer, streams};
use feature_store_core::Result;
use std::rc::Rc;

/// Tells figures.
pub(super) struct Info;

impl Command for Info {
    const SPEC: Spec = Spec {
        name: c"FS.INFO",
        summary: c"Tells the figures of the module, or of a feature view and its log.",
        complexity: c"O(V), V the number of views; O(1) for one.",
        since: FIRST,
        flags: c"readonly",
        categories: c"fs read slow",
        arity: -1,
        keys: Keys::None,
        arguments: &[Argument::text(c"view").optional()],
        reply: "A map. Of a view: `view`, `versions`, `stream` (its key), `consumer` (`running`, `stopped` by FS.CONSUMER, \
                `off` by definition, `replica`, or `waiting` for a failover, a pause or memory), `length`, `first_entry`, \
                `last_entry`, `cursor`, `lag_entries`, `lag_ms` (how long the next entry has waited), `dlq_length` (nil without permission to read the dead letters), and \
                since the start `published`, `consumed`, `superseded`, `expired_on_arrival`, `dead_letters`, \
                `lost_entries` (removed before they were consumed), `invalid_values`, `extra_fields_dropped`, \
                `window_events` (events that windows were fed), `late_events` (of those, older than the newest of their \
                entity), `too_late_events` (older than the state of at least one window reaches), `duplicates` (events \
                that `DEDUP` kept out), `dedup_overflows` (event ids forgotten before their time, see \
                `fs.dedup-max-ids`); \
                `tombstones` (deleted rows that the backlog may not bring back), `replaying` (nil, or a map).",
        notes: "The figures without a view are those of the section `fs` of `INFO`, where they carry the prefix `fs_`. Counters are each \
                server's own and begin at 0 when it starts.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let context = call.context;
        let mut arguments = call.arguments();
        if arguments.is_empty() {
            let figures = figures(context);
            context.reply_map(figures.len());
            for (name, value) in figures {
                context.reply_bytes(name.to_bytes());
                context.reply_count(Some(value));
            }
            return Ok(());
        }
        let view = arguments.next("view")?;
        arguments.finish()?;
        let (log, versions, tombstones) = {
            let state = STATE.borrow(context);
            let registered = state.registry.view(view)?;
            let versions: Vec<u32> = registered.versions.keys().copied().collect();
            (state.require_log(view)?, versions, registered.tombstones())
        };
        let caller = Caller::of(context);
        caller.require(context, &log.stream_key, Access::Read)?;
        let dead_letters = caller
            .may(&log.dead_letter_key, Access::Read)
            .then(|| Key::open(context, &log.dead_letter_key, Mode::Read).length());
        reply(context, &log, &versions, tombstones, dead_letters);
        Ok(())
    }
}

fn consumer_state(context: Context<'_>, log: &Log) -> &'static str {
    if !log.consumes.get() {
        "off"
    } else if context.flags().is_replica() {
        "replica"
    } else if log.stopped.get() {
        "stopped"
    } else if !may_write(context) {
        "waiting"
    } else {
        "running"
    }
}

fn reply(context: Context<'_>, log: &Rc<Log>, versions: &[u32], tombstones: usize, dead_letters: Option<u64>) {
    let facts = streams::facts(context, &log.stream_key).unwrap_or_default();
    let cursor = log.position.get().or_else(|| streams::group_cursor(context, &log.stream_key)).map(|c| c.id);
    let lag = consumer::lag(context, log);
    let count = |name: &str, value: Option<u64>| {
        context.reply_text(name);
        context.reply_count(value);
    };
    let text = |name: &str, value: Option<&str>| {
        context.reply_text(name);
        context.reply_optional_text(value);
    };
    let id = |name: &str, value: Option<feature_store_core::stream_id::StreamId>| {
        text(name, value.map(|id| id.to_string()).as_deref());
    };
    context.reply_map(13 + LogCounters::NAMED.len());
    text("view", Some(&log.view));
    context.reply_text("versions");
    context.reply_array(versions.len());
    versions.iter().for_each(|v| context.reply_integer(i64::from(*v)));
    text("stream", Some(&String::from_utf8_lossy(log.stream_key.bytes())));
    text("consumer", Some(consumer_state(context, log)));
    count("length", Some(facts.length));
    id("first_entry", facts.first);
    id("last_entry", facts.last);
    id("cursor", cursor);
    count("lag_entries", lag.map(|(entries, _)| entries));
    count("lag_ms", lag.map(|(_, ms)| ms));
    count("dlq_length", dead_letters);
    for (name, counter) in LogCounters::NAMED {
        count(&name.to_string_lossy(), Some(counter(&log.counters).get()));
    }
    count("tombstones", Some(tombstones as u64));
    context.reply_text("replaying");
    let state = STATE.borrow(context);
    match state.background.replays.iter().find(|r| r.is_of(&log.view)) {
        None => context.reply_nil(),
        Some(replay) => {
            context.reply_map(5);
            count("version", Some(u64::from(replay.version)));
            text("position", Some(&replay.position.to_string()));
            text("end", Some(&replay.end.to_string()));
            count("replayed", Some(replay.replayed));
            count("refused", Some(replay.refused));
        }
    }
}

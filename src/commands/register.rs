//! FS.REGISTER.

use super::{FIRST, VERSION, VIEW};
use crate::server::api::{Context, Replication};
use crate::server::background;
use crate::server::command::{Argument, Call, Command, Keys, Spec};
use crate::server::consumer;
use crate::server::state::STATE;
use feature_store_core::document::parse_document;
use feature_store_core::schema_syntax::parse_registration;
use feature_store_core::{Error, Result};

const ON_OFF: &[Argument] = &[Argument::word(c"ON"), Argument::word(c"OFF")];

/// `feature TYPE [option ...]`, shared with FS.ALTER.
pub(super) const FEATURE: &[Argument] = &[
    Argument::text(c"feature"),
    Argument::text(c"type"),
    Argument::integer(c"dimensions").optional(),
    Argument::text(c"default").after(c"DEFAULT").optional(),
    Argument::text(c"longest-age").after(c"TTL").optional(),
    Argument::text(c"min").after(c"MIN").optional(),
    Argument::text(c"max").after(c"MAX").optional(),
    Argument::block(c"values", &[Argument::integer(c"count"), Argument::text(c"value").multiple()])
        .after(c"VALUES")
        .optional(),
    Argument::word(c"INPUT").optional(),
    Argument::block(
        c"aggregation",
        &[
            Argument::text(c"function"),
            Argument::text(c"half-life-or-k-or-q").optional(),
            Argument::text(c"input").optional(),
            Argument::text(c"weight").after(c"WEIGHT").optional(),
            Argument::text(c"length").after(c"WINDOW"),
            Argument::text(c"hop").after(c"HOP").optional(),
        ],
    )
    .after(c"AGG")
    .optional(),
    Argument::text(c"text").after(c"DESCRIPTION").optional(),
];

/// The options of a view that may change in place, shared with FS.ALTER.
pub(super) const TTL: Argument = Argument::text(c"longest-age").after(c"TTL").optional();
pub(super) const LOG: Argument = Argument::one_of(c"log", ON_OFF).after(c"LOG").optional();
pub(super) const MAXLEN: Argument = Argument::integer(c"entries").after(c"MAXLEN").optional();
pub(super) const CONSUMER: Argument = Argument::one_of(c"consumer", ON_OFF).after(c"CONSUMER").optional();
pub(super) const EXTRA: Argument =
    Argument::one_of(c"extra", &[Argument::word(c"REFUSE"), Argument::word(c"IGNORE")]).after(c"EXTRA").optional();
pub(super) const SAMPLE: Argument = Argument::block(
    c"sample",
    &[
        Argument::text(c"rate"),
        Argument::one_of(c"where", &[Argument::word(c"PUBLISH"), Argument::word(c"SERVE")]).after(c"ON"),
    ],
)
.after(c"SAMPLE")
.optional();
pub(super) const DESCRIPTION: Argument = Argument::text(c"text").after(c"DESCRIPTION").optional();

/// Registers a version of a feature view.
pub(super) struct Register;

impl Command for Register {
    const SPEC: Spec = Spec {
        name: c"FS.REGISTER",
        summary: c"Registers a version of a feature view.",
        complexity: c"O(F), F the number of features.",
        since: FIRST,
        flags: c"write deny-oom admin",
        categories: c"fs write slow admin dangerous",
        arity: -4,
        keys: Keys::None,
        arguments: &[
            VIEW,
            Argument::one_of(
                c"definition",
                &[
                    Argument::text(c"document").after(c"JSON"),
                    Argument::block(
                        c"words",
                        &[
                            VERSION,
                            Argument::text(c"entity").after(c"ENTITY"),
                            TTL,
                            LOG,
                            MAXLEN,
                            CONSUMER,
                            EXTRA,
                            SAMPLE,
                            Argument::text(c"duration").after(c"DEDUP").optional(),
                            Argument::one_of(c"storage", &[Argument::word(c"HASH"), Argument::word(c"PACKED")])
                                .after(c"STORAGE")
                                .optional(),
                            DESCRIPTION,
                            Argument::block(c"schema", FEATURE).after(c"SCHEMA").multiple(),
                        ],
                    ),
                ],
            ),
        ],
        reply: "`OK`. The same definition again is `OK` and changes nothing.",
        notes: "Types: `INT`, `FLOAT`, `BOOL`, `STRING`, `TIMESTAMP` (unix milliseconds), `VECTOR n` (n float32), \
                `LIST` (a JSON array). Aliases: `numeric` (FLOAT), `categorical` (STRING), `embedding` (VECTOR, its \
                size from the default if none is given), `list`. `SCHEMA` stands once and ends the options; all \
                features follow it. `AGG` makes a feature a window over events: `COUNT [input]`, `SUM`, `MEAN`, `MIN`, \
                `MAX`, `VAR_POP`, `VAR_SAMP`, `STDDEV_POP`, `STDDEV_SAMP`, `FIRST`, `LAST`, `APPROX_COUNT_DISTINCT`, \
                `HISTOGRAM` (each with an input), `DECAYED_SUM half-life input`, `LAST_K k input`, `TOP_K k input`, \
                `APPROX_PERCENTILE q input`, and `MEAN vector-input [WEIGHT input]`. `WINDOW` is its length, `HOP` the \
                step in which it moves (by default the largest of 1s 5s 10s 30s 1m 5m 10m 30m 1h 3h 6h 12h 1d that \
                divides the length and is at most a 48th of it). [WINDOWS.md](WINDOWS.md) tells their rules. `INPUT` \
                marks what events carry for windows alone. `DEDUP` makes entities remember event ids for that long. \
                `STORAGE PACKED` keeps a row as one string instead of a hash: smaller and faster to read, for clients \
                that read hashes themselves it is none: [PACKED.md](PACKED.md). `SAMPLE` says which share of the \
                values, and of which, drift is found in: [DRIFT.md](DRIFT.md).\n\nDurations are `1500ms`, `90s`, `5m`, \
                `12h`, `7d`, or a bare number of seconds.\n\nDefaults: version 1, no TTL, `LOG ON`, `MAXLEN 10000`, \
                `CONSUMER ON`, `EXTRA REFUSE`, `SAMPLE 1 ON PUBLISH`, `STORAGE HASH`.\n\nErrors: `VIEWEXISTS` when \
                that version is registered with another definition, `BUSY` while `FS.DROP DATA` still deletes what an \
                earlier view of that name stored. Refused when the AOF is on with `aof-use-rdb-preamble no`: a rewrite \
                of such a file would lose all definitions.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let mut arguments = call.arguments();
        let view = arguments.next("view")?;
        let definition = if arguments.take_word("JSON") {
            let document = arguments.next("document")?;
            arguments.finish()?;
            parse_document(view, document)?
        } else {
            parse_registration(view, &mut arguments)?
        };
        refuse_if_a_rewrite_would_lose_it(call.context)?;
        let log = {
            let mut state = STATE.borrow_mut(call.context);
            let name = definition.name.clone();
            let changed = state.registry.register(definition)?;
            if changed {
                state.prepare(&name);
            }
            changed.then(|| state.require_log(view)).transpose()?
        };
        if let Some(log) = log {
            call.context.replicate_verbatim();
            // From now on every entry is this view's to consume.
            consumer::look(call.context, &log);
            background::wake(call.context);
        }
        call.context.reply_ok();
        Ok(())
    }
}

/// Definitions live in the RDB's auxiliary data. An AOF that is rewritten as plain commands has no place for them.
pub(super) fn refuse_if_a_rewrite_would_lose_it(context: Context<'_>) -> Result<()> {
    if context.flags().has_no_user() {
        return Ok(());
    }
    let is = |name: &[u8], value: &[u8]| {
        let reply = context.call(c"CONFIG", &[b"GET", name], Replication::Local);
        let given = reply.as_element().named(name).and_then(|v| v.bytes()) == Some(value);
        given
    };
    if is(b"appendonly", b"yes") && is(b"aof-use-rdb-preamble", b"no") {
        return Err(Error::syntax(
            "appendonly is on with aof-use-rdb-preamble no: a rewrite of the AOF would lose the definition. \
             CONFIG SET aof-use-rdb-preamble yes first",
        ));
    }
    Ok(())
}

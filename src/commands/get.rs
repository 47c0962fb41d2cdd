//! FS.GET.

use super::mget::check_reply_size;
use super::{FIRST, KEY};
use crate::server::api::Context;
use crate::server::command::{Argument, Call, Command, KeyAccess, Keys, Spec};
use crate::server::logs::add;
use crate::server::reply::Protocol;
use crate::server::rows::{read_one, Asked, Times};
use feature_store_core::definition::Feature;
use feature_store_core::row::{Served, Status, Stored};
use feature_store_core::time::parse_unix_ms;
use feature_store_core::windows::state::ReadAt;
use feature_store_core::Result;
use smallvec::SmallVec;

/// Reads a row.
pub(super) struct Get;

impl Command for Get {
    const SPEC: Spec = Spec {
        name: c"FS.GET",
        summary: c"Reads features of a row, typed, with defaults and freshness.",
        complexity: c"O(F + H), F the number of features of the row, H the number of hops in the windows read.",
        since: FIRST,
        flags: c"readonly fast",
        categories: c"fs read fast",
        arity: -2,
        keys: Keys::At(1, KeyAccess::Read),
        arguments: &[
            KEY,
            Argument::unix_time_ms(c"milliseconds").after(c"AT").optional(),
            Argument::word(c"WITHSTATUS").optional(),
            Argument::text(c"feature").optional().multiple(),
        ],
        reply: "A map of feature to value, in the order asked for, or in the schema's order when none is named. A \
                missing row is a row without values: defaults, else nil. RESP3: integers, doubles, booleans; RESP2: a \
                flat array, doubles as decimal strings, booleans as integers. A VECTOR is an array of numbers in both. \
                With `WITHSTATUS` each value is `[value, status, age_ms]`.",
        notes: "Statuses: `PRESENT`, `DEFAULT` (nothing is stored, the default is served), `NOT_FOUND` (nothing is \
                stored, no default), `OUTSIDE_MAX_AGE` (older than its TTL: the default, else nil), `INVALID` (another \
                writer left something that is not of the type: the default, else nil). `age_ms` is nil where nothing \
                is stored or its writer left no time; for a window it is the age of the entity's newest event.\n\nA \
                window is read at the server's clock, so its value moves with time although no event comes. `AT` (unix \
                milliseconds) names another time: windows are read there, ages are judged there, and a plain value \
                with a later event time is `NOT_FOUND` (nil, whatever its default: what was true then is not known any \
                more). `TOOOLD` when the state no longer holds the whole window: it reaches back from the entity's \
                newest event.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let context = call.context;
        let (_, prepared) = call.row(1)?;
        let mut arguments = call.arguments();
        arguments.next("key")?;
        let (mut at, mut with_status) = (ReadAt::Clock(context.now_ms()), false);
        loop {
            if arguments.take_word("AT") {
                at = ReadAt::Named(parse_unix_ms("AT", arguments.next("AT")?)?);
            } else if arguments.take_word("WITHSTATUS") {
                with_status = true;
            } else {
                break;
            }
        }
        let view = &prepared.view;
        let features: SmallVec<[usize; 32]> = if arguments.is_empty() {
            view.served().collect()
        } else {
            let names = arguments.rest().iter().enumerate();
            names.map(|(hint, name)| view.served_position(name, hint)).collect::<Result<_>>()?
        };
        check_reply_size(view, &features, 1)?;
        let times = if with_status { Times::Always } else { Times::IfAged };
        let asked = Asked { prepared: &prepared, features: &features, times, at };
        read_one(context, &asked, call.string(1), |row| {
            let protocol = context.protocol();
            context.reply_map(features.len());
            for (place, feature) in features.iter().enumerate() {
                context.reply_text(&view.features()[*feature].name);
                if with_status {
                    context.reply_array(3);
                }
                let (stored, served) = row.read(place);
                reply_served(context, protocol, &view.features()[*feature], stored, &served);
                if served.status == Status::Invalid {
                    add(&prepared.log.counters.invalid_values, 1);
                }
                if with_status {
                    context.reply_text(served.status.as_str());
                    context.reply_optional_integer(served.age_ms(at.ms()));
                }
            }
        })
    }
}

/// Replies what is served for a feature of which the row holds `stored`.
pub(super) fn reply_served(
    context: Context<'_>,
    protocol: Protocol,
    feature: &Feature,
    stored: Stored<'_>,
    served: &Served<'_>,
) {
    match (&served.value, stored) {
        (Some(value), Stored::Field(field)) if served.status == Status::Present => {
            context.reply_stored(protocol, feature.ty, field, value);
        }
        (value, _) => context.reply_value(protocol, value.as_ref()),
    }
}

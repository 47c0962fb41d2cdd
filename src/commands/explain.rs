//! FS.EXPLAIN.

use super::{FIRST, KEY};
use crate::server::api::Context;
use crate::server::command::{Call, Command, KeyAccess, Keys, Spec};
use crate::server::key::{Key, Mode};
use crate::server::reply::Protocol;
use crate::server::rows::{Rows, Times};
use crate::server::state::{words, PreparedView};
use feature_store_core::error::shown;
use feature_store_core::row::{Status, Stored};
use feature_store_core::time::format_duration;
use feature_store_core::windows::state::ReadAt;
use feature_store_core::Result;

/// Explains a row.
pub(super) struct Explain;

impl Command for Explain {
    const SPEC: Spec = Spec {
        name: c"FS.EXPLAIN",
        summary: c"Explains what is served for a row and why.",
        complexity: c"O(F), F the number of features of the view.",
        since: FIRST,
        flags: c"readonly",
        categories: c"fs read slow",
        arity: 2,
        keys: Keys::At(1, KeyAccess::Read),
        arguments: &[KEY],
        reply: "A map: `key`, `view`, `version`, `exists`, `event_time_ms` (the row's newest), `expires_in_ms`, and \
                `features`, an array of maps: `feature`, `type`, `status`, `stored` (the field as it stands in the \
                hash, or as it would; a VECTOR as numbers), `served`, `event_time_ms` (of the value, or of its \
                removal), `age_ms`, `ttl_ms` (the shorter of its own and the view's), `time_left_ms`, \
                `window_start_ms` and `window_end_ms` (of a window: the first millisecond inside and the first after \
                it), `reason` (a sentence). For a window `event_time_ms` and `age_ms` are of the entity's newest \
                event.",
        notes: "",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let context = call.context;
        let (_, prepared) = call.row(1)?;
        let name = call.string(1);
        let features: Vec<usize> = prepared.view.served().collect();
        let now_ms = context.now_ms();
        let mut rows = Rows::new(&prepared, &features, Times::Always, ReadAt::Clock(now_ms));
        rows.read(context, &words(context), name)?;
        let expires_at_ms = Key::open(context, name, Mode::Read).expires_at_ms();
        let protocol = context.protocol();
        context.reply_map(7);
        context.reply_text("key");
        context.reply_bytes(name.bytes());
        context.reply_text("view");
        context.reply_text(&prepared.view.name);
        context.reply_text("version");
        context.reply_integer(i64::from(prepared.view.version));
        context.reply_text("exists");
        context.reply_bool(rows.exists(0));
        context.reply_text("event_time_ms");
        context.reply_optional_integer(rows.times(0).updated_at_ms);
        context.reply_text("expires_in_ms");
        context.reply_optional_integer(expires_at_ms.map(|at| (at - now_ms).max(0)));
        context.reply_text("features");
        context.reply_array(features.len());
        for place in 0..features.len() {
            explain(context, protocol, &prepared, &rows, place, now_ms);
        }
        Ok(())
    }
}

fn explain(
    context: Context<'_>,
    protocol: Protocol,
    prepared: &PreparedView,
    rows: &Rows<'_>,
    place: usize,
    now_ms: i64,
) {
    let feature = rows.features()[place];
    let definition = &prepared.view.features()[feature];
    let served = rows.serve(0, place);
    let stored = rows.stored(0, place);
    let own_value = stored.value(definition);
    let removed_at_ms = if stored == Stored::Absent { rows.times(0).of_absent(feature) } else { None };
    let bounds_ms = definition.window.as_ref().map(|window| window.bounds_ms(now_ms));
    // Windows never grow too old.
    let max = if bounds_ms.is_some() { None } else { prepared.view.age_ms_max(feature) };
    let age_ms = served.age_ms(now_ms);
    let otherwise = if definition.default.is_some() { "the default is served" } else { "nil is served" };
    let reason = match served.status {
        Status::Present if bounds_ms.is_some() => "the window's value is served".to_owned(),
        _ if bounds_ms.is_some() => format!("the window holds no events: {otherwise}"),
        Status::Present => "the row's own value is served".to_owned(),
        Status::Default | Status::NotFound if removed_at_ms.is_some() => {
            format!("the value was removed: {otherwise}")
        }
        Status::Default | Status::NotFound if !rows.exists(0) => format!("there is no such row: {otherwise}"),
        Status::Default | Status::NotFound => format!("nothing is stored: {otherwise}"),
        Status::OutsideMaxAge => {
            format!("the value is older than its TTL of {}: {otherwise}", max.map_or_else(String::new, format_duration))
        }
        Status::Invalid => {
            let what = match stored {
                Stored::Field(field) => format!("'{}' is not of type {}", shown(field), definition.ty),
                Stored::Packed(bytes) => {
                    format!("what is packed, '{}', is not of type {}", shown(bytes), definition.ty)
                }
                Stored::Absent | Stored::Unreadable => "the row is not packed as the view packs its rows".to_owned(),
            };
            format!("{what}: {otherwise}")
        }
    };
    context.reply_map(12);
    context.reply_text("feature");
    context.reply_text(&definition.name);
    context.reply_text("type");
    context.reply_text(&definition.ty.to_string());
    context.reply_text("status");
    context.reply_text(served.status.as_str());
    context.reply_text("stored");
    match (stored, &own_value) {
        (_, Some(value)) if definition.ty.is_vector() && served.status == Status::Present => {
            context.reply_value(protocol, Some(value));
        }
        (Stored::Packed(_), Some(value)) => context.reply_bytes(&value.to_field()),
        (Stored::Field(bytes) | Stored::Packed(bytes), _) => context.reply_bytes(bytes),
        (Stored::Absent | Stored::Unreadable, _) => context.reply_nil(),
    }
    context.reply_text("served");
    context.reply_value(protocol, served.value.as_ref());
    context.reply_text("event_time_ms");
    context.reply_optional_integer(served.event_time_ms.or(removed_at_ms));
    context.reply_text("age_ms");
    context.reply_optional_integer(age_ms);
    context.reply_text("ttl_ms");
    context.reply_optional_integer(max);
    context.reply_text("time_left_ms");
    context.reply_optional_integer(max.and_then(|max| served.event_time_ms.map(|t| (t + max - now_ms).max(0))));
    context.reply_text("window_start_ms");
    context.reply_optional_integer(bounds_ms.map(|(from, _)| from));
    context.reply_text("window_end_ms");
    context.reply_optional_integer(bounds_ms.map(|(_, to)| to));
    context.reply_text("reason");
    context.reply_text(&reason);
}

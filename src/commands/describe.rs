//! FS.DESCRIBE.

use super::{FIRST, VERSION, VIEW};
use crate::server::api::Context;
use crate::server::command::{Argument, Call, Command, Keys, Spec};
use crate::server::state::{PreparedView, STATE};
use feature_store_core::arguments::parse_version;
use feature_store_core::definition::Extra;
use feature_store_core::document::to_document;
use feature_store_core::drift::finding::Told;
use feature_store_core::value::Value;
use feature_store_core::windows::aggregation::Window;
use feature_store_core::Result;

/// Tells a definition.
pub(super) struct Describe;

impl Command for Describe {
    const SPEC: Spec = Spec {
        name: c"FS.DESCRIBE",
        summary: c"Tells the definition of a feature view.",
        complexity: c"O(F), F the number of features.",
        since: FIRST,
        flags: c"readonly",
        categories: c"fs read slow",
        arity: -2,
        keys: Keys::None,
        arguments: &[VIEW, VERSION, Argument::word(c"JSON").optional()],
        reply: "A map: `view`, `version`, `entity`, `ttl_ms` (nil: none), `log`, `maxlen`, `consumer`, `extra`, \
                `dedup_ms` (nil: event ids are not remembered), `sample_rate`, `sample_on` (`publish` or `serve`), \
                `storage`, `description`, and `schema`, an array of maps: `name`, `type`, `default`, `ttl_ms`, `min`, \
                `max`, `values`, `input`, `agg` (the words after AGG; nil: a plain feature), `window_ms`, `hop_ms`, \
                `state_bytes_max` (bound of the state of one entity that answers the window; windows that share state \
                name the same one; without the bytes of STRING and LIST values themselves), `baseline` (nil: none; \
                else a map: `form`, `n`, `missing`, and of `STATS` `mean`, `stddev`, `min`, `max`), `description`, \
                `columns` (of a tensor; nil: it has no number). With `JSON`, a document that `FS.REGISTER view JSON` \
                takes back unchanged; its member `tensor` tells offset and width of each feature in a tensor of all \
                that have numbers, and its member `packed` the offset and the numpy type of each in a packed row.",
        notes: "Without `VERSION` the newest version is told.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let mut arguments = call.arguments();
        let view = arguments.next("view")?;
        let version =
            if arguments.take_word("VERSION") { Some(parse_version(arguments.next("VERSION")?)?) } else { None };
        let as_json = arguments.take_word("JSON");
        arguments.finish()?;
        let prepared = {
            let state = STATE.borrow(call.context);
            let view = state.registry.version(view, version)?;
            state.prepared_version(&view.name, view.version).expect("every registered view is prepared")
        };
        if as_json {
            call.context.reply_text(&to_document(&prepared.view));
        } else {
            reply(call.context, &prepared);
        }
        Ok(())
    }
}

fn reply(context: Context<'_>, prepared: &PreparedView) {
    let view = &prepared.view;
    context.reply_map(14);
    context.reply_text("view");
    context.reply_text(&view.name);
    context.reply_text("version");
    context.reply_integer(i64::from(view.version));
    context.reply_text("entity");
    context.reply_text(&view.entity);
    context.reply_text("ttl_ms");
    context.reply_optional_integer(view.ttl_ms);
    context.reply_text("log");
    context.reply_bool(view.log);
    context.reply_text("maxlen");
    context.reply_count(Some(view.maxlen));
    context.reply_text("consumer");
    context.reply_bool(view.consumer);
    context.reply_text("extra");
    context.reply_text(match view.extra {
        Extra::Refuse => "refuse",
        Extra::Ignore => "ignore",
    });
    context.reply_text("dedup_ms");
    context.reply_optional_integer(view.dedup_ms);
    context.reply_text("sample_rate");
    context.reply_told(context.protocol(), &Told::Number(view.sample.rate));
    context.reply_text("sample_on");
    context.reply_text(view.sample.on.name());
    context.reply_text("storage");
    context.reply_text(view.storage.name());
    context.reply_text("description");
    context.reply_text(&view.description);
    context.reply_text("schema");
    context.reply_array(view.features().len());
    for feature in 0..view.features().len() {
        reply_feature(context, prepared, feature);
    }
}

fn reply_feature(context: Context<'_>, prepared: &PreparedView, place: usize) {
    let (protocol, feature) = (context.protocol(), &prepared.view.features()[place]);
    let value = |name: &str, value: Option<&Value<'_>>| {
        context.reply_text(name);
        context.reply_value(protocol, value);
    };
    context.reply_map(15);
    context.reply_text("name");
    context.reply_text(&feature.name);
    context.reply_text("type");
    context.reply_text(&feature.ty.to_string());
    value("default", feature.default.as_ref());
    context.reply_text("ttl_ms");
    context.reply_optional_integer(feature.ttl_ms);
    value("min", feature.min.as_ref());
    value("max", feature.max.as_ref());
    context.reply_text("values");
    let values = feature.values.as_slice();
    context.reply_array(values.len());
    values.iter().for_each(|v| context.reply_text(v));
    context.reply_text("input");
    context.reply_bool(feature.input);
    let window = feature.window.as_ref();
    context.reply_text("agg");
    context.reply_optional_text(window.map(Window::to_string).as_deref());
    context.reply_text("window_ms");
    context.reply_optional_integer(window.map(|w| w.length_ms));
    context.reply_text("hop_ms");
    context.reply_optional_integer(window.map(|w| w.hop_ms));
    context.reply_text("state_bytes_max");
    context.reply_count(prepared.windows.as_ref().and_then(|w| w.bytes_max(place)));
    context.reply_text("baseline");
    reply_baseline(context, prepared, place);
    context.reply_text("description");
    context.reply_text(&feature.description);
    context.reply_text("columns");
    context.reply_count(feature.columns().map(|n| n as u64));
}

fn reply_baseline(context: Context<'_>, prepared: &PreparedView, feature: usize) {
    // A definition whose expectation is none was refused.
    let Ok(Some(baseline)) = prepared.samples.drift(context).baseline(&prepared.view, feature) else {
        context.reply_nil();
        return;
    };
    context.reply_members(context.protocol(), &baseline.members());
}

//! FS.MGET.

use super::get::reply_served;
use super::{FEATURES, FIRST, KEYS};
use crate::server::api::ServerString;
use crate::server::command::{Call, Command, KeyAccess, Keys, Spec};
use crate::server::logs::add;
use crate::server::rows::{Rows, Times};
use crate::server::state::words;
use feature_store_core::definition::FeatureView;
use feature_store_core::error::shown;
use feature_store_core::keys::RowKey;
use feature_store_core::row::Status;
use feature_store_core::windows::state::ReadAt;
use feature_store_core::{Error, Result};

/// Most numbers and texts that one reply holds. Features may be named again and again, a VECTOR is many numbers, and
/// the reply grows with rows times features: without a limit a short request could fill the memory.
const VALUES_MAX: usize = 4 << 20;

/// Reads several rows.
pub(super) struct Mget;

impl Command for Mget {
    const SPEC: Spec = Spec {
        name: c"FS.MGET",
        summary: c"Reads the same features of several rows.",
        complexity: c"O(N*F), N the number of rows, F the number of features of a row.",
        since: FIRST,
        flags: c"readonly",
        categories: c"fs read slow",
        arity: -3,
        keys: Keys::From(2, 1, KeyAccess::Read),
        arguments: &[FEATURES, KEYS],
        reply: "An array with one array a row: the values in the order of `features`, as `FS.GET` gives them.",
        notes: "`features` are separated by commas; `*` is all in the schema's order. All keys belong to one version \
                of one view.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let context = call.context;
        let (_, prepared) = call.row(2)?;
        let request = prepared.request(call.arguments().next("features")?)?;
        let (view, features) = (&prepared.view, &request.features);
        check_reply_size(view, features, call.arguments().len() - 1)?;
        // All rows are read before anything is replied.
        let mut rows = Rows::new(&prepared, features, Times::IfAged, ReadAt::Clock(context.now_ms()));
        let words = words(context);
        for place in 2..=call.arguments().len() {
            rows.read(context, &words, row_of_same_view(call, place, view)?)?;
        }
        let protocol = context.protocol();
        context.reply_array(rows.len());
        for row in 0..rows.len() {
            context.reply_array(features.len());
            for (place, feature) in features.iter().enumerate() {
                let served = rows.serve(row, place);
                reply_served(context, protocol, &view.features()[*feature], rows.stored(row, place), &served);
                if served.status == Status::Invalid {
                    add(&prepared.log.counters.invalid_values, 1);
                }
            }
        }
        rows.note_served(context);
        Ok(())
    }
}

/// The key at a place of `features key [key ...]`, which must be of the same view and version as the first.
pub(super) fn row_of_same_view<'a>(call: &Call<'a>, place: usize, view: &FeatureView) -> Result<&'a ServerString> {
    let name = call.string(place);
    if place > 2 {
        let key = RowKey::parse(name.bytes())?;
        if (key.view, key.version) != (view.name.as_str(), view.version) {
            return Err(Error::syntax(format!(
                "key '{}' is not of version {} of view '{}' like the first",
                shown(name.bytes()),
                view.version,
                view.name
            )));
        }
    }
    Ok(name)
}

/// Refuses a reply that would be out of all proportion, before anything is read.
pub(super) fn check_reply_size(view: &FeatureView, features: &[usize], rows: usize) -> Result<()> {
    let width: usize = features.iter().map(|f| view.features()[*f].columns().unwrap_or(1)).sum();
    check_values(width.saturating_mul(rows), || format!("view '{}'", view.name))
}

/// The same, for that many values of a view or a service.
pub(super) fn check_values(values: usize, of: impl FnOnce() -> String) -> Result<()> {
    if values > VALUES_MAX {
        return Err(Error::syntax(format!(
            "{values} values of {} are asked for, allowed are {VALUES_MAX}: ask for fewer at a time",
            of()
        )));
    }
    Ok(())
}

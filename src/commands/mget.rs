//! FS.MGET.

use super::get::reply_feature;
use super::{FEATURES, FIRST, KEYS};
use crate::server::command::{Call, Command, KeyAccess, Keys, Spec};
use crate::server::rows::{RowImage, Times};
use crate::server::state::{words, PreparedView, STATE};
use feature_store_core::error::shown;
use feature_store_core::{Error, Result};
use std::rc::Rc;

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
        notes: "`features` are separated by commas; `*` is all in the schema's order. All keys belong to one version of one \
                view.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let context = call.context;
        let (prepared, features, rows) = read_rows(call)?;
        let (protocol, now_ms) = (context.protocol(), context.now_ms());
        context.reply_array(rows.len());
        for row in &rows {
            context.reply_array(features.len());
            for feature in &features {
                reply_feature(context, protocol, row, &prepared, *feature, now_ms);
            }
        }
        STATE.borrow_mut(context).counters.rows_served += rows.len() as u64;
        Ok(())
    }
}

/// Reads `features key [key ...]`, shared with FS.TENSOR. All rows are read before anything is replied.
pub(super) fn read_rows(call: &Call<'_>) -> Result<(Rc<PreparedView>, Vec<usize>, Vec<RowImage>)> {
    let context = call.context;
    let keys = call.arguments().len() - 1;
    let (first, prepared) = call.row(2)?;
    let features = prepared.view.served_positions(call.arguments().next("features")?)?;
    let words = words(context);
    let mut rows = Vec::with_capacity(keys);
    for place in 2..2 + keys {
        let name = call.string(place);
        if place > 2 {
            let key = feature_store_core::keys::RowKey::parse(name.bytes())?;
            if (key.view, key.version) != (first.view, first.version) {
                return Err(Error::syntax(format!(
                    "key '{}' is not of version {} of view '{}' like the first",
                    shown(name.bytes()),
                    first.version,
                    first.view
                )));
            }
        }
        rows.push(RowImage::read(context, &words, &name, &prepared, &features, Times::IfAged)?);
    }
    Ok((prepared, features, rows))
}

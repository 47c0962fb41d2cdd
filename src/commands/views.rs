//! FS.VIEWS.

use super::FIRST;
use crate::server::command::{Call, Command, Keys, Spec};
use crate::server::state::STATE;
use feature_store_core::Result;

/// Lists the views.
pub(super) struct Views;

impl Command for Views {
    const SPEC: Spec = Spec {
        name: c"FS.VIEWS",
        summary: c"Lists the feature views.",
        complexity: c"O(V), V the number of versions of all views.",
        since: FIRST,
        flags: c"readonly",
        categories: c"fs read slow",
        arity: 1,
        keys: Keys::None,
        arguments: &[],
        reply:
            "An array, sorted by name: for each view an array of its name, the entity of its newest version, and an \
                array of its versions.",
        notes: "",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let context = call.context;
        let state = STATE.borrow(context);
        let views: Vec<_> = state.registry.views().collect();
        context.reply_array(views.len());
        for (name, view) in views {
            context.reply_array(3);
            context.reply_text(name);
            context.reply_text(&view.newest().entity);
            context.reply_array(view.versions.len());
            view.versions.keys().for_each(|version| context.reply_integer(i64::from(*version)));
        }
        Ok(())
    }
}

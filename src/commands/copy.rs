//! FS.COPY.

use super::{FIRST, VIEW};
use crate::server::acl::Caller;
use crate::server::background;
use crate::server::blocked::BlockedCaller;
use crate::server::command::{Argument, Call, Command, Keys, Spec};
use crate::server::copies;
use crate::server::state::STATE;
use feature_store_core::arguments::parse_version;
use feature_store_core::keys::row_prefix;
use feature_store_core::{Error, Result};

/// Brings rows from one version into another.
pub(super) struct Copy;

impl Command for Copy {
    const SPEC: Spec = Spec {
        name: c"FS.COPY",
        summary: c"Brings the rows of one version of a feature view into another.",
        complexity:
            c"O(K + N*F), K the number of keys of the database, N the number of rows, F of features; in slices.",
        since: FIRST,
        flags: c"write deny-oom admin",
        categories: c"fs write slow admin dangerous",
        arity: 6,
        keys: Keys::None,
        arguments: &[VIEW, Argument::integer(c"version").after(c"FROM"), Argument::integer(c"version").after(c"TO")],
        reply: "At the end, an array of the number of rows of which something was brought, and of the number of values \
                that the other version did not take. The caller waits, the server does not.",
        notes: "So a new version of a view begins with what the old one knows, whatever its log still holds: register \
                it, for example with `STORAGE PACKED`, copy, let readers change over, drop the old version. Every \
                value comes with its own event time and every removal with its own. What the new version knows of the \
                same event time or a later one stays, so copying again brings what is newer, and nothing else. Features \
                that only one of them has are left out. Values that are not of the other's type (numbers may become \
                numbers), range or `VALUES`, or too old for its TTL, are left out and counted. Window states are copied \
                where the new version has none that counts; windows of another input, length or hop begin empty. \
                Nothing is logged, and drift samples nothing. A copy goes on when its caller goes away, and ends early \
                when the server stops being the primary. Asks for permission on all rows of both versions. Not inside \
                MULTI or a script.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let context = call.context;
        let mut arguments = call.arguments();
        let view = arguments.next("view")?;
        let mut version = |word| {
            if !arguments.take_word(word) {
                return Err(Error::syntax(format!("{word} is missing")));
            }
            parse_version(arguments.next(word)?)
        };
        let (from, to) = (version("FROM")?, version("TO")?);
        arguments.finish()?;
        if from == to {
            return Err(Error::syntax(format!("FROM and TO are both version {from}")));
        }
        let name = {
            let state = STATE.borrow(context);
            state.registry.version(view, Some(from))?;
            state.registry.version(view, Some(to))?.name.clone()
        };
        let caller = Caller::of(context);
        for version in [from, to] {
            caller.require_prefix(context, &row_prefix(&name, version))?;
        }
        if context.flags().denies_blocking() {
            return Err(Error::syntax("FS.COPY works in the background and cannot run inside MULTI or a script"));
        }
        let caller = BlockedCaller::of(context);
        let copy =
            copies::Copy { view: name, from, to, cursor: b"0".to_vec(), keys: Vec::new(), rows: 0, refused: 0, caller };
        STATE.borrow_mut(context).background.copies.push_back(copy);
        background::wake(context);
        Ok(())
    }
}

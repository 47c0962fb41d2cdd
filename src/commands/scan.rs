//! FS.SCAN.

use super::{FIRST, VERSION, VIEW};
use crate::server::acl::{Access, Caller};
use crate::server::api::{Replication, ServerString};
use crate::server::command::{Argument, Call, Command, Keys, Spec};
use crate::server::state::STATE;
use feature_store_core::arguments::{parse_number, parse_version};
use feature_store_core::keys::row_prefix;
use feature_store_core::{Error, Result};

/// Lists entity ids.
pub(super) struct Scan;

impl Command for Scan {
    const SPEC: Spec = Spec {
        name: c"FS.SCAN",
        summary: c"Lists the entity ids of a feature view, step by step.",
        complexity: c"O(1) a step, O(K) for all, K the number of keys of the database.",
        since: FIRST,
        flags: c"readonly",
        categories: c"fs read slow",
        arity: -3,
        keys: Keys::None,
        arguments: &[
            VIEW,
            Argument::integer(c"cursor"),
            VERSION,
            Argument::integer(c"keys-to-look-at").after(c"COUNT").optional(),
        ],
        reply: "Two elements: the next cursor, `0` at the end, and an array of entity ids.",
        notes: "It has the guarantees of `SCAN`: every row that is there from beginning to end is listed, some perhaps twice. \
                `COUNT` (10) is how many keys of the database a step looks at, so a step may list none. Rows whose keys the \
                caller may not read are left out. Without `VERSION` the newest version is listed.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let context = call.context;
        let mut arguments = call.arguments();
        let view = arguments.next("view")?;
        let cursor = arguments.next("cursor")?;
        parse_number("cursor", cursor, 0)?;
        let (mut version, mut count) = (None, 10);
        while !arguments.is_empty() {
            if arguments.take_word("VERSION") {
                version = Some(parse_version(arguments.next("VERSION")?)?);
            } else if arguments.take_word("COUNT") {
                count = arguments.number("COUNT", 1)?;
            } else {
                arguments.finish()?;
            }
        }
        let prefix = {
            let state = STATE.borrow(context);
            let definition = state.registry.version(view, version)?;
            row_prefix(&definition.name, definition.version)
        };
        // Names hold no characters that a pattern takes for its own.
        let pattern = format!("{prefix}*");
        let count = count.min(i64::MAX as u64).to_string();
        let scan: [&[u8]; 7] = [cursor, b"MATCH", pattern.as_bytes(), b"COUNT", count.as_bytes(), b"TYPE", b"hash"];
        let reply = context.call(c"SCAN", &scan, Replication::Local);
        let reply = reply.as_element();
        let mut parts = reply.elements();
        let (Some(next), Some(keys)) = (parts.next().and_then(|c| c.bytes()), parts.next()) else {
            let why = reply.bytes().map(|b| String::from_utf8_lossy(b).into_owned()).unwrap_or_default();
            return Err(Error::syntax(format!("the keys cannot be scanned: {why}")));
        };
        let caller = Caller::of(context);
        let ids: Vec<&[u8]> = keys
            .elements()
            .filter_map(|key| key.bytes())
            .filter(|key| caller.may(&ServerString::new(key), Access::Read))
            .filter_map(|key| key.strip_prefix(prefix.as_bytes()))
            .filter(|id| !id.is_empty())
            .collect();
        context.reply_array(2);
        context.reply_bytes(next);
        context.reply_array(ids.len());
        ids.iter().for_each(|id| context.reply_bytes(id));
        Ok(())
    }
}

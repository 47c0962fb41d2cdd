//! FS.SCAN.

use super::{FIRST, VERSION, VIEW};
use crate::server::acl::{Access, Caller};
use crate::server::api::{Replication, ServerString};
use crate::server::command::{Argument, Call, Command, Keys, Spec};
use crate::server::key::{Key, KeyType, Mode};
use crate::server::state::STATE;
use feature_store_core::arguments::{parse_number, parse_version};
use feature_store_core::keys::{version_pattern, window_prefix};
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
        notes:
            "It has the guarantees of `SCAN`: every row that is there from beginning to end is listed, some perhaps \
                twice. `COUNT` (10) is how many keys of the database a step looks at, so a step may list none. Rows \
                whose keys the caller may not read are left out. Without `VERSION` the newest version is listed.",
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
        let prepared = {
            let state = STATE.borrow(context);
            let definition = state.registry.version(view, version)?;
            state.prepared_version(&definition.name, definition.version).expect("every registered view is prepared")
        };
        let (name, version) = (&prepared.view.name, prepared.view.version);
        let (prefix, of_windows) = (&prepared.row_prefix, window_prefix(name, version));
        let windows = prepared.windows.as_ref();
        let is_packed = prepared.packing.is_some();
        let type_of_rows = if is_packed { KeyType::String } else { KeyType::Hash };
        let pattern = match windows {
            Some(_) => version_pattern(name, version),
            None => format!("{prefix}*"),
        };
        let count = count.min(i64::MAX as u64).to_string();
        let mut scan: Vec<&[u8]> = vec![cursor, b"MATCH", pattern.as_bytes(), b"COUNT", count.as_bytes()];
        if windows.is_none() {
            // All that matches are rows, so the server can leave out what is none.
            scan.extend([&b"TYPE"[..], if is_packed { b"string" } else { b"hash" }]);
        }
        let reply = context.call(c"SCAN", &scan, Replication::Local);
        let reply = reply.as_element();
        let mut parts = reply.elements();
        let (Some(next), Some(keys)) = (parts.next().and_then(|c| c.bytes()), parts.next()) else {
            let why = reply.bytes().map(|b| String::from_utf8_lossy(b).into_owned()).unwrap_or_default();
            return Err(Error::syntax(format!("the keys cannot be scanned: {why}")));
        };
        let caller = Caller::of(context);
        let id_of = |key: &[u8]| {
            let id = key.strip_prefix(prefix.as_bytes()).or_else(|| key.strip_prefix(of_windows.as_bytes()));
            id.filter(|id| !id.is_empty()).map(<[u8]>::to_vec)
        };
        // An entity is listed by its row, or by its window state where it has no row.
        let is_listed = |key: &[u8], id: &[u8]| {
            let row = ServerString::new(&[prefix.as_bytes(), id].concat());
            let is_there = || match windows {
                None => true,
                Some(_) if key.starts_with(prefix.as_bytes()) => {
                    Key::open(context, &row, Mode::Read).key_type() == type_of_rows
                }
                Some(windows) => {
                    Key::open(context, &row, Mode::Read).key_type() != type_of_rows
                        && windows.are_held(context, &ServerString::new(key))
                }
            };
            caller.may(&row, Access::Read) && is_there()
        };
        let ids: Vec<Vec<u8>> = keys
            .elements()
            .filter_map(|key| key.bytes())
            .filter_map(|key| id_of(key).filter(|id| is_listed(key, id)))
            .collect();
        context.reply_array(2);
        context.reply_bytes(next);
        context.reply_array(ids.len());
        ids.iter().for_each(|id| context.reply_bytes(id));
        Ok(())
    }
}

//! Streams as the product uses them: facts, the group `fs`, appending and trimming.

use crate::server::api::{CallReply, Context, Replication, ServerString};
use crate::server::key::{Key, KeyType, Precision};
use feature_store_core::cursor::{Cursor, StreamFacts};
use feature_store_core::keys::view_of_stream_key;
use feature_store_core::stream_id::StreamId;
use redis_module::raw;

/// The consumer group that holds the cursor.
pub(crate) const GROUP: &[u8] = b"fs";

fn number(reply: &CallReply, name: &[u8]) -> Option<u64> {
    u64::try_from(reply.as_element().named(name)?.integer()?).ok()
}

fn id(bytes: Option<&[u8]>) -> Option<StreamId> {
    StreamId::parse(bytes?).ok()
}

/// What the server says of a stream. `None`: there is no stream under that key.
pub(crate) fn facts(context: Context<'_>, stream: &ServerString) -> Option<StreamFacts> {
    let reply = context.call(c"XINFO", &[b"STREAM", stream.bytes()], Replication::Local);
    if reply.as_element().is_error() {
        return None;
    }
    let entry_id = |name: &[u8]| id(reply.as_element().named(name)?.elements().next()?.bytes());
    Some(StreamFacts {
        length: number(&reply, b"length")?,
        entries_added: number(&reply, b"entries-added")?,
        first: entry_id(b"first-entry"),
        last: entry_id(b"last-entry"),
        last_generated: id(reply.as_element().named(b"last-generated-id").and_then(|e| e.bytes()))?,
    })
}

/// The cursor as the group `fs` has it. `None`: there is no such group.
pub(crate) fn group_cursor(context: Context<'_>, stream: &ServerString) -> Option<Cursor> {
    let reply = context.call(c"XINFO", &[b"GROUPS", stream.bytes()], Replication::Local);
    let group = reply.as_element().elements().find(|g| g.named(b"name").and_then(|n| n.bytes()) == Some(GROUP))?;
    Some(Cursor {
        id: id(group.named(b"last-delivered-id")?.bytes())?,
        entries_read: group.named(b"entries-read").and_then(|e| e.integer()).and_then(|n| u64::try_from(n).ok()),
    })
}

/// Moves the cursor of the group `fs`, making the group where it is missing. Not replicated: the effect is.
/// False: there is no stream.
pub(crate) fn move_group_cursor(context: Context<'_>, stream: &ServerString, cursor: &Cursor) -> bool {
    let id = cursor.id.to_string();
    // Without a number the server would guess one or forget it; -1 is its own word for unknown.
    let read = cursor.entries_read.map_or_else(|| "-1".to_owned(), |n| n.to_string());
    let attempt = |verb: &[u8]| {
        let arguments: [&[u8]; 6] = [verb, stream.bytes(), GROUP, id.as_bytes(), b"ENTRIESREAD", read.as_bytes()];
        let reply = context.call(c"XGROUP", &arguments, Replication::Local);
        let succeeded = !reply.as_element().is_error();
        succeeded
    };
    attempt(b"SETID") || attempt(b"CREATE")
}

/// Trims to a length; answers the exact length afterwards if entries went.
pub(crate) fn trim(
    context: Context<'_>,
    key: &Key<'_>,
    name: &ServerString,
    length: u64,
    precision: Precision,
) -> Option<u64> {
    if key.key_type() != KeyType::Stream || key.length() <= length || key.stream_trim(length, precision) == 0 {
        return None;
    }
    context.notify(raw::REDISMODULE_NOTIFY_STREAM, c"xtrim", name);
    Some(key.length())
}

/// Appends and tells listeners. `None`: the stream takes no more entries.
pub(crate) fn append(
    context: Context<'_>,
    key: &Key<'_>,
    name: &ServerString,
    id: Option<StreamId>,
    fields: &[&ServerString],
) -> Option<StreamId> {
    let id = key.stream_add(id, fields)?;
    context.notify(raw::REDISMODULE_NOTIFY_STREAM, c"xadd", name);
    Some(id)
}

/// The view whose log a key's name says it is.
pub(crate) fn view_of(key: &[u8]) -> Option<&str> {
    view_of_stream_key(key)
}

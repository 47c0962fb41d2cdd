//! The names of things and the keys they live under.
//!
//! A row's key says everything a command needs: `fs:v{version}:{view}:{entity_id}`. Commands read the view off the key.

use crate::error::{shown, Error, Result};

/// Longest view or feature name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest entity id, in bytes.
pub const ENTITY_ID_BYTES_MAX: usize = 512;
/// Field of a row: its newest event time, unix seconds with decimals.
pub const UPDATED_AT: &str = "_updated_at";
/// Field of a row: the view it belongs to.
pub const FEATURE_VIEW: &str = "_feature_view";
/// Field of a row whose features differ in event time: a JSON object of feature to unix seconds.
pub const TIMES: &str = "_times";

const STREAM_PREFIX: &str = "fs:stream:";
const DEAD_LETTER_PREFIX: &str = "fs:dlq:";

/// Feature names that are words of the command syntax. A closed list: it never grows.
const RESERVED_FEATURE_NAMES: [&str; 17] = [
    "at",
    "event",
    "nolog",
    "json",
    "withstatus",
    "default",
    "ttl",
    "min",
    "max",
    "values",
    "input",
    "description",
    "agg",
    "window",
    "hop",
    "where",
    "expr",
];

fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name[0].is_ascii_lowercase()
        && name.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'_')
}

/// A view's or entity's name, checked: `^[a-z][a-z0-9_]*$`, at most 64 bytes. `what` names it in the error.
pub fn checked_name<'a>(what: &str, name: &'a [u8]) -> Result<&'a str> {
    match std::str::from_utf8(name) {
        Ok(text) if is_name(name) => Ok(text),
        _ => Err(Error::syntax(format!(
            "{what} '{}' must match ^[a-z][a-z0-9_]*$ and have at most {NAME_BYTES_MAX} bytes",
            shown(name)
        ))),
    }
}

/// A feature's name, checked like [`checked_name`] and against the words of the command syntax.
pub fn checked_feature_name(name: &[u8]) -> Result<&str> {
    let text = checked_name("feature name", name)?;
    if RESERVED_FEATURE_NAMES.contains(&text) {
        return Err(Error::syntax(format!("feature name '{text}' is a word of the command syntax")));
    }
    Ok(text)
}

/// An entity id, checked: any bytes, 1 to 512 of them.
pub fn checked_entity_id(id: &[u8]) -> Result<&[u8]> {
    if id.is_empty() || id.len() > ENTITY_ID_BYTES_MAX {
        return Err(Error::syntax(format!(
            "entity id '{}' has {} bytes, allowed are 1 to {ENTITY_ID_BYTES_MAX}",
            shown(id),
            id.len()
        )));
    }
    Ok(id)
}

/// The parts of a row's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowKey<'a> {
    /// The view's name.
    pub view: &'a str,
    /// The view's version, at least 1.
    pub version: u32,
    /// The entity's id, 1 to 512 bytes.
    pub entity_id: &'a [u8],
}

impl<'a> RowKey<'a> {
    /// Reads a key of the form `fs:v{n}:{view}:{entity_id}`.
    pub fn parse(key: &'a [u8]) -> Result<Self> {
        let malformed =
            || Error::syntax(format!("key '{}' is not of the form fs:v<version>:<view>:<entity id>", shown(key)));
        let rest = key.strip_prefix(b"fs:v").ok_or_else(malformed)?;
        let colon = rest.iter().position(|b| *b == b':').ok_or_else(malformed)?;
        let (digits, rest) = (&rest[..colon], &rest[colon + 1..]);
        // A second spelling of a version (01) would be a second key for the same row.
        if digits.is_empty() || digits[0] == b'0' || digits.len() > 9 || !digits.iter().all(u8::is_ascii_digit) {
            return Err(malformed());
        }
        let version = digits.iter().fold(0u32, |n, d| n * 10 + u32::from(d - b'0'));
        let colon = rest.iter().position(|b| *b == b':').ok_or_else(malformed)?;
        let (view, entity_id) = (&rest[..colon], &rest[colon + 1..]);
        if !is_name(view) {
            return Err(malformed());
        }
        let view = std::str::from_utf8(view).map_err(|_| malformed())?;
        Ok(RowKey { view, version, entity_id: checked_entity_id(entity_id)? })
    }
}

/// What all row keys of a view's version begin with.
pub fn row_prefix(view: &str, version: u32) -> String {
    format!("fs:v{version}:{view}:")
}

/// What all keys of the window states of a view's version begin with.
pub fn window_prefix(view: &str, version: u32) -> String {
    format!("fs:w{version}:{view}:")
}

/// A pattern of the server for all keys of a view's version, rows and window states. Names hold no characters that a
/// pattern takes for its own.
pub fn version_pattern(view: &str, version: u32) -> String {
    format!("fs:[vw]{version}:{view}:*")
}

/// The key of the window state of a row.
pub fn window_key(row: &RowKey<'_>) -> Vec<u8> {
    let mut key = window_prefix(row.view, row.version).into_bytes();
    key.extend_from_slice(row.entity_id);
    key
}

/// The row to which a key of window state belongs; `None`: it is no such key.
pub fn row_of_window_key(key: &[u8]) -> Option<Vec<u8>> {
    let rest = key.strip_prefix(b"fs:w")?;
    let row = [b"fs:v", rest].concat();
    RowKey::parse(&row).is_ok().then_some(row)
}

/// The key of a row.
pub fn row_key(view: &str, version: u32, entity_id: &[u8]) -> Vec<u8> {
    let mut key = row_prefix(view, version).into_bytes();
    key.extend_from_slice(entity_id);
    key
}

/// The key of a view's update log.
pub fn stream_key(view: &str) -> String {
    format!("{STREAM_PREFIX}{view}")
}

/// The view whose update log a key is, if it is one.
pub fn view_of_stream_key(key: &[u8]) -> Option<&str> {
    let view = key.strip_prefix(STREAM_PREFIX.as_bytes())?;
    std::str::from_utf8(view).ok().filter(|_| is_name(view))
}

/// The key of a view's dead letters.
pub fn dead_letter_key(view: &str) -> String {
    format!("{DEAD_LETTER_PREFIX}{view}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_key_names_view_version_and_entity() {
        let parsed = RowKey::parse(b"fs:v12:user_item:u1:i9").expect("a row key");
        assert_eq!(parsed, RowKey { view: "user_item", version: 12, entity_id: b"u1:i9" });
        assert_eq!(row_key("user_item", 12, b"u1:i9"), b"fs:v12:user_item:u1:i9");
        for bad in [
            "",
            "fs:v1",
            "fs:v:a:b",
            "fs:v0:a:b",
            "fs:v01:a:b",
            "fs:v1:A:b",
            "fs:v1:a",
            "fs:v1:a:",
            "fs:stream:a",
            "fs:v1::b",
            "fs:v9999999999:a:b",
            "fs:v-1:a:b",
        ] {
            assert!(RowKey::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(RowKey::parse(&row_key("a", 1, &[b'x'; 513])).is_err());
        assert!(RowKey::parse(&row_key("a", 1, b"\x00\xff\r\n")).is_ok());
    }

    #[test]
    fn names_are_lower_case_words_that_the_syntax_does_not_use() {
        for good in ["a", "watch_count_7d", "x9"] {
            assert!(checked_feature_name(good.as_bytes()).is_ok(), "{good}");
        }
        let long = "a".repeat(65);
        for bad in ["", "9a", "_a", "A", "a-b", "a b", "at", "json", "where", "expr", "hop", long.as_str(), "\u{e9}"] {
            assert!(checked_feature_name(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(checked_name("view", b"at").is_ok());
    }
}

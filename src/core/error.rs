//! Errors that a client can act on: few, stable codes, and a message that names the offending value.

use std::fmt;

/// The first word of an error reply. Clients match on it, so codes are never renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// Wrong syntax or arguments.
    Err,
    /// The view (or that version of it) is not registered.
    NoView,
    /// The view has no such feature.
    NoFeature,
    /// The service is not set.
    NoService,
    /// The view is registered with another definition.
    ViewExists,
    /// The name is in use by background work.
    Busy,
    /// A value does not fit its type, range or dimension.
    Schema,
    /// An event time lies beyond now and the allowed clock skew.
    Future,
    /// A time was asked for to which the state does not reach back.
    TooOld,
    /// The key holds another type of value.
    WrongType,
    /// The caller may not touch a key.
    NoPerm,
}

impl Code {
    /// The word as it stands in a reply.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::Err => "ERR",
            Code::NoView => "NOVIEW",
            Code::NoFeature => "NOFEATURE",
            Code::NoService => "NOSERVICE",
            Code::ViewExists => "VIEWEXISTS",
            Code::Busy => "BUSY",
            Code::Schema => "SCHEMA",
            Code::Future => "FUTURE",
            Code::TooOld => "TOOOLD",
            Code::WrongType => "WRONGTYPE",
            Code::NoPerm => "NOPERM",
        }
    }
}

/// An error as a client reads it: `CODE message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What a program matches on.
    pub code: Code,
    /// What a person reads; one line.
    pub message: String,
}

impl Error {
    /// An error with any code.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Error { code, message: message.into() }
    }

    /// An `ERR`: the command was not understood.
    pub fn syntax(message: impl Into<String>) -> Self {
        Error::new(Code::Err, message)
    }

    /// A `SCHEMA` error: a value does not fit.
    pub fn schema(message: impl Into<String>) -> Self {
        Error::new(Code::Schema, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code.as_str(), self.message)
    }
}

impl std::error::Error for Error {}

/// The result of anything a client can get wrong.
pub type Result<T> = std::result::Result<T, Error>;

/// How many bytes of an offending value an error repeats.
const SHOWN_BYTES_MAX: usize = 64;

/// A value as an error message shows it: one line of readable text, cut after 64 bytes.
///
/// Bytes that are not text are written as `\xNN`, so that a message never breaks the protocol's line.
pub fn shown(value: &[u8]) -> String {
    let cut = value.len().min(SHOWN_BYTES_MAX);
    let mut text = String::with_capacity(cut + 4);
    for chunk in value[..cut].utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                c if c.is_control() => text.push_str(&format!("\\x{:02x}", c as u32)),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    if cut < value.len() {
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_value_is_one_short_line_of_text() {
        let cases: &[(&[u8], &str)] = &[
            (b"abc", "abc"),
            (b"a\0b\r\nc", "a\\x00b\\r\\nc"),
            (b"\xff\xfe", "\\xff\\xfe"),
            ("gr\u{fc}n".as_bytes(), "gr\u{fc}n"),
        ];
        for (input, expected) in cases {
            assert_eq!(shown(input), *expected);
        }
        assert_eq!(shown(&[b'x'; 100]), format!("{}...", "x".repeat(64)));
    }

    #[test]
    fn an_error_reads_code_then_message() {
        assert_eq!(Error::schema("feature 'age'").to_string(), "SCHEMA feature 'age'");
    }
}

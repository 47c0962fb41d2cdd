//! Ids of stream entries.

use crate::error::{shown, Error, Result};
use std::fmt;

/// The id of a stream entry: milliseconds, and a sequence number inside the millisecond.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode)]
pub struct StreamId {
    /// Unix milliseconds, if the server chose the id.
    pub ms: u64,
    /// Place inside the millisecond.
    pub seq: u64,
}

impl StreamId {
    /// Before every entry.
    pub const ZERO: StreamId = StreamId { ms: 0, seq: 0 };

    /// After every entry.
    pub const MAX: StreamId = StreamId { ms: u64::MAX, seq: u64::MAX };

    /// Reads `ms-seq` or `ms`.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let read = || {
            let text = std::str::from_utf8(text).ok()?;
            let (ms, seq) = text.split_once('-').unwrap_or((text, "0"));
            let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit()).then(|| t.parse().ok()).flatten();
            Some(StreamId { ms: digits(ms)?, seq: digits(seq)? })
        };
        read().ok_or_else(|| Error::syntax(format!("'{}' is not a stream id", shown(text))))
    }

    /// The id before this one, so that reading after it begins here. Zero stays zero.
    pub fn before(self) -> Self {
        match (self.ms, self.seq) {
            (0, 0) => self,
            (ms, 0) => StreamId { ms: ms - 1, seq: u64::MAX },
            (ms, seq) => StreamId { ms, seq: seq - 1 },
        }
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(itoa::Buffer::new().format(self.ms))?;
        f.write_str("-")?;
        f.write_str(itoa::Buffer::new().format(self.seq))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_as_they_print() {
        let id = StreamId { ms: 5, seq: 7 };
        assert_eq!(StreamId::parse(id.to_string().as_bytes()), Ok(id));
        assert_eq!(StreamId::parse(b"5"), Ok(StreamId { ms: 5, seq: 0 }));
        assert_eq!(StreamId::parse(b"0"), Ok(StreamId::ZERO));
        for bad in ["", "-", "5-", "+5", "a", "$", "5-6-7", "99999999999999999999"] {
            assert!(StreamId::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(StreamId { ms: 5, seq: 0 }.before(), StreamId { ms: 4, seq: u64::MAX });
    }
}

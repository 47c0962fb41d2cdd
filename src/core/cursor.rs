//! How far a log has been consumed: the cursor, its lag, and what was removed before it was read.

use crate::stream_id::StreamId;

/// What the server says of a stream at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamFacts {
    /// Entries that are there.
    pub length: u64,
    /// Entries ever added.
    pub entries_added: u64,
    /// The oldest entry that is there.
    pub first: Option<StreamId>,
    /// The newest entry that is there.
    pub last: Option<StreamId>,
    /// The newest id ever given.
    pub last_generated: StreamId,
}

impl StreamFacts {
    fn entries_removed(&self) -> u64 {
        self.entries_added.saturating_sub(self.length)
    }
}

/// The consumed part of a log: everything up to an id, and how many entries that were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Cursor {
    /// The last consumed entry.
    pub id: StreamId,
    /// Entries ever added up to `id`. `None`: unknown, for a group that somebody else made or moved.
    pub entries_read: Option<u64>,
}

impl Cursor {
    /// Before the first entry of a stream that had none yet.
    pub fn before_all() -> Self {
        Cursor { id: StreamId::ZERO, entries_read: Some(0) }
    }

    /// Before the first entry that is there. What was removed earlier was never ours to read.
    pub fn at_start(facts: &StreamFacts) -> Self {
        Cursor { id: StreamId::ZERO, entries_read: Some(facts.entries_removed()) }
    }

    /// Can this be the stream in which the cursor stood? Not one that never reached the cursor, and not one that begins
    /// after it although it never lost that many entries: that is a new stream under the old key.
    pub fn fits(&self, facts: &StreamFacts) -> bool {
        let begins_later = facts.first.is_none_or(|first| first > self.id);
        let lost_too_few = self.entries_read.is_some_and(|read| facts.entries_removed() < read);
        facts.last_generated >= self.id && !(begins_later && lost_too_few)
    }

    /// Counts entries that were removed ahead of the cursor, when all that is left lies ahead of it.
    /// Answers how many are newly lost.
    pub fn notice_removed(&mut self, facts: &StreamFacts) -> u64 {
        if facts.first.is_some_and(|first| first <= self.id) {
            return 0;
        }
        let removed = facts.entries_removed();
        let lost = self.entries_read.map_or(0, |read| removed.saturating_sub(read));
        self.entries_read = Some(self.entries_read.map_or(removed, |read| read.max(removed)));
        lost
    }

    /// Moves past consumed entries.
    pub fn advance(&mut self, id: StreamId, entries: u64) {
        debug_assert!(id >= self.id);
        self.id = id;
        self.entries_read = self.entries_read.map(|read| read.saturating_add(entries));
    }

    /// True when nothing that is there lies ahead.
    pub fn is_at_end(&self, facts: &StreamFacts) -> bool {
        facts.last.is_none_or(|last| last <= self.id)
    }

    /// At the end, all that was added and not read is lost: it was removed ahead of the cursor. Answers how many.
    pub fn settle(&mut self, facts: &StreamFacts) -> u64 {
        debug_assert!(self.is_at_end(facts));
        let lost = self.entries_read.map_or(0, |read| facts.entries_added.saturating_sub(read));
        // Past the last id ever given: a cursor below entries that were deleted unread has no lag that a server can tell.
        *self = Cursor { id: facts.last_generated.max(self.id), entries_read: Some(facts.entries_added) };
        lost
    }

    /// Entries ahead of the cursor: 0 only at the end. Exact unless entries ahead were deleted one by one.
    pub fn lag_entries(&self, facts: &StreamFacts) -> u64 {
        if self.is_at_end(facts) {
            return 0;
        }
        // All that is there lies ahead when it begins after the cursor, whatever somebody's count of read entries says.
        if facts.first.is_some_and(|first| first > self.id) {
            return facts.length;
        }
        match self.entries_read {
            Some(read) => facts.entries_added.saturating_sub(read).clamp(1, facts.length),
            None => facts.length,
        }
    }
}

/// To how many entries a log may be trimmed: `maxlen`, but what is unconsumed stays, up to the hard cap.
pub fn trim_target(maxlen: u64, unconsumed: u64, hard_cap: u64) -> u64 {
    maxlen.max(unconsumed.min(hard_cap))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(ms: u64) -> StreamId {
        StreamId { ms, seq: 0 }
    }

    #[test]
    fn trimming_keeps_what_is_unconsumed_up_to_the_cap() {
        assert_eq!(trim_target(100, 0, 1_000), 100);
        assert_eq!(trim_target(100, 500, 1_000), 500);
        assert_eq!(trim_target(100, 5_000, 1_000), 1_000);
        assert_eq!(trim_target(5_000, 10_000, 1_000), 5_000);
    }

    #[test]
    fn a_wrong_count_of_read_entries_never_hides_what_lies_ahead() {
        let facts = StreamFacts {
            length: 10,
            entries_added: 10,
            first: Some(id(1)),
            last: Some(id(10)),
            last_generated: id(10),
        };
        for (at, read, lag) in [(0, 10, 10), (0, 99, 10), (4, 99, 1), (4, 4, 6), (10, 0, 0)] {
            let cursor = Cursor { id: id(at), entries_read: Some(read) };
            assert_eq!(cursor.lag_entries(&facts), lag, "{at} {read}");
        }
    }

    #[test]
    fn a_new_stream_under_the_old_key_is_told_apart() {
        let stood = Cursor { id: id(10), entries_read: Some(5) };
        let facts = |length, entries_added, first: u64, last_generated: u64| StreamFacts {
            length,
            entries_added,
            first: (length > 0).then(|| id(first)),
            last: (length > 0).then(|| id(last_generated)),
            last_generated: id(last_generated),
        };
        assert!(stood.fits(&facts(7, 7, 1, 12)));
        assert!(stood.fits(&facts(2, 7, 11, 12)));
        assert!(stood.fits(&facts(0, 5, 0, 10)));
        assert!(!stood.fits(&facts(7, 7, 11, 17)));
        assert!(!stood.fits(&facts(3, 3, 1, 9)));
        assert!(!stood.fits(&facts(0, 0, 0, 0)));
    }

    proptest! {
        /// A log against a plain list: whatever is added, removed and consumed, all is read or lost, nothing twice.
        #[test]
        fn read_and_lost_add_up(steps in proptest::collection::vec((0u8..4, 1u64..6), 1..60)) {
            let mut entries: Vec<u64> = Vec::new();
            let (mut added, mut read, mut lost) = (0u64, 0u64, 0u64);
            let mut cursor = Cursor { id: StreamId::ZERO, entries_read: Some(0) };
            let facts = |entries: &[u64], added| StreamFacts {
                length: entries.len() as u64,
                entries_added: added,
                first: entries.first().map(|e| id(*e)),
                last: entries.last().map(|e| id(*e)),
                last_generated: id(added),
            };
            for (kind, n) in steps {
                match kind {
                    0 | 1 => (0..n).for_each(|_| { added += 1; entries.push(added); }),
                    2 => drop(entries.drain(..(n as usize).min(entries.len()))),
                    _ => {
                        lost += cursor.notice_removed(&facts(&entries, added));
                        let ahead: Vec<u64> = entries.iter().copied().filter(|e| id(*e) > cursor.id).take(n as usize).collect();
                        if let Some(last) = ahead.last() {
                            cursor.advance(id(*last), ahead.len() as u64);
                            read += ahead.len() as u64;
                        }
                        if cursor.is_at_end(&facts(&entries, added)) {
                            lost += cursor.settle(&facts(&entries, added));
                        }
                    }
                }
                let ahead = entries.iter().filter(|e| id(**e) > cursor.id).count() as u64;
                prop_assert_eq!(cursor.lag_entries(&facts(&entries, added)), ahead);
            }
            lost += cursor.notice_removed(&facts(&entries, added));
            let ahead = entries.iter().filter(|e| id(**e) > cursor.id).count() as u64;
            prop_assert_eq!(read + lost + ahead, added);
        }
    }
}

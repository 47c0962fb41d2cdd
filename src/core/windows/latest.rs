//! The latest values of an input, by event time.

/// Of values that lie ahead of the clock, so many are kept at least.
pub(super) const AHEAD_MIN: usize = 64;

/// The newest values, newest first. At equal times the later arrival stands first.
#[derive(Debug, Clone, Default, PartialEq, bincode::Encode, bincode::Decode)]
pub(super) struct Latest {
    entries: Vec<(i64, Box<[u8]>)>,
    /// Event time of the newest value that was dropped because there were too many: what is older may be missing.
    dropped_ms: Option<i64>,
}

impl Latest {
    /// Takes in a value. `now_ms`: values that lie ahead of this clock do not push out those that do not.
    pub(super) fn add(&mut self, time_ms: i64, value: &[u8], k: usize, now_ms: i64) {
        let place = self.entries.partition_point(|(t, _)| *t > time_ms);
        self.entries.insert(place, (time_ms, value.into()));
        let mut ahead = self.entries.partition_point(|(t, _)| *t > now_ms);
        // Too many ahead: those nearest to the clock go, so that the newest of all is never lost.
        while ahead > k.max(AHEAD_MIN) {
            ahead -= 1;
            let (time_ms, _) = self.entries.remove(ahead);
            self.note_dropped(time_ms);
        }
        while self.entries.len() > k + ahead {
            let dropped = self.entries.pop();
            dropped.into_iter().for_each(|(time_ms, _)| self.note_dropped(time_ms));
        }
    }

    fn note_dropped(&mut self, time_ms: i64) {
        self.dropped_ms = self.dropped_ms.max(Some(time_ms));
    }

    /// Keeps what a list of so many values may hold.
    pub(super) fn limit(&mut self, k: usize) {
        if let Some((newest_gone, _)) = self.entries.get(k) {
            self.note_dropped(*newest_gone);
            self.entries.truncate(k);
        }
    }

    pub(super) fn forget_before(&mut self, time_ms: i64) {
        while self.entries.last().is_some_and(|(t, _)| *t < time_ms) {
            self.entries.pop();
        }
    }

    /// The newest `k` values with event times in `from..to`, newest first, and whether none of them may be missing.
    pub(super) fn read(&self, k: usize, from_ms: i64, to_ms: i64) -> (Vec<&[u8]>, bool) {
        let start = self.entries.partition_point(|(t, _)| *t >= to_ms);
        let values: Vec<&[u8]> =
            self.entries[start..].iter().take_while(|(t, _)| *t >= from_ms).take(k).map(|(_, v)| &**v).collect();
        let is_whole = self.dropped_ms.is_none_or(|dropped| {
            // What was dropped is older than the oldest that is served, or than the window.
            dropped < from_ms || (values.len() == k && self.entries[start + k - 1].0 >= dropped)
        });
        (values, is_whole)
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<(i64, Box<[u8]>)>()
            + self.entries.iter().map(|(_, v)| v.len()).sum::<usize>()
    }

    pub(super) fn is_sound(&self, k: usize, newest_ms: i64, mut value_is_sound: impl FnMut(&[u8]) -> bool) -> bool {
        self.entries.len() <= k + k.max(AHEAD_MIN)
            && self.entries.first().is_none_or(|(t, _)| *t <= newest_ms)
            && self.dropped_ms.is_none_or(|t| t <= newest_ms)
            && self.entries.windows(2).all(|pair| pair[0].0 >= pair[1].0)
            && self.entries.iter().all(|(_, value)| value_is_sound(value))
    }
}

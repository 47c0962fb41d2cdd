//! Event ids that an entity saw lately.

use crate::stream_id::StreamId;
use std::collections::VecDeque;
use xxhash_rust::xxh3::xxh3_64;

/// An event that was seen.
#[derive(Debug, Clone, PartialEq, bincode::Encode, bincode::Decode)]
struct Event {
    /// Looked at before the id itself.
    hash: u64,
    /// When it came, unix milliseconds.
    arrived_ms: i64,
    /// Its entry in the log, if it has one.
    entry: Option<StreamId>,
    id: Box<[u8]>,
}

/// What is remembered of an event.
#[derive(Debug, Clone, PartialEq, bincode::Encode, bincode::BorrowDecode)]
pub struct Sighting<'a> {
    /// Its id.
    pub id: &'a [u8],
    /// When it came, unix milliseconds.
    pub arrived_ms: i64,
    /// Its entry in the log, if it has one.
    pub entry: Option<StreamId>,
    /// Events that came before this are forgotten: nothing that is still to come can be one of them.
    pub forget_before_ms: i64,
    /// How many ids are remembered at most.
    pub ids_max: u32,
}

/// The events that an entity saw, by arrival.
#[derive(Debug, Clone, Default, PartialEq, bincode::Encode, bincode::Decode)]
pub(super) struct Seen {
    events: VecDeque<Event>,
}

impl Seen {
    /// The entry of an event that came within `remember_ms` of `arrived_ms`. `None`: it was not seen.
    pub(super) fn find(&self, id: &[u8], arrived_ms: i64, remember_ms: i64) -> Option<Option<StreamId>> {
        let hash = xxh3_64(id);
        self.events
            .iter()
            .rev()
            .find(|e| {
                e.hash == hash
                    && *e.id == *id
                    && (arrived_ms.saturating_sub(e.arrived_ms)).saturating_abs() <= remember_ms
            })
            .map(|e| e.entry)
    }

    /// Remembers an event, in its place by arrival: entries of the log may be read later than commands came. Answers how
    /// many were forgotten before their time.
    pub(super) fn remember(&mut self, sighting: &Sighting<'_>) -> u64 {
        let Sighting { id, arrived_ms, entry, forget_before_ms, ids_max } = *sighting;
        while self.events.front().is_some_and(|e| e.arrived_ms < forget_before_ms) {
            self.events.pop_front();
        }
        if self.events.len() == self.events.capacity() {
            self.events.reserve_exact(1 + self.events.len() / 8);
        }
        let place = self.events.partition_point(|e| e.arrived_ms <= arrived_ms);
        self.events.insert(place, Event { hash: xxh3_64(id), arrived_ms, entry, id: id.into() });
        let mut forgotten = 0;
        while self.events.len() > ids_max.max(1) as usize {
            self.events.pop_front();
            forgotten += 1;
        }
        forgotten
    }

    /// How many ids are remembered.
    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.events.capacity() * size_of::<Event>() + self.events.iter().map(|e| e.id.len()).sum::<usize>()
    }

    pub(super) fn is_sound(&self) -> bool {
        self.events.iter().all(|e| e.hash == xxh3_64(&e.id))
            && self.events.iter().zip(self.events.iter().skip(1)).all(|(a, b)| a.arrived_ms <= b.arrived_ms)
    }
}

//! What the module knows of a view's log between two looks at the stream.

use crate::server::api::ServerString;
use crate::server::decoder::Job;
use feature_store_core::cursor::Cursor;
use feature_store_core::registry::View;
use feature_store_core::stream_id::StreamId;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::CStr;

/// What tells cheaply that a stream changed: its length, its first and its newest entry.
pub(crate) type Shape = (u64, Option<StreamId>, Option<StreamId>);

/// A log: its keys, where its consumer stands, and its figures. Only the main thread touches it.
pub(crate) struct Log {
    /// The view's name.
    pub(crate) view: String,
    /// The view's name as a string of the server.
    pub(crate) view_name: ServerString,
    /// Key of the stream.
    pub(crate) stream_key: ServerString,
    /// Key of the dead letters.
    pub(crate) dead_letter_key: ServerString,
    /// About how many entries are kept.
    pub(crate) maxlen: Cell<u64>,
    /// Does any version consume plain XADDs?
    pub(crate) consumes: Cell<bool>,
    /// FS.CONSUMER STOP is in force.
    pub(crate) stopped: Cell<bool>,
    /// The stream is to be looked at: where the consumer stands is not known, or may not be so any more.
    pub(crate) needs_look: Cell<bool>,
    /// What the stream was like, and where the consumer stood, at the last periodic look.
    pub(crate) swept: Cell<Option<(Shape, StreamId)>>,
    /// The periodic look at the stream is due.
    pub(crate) sweep_is_due: Cell<bool>,
    /// There was no stream, and entries came since: all of it is ours to read, whatever is removed before the next
    /// look.
    pub(crate) begins_empty: Cell<bool>,
    /// What was removed from the log before the next look is not lost: until now nobody was to consume it.
    pub(crate) begins_anew: Cell<bool>,
    /// Where the consumer stands. `None`: not looked yet, or there is no stream.
    pub(crate) position: Cell<Option<Cursor>>,
    /// The cursor as the group `fs` has it.
    pub(crate) flushed: Cell<Option<Cursor>>,
    /// At most this many entries lie ahead of `position`; exact when 0.
    pub(crate) pending: Cell<u64>,
    /// Entries that wait although it is not known where the consumer stands: they came to an empty log, or it stood
    /// before them until somebody touched the groups.
    pub(crate) waiting: Cell<u64>,
    /// Batches read from the stream, in order: with the decoder, or back and decoded.
    pub(crate) in_flight: RefCell<VecDeque<Job>>,
    /// Moves on when what was read ahead is dropped: batches of an earlier epoch that come back are no longer waited
    /// for.
    pub(crate) epoch: Cell<u64>,
    /// Figures since the start.
    pub(crate) counters: LogCounters,
}

/// Figures of one view since the start.
#[derive(Default)]
pub(crate) struct LogCounters {
    pub(crate) published: Cell<u64>,
    pub(crate) consumed: Cell<u64>,
    pub(crate) superseded: Cell<u64>,
    pub(crate) expired_on_arrival: Cell<u64>,
    pub(crate) extra_dropped: Cell<u64>,
    pub(crate) dead_letters: Cell<u64>,
    pub(crate) lost: Cell<u64>,
    pub(crate) invalid_values: Cell<u64>,
    pub(crate) window_events: Cell<u64>,
    pub(crate) late_events: Cell<u64>,
    pub(crate) too_late_events: Cell<u64>,
    pub(crate) duplicates: Cell<u64>,
    pub(crate) dedup_overflows: Cell<u64>,
}

/// A counter of a view, with its name.
pub(crate) type NamedCounter = (&'static CStr, fn(&LogCounters) -> &Cell<u64>);

impl LogCounters {
    /// All, in the order in which they are told.
    pub(crate) const NAMED: [NamedCounter; 13] = [
        (c"published", |c| &c.published),
        (c"consumed", |c| &c.consumed),
        (c"superseded", |c| &c.superseded),
        (c"expired_on_arrival", |c| &c.expired_on_arrival),
        (c"dead_letters", |c| &c.dead_letters),
        (c"lost_entries", |c| &c.lost),
        (c"invalid_values", |c| &c.invalid_values),
        (c"extra_fields_dropped", |c| &c.extra_dropped),
        (c"window_events", |c| &c.window_events),
        (c"late_events", |c| &c.late_events),
        (c"too_late_events", |c| &c.too_late_events),
        (c"duplicates", |c| &c.duplicates),
        (c"dedup_overflows", |c| &c.dedup_overflows),
    ];
}

/// Adds to a figure.
pub(crate) fn add(counter: &Cell<u64>, n: u64) {
    counter.set(counter.get().saturating_add(n));
}

impl Log {
    pub(crate) fn new(view: &str, stream_key: ServerString, dead_letter_key: ServerString) -> Self {
        Log {
            view: view.to_owned(),
            view_name: ServerString::new(view.as_bytes()),
            stream_key,
            dead_letter_key,
            maxlen: Cell::new(1),
            consumes: Cell::new(false),
            stopped: Cell::new(false),
            needs_look: Cell::new(true),
            swept: Cell::new(None),
            sweep_is_due: Cell::new(false),
            begins_empty: Cell::new(false),
            begins_anew: Cell::new(false),
            position: Cell::new(None),
            flushed: Cell::new(None),
            pending: Cell::new(0),
            waiting: Cell::new(0),
            in_flight: RefCell::new(VecDeque::new()),
            epoch: Cell::new(0),
            counters: LogCounters::default(),
        }
    }

    /// Takes over what a definition says. What was decoded under the old one is decoded again.
    pub(crate) fn redefine(&self, view: &View, is_new: bool) {
        self.maxlen.set(view.maxlen());
        self.stopped.set(view.stopped);
        let consumes = view.versions.values().any(|v| v.consumer);
        if !self.consumes.replace(consumes) && consumes && !is_new {
            self.begins_anew.set(true);
            self.forget_position();
        }
        self.discard_in_flight();
    }

    /// True when there is something to do in the background.
    pub(crate) fn has_work(&self) -> bool {
        let has_entries = self.position.get().is_some() && self.pending.get() > 0;
        self.consumes.get() && (self.needs_look.get() || (has_entries && !self.stopped.get()))
    }

    /// True when the background consumer works on this log.
    pub(crate) fn is_running(&self) -> bool {
        self.consumes.get() && !self.stopped.get()
    }

    /// Forgets where the consumer stands: the stream may be another one now.
    pub(crate) fn forget_position(&self) {
        self.position.set(None);
        self.pending.set(0);
        self.waiting.set(0);
        self.begins_empty.set(false);
        self.swept.set(None);
        self.needs_look.set(true);
        self.discard_in_flight();
    }

    /// Drops what was read ahead; it will be read again.
    pub(crate) fn discard_in_flight(&self) {
        self.epoch.set(self.epoch.get() + 1);
        self.in_flight.borrow_mut().clear();
    }

    /// True when everything in the log is known to be consumed.
    pub(crate) fn is_drained(&self) -> bool {
        self.position.get().is_some() && self.pending.get() == 0
    }
}

//! The decoding thread: reads and checks log entries off the main thread. It never touches the server.

use crate::server::api::Context;
use crate::server::logs::Log;
use crate::server::state::STATE;
use feature_store_core::definition::FeatureView;
use feature_store_core::log_entry::{decode_entry, DecodedEntry, RawEntry};
use feature_store_core::stream_id::StreamId;
use feature_store_core::{Error, Result};
use lazy_static::lazy_static;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex};

/// What became of an entry.
pub(crate) enum Outcome {
    /// FS.PUBLISH applied it already.
    Applied,
    /// It is an update, or it is none and says why.
    Read(Result<DecodedEntry>),
}

/// An entry with what became of it.
pub(crate) struct Decoded {
    /// The entry, for its id and in case it becomes a dead letter.
    pub(crate) entry: RawEntry,
    /// What it says.
    pub(crate) outcome: Outcome,
}

/// What entries are decoded against.
#[derive(Clone)]
pub(crate) struct Against {
    /// The versions that they are for.
    pub(crate) versions: Arc<Vec<Arc<FeatureView>>>,
    /// The clock, unix milliseconds.
    pub(crate) now_ms: i64,
    /// How far event times may lie ahead.
    pub(crate) clock_skew_ms_max: i64,
}

/// Reads and checks one entry. A panic in the decoder is that entry's error, not the server's end.
pub(crate) fn decode(entry: RawEntry, against: &Against) -> Decoded {
    if entry.is_applied() {
        return Decoded { entry, outcome: Outcome::Applied };
    }
    decode_for_replay(entry, against)
}

/// Reads and checks one entry whether or not it was applied once: a replay makes rows again.
pub(crate) fn decode_for_replay(entry: RawEntry, against: &Against) -> Decoded {
    let decoded = catch_unwind(AssertUnwindSafe(|| {
        decode_entry(&entry, &against.versions, against.now_ms, against.clock_skew_ms_max)
    }));
    let outcome = decoded.unwrap_or_else(|_| Err(Error::syntax("internal error while the entry was decoded")));
    Decoded { entry, outcome: Outcome::Read(outcome) }
}

/// A batch of entries between the stream and the rows, as its log waits for it.
pub(crate) struct Job {
    number: u64,
    /// The last entry of the batch.
    pub(crate) end: StreamId,
    /// How many entries it holds.
    pub(crate) entries: usize,
    /// How many bytes they hold.
    pub(crate) size: usize,
    /// The decoded entries that are not applied yet, once the batch is back.
    pub(crate) decoded: Option<std::vec::IntoIter<Decoded>>,
}

struct Request {
    view: String,
    epoch: u64,
    number: u64,
    entries: Vec<RawEntry>,
    against: Against,
    /// Entries that are done with: freeing them is the thread's work too.
    finished: Vec<Decoded>,
}

struct Response {
    view: String,
    epoch: u64,
    number: u64,
    decoded: Vec<Decoded>,
}

struct Thread {
    requests: Sender<Request>,
    responses: Mutex<Receiver<Response>>,
    numbers: std::sync::atomic::AtomicU64,
}

lazy_static! {
    static ref THREAD: Thread = {
        let (requests, incoming) = channel::<Request>();
        let (outgoing, responses) = channel();
        let work = move || {
            for request in incoming {
                let Request { view, epoch, number, entries, against, finished } = request;
                drop(finished);
                let decoded = entries.into_iter().map(|entry| decode(entry, &against)).collect();
                if outgoing.send(Response { view, epoch, number, decoded }).is_err() {
                    break;
                }
            }
        };
        std::thread::Builder::new()
            .name("fs-decoder".to_owned())
            .spawn(work)
            .expect("the system starts one more thread");
        Thread { requests, responses: Mutex::new(responses), numbers: Default::default() }
    };
}

/// Gives a batch to the thread, and takes care of what is `finished`. `entries` is not empty.
pub(crate) fn submit(log: &Log, entries: Vec<RawEntry>, against: &Against, finished: Vec<Decoded>) -> Job {
    let number = THREAD.numbers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let job = Job {
        number,
        end: entries.last().map_or(StreamId::ZERO, |e| e.id),
        entries: entries.len(),
        size: entries.iter().map(RawEntry::size).sum(),
        decoded: None,
    };
    let (view, epoch) = (log.view.clone(), log.epoch.get());
    let request = Request { view, epoch, number, entries, against: against.clone(), finished };
    THREAD.requests.send(request).expect("the decoding thread runs as long as the server");
    job
}

/// Puts finished batches where their logs wait for them. Batches that nobody waits for any more are dropped.
pub(crate) fn collect(context: Context<'_>) {
    let Ok(responses) = THREAD.responses.lock() else { return };
    while let Ok(Response { view, epoch, number, decoded }) = responses.try_recv() {
        let Some(log) = STATE.borrow(context).log_of(&view).filter(|log| log.epoch.get() == epoch) else { continue };
        let mut in_flight = log.in_flight.borrow_mut();
        if let Some(job) = in_flight.iter_mut().find(|job| job.number == number) {
            job.decoded = Some(decoded.into_iter());
        }
    }
}

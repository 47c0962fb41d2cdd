//! Background work on the main thread: short slices from timers, so that clients never wait long.
//!
//! The server's lock is unfair to threads: one that takes it back at once starves clients, one that waits starves
//! itself. So threads only decode, and everything that touches keys runs here, `fs.consumer-slice-us` at a time.

use crate::server::api::{api, Context};
use crate::server::command::guarded;
use crate::server::config;
use crate::server::copies::Copy;
use crate::server::replay::Replay;
use crate::server::state::STATE;
use crate::server::{columns, consumer, copies, decoder, drift, drops, replay};
use redis_module::raw;
use std::collections::VecDeque;
use std::ffi::c_void;
use std::time::{Duration, Instant};

/// Pause between slices while there is work.
const TICK_MS: i64 = 1;
/// Pause between looks while writing is not allowed.
const WAITING_TICK_MS: i64 = 10;

/// What is to be done.
#[derive(Default)]
pub(crate) struct Background {
    ticking: bool,
    /// Which log comes first in the next slice: all get their turn.
    turn: usize,
    /// Replays that are under way, oldest first.
    pub(crate) replays: VecDeque<Replay>,
    /// Copies that are under way, oldest first.
    pub(crate) copies: VecDeque<Copy>,
    /// Where the deletion of dropped data stands.
    pub(crate) drop_progress: drops::Progress,
    /// Tests for drift.
    pub(crate) drift: drift::DriftWork,
}

/// What a slice left.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    Work,
}

/// Until when a slice may run.
#[derive(Clone, Copy)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    fn after(budget: Duration) -> Self {
        Deadline(Instant::now() + budget)
    }

    /// An equal part of the time that is left, for one of so many.
    fn share(self, among: usize) -> Self {
        let now = Instant::now();
        let left = self.0.saturating_duration_since(now);
        Deadline(now + left / u32::try_from(among.max(1)).unwrap_or(u32::MAX))
    }

    pub(crate) fn is_over(self) -> bool {
        Instant::now() >= self.0
    }
}

fn create_timer(
    context: Context<'_>,
    period_ms: i64,
    callback: unsafe extern "C" fn(*mut raw::RedisModuleCtx, *mut c_void),
) {
    // SAFETY: we are on the main thread; the callback is static and takes no data.
    unsafe { api!(RedisModule_CreateTimer(context.as_ptr(), period_ms, Some(callback), std::ptr::null_mut())) };
}

/// Makes sure that a slice comes soon.
pub(crate) fn wake(context: Context<'_>) {
    schedule(context, TICK_MS);
}

fn schedule(context: Context<'_>, period_ms: i64) {
    let mut state = STATE.borrow_mut(context);
    if !state.background.ticking {
        state.background.ticking = true;
        create_timer(context, period_ms, on_tick);
    }
}

/// May this server write outside a client's command now?
pub(crate) fn may_write(context: Context<'_>) -> bool {
    let flags = context.flags();
    !flags.is_replica() && !flags.is_loading() && !flags.is_out_of_memory() && !context.must_avoid_replica_traffic()
}

unsafe extern "C" fn on_tick(ctx: *mut raw::RedisModuleCtx, _data: *mut c_void) {
    // SAFETY: the context is alive during the callback.
    let context = unsafe { Context::new(ctx) };
    context.select_store_db();
    guarded(context, || {
        STATE.borrow_mut(context).background.ticking = false;
        if context.flags().is_replica() || context.flags().is_loading() {
            // The sweep finds out when this changes.
            replay::abort_all(context);
            copies::abort_all(context);
            if !context.flags().is_loading() && read_slice(context) == Left::Work {
                wake(context);
            }
            return;
        }
        if !may_write(context) {
            // What only reads goes on.
            let deadline = new_deadline();
            match (drift::slice(context, deadline), columns::slice(context, deadline)) {
                (Left::Nothing, Left::Nothing) => schedule(context, WAITING_TICK_MS),
                _ => wake(context),
            }
        } else if slice(context) == Left::Work {
            wake(context);
        }
    });
}

fn new_deadline() -> Deadline {
    Deadline::after(Duration::from_micros(config::SLICE_US.get_u64()))
}

/// What a replica does too.
fn read_slice(context: Context<'_>) -> Left {
    let deadline = new_deadline();
    match (sweep(context, deadline), drift::slice(context, deadline), columns::slice(context, deadline)) {
        (Left::Nothing, Left::Nothing, Left::Nothing) => Left::Nothing,
        _ => Left::Work,
    }
}

fn slice(context: Context<'_>) -> Left {
    let deadline = new_deadline();
    decoder::collect(context);
    let mut logs = STATE.borrow(context).logs();
    logs.retain(|log| log.has_work());
    let turn = {
        let mut state = STATE.borrow_mut(context);
        state.background.turn = state.background.turn.wrapping_add(1);
        state.background.turn
    };
    let mut left = Left::Nothing;
    // Each log gets its share of the time; who comes first changes, for when there is too little for all.
    for i in 0..logs.len() {
        let log = &logs[(turn + i) % logs.len()];
        if consumer::slice(context, log, deadline.share(logs.len() - i)) == Left::Work {
            left = Left::Work;
        }
    }
    for work in [sweep, replay::slice, copies::slice, drops::slice, drift::slice, columns::slice] {
        if work(context, deadline) == Left::Work {
            left = Left::Work;
        }
    }
    // What the sweep found is work for the next slice.
    if STATE.borrow(context).logs().iter().any(|log| log.has_work()) {
        left = Left::Work;
    }
    left
}

/// Looks at the logs for which that is due, until the deadline.
fn sweep(context: Context<'_>, deadline: Deadline) -> Left {
    let logs = STATE.borrow(context).logs();
    for log in logs.iter().filter(|log| log.sweep_is_due.get()) {
        log.sweep_is_due.set(false);
        consumer::sweep(context, log);
        // One at least: consumers may have used up the time, now and for long.
        if deadline.is_over() {
            return Left::Work;
        }
    }
    Left::Nothing
}

unsafe extern "C" fn on_sweep(ctx: *mut raw::RedisModuleCtx, _data: *mut c_void) {
    // SAFETY: the context is alive during the callback.
    let context = unsafe { Context::new(ctx) };
    context.select_store_db();
    start_sweeping(context);
    guarded(context, || {
        STATE.borrow(context).logs().iter().for_each(|log| log.sweep_is_due.set(true));
        wake(context);
    });
}

/// Begins the periodic look for streams that no event told of.
pub(crate) fn start_sweeping(context: Context<'_>) {
    create_timer(context, config::SWEEP_INTERVAL_MS.get(), on_sweep);
}

//! Figures: `INFO fs`, and what FS.INFO tells.

use crate::server::api::{api, Context};
use crate::server::columns;
use crate::server::command::panics_caught;
use crate::server::consumer;
use crate::server::logs::LogCounters;
use crate::server::state::STATE;
use redis_module::raw;
use std::ffi::{c_int, CStr};
use std::panic::{catch_unwind, AssertUnwindSafe};

/// A figure of the whole module, with its name.
pub(crate) type Figure = (&'static CStr, u64);

/// All figures of the whole module, in the order in which they are told.
pub(crate) fn figures(context: Context<'_>) -> Vec<Figure> {
    let logs = STATE.borrow(context).logs();
    // Asks the server, which may find that a key has expired and tell us: nothing is borrowed meanwhile.
    let lag_entries = logs.iter().filter_map(|l| consumer::lag(context, l)).map(|(entries, _)| entries).sum();
    let state = STATE.borrow(context);
    let counted = LogCounters::NAMED
        .map(|(name, counter)| (name, logs.iter().map(|l| counter(&l.counters).get()).fold(0, u64::saturating_add)));
    let views = state.registry.views().count() as u64;
    let versions = state.registry.views().map(|(_, v)| v.versions.len() as u64).sum();
    let tombstones = state.registry.views().map(|(_, v)| v.tombstones() as u64).sum();
    let versions_of_views = state.all_versions();
    let read_ahead = logs.iter().flat_map(|l| l.in_flight.borrow().iter().map(|j| j.size as u64).collect::<Vec<_>>());
    let columns = columns::figures(context);
    let of_module = [
        (c"views", views),
        (c"versions", versions),
        (c"rows_served", state.counters.rows_served),
        (c"lag_entries", lag_entries),
        (c"tombstones", tombstones),
        (c"evicted_windows", state.counters.evicted_windows),
        (c"read_ahead_bytes", read_ahead.sum()),
        (c"replays", state.background.replays.len() as u64),
        (c"copies", state.background.copies.len() as u64),
        (c"dropping", state.registry.drops.len() as u64),
        (c"drift_alerts", versions_of_views.iter().map(|p| p.samples.drift(context).alerts()).sum()),
        (c"drift_alerts_started", state.background.drift.figures.alerts_started),
        (c"drift_checks", state.background.drift.figures.checks),
        (c"drift_insufficient", state.background.drift.figures.insufficient),
        (c"drift_samples_bytes", versions_of_views.iter().map(|p| p.samples.drift(context).heap_bytes() as u64).sum()),
        (c"column_cache_hits", columns.hits),
        (c"column_cache_misses", columns.misses),
        (c"column_cache_forgotten", columns.forgotten),
        (c"column_cache_rows", columns.rows as u64),
        (c"column_cache_bytes", columns.bytes as u64),
        (c"column_cache_warming", u64::from(columns.is_warming)),
        (c"panics", panics_caught()),
    ];
    of_module.into_iter().chain(counted).collect()
}

unsafe extern "C" fn on_info(info: *mut raw::RedisModuleInfoCtx, for_crash_report: c_int) {
    if for_crash_report != 0 {
        // State may be in the middle of a change; a crash report asks for nothing that could fail again.
        return;
    }
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the server asks on the main thread.
        let figures = unsafe { Context::with_detached(figures) };
        // SAFETY: `info` is alive during the callback; the names end in NUL.
        unsafe {
            if api!(RedisModule_InfoAddSection(info, c"stats".as_ptr())) != raw::REDISMODULE_OK as c_int {
                return;
            }
            for (name, value) in figures {
                api!(RedisModule_InfoAddFieldULongLong(info, name.as_ptr(), value));
            }
        }
    }));
}

/// Registers the section of INFO. Call while the module loads.
pub(crate) fn register(context: Context<'_>) -> Result<(), &'static str> {
    // SAFETY: the callback has the API's signature and catches panics.
    match unsafe { api!(RedisModule_RegisterInfoFunc(context.as_ptr(), Some(on_info))) } == raw::REDISMODULE_OK as c_int
    {
        true => Ok(()),
        false => Err("the section of INFO could not be registered"),
    }
}

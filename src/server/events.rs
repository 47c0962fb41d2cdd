//! What the server tells us: keyspace events of logs, and events of the server's life.

use crate::server::api::{api, string_bytes, Context, LogLevel, ServerString};
use crate::server::background;
use crate::server::columns;
use crate::server::command::guarded;
use crate::server::consumer;
use crate::server::effects::Effects;
use crate::server::logs::add;
use crate::server::persistence::Served;
use crate::server::state::STATE;
use crate::server::streams;
use crate::server::windows;
use feature_store_core::codec::Effect;
use feature_store_core::keys::{row_of_window_key, RowKey};
use redis_module::raw;
use std::ffi::{c_char, c_int, c_void, CStr};
use std::sync::atomic::{AtomicU32, Ordering};

/// How deep we are inside writes of our own: their events are no news.
static OWN_WRITES: AtomicU32 = AtomicU32::new(0);

/// Runs writes whose keyspace events must not wake the consumer.
pub(crate) fn quietly<T>(writes: impl FnOnce() -> T) -> T {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            OWN_WRITES.fetch_sub(1, Ordering::Relaxed);
        }
    }
    OWN_WRITES.fetch_add(1, Ordering::Relaxed);
    let _leave = Leave;
    writes()
}

unsafe extern "C" fn on_keyspace_event(
    ctx: *mut raw::RedisModuleCtx,
    _class: c_int,
    event: *const c_char,
    key: *mut raw::RedisModuleString,
) -> c_int {
    if columns::is_own_event(key as usize) {
        return raw::REDISMODULE_OK as c_int;
    }
    // SAFETY: context, event and key are alive during the callback.
    let (context, event, key) = unsafe { (Context::new(ctx), CStr::from_ptr(event), string_bytes(key)) };
    // Whoever changed it: inside our own writes others may be at work too.
    if key.starts_with(b"fs:v") {
        guarded(context, || columns::key_changed(context, key));
    }
    if OWN_WRITES.load(Ordering::Relaxed) == 0 {
        // Most keys of a server are none of ours: they cost these comparisons.
        if let Some(view) = streams::view_of(key) {
            guarded(context, || log_changed(context, view, event));
        } else if key.starts_with(b"fs:") {
            guarded(context, || key_changed(context, key, event));
        }
    }
    raw::REDISMODULE_OK as c_int
}

/// Somebody else changed a key that has a log's name.
fn log_changed(context: Context<'_>, view: &str, event: &CStr) {
    if context.selected_db() != 0 {
        return;
    }
    let Some(log) = STATE.borrow(context).log_of(view) else { return };
    match event.to_bytes() {
        b"xadd" => match log.position.get() {
            Some(_) => add(&log.pending, 1),
            None => {
                // A look that was asked for and did not come yet says nothing of what is there: the stream does.
                let is_first = || consumer::is_first_entry(context, &log);
                let begins_empty = log.begins_empty.get() || !log.needs_look.get() || is_first();
                log.begins_empty.set(begins_empty);
                add(&log.waiting, u64::from(begins_empty));
                log.needs_look.set(true);
            }
        },
        // Neither moves the cursor nor adds entries; what is removed unread shows when the end is reached.
        b"xdel" | b"xtrim" | b"xgroup-createconsumer" | b"xgroup-delconsumer" | b"xsetid" => {}
        // A group was made, moved or destroyed. The stream is the same, and began where it began.
        event if event.starts_with(b"xgroup-") => {
            let (begins_empty, waiting) = (log.begins_empty.get(), log.waiting.get() + log.pending.get());
            log.forget_position();
            log.begins_empty.set(begins_empty);
            log.waiting.set(waiting);
        }
        // The stream went elsewhere with its entries and groups.
        b"rename_from" | b"move_from" => {
            log.forget_position();
            forget_stream(context, view);
        }
        // The stream is gone with its entries, or another stands there: that is read from its start, unless it brings
        // a group.
        b"del" | b"expired" | b"evicted" | b"set" | b"rename_to" | b"restore" | b"copy_to" | b"move_to" => {
            consumer::count_lost(context, &log, log.pending.get() + log.waiting.get());
            log.forget_position();
            forget_stream(context, view);
        }
        // EXPIRE, PERSIST and the like change no entries.
        _ => {}
    }
    if log.has_work() && !context.flags().is_replica() {
        background::wake(context);
    }
}

/// Somebody else changed a key that may be a row's or a window state's.
fn key_changed(context: Context<'_>, key: &[u8], event: &CStr) {
    if context.selected_db() != 0 {
        return;
    }
    match event.to_bytes() {
        b"del" => row_deleted(context, key),
        b"restore" | b"copy_to" | b"rename_to" | b"move_to" if row_of_window_key(key).is_some() => {
            windows::adopt(context, &ServerString::new(key));
        }
        b"evicted" if row_of_window_key(key).is_some() => {
            let evicted = {
                let counters = &mut STATE.borrow_mut(context).counters;
                counters.evicted_windows += 1;
                counters.evicted_windows
            };
            // Evictions come in thousands; the log is told at 1, 2, 4, 8 and so on.
            if evicted.is_power_of_two() {
                context.log(LogLevel::Warning, &format!("fs: {evicted} window states were evicted since the start"));
            }
        }
        _ => {}
    }
}

/// A deleted row takes its windows along, at once: a row that is published again in the same transaction begins anew.
fn row_deleted(context: Context<'_>, key: &[u8]) {
    let flags = context.flags();
    // Copies are told by the primary. There a row that expired looks like one that was deleted.
    if flags.is_replica() || flags.is_loading() {
        return;
    }
    let Ok(row) = RowKey::parse(key) else { return };
    let has_windows = STATE.borrow(context).view_of(&row).is_ok_and(|prepared| prepared.windows.is_some());
    if has_windows && quietly(|| windows::delete(context, &row)) {
        let mut effects = Effects::new(context);
        effects.push(&ServerString::new(key), &Effect::DeleteWindows);
        effects.replicate();
    }
}

/// Where the consumer stood, and which rows older entries must not bring back, was about a stream that is not there
/// now.
fn forget_stream(context: Context<'_>, view: &str) {
    if let Ok(view) = STATE.borrow_mut(context).registry.view_mut(view.as_bytes()) {
        view.cursor = None;
        view.forget_all_tombstones();
    }
}

unsafe extern "C" fn on_server_event(
    ctx: *mut raw::RedisModuleCtx,
    event: raw::RedisModuleEvent,
    subevent: u64,
    data: *mut c_void,
) {
    // SAFETY: the context is alive during the callback.
    let context = unsafe { Context::new(ctx) };
    guarded(context, || match event.id {
        raw::REDISMODULE_EVENT_LOADING => loading(context, subevent),
        raw::REDISMODULE_EVENT_FLUSHDB if subevent == raw::REDISMODULE_SUBEVENT_FLUSHDB_END => {
            // SAFETY: this event comes with this structure, alive during the callback.
            let flushed_db = unsafe { (*data.cast::<raw::RedisModuleFlushInfo>()).dbnum };
            // -1 is all of them.
            if flushed_db <= 0 {
                keyspace_replaced(context);
            }
        }
        raw::REDISMODULE_EVENT_SWAPDB => {
            // SAFETY: this event comes with this structure, alive during the callback.
            let swapped = unsafe { &*data.cast::<raw::RedisModuleSwapDbInfo>() };
            if swapped.dbnum_first == 0 || swapped.dbnum_second == 0 {
                keyspace_replaced(context);
            }
        }
        raw::REDISMODULE_EVENT_REPLICATION_ROLE_CHANGED => role_changed(context),
        _ => {}
    });
}

/// A load replaces the definitions: at once from our own files, only on success from a primary.
fn loading(context: Context<'_>, subevent: u64) {
    // Whatever begins or ends: rows come and go without events.
    columns::forget_all(context);
    match subevent {
        raw::REDISMODULE_SUBEVENT_LOADING_REPL_START => {
            let mut state = STATE.borrow_mut(context);
            state.resyncing = true;
            state.arriving = None;
        }
        // What the file holds is all there is. An RDB without definitions leaves none behind; an AOF tells them again.
        raw::REDISMODULE_SUBEVENT_LOADING_RDB_START | raw::REDISMODULE_SUBEVENT_LOADING_AOF_START => {
            STATE.borrow_mut(context).replace_registry(Default::default(), Served::Arrived);
        }
        raw::REDISMODULE_SUBEVENT_LOADING_ENDED => {
            let mut state = STATE.borrow_mut(context);
            if std::mem::take(&mut state.resyncing) {
                let arrived = state.arriving.take().unwrap_or_default();
                state.replace_registry(arrived, Served::Own);
            }
            drop(state);
            forget_positions(context);
            columns::warm(context);
            background::wake(context);
        }
        raw::REDISMODULE_SUBEVENT_LOADING_FAILED => {
            let mut state = STATE.borrow_mut(context);
            if std::mem::take(&mut state.resyncing) {
                state.arriving = None;
                context.log(LogLevel::Warning, "fs: the load failed, the definitions stay as they were");
            }
        }
        _ => {}
    }
}

fn forget_positions(context: Context<'_>) {
    let logs = STATE.borrow(context).logs();
    logs.iter().for_each(|log| log.forget_position());
}

/// FLUSHALL, FLUSHDB, SWAPDB: definitions stay, as functions do; where consumers stood means nothing any more.
fn keyspace_replaced(context: Context<'_>) {
    columns::forget_all(context);
    columns::warm(context);
    forget_positions(context);
    let mut state = STATE.borrow_mut(context);
    state.background.drop_progress = Default::default();
    for (_, view) in state.registry.views_mut() {
        view.cursor = None;
        view.forget_all_tombstones();
    }
}

fn role_changed(context: Context<'_>) {
    forget_positions(context);
    background::wake(context);
}

/// Subscribes to all of it. Call once, while the module loads.
pub(crate) fn subscribe(context: Context<'_>) -> Result<(), &'static str> {
    let classes = raw::REDISMODULE_NOTIFY_STREAM
        | raw::REDISMODULE_NOTIFY_GENERIC
        | raw::REDISMODULE_NOTIFY_EXPIRED
        | raw::REDISMODULE_NOTIFY_EVICTED
        | raw::REDISMODULE_NOTIFY_STRING
        // Any command may put something else in the place of a row, and the column cache must hear of it.
        | raw::REDISMODULE_NOTIFY_HASH
        | raw::REDISMODULE_NOTIFY_LIST
        | raw::REDISMODULE_NOTIFY_SET
        | raw::REDISMODULE_NOTIFY_ZSET
        | raw::REDISMODULE_NOTIFY_MODULE;
    // SAFETY: the callback has the signature that the API asks for and catches panics.
    let status = unsafe {
        api!(RedisModule_SubscribeToKeyspaceEvents(context.as_ptr(), classes as c_int, Some(on_keyspace_event)))
    };
    if status != raw::REDISMODULE_OK as c_int {
        return Err("keyspace events could not be subscribed to");
    }
    for id in [
        raw::REDISMODULE_EVENT_LOADING,
        raw::REDISMODULE_EVENT_FLUSHDB,
        raw::REDISMODULE_EVENT_SWAPDB,
        raw::REDISMODULE_EVENT_REPLICATION_ROLE_CHANGED,
    ] {
        let event = raw::RedisModuleEvent { id, dataver: 1 };
        // SAFETY: as above.
        let status =
            unsafe { api!(RedisModule_SubscribeToServerEvent(context.as_ptr(), event, Some(on_server_event))) };
        if status != raw::REDISMODULE_OK as c_int {
            return Err("an event of the server could not be subscribed to");
        }
    }
    Ok(())
}

//! Module-wide state in the RDB: definitions, cursors, deletions that are not finished, and what drift is found by.
//!
//! It is the auxiliary data of a data type that no key has. When there is nothing to save nothing is written, so a
//! server without the module can load the file.

use crate::server::api::{api, Context, LogLevel};
use crate::server::samples::Samples;
use crate::server::state::{State, STATE};
use feature_store_core::codec::{decode_drift, decode_snapshot, encode_drift, encode_snapshot, DriftSnapshot};
use feature_store_core::drift::view::ViewDrift;
use feature_store_core::registry::Registry;
use redis_module::raw;
use std::cell::Ref;
use std::ffi::{c_char, c_int, c_void, CStr};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::rc::Rc;

/// Nine characters, as the server wants them.
const TYPE_NAME: &CStr = c"fs-module";
const ENCODING_VERSION: c_int = 2;

/// What a file holds.
#[derive(Default)]
pub(crate) struct Arrived {
    registry: Registry,
    /// Of versions that are registered, and in order.
    drift: Vec<DriftSnapshot>,
}

/// Whose are the samples of what was served?
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Served {
    /// Those of the file: it is our own.
    Arrived,
    /// Those that this node has: the file is another's.
    Own,
}

impl State {
    /// Puts other definitions in place of the present ones.
    pub(crate) fn replace_registry(&mut self, arrived: Arrived, served: Served) {
        let before = self.take_versions();
        self.registry = arrived.registry;
        self.background.drop_progress = Default::default();
        self.prepare_all();
        for DriftSnapshot { view, version, mut drift } in arrived.drift {
            let Some(prepared) = self.prepared_version(&view, version) else { continue };
            if served == Served::Own {
                let own = before.iter().find(|own| own.view.name == view && own.view.version == version);
                Samples::keep_own_serving(&mut drift, &prepared.view, own.map(Rc::as_ref));
            }
            prepared.samples.install(&prepared.view, drift);
        }
    }
}

unsafe extern "C" fn save(rdb: *mut raw::RedisModuleIO, _when: c_int) {
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // The context of `rdb` stays out of this: a server of version 8.0 that was asked for it and then saw nothing
        // written never gives it back, and aborts at the next write.
        // SAFETY: the server calls on the main thread or in the forked child.
        let bytes = unsafe {
            Context::with_detached(|context| {
                let state = STATE.borrow(context);
                if state.registry.is_empty() {
                    return Vec::new();
                }
                let all = state.all_versions();
                let drifts: Vec<Ref<'_, ViewDrift>> = all.iter().map(|p| p.samples.drift(context)).collect();
                let mut named: Vec<(&str, u32, &ViewDrift)> = all
                    .iter()
                    .zip(&drifts)
                    .map(|(p, drift)| (p.view.name.as_str(), p.view.version, &**drift))
                    .collect();
                named.sort_unstable_by_key(|(view, version, _)| (*view, *version));
                vec![encode_snapshot(&state.registry.to_snapshot()), encode_drift(&named)]
            })
        };
        for bytes in bytes {
            // SAFETY: `rdb` is alive during the callback.
            unsafe { api!(RedisModule_SaveStringBuffer(rdb, bytes.as_ptr().cast::<c_char>(), bytes.len())) };
        }
    }));
}

unsafe extern "C" fn load(rdb: *mut raw::RedisModuleIO, version: c_int, _when: c_int) -> c_int {
    let loaded = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the server calls on the main thread; `rdb` is alive.
        let context = unsafe { Context::new(api!(RedisModule_GetContextFromIO(rdb))) };
        match read(rdb, version) {
            Ok(arrived) => {
                let mut state = STATE.borrow_mut(context);
                if state.resyncing {
                    state.arriving = Some(arrived);
                } else {
                    state.replace_registry(arrived, Served::Arrived);
                }
                true
            }
            Err(why) => {
                context.log(LogLevel::Warning, &format!("fs: the definitions in the RDB cannot be loaded: {why}"));
                false
            }
        }
    }));
    (if loaded.unwrap_or(false) { raw::REDISMODULE_OK } else { raw::REDISMODULE_ERR }) as c_int
}

fn read(rdb: *mut raw::RedisModuleIO, version: c_int) -> Result<Arrived, String> {
    if version != ENCODING_VERSION {
        return Err(format!("they have encoding {version}, this version reads {ENCODING_VERSION}"));
    }
    let snapshot = decode_snapshot(&read_bytes(rdb)?).map_err(|e| e.to_string())?;
    let registry = Registry::from_snapshot(snapshot).map_err(|e| e.to_string())?;
    let drift = decode_drift(&read_bytes(rdb)?).map_err(|e| e.to_string())?;
    for DriftSnapshot { view, version, drift } in &drift {
        let definition = registry.version(view.as_bytes(), Some(*version)).map_err(|e| e.to_string())?;
        drift.check(definition).map_err(|e| e.to_string())?;
    }
    Ok(Arrived { registry, drift })
}

fn read_bytes(rdb: *mut raw::RedisModuleIO) -> Result<Vec<u8>, String> {
    let mut length = 0usize;
    // SAFETY: `rdb` is alive during the callback; the buffer is ours and freed once.
    unsafe {
        let buffer = api!(RedisModule_LoadStringBuffer(rdb, &mut length));
        if buffer.is_null() || api!(RedisModule_IsIOError(rdb)) != 0 {
            return Err("the file ends early".to_owned());
        }
        let bytes = std::slice::from_raw_parts(buffer.cast::<u8>(), length).to_vec();
        api!(RedisModule_Free(buffer.cast::<c_void>()));
        Ok(bytes)
    }
}

// No key ever has this type; the server asks for these functions all the same.
unsafe extern "C" fn no_key_load(_rdb: *mut raw::RedisModuleIO, _version: c_int) -> *mut c_void {
    std::ptr::null_mut()
}
unsafe extern "C" fn no_key_save(_rdb: *mut raw::RedisModuleIO, _value: *mut c_void) {}
unsafe extern "C" fn no_key_rewrite(
    _aof: *mut raw::RedisModuleIO,
    _key: *mut raw::RedisModuleString,
    _value: *mut c_void,
) {
}
unsafe extern "C" fn no_key_free(_value: *mut c_void) {}

/// Registers the data type. Call while the module loads.
pub(crate) fn register(context: Context<'_>) -> Result<(), &'static str> {
    // SAFETY: the structure is plain data for which zero (no callback) is a value.
    let mut methods: raw::RedisModuleTypeMethods = unsafe { std::mem::zeroed() };
    methods.version = raw::REDISMODULE_TYPE_METHOD_VERSION as u64;
    methods.rdb_load = Some(no_key_load);
    methods.rdb_save = Some(no_key_save);
    methods.aof_rewrite = Some(no_key_rewrite);
    methods.free = Some(no_key_free);
    methods.aux_load = Some(load);
    methods.aux_save2 = Some(save);
    methods.aux_save_triggers = raw::REDISMODULE_AUX_BEFORE_RDB as c_int;
    // SAFETY: the name has nine characters; the server copies the methods.
    let data_type = unsafe {
        api!(RedisModule_CreateDataType(context.as_ptr(), TYPE_NAME.as_ptr(), ENCODING_VERSION, &mut methods))
    };
    if data_type.is_null() {
        Err("the data type of the definitions could not be registered")
    } else {
        Ok(())
    }
}

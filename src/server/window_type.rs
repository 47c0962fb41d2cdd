//! The data type of window states: how the server saves, copies, measures and frees them.

use crate::server::api::{api, Context, LogLevel, ServerString};
use crate::server::effects;
use crate::server::key::{Key, Mode};
use feature_store_core::codec::{encode_effect, Effect};
use feature_store_core::error::shown;
use feature_store_core::windows::state::WindowState;
use redis_module::raw;
use std::ffi::{c_char, c_int, c_void, CStr};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Nine characters, as the server wants them.
const TYPE_NAME: &CStr = c"fs-window";
const ENCODING_VERSION: c_int = 1;

/// Later than every clearing, until the state is found under the key of an entity.
const FROM_ELSEWHERE: u32 = u32::MAX;
/// What the server keeps beside a module's value, and leaves out of MEMORY USAGE: an object and a pointer to the type.
const SERVER_HEADER_BYTES: usize = 32;

static TYPE: AtomicPtr<raw::RedisModuleType> = AtomicPtr::new(ptr::null_mut());

/// The key holds something that is no window state.
#[derive(Debug)]
pub(crate) struct OtherType;

impl Key<'_> {
    /// The window state that the key holds, if it holds anything. At most one of these is in use at a time: it ends
    /// before the key is written in another way.
    pub(crate) fn window_state(&mut self) -> Result<Option<&mut WindowState>, OtherType> {
        let raw = self.as_ptr();
        // SAFETY: the handle is open or null, both are allowed.
        if unsafe { api!(RedisModule_KeyType(raw)) } == raw::REDISMODULE_KEYTYPE_EMPTY as c_int {
            return Ok(None);
        }
        // SAFETY: the handle is open. A value of this type is a `WindowState` that `into_value` gave away; the server
        // keeps it alive while the key is open, and this borrow of the handle is the only way to it.
        unsafe {
            if api!(RedisModule_ModuleTypeGetType(raw)) != TYPE.load(Ordering::Relaxed) {
                return Err(OtherType);
            }
            Ok(api!(RedisModule_ModuleTypeGetValue(raw)).cast::<WindowState>().as_mut())
        }
    }

    /// Puts a window state in place of what the key holds.
    pub(crate) fn set_window_state(&mut self, state: WindowState) {
        let value = into_value(state);
        // SAFETY: the handle is open for writing; the server owns the value from now on.
        let status =
            unsafe { api!(RedisModule_ModuleTypeSetValue(self.as_ptr(), TYPE.load(Ordering::Relaxed), value)) };
        debug_assert_eq!(status, raw::REDISMODULE_OK as c_int);
    }
}

fn into_value(state: WindowState) -> *mut c_void {
    Box::into_raw(Box::new(state)).cast()
}

/// # Safety
/// `value` must be a value of this type, alive as long as `'a`.
unsafe fn state<'a>(value: *const c_void) -> &'a WindowState {
    // SAFETY: the caller's promise.
    unsafe { &*value.cast::<WindowState>() }
}

unsafe extern "C" fn rdb_load(rdb: *mut raw::RedisModuleIO, version: c_int) -> *mut c_void {
    let loaded = catch_unwind(AssertUnwindSafe(|| {
        if version != ENCODING_VERSION {
            return Err(Unloadable::State(format!("it has encoding {version}, this version reads {ENCODING_VERSION}")));
        }
        let mut length = 0usize;
        // SAFETY: `rdb` is alive during the callback; the buffer is ours and freed once.
        unsafe {
            let buffer = api!(RedisModule_LoadStringBuffer(rdb, &mut length));
            if buffer.is_null() {
                return Err(Unloadable::File);
            }
            let state = match api!(RedisModule_IsIOError(rdb)) {
                0 => WindowState::decode(std::slice::from_raw_parts(buffer.cast::<u8>(), length)),
                _ => Err("it ends early".to_owned()),
            };
            api!(RedisModule_Free(buffer.cast::<c_void>()));
            state.map_err(Unloadable::State)
        }
    }));
    let loaded = loaded.unwrap_or_else(|_| Err(Unloadable::State("internal error".to_owned())));
    // SAFETY: the server calls on the main thread.
    let is_loading = unsafe {
        Context::with_detached(|context| {
            if let Err(Unloadable::State(why)) = &loaded {
                context.log(LogLevel::Warning, &format!("fs: a window state cannot be loaded: {why}"));
            }
            context.flags().is_loading()
        })
    };
    match (loaded, is_loading) {
        (Ok(state), true) => into_value(state),
        (Ok(mut state), false) => {
            // RESTORE: what was cleared elsewhere says nothing here.
            state.set_generation(FROM_ELSEWHERE);
            into_value(state)
        }
        // A server that loads its own file goes on without the state rather than not at all.
        (Err(Unloadable::State(_)), true) => into_value(WindowState::default()),
        (Err(_), _) => ptr::null_mut(),
    }
}

/// Why a state is not loaded.
enum Unloadable {
    /// The file ends here: nothing after it can be read either.
    File,
    /// The state alone is unreadable, and this is why.
    State(String),
}

unsafe extern "C" fn rdb_save(rdb: *mut raw::RedisModuleIO, value: *mut c_void) {
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: `rdb` and the value are alive during the callback.
        unsafe {
            let bytes = state(value).encode();
            api!(RedisModule_SaveStringBuffer(rdb, bytes.as_ptr().cast::<c_char>(), bytes.len()));
        }
    }));
}

unsafe extern "C" fn aof_rewrite(aof: *mut raw::RedisModuleIO, key: *mut raw::RedisModuleString, value: *mut c_void) {
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the value is alive during the callback.
        let bytes = unsafe { state(value) }.encode();
        // SAFETY: the key is alive during the callback; `s` takes a string, `b` a buffer and its length.
        encode_effect(&Effect::WindowState(&bytes), |effect| unsafe {
            let (start, length) = (effect.as_ptr(), effect.len());
            api!(RedisModule_EmitAOF(aof, effects::COMMAND.as_ptr(), c"sb".as_ptr(), key, start, length));
        });
    }));
}

unsafe extern "C" fn free(value: *mut c_void) {
    // A thread of the server may call this: states hold nothing that is bound to the main thread.
    // SAFETY: the server frees a value once; `into_value` gave it away.
    let _ = catch_unwind(AssertUnwindSafe(|| unsafe { drop(Box::from_raw(value.cast::<WindowState>())) }));
}

unsafe extern "C" fn digest(digest: *mut raw::RedisModuleDigest, value: *mut c_void) {
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: digest and value are alive during the callback.
        unsafe {
            let bytes = state(value).encode();
            api!(RedisModule_DigestAddStringBuffer(digest, bytes.as_ptr().cast::<c_char>(), bytes.len()));
            api!(RedisModule_DigestEndSequence(digest));
        }
    }));
}

unsafe extern "C" fn mem_usage(
    _options: *mut raw::RedisModuleKeyOptCtx,
    value: *const c_void,
    _samples: usize,
) -> usize {
    // SAFETY: the value is alive during the callback.
    let bytes = catch_unwind(AssertUnwindSafe(|| unsafe { state(value).bytes() })).unwrap_or(0);
    bytes + SERVER_HEADER_BYTES
}

unsafe extern "C" fn free_effort(_options: *mut raw::RedisModuleKeyOptCtx, value: *const c_void) -> usize {
    // SAFETY: the value is alive during the callback.
    catch_unwind(AssertUnwindSafe(|| unsafe { state(value).blocks() })).unwrap_or(1)
}

unsafe extern "C" fn copy(_options: *mut raw::RedisModuleKeyOptCtx, value: *const c_void) -> *mut c_void {
    // SAFETY: the value is alive during the callback.
    catch_unwind(AssertUnwindSafe(|| into_value(unsafe { state(value) }.clone()))).unwrap_or(ptr::null_mut())
}

/// Moves a block to a better place if the server knows one.
///
/// # Safety
/// `block` must be of the server's allocator and ours; it is freed if another one is answered.
unsafe fn moved<T>(context: *mut raw::RedisModuleDefragCtx, block: *mut T) -> *mut T {
    // SAFETY: the caller's promise.
    let new = unsafe { api!(RedisModule_DefragAlloc(context, block.cast::<c_void>())) };
    if new.is_null() {
        block
    } else {
        new.cast()
    }
}

unsafe extern "C" fn defrag(
    context: *mut raw::RedisModuleDefragCtx,
    _key: *mut raw::RedisModuleString,
    value: *mut *mut c_void,
) -> c_int {
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the value is alive, and nobody else sees it during the callback. Our blocks come from the server's
        // allocator (none is aligned to more than it promises); a moved block keeps contents and size.
        unsafe {
            *value = moved(context, (*value).cast::<WindowState>()).cast();
            (*(*value).cast::<WindowState>()).with_words(|words| {
                let length = words.len();
                let block = moved(context, Box::into_raw(words).cast::<u64>());
                Box::from_raw(ptr::slice_from_raw_parts_mut(block, length))
            });
        }
    }));
    0
}

/// Puts a state in place, as it came from the AOF.
pub(crate) fn restore(context: Context<'_>, name: &ServerString, bytes: &[u8]) -> Result<(), String> {
    let state = WindowState::decode(bytes)?;
    let mut key = Key::open(context, name, Mode::Write);
    match key.window_state() {
        Ok(_) => key.set_window_state(state),
        Err(OtherType) => return Err(format!("key '{}' holds something else", shown(name.bytes()))),
    }
    Ok(())
}

/// Registers the data type. Call while the module loads.
pub(crate) fn register(context: Context<'_>) -> Result<(), &'static str> {
    // SAFETY: the structure is plain data for which zero (no callback) is a value.
    let mut methods: raw::RedisModuleTypeMethods = unsafe { std::mem::zeroed() };
    methods.version = raw::REDISMODULE_TYPE_METHOD_VERSION as u64;
    methods.rdb_load = Some(rdb_load);
    methods.rdb_save = Some(rdb_save);
    methods.aof_rewrite = Some(aof_rewrite);
    methods.free = Some(free);
    methods.digest = Some(digest);
    methods.mem_usage2 = Some(mem_usage);
    methods.free_effort2 = Some(free_effort);
    methods.copy2 = Some(copy);
    methods.defrag = Some(defrag);
    // SAFETY: the name has nine characters; the server copies the methods.
    let data_type = unsafe {
        api!(RedisModule_CreateDataType(context.as_ptr(), TYPE_NAME.as_ptr(), ENCODING_VERSION, &mut methods))
    };
    TYPE.store(data_type, Ordering::Relaxed);
    match data_type.is_null() {
        true => Err("the data type of window states could not be registered"),
        false => Ok(()),
    }
}

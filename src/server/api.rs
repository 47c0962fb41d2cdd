//! The module API, call by call, as safe functions.
//!
//! Invariant: all of it runs on the server's main thread, inside a callback of the server. A [`Context`] is the proof:
//! it cannot be made elsewhere, is not `Send`, and lives only as long as the callback.

use redis_module::raw;
use smallvec::SmallVec;
use std::ffi::{c_char, c_int, CStr};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

/// Calls a function of the module API. Only for functions that every supported server exports.
macro_rules! api {
    ($name:ident($($argument:expr),* $(,)?)) => {
        (redis_module::raw::$name.expect(concat!("the server exports ", stringify!($name))))($($argument),*)
    };
}
pub(crate) use api;

/// What a handler may do with the server while it runs.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    raw: NonNull<raw::RedisModuleCtx>,
    callback: PhantomData<&'a raw::RedisModuleCtx>,
}

/// What is so at the moment, as the server's context flags say it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flags(c_int);

impl Flags {
    fn has(self, bit: u32) -> bool {
        self.0 & bit as c_int != 0
    }
    pub(crate) fn is_replica(self) -> bool {
        self.has(raw::REDISMODULE_CTX_FLAGS_SLAVE)
    }
    pub(crate) fn is_loading(self) -> bool {
        self.has(raw::REDISMODULE_CTX_FLAGS_LOADING) || self.has(raw::REDISMODULE_CTX_FLAGS_ASYNC_LOADING)
    }
    /// The command comes from the primary's replication stream.
    pub(crate) fn is_replicated(self) -> bool {
        self.has(raw::REDISMODULE_CTX_FLAGS_REPLICATED)
    }
    /// No user stands behind the command: asking for one would crash the server.
    pub(crate) fn has_no_user(self) -> bool {
        self.is_replicated() || self.is_loading()
    }
    pub(crate) fn is_resp3(self) -> bool {
        self.has(raw::REDISMODULE_CTX_FLAGS_RESP3)
    }
    /// The caller cannot be blocked: MULTI, a script, a module's call.
    pub(crate) fn denies_blocking(self) -> bool {
        self.has(raw::REDISMODULE_CTX_FLAGS_DENY_BLOCKING)
            || self.has(raw::REDISMODULE_CTX_FLAGS_MULTI)
            || self.has(raw::REDISMODULE_CTX_FLAGS_LUA)
    }
    pub(crate) fn is_out_of_memory(self) -> bool {
        self.has(raw::REDISMODULE_CTX_FLAGS_OOM)
    }
    pub(crate) fn is_cluster(self) -> bool {
        self.has(raw::REDISMODULE_CTX_FLAGS_CLUSTER)
    }
}

/// Severity of a log line.
#[derive(Clone, Copy)]
pub(crate) enum LogLevel {
    Notice,
    Warning,
}

impl<'a> Context<'a> {
    /// # Safety
    /// `raw` must be the context that the server gave the running callback, and `'a` must not outlive the callback.
    pub(crate) unsafe fn new(raw: *mut raw::RedisModuleCtx) -> Self {
        Context { raw: NonNull::new(raw).expect("the server gives a context"), callback: PhantomData }
    }

    /// Runs with a context of our own, for callbacks to which the server gives none that can be used.
    ///
    /// # Safety
    /// Only on the main thread (or in the forked child), inside a callback of the server.
    pub(crate) unsafe fn with_detached<T>(run: impl FnOnce(Context<'_>) -> T) -> T {
        // SAFETY: the caller's promise; the context is given back after its last use.
        unsafe {
            let ctx = api!(RedisModule_GetThreadSafeContext(ptr::null_mut()));
            let result = run(Context::new(ctx));
            api!(RedisModule_FreeThreadSafeContext(ctx));
            result
        }
    }

    pub(crate) fn as_ptr(self) -> *mut raw::RedisModuleCtx {
        self.raw.as_ptr()
    }

    pub(crate) fn flags(self) -> Flags {
        // SAFETY: the context is the running callback's.
        Flags(unsafe { api!(RedisModule_GetContextFlags(self.as_ptr())) })
    }

    /// Is there room for so much more below `maxmemory`, and a tenth of it besides?
    pub(crate) fn has_memory_for(self, bytes: usize) -> bool {
        // SAFETY: takes no arguments; 0 where there is no limit.
        let used = unsafe { api!(RedisModule_GetUsedMemoryRatio()) };
        bytes == 0 || used < 0.9
    }

    /// The server's clock as of this event, unix milliseconds.
    pub(crate) fn now_ms(self) -> i64 {
        // SAFETY: takes no arguments.
        unsafe { api!(RedisModule_CachedMicroseconds()) / 1_000 }
    }

    pub(crate) fn selected_db(self) -> i32 {
        // SAFETY: the context is the running callback's.
        unsafe { api!(RedisModule_GetSelectedDb(self.as_ptr())) }
    }

    /// Background callbacks begin in the database in which their timer was made; the store lives in 0.
    pub(crate) fn select_store_db(self) {
        // SAFETY: the context is the running callback's. Database 0 always exists.
        unsafe { api!(RedisModule_SelectDb(self.as_ptr(), 0)) };
    }

    /// A write outside a client's command would abort the server now (FAILOVER, CLIENT PAUSE WRITE).
    pub(crate) fn must_avoid_replica_traffic(self) -> bool {
        // SAFETY: takes no arguments.
        unsafe { api!(RedisModule_AvoidReplicaTraffic()) != 0 }
    }

    pub(crate) fn log(self, level: LogLevel, message: &str) {
        let level = match level {
            LogLevel::Notice => c"notice",
            LogLevel::Warning => c"warning",
        };
        let line: Vec<u8> = message.bytes().filter(|b| *b != 0).chain([0]).collect();
        // SAFETY: all strings end in NUL, and the format has exactly one `%s`.
        unsafe { api!(RedisModule_Log(self.as_ptr(), level.as_ptr(), c"%s".as_ptr(), line.as_ptr())) };
    }

    /// Tells those who listen to keyspace events, as the native command would.
    pub(crate) fn notify(self, class: c_int, event: &CStr, key: &ServerString) {
        // SAFETY: the context is the running callback's, both strings are alive.
        unsafe { api!(RedisModule_NotifyKeyspaceEvent(self.as_ptr(), class, event.as_ptr(), key.as_ptr())) };
    }

    /// Tells those who watch a key or cache what it says that this has changed.
    pub(crate) fn signal_modified(self, key: &ServerString) {
        // SAFETY: the context is the running callback's, the name is alive.
        unsafe { api!(RedisModule_SignalModifiedKey(self.as_ptr(), key.as_ptr())) };
    }

    /// Sends a command to the replicas and the AOF.
    pub(crate) fn replicate(self, command: &CStr, arguments: &[ServerString]) {
        let pointers: SmallVec<[*mut raw::RedisModuleString; 4]> = arguments.iter().map(ServerString::as_ptr).collect();
        // SAFETY: format `v` takes an array of strings and its length; the server takes its own references.
        unsafe {
            api!(RedisModule_Replicate(
                self.as_ptr(),
                command.as_ptr(),
                c"v".as_ptr(),
                pointers.as_ptr(),
                pointers.len()
            ))
        };
    }

    /// Sends the running command as it came to the replicas and the AOF.
    pub(crate) fn replicate_verbatim(self) {
        // SAFETY: the context is a running command's.
        unsafe { api!(RedisModule_ReplicateVerbatim(self.as_ptr())) };
    }

    /// Is a user attached to the running command? The server refuses to run a command as a user that is not there.
    pub(crate) fn acts_for_a_user(self) -> bool {
        // SAFETY: `C` checks the user, `E` gives errors as replies.
        let reply = CallReply(unsafe { api!(RedisModule_Call(self.as_ptr(), c"PING".as_ptr(), c"CE".as_ptr())) });
        let refused = reply.as_element().bytes().is_some_and(|b| b.starts_with(b"ERR"));
        !refused
    }

    /// Runs a native command. Not replicated unless asked for.
    pub(crate) fn call(self, command: &CStr, arguments: &[&[u8]], replication: Replication) -> CallReply {
        let strings: Vec<ServerString> = arguments.iter().map(|a| ServerString::new(a)).collect();
        let pointers: Vec<*mut raw::RedisModuleString> = strings.iter().map(ServerString::as_ptr).collect();
        let format = match replication {
            Replication::Local => c"Ev",
            Replication::Replicated => c"!Ev",
        };
        // SAFETY: format `v` takes an array of strings and its length; `E` gives errors as replies.
        let reply = unsafe {
            api!(RedisModule_Call(self.as_ptr(), command.as_ptr(), format.as_ptr(), pointers.as_ptr(), pointers.len()))
        };
        CallReply(reply)
    }
}

/// Does a called command reach the replicas and the AOF by itself?
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replication {
    Local,
    Replicated,
}

/// The reply of a called command.
pub(crate) struct CallReply(*mut raw::RedisModuleCallReply);

impl Drop for CallReply {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the reply is ours and freed once; elements are only borrowed from it.
            unsafe { api!(RedisModule_FreeCallReply(self.0)) };
        }
    }
}

impl CallReply {
    pub(crate) fn as_element(&self) -> Element<'_> {
        Element(self.0, PhantomData)
    }
}

/// A part of a reply.
#[derive(Clone, Copy)]
pub(crate) struct Element<'a>(*mut raw::RedisModuleCallReply, PhantomData<&'a CallReply>);

impl<'a> Element<'a> {
    fn kind(self) -> isize {
        if self.0.is_null() {
            return raw::REDISMODULE_REPLY_UNKNOWN;
        }
        // SAFETY: the reply is alive as long as `'a`.
        unsafe { api!(RedisModule_CallReplyType(self.0)) as isize }
    }

    pub(crate) fn is_error(self) -> bool {
        matches!(self.kind(), raw::REDISMODULE_REPLY_ERROR | raw::REDISMODULE_REPLY_UNKNOWN)
    }

    pub(crate) fn integer(self) -> Option<i64> {
        // SAFETY: the reply is an integer, alive as long as `'a`.
        (self.kind() == raw::REDISMODULE_REPLY_INTEGER).then(|| unsafe { api!(RedisModule_CallReplyInteger(self.0)) })
    }

    pub(crate) fn bytes(self) -> Option<&'a [u8]> {
        if !matches!(self.kind(), raw::REDISMODULE_REPLY_STRING | raw::REDISMODULE_REPLY_ERROR) {
            return None;
        }
        let mut length = 0usize;
        // SAFETY: the reply is a string, alive as long as `'a`; the pointer is valid for `length` bytes.
        unsafe {
            let pointer = api!(RedisModule_CallReplyStringPtr(self.0, &mut length));
            (!pointer.is_null()).then(|| std::slice::from_raw_parts(pointer.cast::<u8>(), length))
        }
    }

    /// The elements of an array; none for anything else.
    pub(crate) fn elements(self) -> impl Iterator<Item = Element<'a>> {
        let length = if self.kind() == raw::REDISMODULE_REPLY_ARRAY {
            // SAFETY: the reply is an array, alive as long as `'a`.
            unsafe { api!(RedisModule_CallReplyLength(self.0)) }
        } else {
            0
        };
        (0..length).map(move |i| {
            // SAFETY: the index is inside the array; the element belongs to the reply.
            Element(unsafe { api!(RedisModule_CallReplyArrayElement(self.0, i)) }, PhantomData)
        })
    }

    /// The value after a name in a flat array of names and values.
    pub(crate) fn named(self, name: &[u8]) -> Option<Element<'a>> {
        let mut elements = self.elements();
        while let (Some(key), Some(value)) = (elements.next(), elements.next()) {
            if key.bytes() == Some(name) {
                return Some(value);
            }
        }
        None
    }
}

/// A string of the server, owned.
#[repr(transparent)]
pub(crate) struct ServerString(NonNull<raw::RedisModuleString>);

impl ServerString {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        // SAFETY: without a context the string is ours alone; the server copies the bytes.
        let string =
            unsafe { api!(RedisModule_CreateString(ptr::null_mut(), bytes.as_ptr().cast::<c_char>(), bytes.len())) };
        ServerString(NonNull::new(string).expect("the server's allocation does not fail"))
    }

    /// # Safety
    /// `argv` must point to `argc` live strings that outlive `'a`.
    pub(crate) unsafe fn arguments<'a>(argv: *mut *mut raw::RedisModuleString, argc: c_int) -> &'a [Self] {
        // SAFETY: the caller's promise; the types have the same layout, and a shared slice frees nothing.
        unsafe { std::slice::from_raw_parts(argv.cast::<ServerString>(), usize::try_from(argc).unwrap_or(0)) }
    }

    /// # Safety
    /// `raw` must be a live string; this takes a reference of its own.
    pub(crate) unsafe fn retained(raw: *mut raw::RedisModuleString) -> Self {
        // SAFETY: the caller's promise.
        unsafe { api!(RedisModule_RetainString(ptr::null_mut(), raw)) };
        ServerString(NonNull::new(raw).expect("a live string"))
    }

    /// # Safety
    /// `raw` must be null or a live string of which one reference is the caller's; this takes that over.
    pub(crate) unsafe fn owned(raw: *mut raw::RedisModuleString) -> Option<Self> {
        NonNull::new(raw).map(ServerString)
    }

    pub(crate) fn as_ptr(&self) -> *mut raw::RedisModuleString {
        self.0.as_ptr()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the string is alive as long as `self`, and nothing changes it in place.
        unsafe { string_bytes(self.as_ptr()) }
    }
}

impl Drop for ServerString {
    fn drop(&mut self) {
        // SAFETY: gives back the one reference that this value holds.
        unsafe { api!(RedisModule_FreeString(ptr::null_mut(), self.as_ptr())) };
    }
}

/// # Safety
/// `string` must be alive and unchanged as long as `'a`.
pub(crate) unsafe fn string_bytes<'a>(string: *const raw::RedisModuleString) -> &'a [u8] {
    let mut length = 0usize;
    // SAFETY: the caller's promise; the pointer is valid for `length` bytes.
    unsafe {
        let pointer = api!(RedisModule_StringPtrLen(string, &mut length));
        std::slice::from_raw_parts(pointer.cast::<u8>(), length)
    }
}

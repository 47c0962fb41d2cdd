//! The module API, call by call, as safe functions.
//!
//! Invariant: all of it runs on the server's main thread, inside a callback of the server. A [`Context`] is the proof:
//! it cannot be made elsewhere, is not `Send`, and lives only as long as the callback.

use feature_store_core::log_entry::RawEntry;
use feature_store_core::stream_id::StreamId;
use redis_module::raw;
use std::ffi::{c_char, c_int, c_long, c_void, CStr};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};

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

    /// Sends a command to the replicas and the AOF.
    pub(crate) fn replicate(self, command: &CStr, arguments: &[&ServerString]) {
        let pointers: Vec<*mut raw::RedisModuleString> = arguments.iter().map(|s| s.as_ptr()).collect();
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

/// What a key may be opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Read,
    Write,
}

/// The type of what a key holds, as far as the product tells them apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KeyType {
    Empty,
    Hash,
    Stream,
    Other,
}

/// An open key. Closed when dropped; then watchers and caches hear of a write.
pub(crate) struct Key<'a> {
    raw: *mut raw::RedisModuleKey,
    context: PhantomData<Context<'a>>,
}

impl Drop for Key<'_> {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: the key is ours and closed once.
            unsafe { api!(RedisModule_CloseKey(self.raw)) };
        }
    }
}

impl<'a> Key<'a> {
    pub(crate) fn open(context: Context<'a>, name: &ServerString, mode: Mode) -> Self {
        // SAFETY: the name is alive; the handle is closed before the callback ends.
        unsafe { Self::open_raw(context, name.as_ptr(), mode) }
    }

    /// # Safety
    /// `name` must be a live string.
    unsafe fn open_raw(context: Context<'a>, name: *mut raw::RedisModuleString, mode: Mode) -> Self {
        let mode = match mode {
            Mode::Read => raw::REDISMODULE_READ,
            Mode::Write => raw::REDISMODULE_READ | raw::REDISMODULE_WRITE,
        };
        // SAFETY: the caller's promise. Reading a missing key gives null, which every function here takes for empty.
        let raw = unsafe { api!(RedisModule_OpenKey(context.as_ptr(), name, mode as c_int)) };
        Key { raw, context: PhantomData }
    }

    pub(crate) fn key_type(&self) -> KeyType {
        // SAFETY: the handle is open or null, both are allowed.
        match unsafe { api!(RedisModule_KeyType(self.raw)) } as isize {
            raw::REDISMODULE_KEYTYPE_EMPTY => KeyType::Empty,
            raw::REDISMODULE_KEYTYPE_HASH => KeyType::Hash,
            raw::REDISMODULE_KEYTYPE_STREAM => KeyType::Stream,
            _ => KeyType::Other,
        }
    }

    /// Fields of a hash, entries of a stream.
    pub(crate) fn length(&self) -> u64 {
        // SAFETY: the handle is open or null, both are allowed.
        unsafe { api!(RedisModule_ValueLength(self.raw)) as u64 }
    }

    /// Unix milliseconds at which the key expires.
    pub(crate) fn expires_at_ms(&self) -> Option<i64> {
        if self.raw.is_null() {
            return None;
        }
        // SAFETY: the handle is open.
        let at = unsafe { api!(RedisModule_GetAbsExpire(self.raw)) };
        (at >= 0).then_some(at)
    }

    /// Sets or removes the expiry.
    pub(crate) fn set_expiry(&self, at_ms: Option<i64>) {
        let at = at_ms.unwrap_or(i64::from(raw::REDISMODULE_NO_EXPIRE));
        // SAFETY: the handle is open for writing and holds a value.
        unsafe { api!(RedisModule_SetAbsExpire(self.raw, at)) };
    }

    /// Deletes what the key holds, freeing it in the background where that pays.
    pub(crate) fn unlink(&self) {
        // SAFETY: the handle is open for writing.
        unsafe { api!(RedisModule_UnlinkKey(self.raw)) };
    }

    /// Some fields of a hash.
    pub(crate) fn hash_get_many<const N: usize>(&self, fields: [&ServerString; N]) -> [Option<ServerString>; N] {
        let mut values = [ptr::null_mut(); N];
        self.hash_get_into(&fields, &mut values);
        values.map(|v| NonNull::new(v).map(ServerString))
    }

    /// Some fields of a hash, seen in order without copying.
    pub(crate) fn hash_get_each(&self, fields: &[&ServerString], mut see: impl FnMut(usize, &[u8])) {
        const CHUNK: usize = 8;
        for (n, chunk) in fields.chunks(CHUNK).enumerate() {
            let mut values = [ptr::null_mut(); CHUNK];
            self.hash_get_into(chunk, &mut values[..chunk.len()]);
            for (i, value) in values.into_iter().enumerate() {
                if let Some(value) = NonNull::new(value).map(ServerString) {
                    see(n * CHUNK + i, value.bytes());
                }
            }
        }
    }

    fn hash_get_into(&self, fields: &[&ServerString], values: &mut [*mut raw::RedisModuleString]) {
        debug_assert_eq!(fields.len(), values.len());
        if self.raw.is_null() {
            return;
        }
        /// One call of HashGet with that many fields.
        macro_rules! get {
            ($fields:expr, $values:expr; $($i:literal)+) => {
                // SAFETY: the arguments are pairs of a live string and a place for its value, ended by null. Values
                // come back as null or as a string of which one reference is ours (automatic memory is never on).
                unsafe {
                    api!(RedisModule_HashGet(
                        self.raw,
                        raw::REDISMODULE_HASH_NONE as c_int,
                        $($fields[$i].as_ptr(), &raw mut $values[$i],)+
                        ptr::null_mut::<c_void>(),
                    ))
                }
            };
        }
        for (f, v) in fields.chunks(8).zip(values.chunks_mut(8)) {
            match f.len() {
                1 => get!(f, v; 0),
                2 => get!(f, v; 0 1),
                3 => get!(f, v; 0 1 2),
                4 => get!(f, v; 0 1 2 3),
                5 => get!(f, v; 0 1 2 3 4),
                6 => get!(f, v; 0 1 2 3 4 5),
                7 => get!(f, v; 0 1 2 3 4 5 6),
                _ => get!(f, v; 0 1 2 3 4 5 6 7),
            };
        }
    }

    pub(crate) fn hash_has(&self, field: &ServerString) -> bool {
        if self.raw.is_null() {
            return false;
        }
        let mut exists: c_int = 0;
        let exists_ptr: *mut c_int = &mut exists;
        let flags = raw::REDISMODULE_HASH_EXISTS as c_int;
        // SAFETY: one pair of a live string and a place for an int, ended by null.
        unsafe {
            api!(RedisModule_HashGet(self.raw, flags, field.as_ptr(), exists_ptr, ptr::null_mut::<c_void>()));
        }
        exists != 0
    }

    /// Sets fields of a hash. The server copies names and values.
    pub(crate) fn hash_set(&self, pairs: &[(&ServerString, ServerString)]) {
        macro_rules! set {
            ($pairs:expr; $($i:literal)+) => {
                // SAFETY: the handle is open for writing; pairs of live strings, ended by null.
                unsafe {
                    api!(RedisModule_HashSet(
                        self.raw,
                        raw::REDISMODULE_HASH_NONE as c_int,
                        $($pairs[$i].0.as_ptr(), $pairs[$i].1.as_ptr(),)+
                        ptr::null_mut::<c_void>(),
                    ))
                }
            };
        }
        for p in pairs.chunks(4) {
            match p.len() {
                1 => set!(p; 0),
                2 => set!(p; 0 1),
                3 => set!(p; 0 1 2),
                _ => set!(p; 0 1 2 3),
            };
        }
    }

    /// Answers whether the field was there.
    pub(crate) fn hash_delete(&self, field: &ServerString) -> bool {
        /// The API's mark for deletion, a macro in C.
        const HASH_DELETE: *mut raw::RedisModuleString = ptr::without_provenance_mut(1);
        let none = raw::REDISMODULE_HASH_NONE as c_int;
        // SAFETY: the handle is open for writing; one pair of a live string and the mark, ended by null.
        unsafe { api!(RedisModule_HashSet(self.raw, none, field.as_ptr(), HASH_DELETE, ptr::null_mut::<c_void>())) > 0 }
    }

    /// All fields of a hash in one pass, in no promised order.
    pub(crate) fn hash_scan(&self, mut see: impl FnMut(&[u8], &[u8])) {
        unsafe extern "C" fn callback<F: FnMut(&[u8], &[u8])>(
            _key: *mut raw::RedisModuleKey,
            field: *mut raw::RedisModuleString,
            value: *mut raw::RedisModuleString,
            see: *mut c_void,
        ) {
            // SAFETY: `see` is the closure below, alive during the scan; both strings live during this call. A panic
            // must not unwind into C; the closures passed here only copy bytes.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| unsafe {
                (*see.cast::<F>())(string_bytes(field), string_bytes(value));
            }));
        }
        fn callback_of<F: FnMut(&[u8], &[u8])>(_: &F) -> raw::RedisModuleScanKeyCB {
            Some(callback::<F>)
        }
        if self.raw.is_null() {
            return;
        }
        let callback = callback_of(&see);
        let see: *mut c_void = (&raw mut see).cast();
        let cursor = ScanCursor::take();
        // SAFETY: the handle is open on a hash, the cursor is fresh, `see` outlives the calls.
        unsafe { while api!(RedisModule_ScanKey(self.raw, cursor.0, callback, see)) != 0 {} }
    }

    /// Appends an entry; the server chooses the id if none is given. `None`: the stream takes no more.
    pub(crate) fn stream_add(&self, id: Option<StreamId>, fields: &[&ServerString]) -> Option<StreamId> {
        let mut pointers: Vec<*mut raw::RedisModuleString> = fields.iter().map(|f| f.as_ptr()).collect();
        let given = id.unwrap_or_default();
        let mut raw_id = raw::RedisModuleStreamID { ms: given.ms, seq: given.seq };
        let flags = if id.is_none() { raw::REDISMODULE_STREAM_ADD_AUTOID as c_int } else { 0 };
        // SAFETY: the handle is open for writing; pairs of live strings, the count is that of pairs.
        let status = unsafe {
            api!(RedisModule_StreamAdd(
                self.raw,
                flags,
                &mut raw_id,
                pointers.as_mut_ptr(),
                (pointers.len() / 2) as i64
            ))
        };
        (status == raw::REDISMODULE_OK as c_int).then_some(StreamId { ms: raw_id.ms, seq: raw_id.seq })
    }

    /// Removes the oldest entries; answers how many went. Approximate trimming keeps whole blocks.
    pub(crate) fn stream_trim(&self, length: u64, precision: Precision) -> u64 {
        let flags = match precision {
            Precision::Exact => 0,
            Precision::Approximate => raw::REDISMODULE_STREAM_TRIM_APPROX as c_int,
        };
        let length = i64::try_from(length).unwrap_or(i64::MAX);
        // SAFETY: the handle is open for writing.
        let removed = unsafe { api!(RedisModule_StreamTrimByLength(self.raw, flags, length)) };
        u64::try_from(removed).unwrap_or(0)
    }

    /// The id of the first entry after an id; with [`End::Newest`], of the newest entry of all. Copies no entry.
    pub(crate) fn stream_id(&self, which: End) -> Option<StreamId> {
        if self.key_type() != KeyType::Stream {
            return None;
        }
        let (flags, mut start) = match which {
            End::Newest => (raw::REDISMODULE_STREAM_ITERATOR_REVERSE as c_int, None),
            End::After(StreamId { ms: u64::MAX, seq: u64::MAX }) => return None,
            End::After(id) => (
                raw::REDISMODULE_STREAM_ITERATOR_EXCLUSIVE as c_int,
                Some(raw::RedisModuleStreamID { ms: id.ms, seq: id.seq }),
            ),
        };
        let start = start.as_mut().map_or(ptr::null_mut(), ptr::from_mut);
        let ok = raw::REDISMODULE_OK as c_int;
        let mut id = raw::RedisModuleStreamID { ms: 0, seq: 0 };
        // SAFETY: the handle is open on a stream and has no iterator; it is stopped once started.
        unsafe {
            if api!(RedisModule_StreamIteratorStart(self.raw, flags, start, ptr::null_mut())) != ok {
                return None;
            }
            let found = api!(RedisModule_StreamIteratorNextID(self.raw, &mut id, ptr::null_mut())) == ok;
            api!(RedisModule_StreamIteratorStop(self.raw));
            found.then_some(StreamId { ms: id.ms, seq: id.seq })
        }
    }

    /// Entries after `after`, oldest first, until `see` answers false.
    pub(crate) fn stream_read(&self, after: StreamId, mut see: impl FnMut(RawEntry) -> bool) {
        if self.key_type() != KeyType::Stream || after == (StreamId { ms: u64::MAX, seq: u64::MAX }) {
            return;
        }
        let mut start = raw::RedisModuleStreamID { ms: after.ms, seq: after.seq };
        // SAFETY: the handle is open on a stream and has no iterator; it is stopped below on every path.
        unsafe {
            let exclusive = raw::REDISMODULE_STREAM_ITERATOR_EXCLUSIVE as c_int;
            if api!(RedisModule_StreamIteratorStart(self.raw, exclusive, &mut start, ptr::null_mut()))
                != raw::REDISMODULE_OK as c_int
            {
                return;
            }
        }
        loop {
            let mut id = raw::RedisModuleStreamID { ms: 0, seq: 0 };
            let mut count: c_long = 0;
            // SAFETY: the iterator is started.
            if unsafe { api!(RedisModule_StreamIteratorNextID(self.raw, &mut id, &mut count)) }
                != raw::REDISMODULE_OK as c_int
            {
                break;
            }
            let id = StreamId { ms: id.ms, seq: id.seq };
            let mut entry = RawEntry::new(id, usize::try_from(count).unwrap_or(0));
            loop {
                let (mut field, mut value) = (ptr::null_mut(), ptr::null_mut());
                // SAFETY: the iterator stands on an entry; both strings come back with a reference that is ours.
                unsafe {
                    if api!(RedisModule_StreamIteratorNextField(self.raw, &mut field, &mut value))
                        != raw::REDISMODULE_OK as c_int
                    {
                        break;
                    }
                }
                if let (Some(field), Some(value)) = (NonNull::new(field), NonNull::new(value)) {
                    entry.push(ServerString(field).bytes(), ServerString(value).bytes());
                }
            }
            if !see(entry) {
                break;
            }
        }
        // SAFETY: the iterator was started above.
        unsafe { api!(RedisModule_StreamIteratorStop(self.raw)) };
    }
}

/// Which entry of a stream is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The newest.
    Newest,
    /// The first after an id.
    After(StreamId),
}

/// How exactly a stream is trimmed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    Exact,
    Approximate,
}

/// A cursor for scanning keys. One is kept for reuse: reads are frequent and never nest.
struct ScanCursor(*mut raw::RedisModuleScanCursor);

static SPARE_CURSOR: AtomicPtr<raw::RedisModuleScanCursor> = AtomicPtr::new(ptr::null_mut());

impl ScanCursor {
    fn take() -> Self {
        let spare = SPARE_CURSOR.swap(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: a spare cursor is live and unused; restarting makes it as new.
        unsafe {
            if spare.is_null() {
                return ScanCursor(api!(RedisModule_ScanCursorCreate()));
            }
            api!(RedisModule_ScanCursorRestart(spare));
        }
        ScanCursor(spare)
    }
}

impl Drop for ScanCursor {
    fn drop(&mut self) {
        let other = SPARE_CURSOR.swap(self.0, Ordering::Relaxed);
        if !other.is_null() {
            // SAFETY: the cursor is live and nobody else has it.
            unsafe { api!(RedisModule_ScanCursorDestroy(other)) };
        }
    }
}

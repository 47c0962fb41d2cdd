//! Open keys: hashes and streams through the low-level API.

use crate::server::api::{api, string_bytes, Context, ServerString};
use feature_store_core::log_entry::RawEntry;
use feature_store_core::stream_id::StreamId;
use redis_module::raw;
use std::ffi::{c_int, c_long, c_void};
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// What a key may be opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Read,
    /// To look, without being counted as a reader or touching what the key says of its last use.
    Peek,
    Write,
}

/// The type of what a key holds, as far as the product tells them apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KeyType {
    Empty,
    String,
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
            Mode::Peek => {
                raw::REDISMODULE_READ
                    | raw::REDISMODULE_OPEN_KEY_NOTOUCH
                    | raw::REDISMODULE_OPEN_KEY_NOSTATS
                    | raw::REDISMODULE_OPEN_KEY_NOEXPIRE
            }
            Mode::Write => raw::REDISMODULE_READ | raw::REDISMODULE_WRITE,
        };
        // SAFETY: the caller's promise. Reading a missing key gives null, which every function here takes for empty.
        let raw = unsafe { api!(RedisModule_OpenKey(context.as_ptr(), name, mode as c_int)) };
        Key { raw, context: PhantomData }
    }

    /// The handle; null for a missing key that was opened for reading.
    pub(crate) fn as_ptr(&self) -> *mut raw::RedisModuleKey {
        self.raw
    }

    /// Is there no such key? Only for one that was opened for reading.
    pub(crate) fn is_empty(&self) -> bool {
        self.raw.is_null()
    }

    pub(crate) fn key_type(&self) -> KeyType {
        // SAFETY: the handle is open or null, both are allowed.
        match unsafe { api!(RedisModule_KeyType(self.raw)) } as isize {
            raw::REDISMODULE_KEYTYPE_EMPTY => KeyType::Empty,
            raw::REDISMODULE_KEYTYPE_STRING => KeyType::String,
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

    /// The bytes of a string; `None` for anything else.
    pub(crate) fn string(&self) -> Option<&[u8]> {
        if self.raw.is_null() {
            return None;
        }
        let mut length = 0usize;
        // SAFETY: the handle is open. What is no string gives null. The pointer is valid for `length` bytes until the
        // key is written, which takes `&mut self`, or closed.
        unsafe {
            let bytes = api!(RedisModule_StringDMA(self.raw, &mut length, raw::REDISMODULE_READ as c_int));
            (!bytes.is_null()).then(|| std::slice::from_raw_parts(bytes.cast::<u8>(), length))
        }
    }

    /// Makes the key a string of these bytes, which are not empty. Its expiry stays. False: it holds something else.
    pub(crate) fn set_string(&mut self, bytes: &[u8]) -> bool {
        let mut length = 0usize;
        // SAFETY: the handle is open for writing. After the call of StringTruncate the string has as many bytes as are
        // copied, and the pointer asked for after it is valid for them.
        unsafe {
            if api!(RedisModule_StringTruncate(self.raw, bytes.len())) != raw::REDISMODULE_OK as c_int {
                return false;
            }
            let place = api!(RedisModule_StringDMA(self.raw, &mut length, raw::REDISMODULE_WRITE as c_int));
            if place.is_null() || length != bytes.len() {
                return false;
            }
            ptr::copy_nonoverlapping(bytes.as_ptr(), place.cast::<u8>(), length);
        }
        true
    }

    /// Some fields of a hash.
    pub(crate) fn hash_get_many<const N: usize>(&self, fields: [&ServerString; N]) -> [Option<ServerString>; N] {
        let mut values = [ptr::null_mut(); N];
        self.hash_get_into(&fields, &mut values);
        // SAFETY: values come back as null or with a reference that is ours.
        values.map(|v| unsafe { ServerString::owned(v) })
    }

    /// Some fields of a hash, seen in order without copying.
    pub(crate) fn hash_get_each(&self, fields: &[&ServerString], mut see: impl FnMut(usize, &[u8])) {
        const CHUNK: usize = 8;
        for (n, chunk) in fields.chunks(CHUNK).enumerate() {
            let mut values = [ptr::null_mut(); CHUNK];
            self.hash_get_into(chunk, &mut values[..chunk.len()]);
            for (i, value) in values.into_iter().enumerate() {
                // SAFETY: values come back as null or with a reference that is ours.
                if let Some(value) = unsafe { ServerString::owned(value) } {
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
                // SAFETY: as said above.
                if let (Some(field), Some(value)) = unsafe { (ServerString::owned(field), ServerString::owned(value)) }
                {
                    entry.push(field.bytes(), value.bytes());
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

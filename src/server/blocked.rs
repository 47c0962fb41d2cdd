//! A caller that waits while background work goes on.

use crate::server::api::{api, Context};
use feature_store_core::Error;
use redis_module::raw;
use std::ptr::NonNull;

/// A blocked caller. One that nobody answers is told of an internal error; one that has gone away costs nothing.
pub(crate) struct BlockedCaller(Option<NonNull<raw::RedisModuleBlockedClient>>);

impl Drop for BlockedCaller {
    fn drop(&mut self) {
        self.answer(|context| {
            context.reply_error(&Error::syntax("internal error in background work, see the server's log"));
        });
    }
}

impl BlockedCaller {
    /// Blocks the caller of the running command, which must not reply any more.
    pub(crate) fn of(context: Context<'_>) -> Self {
        // SAFETY: the context is a running command's that may block; no callbacks, no timeout.
        let raw = unsafe { api!(RedisModule_BlockClient(context.as_ptr(), None, None, None, 0)) };
        BlockedCaller(Some(NonNull::new(raw).expect("the server blocks a caller that may be blocked")))
    }

    /// Replies and lets the caller go on.
    pub(crate) fn reply(mut self, reply: impl FnOnce(Context<'_>)) {
        self.answer(reply);
    }

    fn answer(&mut self, reply: impl FnOnce(Context<'_>)) {
        let Some(raw) = self.0.take() else { return };
        // SAFETY: we are on the main thread; the handle is used for one reply and given back by unblocking.
        unsafe {
            let ctx = api!(RedisModule_GetThreadSafeContext(raw.as_ptr()));
            reply(Context::new(ctx));
            api!(RedisModule_FreeThreadSafeContext(ctx));
            api!(RedisModule_UnblockClient(raw.as_ptr(), std::ptr::null_mut()));
        }
    }
}

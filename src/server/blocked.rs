//! A caller that waits while background work goes on.

use crate::server::api::{api, Context};
use redis_module::raw;
use std::ptr::NonNull;

/// A blocked caller. It must be answered exactly once; a caller that has gone away costs nothing.
pub(crate) struct BlockedCaller(NonNull<raw::RedisModuleBlockedClient>);

impl BlockedCaller {
    /// Blocks the caller of the running command, which must not reply any more.
    pub(crate) fn of(context: Context<'_>) -> Self {
        // SAFETY: the context is a running command's that may block; no callbacks, no timeout.
        let raw = unsafe { api!(RedisModule_BlockClient(context.as_ptr(), None, None, None, 0)) };
        BlockedCaller(NonNull::new(raw).expect("the server blocks a caller that may be blocked"))
    }

    /// Replies and lets the caller go on.
    pub(crate) fn reply(self, reply: impl FnOnce(Context<'_>)) {
        // SAFETY: we are on the main thread; the handle is used for one reply and given back by unblocking.
        unsafe {
            let ctx = api!(RedisModule_GetThreadSafeContext(self.0.as_ptr()));
            reply(Context::new(ctx));
            api!(RedisModule_FreeThreadSafeContext(ctx));
            api!(RedisModule_UnblockClient(self.0.as_ptr(), std::ptr::null_mut()));
        }
    }
}

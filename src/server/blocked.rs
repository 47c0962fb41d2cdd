//! A caller that waits while background work goes on.

use crate::server::api::{api, Context};
use crate::server::command::guarded;
use feature_store_core::Error;
use redis_module::raw;
use std::ptr::NonNull;

/// Tells callers apart while they are blocked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct CallerId(usize);

/// Work whose caller may go away.
pub(crate) trait Abandon {
    /// The caller has gone away: nobody waits for the work.
    fn abandon(context: Context<'_>, id: CallerId);
}

unsafe extern "C" fn on_leave<W: Abandon>(ctx: *mut raw::RedisModuleCtx, caller: *mut raw::RedisModuleBlockedClient) {
    // SAFETY: the context is alive during the callback, which runs on the main thread.
    let context = unsafe { Context::new(ctx) };
    guarded(context, || W::abandon(context, CallerId(caller as usize)));
}

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

    /// Blocks a caller for whom nothing is to be done any more when it goes away.
    pub(crate) fn of_one_who_may_leave<W: Abandon>(context: Context<'_>) -> Self {
        let caller = Self::of(context);
        if let Some(raw) = caller.0 {
            // SAFETY: the handle is alive; the callback is static and catches panics.
            unsafe { api!(RedisModule_SetDisconnectCallback(raw.as_ptr(), Some(on_leave::<W>))) };
        }
        caller
    }

    /// Which caller it is.
    pub(crate) fn id(&self) -> Option<CallerId> {
        self.0.map(|raw| CallerId(raw.as_ptr() as usize))
    }

    /// Lets a caller go who has gone away: nobody reads a reply.
    pub(crate) fn abandon(mut self) {
        if let Some(raw) = self.0.take() {
            // SAFETY: we are on the main thread; the handle is given back once.
            unsafe { api!(RedisModule_UnblockClient(raw.as_ptr(), std::ptr::null_mut())) };
        }
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

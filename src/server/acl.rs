//! Permissions on keys that the server does not see among a command's arguments: logs, dead letters, scanned rows.

use crate::server::api::{api, Context, Replication, ServerString};
use feature_store_core::error::shown;
use feature_store_core::{Code, Error, Result};
use redis_module::raw;
use std::ffi::c_int;
use std::ptr::NonNull;
use wildmatch::WildMatch;

/// What a command does with a key.
#[derive(Clone, Copy)]
pub(crate) enum Access {
    /// It tells what is in there.
    Read,
    /// It adds.
    Insert,
    /// It changes and removes.
    Update,
}

impl Access {
    fn flags(self) -> c_int {
        (match self {
            Access::Read => raw::REDISMODULE_CMD_KEY_ACCESS,
            Access::Insert => raw::REDISMODULE_CMD_KEY_INSERT,
            Access::Update => {
                raw::REDISMODULE_CMD_KEY_ACCESS | raw::REDISMODULE_CMD_KEY_UPDATE | raw::REDISMODULE_CMD_KEY_DELETE
            }
        }) as c_int
    }
}

/// The user behind the running command.
pub(crate) struct Caller {
    /// `None`: nobody stands behind it (replication, loading), so nothing is checked.
    user: Option<(NonNull<raw::RedisModuleUser>, ServerString)>,
}

impl Drop for Caller {
    fn drop(&mut self) {
        if let Some((user, _)) = &self.user {
            // SAFETY: frees the handle that `of` got, once; not the user.
            unsafe { api!(RedisModule_FreeModuleUser(user.as_ptr())) };
        }
    }
}

impl Caller {
    pub(crate) fn of(context: Context<'_>) -> Self {
        if context.flags().has_no_user() {
            return Caller { user: None };
        }
        // SAFETY: a client's command has a user. The name is a string of ours, freed by `ServerString`'s reference
        // below; a user that was deleted meanwhile gives null.
        unsafe {
            let name = api!(RedisModule_GetCurrentUserName(context.as_ptr()));
            let held = ServerString::retained(name);
            api!(RedisModule_FreeString(context.as_ptr(), name));
            let user = api!(RedisModule_GetModuleUserFromUserName(held.as_ptr()));
            Caller { user: NonNull::new(user).map(|user| (user, held)) }
        }
    }

    pub(crate) fn may(&self, key: &ServerString, access: Access) -> bool {
        let Some((user, _)) = &self.user else { return true };
        // SAFETY: user and key are alive.
        let status = unsafe { api!(RedisModule_ACLCheckKeyPermissions(user.as_ptr(), key.as_ptr(), access.flags())) };
        status == raw::REDISMODULE_OK as c_int
    }

    /// Refuses, and notes it in ACL LOG as the server would.
    pub(crate) fn require(&self, context: Context<'_>, key: &ServerString, access: Access) -> Result<()> {
        if self.may(key, access) {
            return Ok(());
        }
        self.log_refusal(context, key);
        Err(Error::new(Code::NoPerm, format!("no permission to access the key '{}'", shown(key.bytes()))))
    }

    fn log_refusal(&self, context: Context<'_>, key: &ServerString) {
        if let Some((_, name)) = &self.user {
            let reason = raw::RedisModuleACLLogEntryReason_REDISMODULE_ACL_LOG_KEY;
            // SAFETY: context, name and key are alive.
            unsafe {
                api!(RedisModule_ACLAddLogEntryByUserName(context.as_ptr(), name.as_ptr(), key.as_ptr(), reason));
            }
        }
    }

    /// Refuses unless the user may read and write all keys that begin with `prefix`.
    ///
    /// The API checks single keys only, so the user's patterns are asked for. One that ends in `*` and matches the
    /// prefix itself matches whatever follows it. Patterns with `[`, `\\` or in selectors are not looked into: such a
    /// user is refused rather than trusted.
    pub(crate) fn require_prefix(&self, context: Context<'_>, prefix: &str) -> Result<()> {
        let Some((_, name)) = &self.user else { return Ok(()) };
        let reply = context.call(c"ACL", &[b"GETUSER", name.bytes()], Replication::Local);
        let patterns = reply.as_element().named(b"keys").and_then(|k| k.bytes()).unwrap_or_default();
        let opens = |pattern: &str| {
            let pattern = pattern.strip_prefix('~').or_else(|| pattern.strip_prefix("%RW~"));
            pattern.is_some_and(|p| p.ends_with('*') && !p.contains(['[', '\\']) && WildMatch::new(p).matches(prefix))
        };
        if String::from_utf8_lossy(patterns).split(' ').any(opens) {
            return Ok(());
        }
        self.log_refusal(context, &ServerString::new(format!("{prefix}*").as_bytes()));
        Err(Error::new(Code::NoPerm, format!("no permission to read and write all keys '{prefix}*'")))
    }
}

//! Permissions on keys that the server does not see among a command's arguments: logs, dead letters, scanned rows.

use crate::server::api::{api, Context, ServerString};
use feature_store_core::error::shown;
use feature_store_core::{Code, Error, Result};
use redis_module::raw;
use std::ffi::c_int;
use std::ptr::NonNull;

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
        if let Some((_, name)) = &self.user {
            let reason = raw::RedisModuleACLLogEntryReason_REDISMODULE_ACL_LOG_KEY;
            // SAFETY: context, name and key are alive.
            unsafe {
                api!(RedisModule_ACLAddLogEntryByUserName(context.as_ptr(), name.as_ptr(), key.as_ptr(), reason));
            }
        }
        Err(Error::new(Code::NoPerm, format!("no permission to access the key '{}'", shown(key.bytes()))))
    }

    /// Refuses unless all keys that begin with `prefix` are open to the user.
    ///
    /// The API of all supported servers checks single keys only, so two ids that nobody would name stand for all: a
    /// rule that opens both opens the prefix.
    pub(crate) fn require_prefix(&self, context: Context<'_>, prefix: &str, access: Access) -> Result<()> {
        for probe in ["\u{1}\u{2}fs-acl-probe\u{3}0", "9\u{7f}fs-acl-probe\u{4}z"] {
            self.require(context, &ServerString::new(format!("{prefix}{probe}").as_bytes()), access)?;
        }
        Ok(())
    }
}

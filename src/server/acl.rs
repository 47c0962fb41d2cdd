//! Permissions on keys that the server does not see among a command's arguments: logs, dead letters, scanned rows.

use crate::server::api::{api, Context, ServerString};
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

/// Who stands behind the running command.
pub(crate) enum Caller {
    /// Nobody: replication, loading, another module acting for itself. Nothing is checked.
    Nobody,
    /// A user of the server, and its name.
    User(NonNull<raw::RedisModuleUser>, ServerString),
    /// A user that the server's ACL does not know (any more), or that another module made: nothing is allowed.
    Unknown,
}

impl Drop for Caller {
    fn drop(&mut self) {
        if let Caller::User(user, _) = self {
            // SAFETY: frees the handle that `of` got, once; not the user.
            unsafe { api!(RedisModule_FreeModuleUser(user.as_ptr())) };
        }
    }
}

impl Caller {
    pub(crate) fn of(context: Context<'_>) -> Self {
        if context.flags().has_no_user() {
            return Caller::Nobody;
        }
        let Some(name) = user_name(context) else { return Caller::Nobody };
        // SAFETY: the name is alive. A name that the ACL does not know gives null.
        match NonNull::new(unsafe { api!(RedisModule_GetModuleUserFromUserName(name.as_ptr())) }) {
            Some(user) => Caller::User(user, name),
            None => Caller::Unknown,
        }
    }

    pub(crate) fn may(&self, key: &ServerString, access: Access) -> bool {
        match self {
            Caller::Nobody => true,
            Caller::Unknown => false,
            Caller::User(user, _) => {
                // SAFETY: user and key are alive.
                let status =
                    unsafe { api!(RedisModule_ACLCheckKeyPermissions(user.as_ptr(), key.as_ptr(), access.flags())) };
                status == raw::REDISMODULE_OK as c_int
            }
        }
    }

    /// May the user read all keys that begin so? No is no last word: then each key has to be asked for.
    pub(crate) fn may_read_all(&self, prefix: &str) -> bool {
        match self {
            Caller::Nobody => true,
            Caller::Unknown => false,
            Caller::User(..) => self.has_pattern_for_all(prefix, &["~", "%R~", "%RW~"]),
        }
    }

    /// Has the user a pattern that matches whatever begins with `prefix`? One that ends in `*` and matches the prefix
    /// itself does. Patterns with `[`, `\\` or in selectors are not looked into.
    ///
    /// Valkey 9 can be asked, but takes a pattern that ends in an open `[..*` for one that ends in a star.
    fn has_pattern_for_all(&self, prefix: &str, kinds: &[&str]) -> bool {
        let Caller::User(user, _) = self else { return false };
        // SAFETY: the user is alive; the string comes with a reference that is ours. The server keeps it ready.
        let rules = unsafe { ServerString::owned(api!(RedisModule_GetModuleUserACLString(user.as_ptr()))) };
        let Some(Ok(rules)) = rules.as_ref().map(|rules| std::str::from_utf8(rules.bytes())) else { return false };
        let of_user = rules.split_once(" (").map_or(rules, |(of_user, _)| of_user);
        of_user.split(' ').any(|rule| {
            let pattern = kinds.iter().find_map(|kind| rule.strip_prefix(kind));
            pattern.is_some_and(|p| {
                p == "*" || (p.ends_with('*') && !p.contains(['[', '\\']) && WildMatch::new(p).matches(prefix))
            })
        })
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
        if let Caller::User(_, name) = self {
            let reason = raw::RedisModuleACLLogEntryReason_REDISMODULE_ACL_LOG_KEY;
            // SAFETY: context, name and key are alive.
            unsafe {
                api!(RedisModule_ACLAddLogEntryByUserName(context.as_ptr(), name.as_ptr(), key.as_ptr(), reason));
            }
        }
    }

    /// Refuses unless the user may read and write all keys that begin with `prefix`. Whoever may only by patterns that
    /// are not looked into is refused rather than trusted.
    pub(crate) fn require_prefix(&self, context: Context<'_>, prefix: &str) -> Result<()> {
        if matches!(self, Caller::Nobody) || self.has_pattern_for_all(prefix, &["~", "%RW~"]) {
            return Ok(());
        }
        self.log_refusal(context, &ServerString::new(format!("{prefix}*").as_bytes()));
        Err(no_permission_on_all(prefix))
    }
}

fn no_permission_on_all(prefix: &str) -> Error {
    Error::new(Code::NoPerm, format!("no permission to read and write all keys '{prefix}*'"))
}

/// The name of the user behind the running command. `None`: another module calls without one.
///
/// Asking for the current user where there is none crashes the server, so the connection is asked first. Scripts have
/// none of their own; there the server itself says whether a user is attached, by refusing to act as one.
fn user_name(context: Context<'_>) -> Option<ServerString> {
    // SAFETY: the context is a running command's.
    let by_id = unsafe {
        let id = api!(RedisModule_GetClientId(context.as_ptr()));
        api!(RedisModule_GetClientUserNameById(context.as_ptr(), id))
    };
    let name = match NonNull::new(by_id) {
        Some(name) => name,
        None if !context.acts_for_a_user() => return None,
        // SAFETY: a user is attached to the context.
        None => NonNull::new(unsafe { api!(RedisModule_GetCurrentUserName(context.as_ptr())) })?,
    };
    // SAFETY: the string is ours: one reference goes to `ServerString`, the one that came with it is given back to the
    // context that may have noted it.
    unsafe {
        let held = ServerString::retained(name.as_ptr());
        api!(RedisModule_FreeString(context.as_ptr(), name.as_ptr()));
        Some(held)
    }
}

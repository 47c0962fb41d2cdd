//! Loading the module.

use crate::server::api::{api, Context, LogLevel, ServerString};
use crate::server::command::{self, Entry};
use crate::server::{background, config, drift, events, info, persistence, window_type};
use redis_module::raw;
use std::ffi::{c_char, c_int, CStr};
use std::panic::{catch_unwind, AssertUnwindSafe};

const MODULE_NAME: &CStr = c"fs";
/// The category of all commands.
const ACL_CATEGORY: &CStr = c"fs";
/// Valkey 9 migrates slots only when every module says that it can live with it; the crate has no name for the bit.
const HANDLE_ATOMIC_SLOT_MIGRATION: c_int = 1 << 5;

/// What the loading command or the configuration asks for beside settings.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Debug {
    Off,
    On,
}

/// Loads the module. `commands` lists them, and `debug_commands` those that `debug yes` adds.
///
/// # Safety
/// To be called from `RedisModule_OnLoad` with its arguments.
pub(crate) unsafe fn load(
    ctx: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
    commands: &[Entry],
    debug_commands: &[Entry],
) -> c_int {
    // SAFETY: the context is the loading one; this sets all function pointers, the allocator's among them.
    let status = unsafe {
        raw::Export_RedisModule_Init(
            ctx,
            MODULE_NAME.as_ptr().cast::<c_char>(),
            module_version(),
            raw::REDISMODULE_APIVER_1 as c_int,
        )
    };
    if status == raw::REDISMODULE_ERR as c_int {
        return status;
    }
    // SAFETY: the server calls with a live context and `argc` live strings.
    let (context, arguments): (_, Vec<&[u8]>) = unsafe {
        let strings = if argc > 0 { ServerString::arguments(argv, argc) } else { &[] };
        (Context::new(ctx), strings.iter().map(ServerString::bytes).collect())
    };
    let registered = catch_unwind(AssertUnwindSafe(|| register(context, &arguments, commands, debug_commands)));
    match registered.unwrap_or_else(|_| Err("internal error".to_owned())) {
        Ok(()) => raw::REDISMODULE_OK as c_int,
        Err(why) => {
            context.log(LogLevel::Warning, &format!("fs: the module was not loaded: {why}"));
            raw::REDISMODULE_ERR as c_int
        }
    }
}

/// `0.1.0` as 100, `1.2.3` as 10203.
fn module_version() -> c_int {
    let part = |text: &str| text.parse::<c_int>().unwrap_or(0);
    part(env!("CARGO_PKG_VERSION_MAJOR")) * 10_000
        + part(env!("CARGO_PKG_VERSION_MINOR")) * 100
        + part(env!("CARGO_PKG_VERSION_PATCH"))
}

fn register(
    context: Context<'_>,
    arguments: &[&[u8]],
    commands: &[Entry],
    debug_commands: &[Entry],
) -> Result<(), String> {
    if context.flags().is_cluster() {
        return Err("cluster mode is not supported in this version".to_owned());
    }
    let mut debug = Debug::Off;
    let mut settings = Vec::new();
    for pair in arguments.chunks(2) {
        match pair {
            [name, value] if name.eq_ignore_ascii_case(b"debug") => {
                debug = match value.to_ascii_lowercase().as_slice() {
                    b"yes" => Debug::On,
                    b"no" => Debug::Off,
                    _ => return Err("debug takes yes or no".to_owned()),
                }
            }
            [name, value] => settings.push((*name, *value)),
            _ => return Err("arguments come in pairs: debug yes|no, or fs.<name> <value>".to_owned()),
        }
    }
    // Whoever hears of what we do inside a callback may change a row, and we must hear of that.
    let nested = raw::REDISMODULE_OPTIONS_ALLOW_NESTED_KEYSPACE_NOTIFICATIONS as c_int;
    let options = raw::REDISMODULE_OPTIONS_HANDLE_IO_ERRORS as c_int | HANDLE_ATOMIC_SLOT_MIGRATION | nested;
    // SAFETY: the context is the loading one.
    unsafe {
        api!(RedisModule_SetModuleOptions(context.as_ptr(), options));
        if api!(RedisModule_AddACLCategory(context.as_ptr(), ACL_CATEGORY.as_ptr())) != raw::REDISMODULE_OK as c_int {
            return Err("the ACL category fs could not be added".to_owned());
        }
    }
    for entry in commands {
        command::register(context, entry)?;
    }
    if debug == Debug::On {
        for entry in debug_commands {
            command::register(context, entry)?;
        }
    }
    persistence::register(context)?;
    window_type::register(context)?;
    config::register(context)?;
    info::register(context)?;
    events::subscribe(context)?;
    config::load(context)?;
    settings.into_iter().try_for_each(|(name, value)| config::set_by_argument(name, value))?;
    background::start_sweeping(context);
    drift::start_looking(context);
    context.log(LogLevel::Notice, concat!("fs: feature store ", env!("CARGO_PKG_VERSION"), " is loaded"));
    Ok(())
}

/// Exports the function that the server calls to load the module.
macro_rules! export_module {
    (commands: $commands:expr, debug_commands: $debug_commands:expr) => {
        /// What MODULE LOAD calls.
        ///
        /// # Safety
        /// For the server alone.
        #[no_mangle]
        pub unsafe extern "C" fn RedisModule_OnLoad(
            ctx: *mut redis_module::raw::RedisModuleCtx,
            argv: *mut *mut redis_module::raw::RedisModuleString,
            argc: std::ffi::c_int,
        ) -> std::ffi::c_int {
            // SAFETY: called by the server with the arguments of this function.
            unsafe { $crate::server::load::load(ctx, argv, argc, $commands, $debug_commands) }
        }
    };
}
pub(crate) use export_module;

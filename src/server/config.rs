//! Settings: `CONFIG SET fs.*`. Each entry holds its name, default and range; one list registers them all.

use crate::server::api::{api, Context};
use feature_store_core::error::shown;
use redis_module::raw;
use std::ffi::{c_char, c_int, c_longlong, c_void, CStr};
use std::sync::atomic::{AtomicI64, Ordering};

/// A setting that is a whole number.
pub(crate) struct Setting {
    name: &'static CStr,
    default: i64,
    min: i64,
    max: i64,
    /// For people; part of the generated reference.
    pub(crate) summary: &'static str,
    value: AtomicI64,
}

impl Setting {
    const fn new(name: &'static CStr, default: i64, min: i64, max: i64, summary: &'static str) -> Self {
        Setting { name, default, min, max, summary, value: AtomicI64::new(default) }
    }

    pub(crate) fn get(&self) -> i64 {
        self.value.load(Ordering::Relaxed)
    }

    /// The value of a setting whose range begins at 0 or above.
    pub(crate) fn get_u64(&self) -> u64 {
        u64::try_from(self.get()).unwrap_or(0)
    }

    /// The name as CONFIG SET takes it.
    pub(crate) fn full_name(&self) -> String {
        format!("fs.{}", self.name.to_string_lossy())
    }

    /// Default, least and greatest value.
    pub(crate) fn range(&self) -> (i64, i64, i64) {
        (self.default, self.min, self.max)
    }
}

/// Event times may lie this far ahead of the server's clock.
pub(crate) static CLOCK_SKEW_MS_MAX: Setting = Setting::new(
    c"max-clock-skew",
    300_000,
    0,
    366 * 86_400_000,
    "Milliseconds that an event time may lie ahead of the server's clock; beyond, updates are refused with `FUTURE`.",
);
/// A log keeps unconsumed entries up to this length.
pub(crate) static LOG_HARD_CAP: Setting = Setting::new(
    c"log-hard-cap",
    1_000_000,
    1,
    i64::MAX,
    "Entries up to which a log keeps what is not consumed yet, whatever its MAXLEN.",
);
/// Background work holds the main thread no longer than this at a time.
pub(crate) static SLICE_US: Setting = Setting::new(
    c"consumer-slice-us",
    500,
    50,
    100_000,
    "Microseconds for which background work (consuming, replaying, dropping) may hold the main thread at a time.",
);
/// Streams that no event told of are looked for this often.
pub(crate) static SWEEP_INTERVAL_MS: Setting = Setting::new(
    c"sweep-interval",
    1_000,
    10,
    3_600_000,
    "Milliseconds between looks for streams that came without an XADD: by RENAME, RESTORE, COPY or a load.",
);

/// Event ids that one entity remembers at most.
pub(crate) static DEDUP_IDS_MAX: Setting = Setting::new(
    c"dedup-max-ids",
    1_024,
    1,
    1_000_000,
    "Event ids that one entity of a view with DEDUP remembers at most; the oldest go first.",
);

/// Values that a current window holds at most.
pub(crate) static DRIFT_SAMPLES: Setting = Setting::new(
    c"drift-samples",
    10_000,
    100,
    1_000_000,
    "Values that the current window of a feature, and its baseline of SAMPLES, hold at most. 10,000 are copied out for \
     a test in about 10 microseconds.",
);
/// How far a current window reaches back.
pub(crate) static DRIFT_AGE_MS_MAX: Setting = Setting::new(
    c"drift-max-age",
    86_400_000,
    480,
    366 * 86_400_000,
    "Milliseconds that the current window of a feature reaches back.",
);
/// Drift is looked for this often.
pub(crate) static DRIFT_INTERVAL_MS: Setting = Setting::new(
    c"drift-interval",
    60_000,
    0,
    366 * 86_400_000,
    "Milliseconds between checks of all features that have a baseline, which start and end alerts; 0: never.",
);

/// What the column cache may take.
pub(crate) static COLUMN_CACHE_BYTES_MAX: Setting = Setting::new(
    c"column-cache-max-bytes",
    256 << 20,
    0,
    i64::MAX,
    "Bytes that the column cache of views that services read as tensors may take; 0: none. It counts in `used_memory`.",
);

/// All settings.
pub(crate) static ALL: [&Setting; 9] = [
    &COLUMN_CACHE_BYTES_MAX,
    &CLOCK_SKEW_MS_MAX,
    &DEDUP_IDS_MAX,
    &DRIFT_INTERVAL_MS,
    &DRIFT_AGE_MS_MAX,
    &DRIFT_SAMPLES,
    &LOG_HARD_CAP,
    &SLICE_US,
    &SWEEP_INTERVAL_MS,
];

unsafe extern "C" fn get(_name: *const c_char, setting: *mut c_void) -> c_longlong {
    // SAFETY: `register` passes a pointer to a static.
    unsafe { &*setting.cast::<Setting>() }.get()
}

unsafe extern "C" fn set(
    _name: *const c_char,
    value: c_longlong,
    setting: *mut c_void,
    _error: *mut *mut raw::RedisModuleString,
) -> c_int {
    // SAFETY: `register` passes a pointer to a static. The server has checked the range.
    unsafe { &*setting.cast::<Setting>() }.value.store(value, Ordering::Relaxed);
    raw::REDISMODULE_OK as c_int
}

/// Sets a setting as an argument of MODULE LOAD gives it: `fs.<name> <value>`.
pub(crate) fn set_by_argument(name: &[u8], value: &[u8]) -> Result<(), String> {
    let setting = ALL.iter().find(|s| s.full_name().as_bytes().eq_ignore_ascii_case(name));
    let setting = setting.ok_or_else(|| format!("there is no setting '{}'", shown(name)))?;
    let value = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
    match value.filter(|v| (setting.min..=setting.max).contains(v)) {
        Some(value) => {
            setting.value.store(value, Ordering::Relaxed);
            Ok(())
        }
        None => Err(format!("{} takes {} to {}", setting.full_name(), setting.min, setting.max)),
    }
}

/// Registers all settings. Call once, while the module loads.
pub(crate) fn register(context: Context<'_>) -> Result<(), &'static str> {
    for setting in ALL {
        let data = std::ptr::from_ref::<Setting>(setting).cast_mut().cast::<c_void>();
        // SAFETY: the name and the data are static; the callbacks only read and store an atomic.
        let status = unsafe {
            api!(RedisModule_RegisterNumericConfig(
                context.as_ptr(),
                setting.name.as_ptr(),
                setting.default,
                raw::REDISMODULE_CONFIG_DEFAULT,
                setting.min,
                setting.max,
                Some(get),
                Some(set),
                None,
                data
            ))
        };
        if status != raw::REDISMODULE_OK as c_int {
            return Err("a setting could not be registered");
        }
    }
    Ok(())
}

/// Takes the values of the configuration file and the command line. Call after [`register`].
pub(crate) fn load(context: Context<'_>) -> Result<(), &'static str> {
    // SAFETY: the context is that of the loading module.
    match unsafe { api!(RedisModule_LoadConfigs(context.as_ptr())) } == raw::REDISMODULE_OK as c_int {
        true => Ok(()),
        false => Err("a setting has a value that it does not take"),
    }
}

//! Commands as the server sees them: one trait, one specification a command, one entry from C.

use crate::server::api::{api, Context, LogLevel, ServerString};
use crate::server::state::{PreparedView, STATE};
use feature_store_core::arguments::Arguments;
use feature_store_core::{Error, Result};
use redis_module::raw;
use smallvec::SmallVec;
use std::ffi::{c_int, CStr, CString};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

/// All that is known of a command. COMMAND DOCS, ACLs, FS.HELP and the reference are made from it.
pub(crate) struct Spec {
    /// Its name; of a subcommand two words, the first being that of its container.
    pub(crate) name: &'static CStr,
    /// One line.
    pub(crate) summary: &'static CStr,
    /// How its cost grows.
    pub(crate) complexity: &'static CStr,
    /// The module's version that brought it.
    pub(crate) since: &'static CStr,
    /// Flags as the server names them.
    pub(crate) flags: &'static CStr,
    /// ACL categories, the server's own ones included.
    pub(crate) categories: &'static CStr,
    /// Number of arguments, the name included; negative: at least.
    pub(crate) arity: i32,
    /// Which arguments are keys.
    pub(crate) keys: Keys,
    /// Its arguments.
    pub(crate) arguments: &'static [Argument],
    /// Its reply, in Markdown.
    pub(crate) reply: &'static str,
    /// More for the reference, in Markdown.
    pub(crate) notes: &'static str,
}

impl Spec {
    /// How many arguments its name takes.
    fn name_words(&self) -> usize {
        1 + usize::from(self.name.to_bytes().contains(&b' '))
    }
}

/// What a command does with its keys.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyAccess {
    Read,
    Write,
    Delete,
}

/// Which arguments are keys.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    None,
    /// One, at this place.
    At(i32, KeyAccess),
    /// From this place to the end, each so many arguments apart.
    From(i32, i32, KeyAccess),
}

/// An argument of a command.
#[derive(Clone, Copy)]
pub(crate) struct Argument {
    /// What it is called.
    pub(crate) name: &'static CStr,
    /// What it is.
    pub(crate) kind: ArgumentKind,
    /// The word that stands before it, or that it is.
    pub(crate) token: Option<&'static CStr>,
    /// It may be left out.
    pub(crate) is_optional: bool,
    /// It may be repeated.
    pub(crate) is_multiple: bool,
    /// What it is made of.
    pub(crate) parts: &'static [Argument],
}

/// What an argument is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ArgumentKind {
    Text,
    Integer,
    Key,
    UnixTime,
    Word,
    OneOf,
    Block,
}

impl Argument {
    const fn new(name: &'static CStr, kind: ArgumentKind) -> Self {
        Argument { name, kind, token: None, is_optional: false, is_multiple: false, parts: &[] }
    }
    pub(crate) const fn text(name: &'static CStr) -> Self {
        Self::new(name, ArgumentKind::Text)
    }
    pub(crate) const fn integer(name: &'static CStr) -> Self {
        Self::new(name, ArgumentKind::Integer)
    }
    pub(crate) const fn key(name: &'static CStr) -> Self {
        Self::new(name, ArgumentKind::Key)
    }
    pub(crate) const fn unix_time_ms(name: &'static CStr) -> Self {
        Self::new(name, ArgumentKind::UnixTime)
    }
    /// A bare word.
    pub(crate) const fn word(word: &'static CStr) -> Self {
        Argument { token: Some(word), ..Self::new(word, ArgumentKind::Word) }
    }
    pub(crate) const fn one_of(name: &'static CStr, parts: &'static [Argument]) -> Self {
        Argument { parts, ..Self::new(name, ArgumentKind::OneOf) }
    }
    pub(crate) const fn block(name: &'static CStr, parts: &'static [Argument]) -> Self {
        Argument { parts, ..Self::new(name, ArgumentKind::Block) }
    }
    pub(crate) const fn after(self, token: &'static CStr) -> Self {
        Argument { token: Some(token), ..self }
    }
    pub(crate) const fn optional(self) -> Self {
        Argument { is_optional: true, ..self }
    }
    pub(crate) const fn multiple(self) -> Self {
        Argument { is_multiple: true, ..self }
    }
}

/// A command.
pub(crate) trait Command {
    /// All that is known of it.
    const SPEC: Spec;

    /// Runs it. An error means that nothing was replied and nothing changed.
    fn run(call: &Call<'_>) -> Result<()>;
}

type Function = unsafe extern "C" fn(*mut raw::RedisModuleCtx, *mut *mut raw::RedisModuleString, c_int) -> c_int;

/// A command, ready to be registered.
pub(crate) struct Entry {
    /// All that is known of it.
    pub(crate) spec: Spec,
    /// None: it is a container of subcommands, which follow it.
    function: Option<Function>,
}

impl Entry {
    pub(crate) const fn of<C: Command>() -> Self {
        Entry { spec: C::SPEC, function: Some(enter::<C>) }
    }

    /// A container of subcommands.
    pub(crate) const fn container(spec: Spec) -> Self {
        Entry { spec, function: None }
    }

    pub(crate) fn is_container(&self) -> bool {
        self.function.is_none()
    }
}

/// A running call of a command.
pub(crate) struct Call<'a> {
    /// The server.
    pub(crate) context: Context<'a>,
    strings: &'a [ServerString],
    /// How many of them the command's name is.
    name_words: usize,
    bytes: SmallVec<[&'a [u8]; 32]>,
}

impl<'a> Call<'a> {
    /// The arguments after the command's name.
    pub(crate) fn arguments(&self) -> Arguments<'_> {
        Arguments::new(&self.bytes[self.name_words..])
    }

    /// An argument by its place; 0 is the command's name.
    pub(crate) fn string(&self, place: usize) -> &'a ServerString {
        &self.strings[place]
    }

    /// The view that the row's key at a place names, and the entity's id in it.
    pub(crate) fn row(&self, place: usize) -> Result<(&'a [u8], Rc<PreparedView>)> {
        STATE.borrow_mut(self.context).row(self.bytes[place])
    }
}

unsafe extern "C" fn enter<C: Command>(
    ctx: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
) -> c_int {
    // SAFETY: the server calls with a live context and `argc` live strings, all of which outlive the call.
    let (context, strings) = unsafe { (Context::new(ctx), ServerString::arguments(argv, argc)) };
    let run = || {
        if context.selected_db() != 0 {
            return Err(Error::syntax("the feature store lives in database 0: SELECT 0 first"));
        }
        let name_words = C::SPEC.name_words();
        C::run(&Call { context, strings, name_words, bytes: strings.iter().map(ServerString::bytes).collect() })
    };
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => context.reply_error(&error),
        Err(_) => {
            let name = C::SPEC.name.to_string_lossy();
            note_panic(context, &name);
            context.reply_error(&Error::syntax(format!("internal error in {name}, see the server's log")));
        }
    }
    raw::REDISMODULE_OK as c_int
}

/// Panics caught at the C boundary. Not part of the state, which may be what a panic is about.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// How many panics were caught since the start.
pub(crate) fn panics_caught() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

fn note_panic(context: Context<'_>, place: &str) {
    context.log(LogLevel::Warning, &format!("fs: a panic was caught in {place}; please report it"));
    PANICS.fetch_add(1, Ordering::Relaxed);
}

/// Runs a callback of the server that is no command: a panic is logged and counted, the server lives.
pub(crate) fn guarded(context: Context<'_>, run: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(run)).is_err() {
        note_panic(context, "a callback");
    }
}

fn key_specs(keys: Keys) -> Option<[raw::RedisModuleCommandKeySpec; 2]> {
    let (first, last, step, access) = match keys {
        Keys::None => return None,
        Keys::At(place, access) => (place, 0, 1, access),
        Keys::From(place, step, access) => (place, -1, step, access),
    };
    let flags = match access {
        KeyAccess::Read => raw::REDISMODULE_CMD_KEY_RO | raw::REDISMODULE_CMD_KEY_ACCESS,
        KeyAccess::Write => raw::REDISMODULE_CMD_KEY_RW | raw::REDISMODULE_CMD_KEY_UPDATE,
        KeyAccess::Delete => raw::REDISMODULE_CMD_KEY_RM | raw::REDISMODULE_CMD_KEY_DELETE,
    };
    // SAFETY: the structure is plain data for which zero is a value; all zero ends the list.
    let mut specs: [raw::RedisModuleCommandKeySpec; 2] = unsafe { std::mem::zeroed() };
    specs[0].flags = u64::from(flags);
    specs[0].begin_search_type = raw::RedisModuleKeySpecBeginSearchType_REDISMODULE_KSPEC_BS_INDEX;
    specs[0].bs.index.pos = first;
    specs[0].find_keys_type = raw::RedisModuleKeySpecFindKeysType_REDISMODULE_KSPEC_FK_RANGE;
    specs[0].fk.range =
        raw::RedisModuleCommandKeySpec__bindgen_ty_2__bindgen_ty_1 { lastkey: last, keystep: step, limit: 0 };
    Some(specs)
}

/// The arguments as the API wants them. `kept` holds what the pointers point to.
fn raw_arguments(
    arguments: &[Argument],
    kept: &mut Vec<Vec<raw::RedisModuleCommandArg>>,
) -> *mut raw::RedisModuleCommandArg {
    let mut list: Vec<raw::RedisModuleCommandArg> = arguments
        .iter()
        .map(|argument| {
            let mut flags = raw::REDISMODULE_CMD_ARG_NONE;
            if argument.is_optional {
                flags |= raw::REDISMODULE_CMD_ARG_OPTIONAL;
            }
            if argument.is_multiple {
                flags |= raw::REDISMODULE_CMD_ARG_MULTIPLE;
            }
            raw::RedisModuleCommandArg {
                name: argument.name.as_ptr(),
                type_: match argument.kind {
                    ArgumentKind::Text => raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_STRING,
                    ArgumentKind::Integer => raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_INTEGER,
                    ArgumentKind::Key => raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_KEY,
                    ArgumentKind::UnixTime => raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_UNIX_TIME,
                    ArgumentKind::Word => raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_PURE_TOKEN,
                    ArgumentKind::OneOf => raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_ONEOF,
                    ArgumentKind::Block => raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_BLOCK,
                },
                key_spec_index: if argument.kind == ArgumentKind::Key { 0 } else { -1 },
                token: argument.token.map_or(std::ptr::null(), CStr::as_ptr),
                summary: std::ptr::null(),
                since: std::ptr::null(),
                flags: flags as c_int,
                deprecated_since: std::ptr::null(),
                subargs: if argument.parts.is_empty() {
                    std::ptr::null_mut()
                } else {
                    raw_arguments(argument.parts, kept)
                },
                display_text: std::ptr::null(),
            }
        })
        .collect();
    // SAFETY: the structure is plain data for which zero is a value; all zero ends the list.
    list.push(unsafe { std::mem::zeroed() });
    kept.push(list);
    // A Vec's buffer stays in place when the Vec itself moves.
    kept.last_mut().map_or(std::ptr::null_mut(), |list| list.as_mut_ptr())
}

/// Registers a command with all that is known of it. Call while the module loads.
pub(crate) fn register(context: Context<'_>, entry: &Entry) -> std::result::Result<(), String> {
    let spec = &entry.spec;
    let text = spec.name.to_string_lossy();
    let c_string = |text: &str| CString::new(text).expect("a name holds no NUL");
    let failed = |what: &str| format!("{what} of {text} could not be registered");
    let ok = raw::REDISMODULE_OK as c_int;
    let mut key_specs = key_specs(spec.keys);
    let mut kept = Vec::new();
    let version = raw::RedisModuleCommandInfoVersion {
        version: 1,
        sizeof_historyentry: std::mem::size_of::<raw::RedisModuleCommandHistoryEntry>(),
        sizeof_keyspec: std::mem::size_of::<raw::RedisModuleCommandKeySpec>(),
        sizeof_arg: std::mem::size_of::<raw::RedisModuleCommandArg>(),
    };
    let info = raw::RedisModuleCommandInfo {
        version: &version,
        summary: spec.summary.as_ptr(),
        complexity: spec.complexity.as_ptr(),
        since: spec.since.as_ptr(),
        history: std::ptr::null_mut(),
        tips: std::ptr::null(),
        arity: spec.arity,
        key_specs: key_specs.as_mut().map_or(std::ptr::null_mut(), |specs| specs.as_mut_ptr()),
        args: if spec.arguments.is_empty() { std::ptr::null_mut() } else { raw_arguments(spec.arguments, &mut kept) },
    };
    // SAFETY: strings end in NUL and are static; the server copies the rest. The function has the API's signature.
    unsafe {
        let flags = spec.flags.as_ptr();
        let created = match text.split_once(' ') {
            None => {
                api!(RedisModule_CreateCommand(context.as_ptr(), spec.name.as_ptr(), entry.function, flags, 0, 0, 0))
            }
            Some((container, own)) => {
                let (container, own) = (c_string(container), c_string(own));
                let container = api!(RedisModule_GetCommand(context.as_ptr(), container.as_ptr()));
                api!(RedisModule_CreateSubcommand(container, own.as_ptr(), entry.function, flags, 0, 0, 0))
            }
        };
        if created != ok {
            return Err(failed("the name"));
        }
        // The server's own spelling of a subcommand.
        let full_name = c_string(&text.replace(' ', "|"));
        let command = api!(RedisModule_GetCommand(context.as_ptr(), full_name.as_ptr()));
        if api!(RedisModule_SetCommandInfo(command, &info)) != ok {
            return Err(failed("the description"));
        }
        if api!(RedisModule_SetCommandACLCategories(command, spec.categories.as_ptr())) != ok {
            return Err(failed("the ACL categories"));
        }
    }
    Ok(())
}

//! The commands: one file each, with its documentation, flags, ACL and arguments beside its handler.
//!
//! A handler parses its arguments, asks the core and the server, and replies. Adding a command is one file and one word
//! in the list below.
#![forbid(unsafe_code)]

mod alter;
mod baseline;
mod consume;
mod consumer;
mod copy;
mod debug;
mod del;
mod describe;
mod drift;
mod drop;
mod effect;
mod explain;
mod get;
mod help;
mod info;
mod mget;
mod mpublish;
mod publish;
mod rank;
mod register;
mod replay;
mod scan;
mod serve;
mod service;
mod tensor;
mod trim;
mod views;

use crate::server::api::Context;
use crate::server::command::{Argument, Entry};
use crate::server::state::{PreparedView, STATE};
use feature_store_core::arguments::{parse_version, Arguments};
use feature_store_core::Result;
use std::rc::Rc;

/// All commands, in the order in which FS.HELP and the reference tell of them.
pub(crate) const ALL: &[Entry] = &[
    Entry::of::<register::Register>(),
    Entry::of::<alter::Alter>(),
    Entry::of::<describe::Describe>(),
    Entry::of::<views::Views>(),
    Entry::of::<drop::Drop>(),
    Entry::of::<publish::Publish>(),
    Entry::of::<mpublish::Mpublish>(),
    Entry::of::<del::Del>(),
    Entry::of::<get::Get>(),
    Entry::of::<mget::Mget>(),
    Entry::of::<tensor::Tensor>(),
    Entry::of::<scan::Scan>(),
    Entry::container(service::CONTAINER),
    Entry::of::<service::Set>(),
    Entry::of::<service::Get>(),
    Entry::of::<service::Del>(),
    Entry::of::<service::List>(),
    Entry::of::<service::Help>(),
    Entry::of::<serve::Serve>(),
    Entry::of::<rank::Rank>(),
    Entry::of::<explain::Explain>(),
    Entry::of::<consumer::Consumer>(),
    Entry::of::<consume::Consume>(),
    Entry::of::<replay::Replay>(),
    Entry::of::<copy::Copy>(),
    Entry::of::<trim::Trim>(),
    Entry::of::<baseline::Baseline>(),
    Entry::of::<drift::Drift>(),
    Entry::of::<info::Info>(),
    Entry::of::<help::Help>(),
    Entry::of::<effect::Effect>(),
];

/// Commands that only `debug yes` brings.
pub(crate) const DEBUG: &[Entry] = &[Entry::of::<debug::Debug>()];

/// `view`, the name of a feature view.
const VIEW: Argument = Argument::text(c"view");
/// `[VERSION n]`.
const VERSION: Argument = Argument::integer(c"version").after(c"VERSION").optional();
/// The version of a view that `[VERSION n] feature` names, or the newest. A feature may be called `version`: it is the
/// option where a number follows.
fn version_before_feature(
    context: Context<'_>,
    view: &[u8],
    arguments: &mut Arguments<'_>,
) -> Result<Rc<PreparedView>> {
    let is_number = |text: &[u8]| text.first().is_some_and(u8::is_ascii_digit);
    let version = match arguments.peek_second().is_some_and(is_number) && arguments.take_word("VERSION") {
        true => Some(parse_version(arguments.next("VERSION")?)?),
        false => None,
    };
    let state = STATE.borrow(context);
    let view = state.registry.version(view, version)?;
    Ok(state.prepared_version(&view.name, view.version).expect("every registered view is prepared"))
}

/// `key`, a row's key.
const KEY: Argument = Argument::key(c"key");
/// `key [key ...]`.
const KEYS: Argument = Argument::key(c"key").multiple();
/// `service`, the name of a feature service.
const SERVICE: Argument = Argument::text(c"service");
/// `features`, comma-separated or `*`.
const FEATURES: Argument = Argument::text(c"features");
/// `feature value [feature value ...]`.
const FEATURE_VALUES: Argument =
    Argument::block(c"change", &[Argument::text(c"feature"), Argument::text(c"value")]).multiple();

/// The version of the module that brought the first commands.
const FIRST: &std::ffi::CStr = c"0.1.0";

//! The server side: everything that talks to Valkey, and the only place for `unsafe`.
//!
//! Commands call in here; nothing here knows a command. `api` wraps the module API call by call, the other files build
//! the product's parts on it.

pub(crate) mod acl;
pub(crate) mod alerts;
pub(crate) mod allocator;
pub(crate) mod api;
pub(crate) mod background;
pub(crate) mod blocked;
pub(crate) mod columns;
pub(crate) mod command;
pub(crate) mod config;
pub(crate) mod consumer;
pub(crate) mod copies;
pub(crate) mod decoder;
pub(crate) mod drift;
pub(crate) mod drops;
pub(crate) mod effects;
pub(crate) mod events;
pub(crate) mod info;
pub(crate) mod key;
pub(crate) mod load;
pub(crate) mod logs;
pub(crate) mod persistence;
pub(crate) mod publish;
pub(crate) mod replay;
pub(crate) mod reply;
pub(crate) mod row_change;
pub(crate) mod rows;
pub(crate) mod samples;
pub(crate) mod serving;
pub(crate) mod state;
pub(crate) mod streams;
pub(crate) mod window_type;
pub(crate) mod windows;

//! The logic of the feature store, apart from any server.
//!
//! Nothing here knows Valkey: bytes and clock readings come in as arguments, decisions go out as values, and `server`
//! (in the root package) executes them. So every rule of the product is tested in a second, without a server.
//!
//! Where to go next: [`definition`] for what a feature view is, [`update`] for what a writer may say, [`materialize`]
//! for how an update becomes a row, [`row`] for what a reader is told.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod arguments;
pub mod codec;
pub mod columns;
pub mod cursor;
pub mod definition;
pub mod document;
pub mod drift;
pub mod error;
pub mod feature_type;
pub mod keys;
pub mod log_entry;
pub mod materialize;
pub mod packed;
pub mod registry;
pub mod row;
pub mod schema_syntax;
pub mod service;
pub mod stream_id;
pub mod time;
pub mod update;
pub mod value;
pub mod windows;

pub use error::{Code, Error, Result};

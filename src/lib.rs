//! A feature store that lives inside Valkey.
//!
//! Three layers, and dependencies point one way: `commands` -> `server` -> `feature_store_core`. ARCHITECTURE.md is the
//! map.

mod commands;
mod server;

server::load::export_module!(commands: commands::ALL, debug_commands: commands::DEBUG);

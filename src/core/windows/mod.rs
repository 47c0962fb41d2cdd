//! Windows: features that count, sum and rank the events of the last while.
//!
//! The rule: a window of length w and hop h, read at t, holds the events with event time in
//! `[floor((t - w) / h) * h, floor(t / h) * h + h)`. Time is cut into hops; a hop counts whole.
//!
//! [`aggregation`] is what a definition says, [`layout`] is what state its features need together, [`state`] is the
//! state of one entity: events are fed into it, values are read from it.

pub mod aggregation;
pub mod layout;
pub mod seen;
pub mod state;

mod distinct;
mod histogram;
mod latest;
mod moments;
mod percentile;
mod timeline;
mod vector_mean;

#[cfg(test)]
mod tests;

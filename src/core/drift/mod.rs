//! Drift: how far the values of now lie from those that a model was trained on.
//!
//! [`view::ViewDrift`] holds the state of a view: for each feature a [`current`] window and a [`baseline`]. [`compare`]
//! holds them against each other by a [`method`], which gives a [`finding`]; [`statistics`] has the tests and
//! distances, each as its textbook and SciPy have it.

pub mod alert;
pub mod baseline;
pub mod categories;
mod chance;
pub mod compare;
pub mod current;
pub mod finding;
pub mod kolmogorov;
pub mod method;
pub mod request;
pub mod sample;
pub mod statistics;
pub mod steps;
pub mod sums;
pub mod view;

//! Drift: how far the values of now lie from those that a model was trained on.
//!
//! [`statistics`] has the tests and distances, each as its textbook and SciPy have it; [`kolmogorov`] the distribution
//! behind one of them, [`sample`] what is kept of the values of now.

pub mod kolmogorov;
pub mod sample;
pub mod statistics;

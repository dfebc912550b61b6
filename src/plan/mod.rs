//! DECISIONS. What is due, what was measured, what comes next: pure functions over the model.
//!
//! Time is an argument here. No clock, no randomness, no async, no I/O, so that every decision can be
//! replayed from the journal and tested over years in milliseconds.

pub mod crontab;
pub mod measure;
pub mod schedule;

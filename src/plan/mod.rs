//! DECISIONS. What is due, what comes next, what was measured: pure functions over the model.
//!
//! Time is an argument here. No clock, no randomness, no async, no I/O, so that every decision can be
//! replayed from the journal and tested over years in milliseconds. Imports `model` alone.
//!
//! [`state`] folds a run's events into what is known of it, [`decide`] says what to do next: together they
//! are the whole policy of the engine, the same in normal running and after a crash.

pub mod approval;
pub mod crontab;
pub mod decide;
pub mod measure;
pub mod measure_restore;
pub(crate) mod planted;
pub mod proof;
pub mod retention;
pub mod schedule;
pub mod state;
pub mod undo;
pub mod verdict;

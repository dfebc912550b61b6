//! DECISIONS. Pure: time is an argument; no clock, no randomness, no async, no I/O. Imports `model` alone.
//!
//! [`state`] folds a run's events into what is known of it; [`decide`] says what to do next. Together
//! they are the whole policy of the engine, the same in normal running and after a crash.

pub mod decide;
pub mod state;

#![forbid(unsafe_code)]
pub mod actions;
pub mod model;
pub mod providers;
pub mod runbook;

#![forbid(unsafe_code)]
pub mod actions;
pub mod journal;
pub mod model;
pub mod providers;

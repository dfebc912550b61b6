#![forbid(unsafe_code)]
pub mod actions;
pub mod drill;
pub mod model;
pub mod plan;
pub mod providers;

#![forbid(unsafe_code)]
pub mod actions;
#[cfg(feature = "lab")]
pub mod lab;
pub mod model;
pub mod providers;

//! Tests against real components, each with its own directories, addresses and ports.

#[cfg(feature = "lab")]
mod lab;

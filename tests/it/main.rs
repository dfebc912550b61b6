//! Tests against real components, each with its own directories, addresses and ports.

#[cfg(feature = "lab")]
mod lab;
mod pg;
#[cfg(feature = "lab")]
mod providers;
mod providers_postgres;

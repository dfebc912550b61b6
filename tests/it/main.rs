//! Tests against real components, each with ports and directories of its own.

mod pg;
#[cfg(feature = "lab")]
mod providers;
mod providers_postgres;

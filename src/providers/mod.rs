//! THE WORLD. Small ports, each split into a half that reads and a half that writes, and what stands
//! behind them: S3, RDS, Route 53, PostgreSQL, resolvers, HTTP, processes, the clock, secrets.
//!
//! [`port`] is all that actions see. [`world::World`] builds the real thing from an estate.
//! Only this room imports an SDK; only [`clock`] may ask for the time or for randomness.

#[cfg(feature = "aws")]
pub mod aws;
pub mod clock;
pub mod directory;
mod directory_files;
pub mod http;
pub mod lease;
pub mod machine;
pub mod pooler;
pub mod port;
pub mod port_server;
pub mod postgres;
mod postgres_cluster;
mod postgres_rows;
mod postgres_sql;
pub mod process;
#[cfg(feature = "aws")]
pub mod rds;
pub mod remote;
pub mod resolver;
#[cfg(feature = "aws")]
pub mod route53;
#[cfg(feature = "aws")]
pub mod s3;
#[cfg(feature = "aws")]
mod s3_parts;
pub mod secrets;
mod server_scripts;
pub mod sim;
pub mod store;
pub mod who;
pub mod world;

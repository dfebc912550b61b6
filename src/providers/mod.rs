//! THE WORLD. Small ports, each split into a half that reads and a half that writes, and what stands
//! behind them: S3, RDS, Route 53, PostgreSQL (by SQL, and by its replication protocol), resolvers, HTTP, processes, the clock, secrets.
//!
//! [`port`] is all that actions see. [`world::World`] builds the real thing from an estate.
//! Only this room imports an SDK; only [`clock`] may ask for the time or for randomness.

#[cfg(feature = "aws")]
pub mod aws;
#[cfg(feature = "aws")]
mod aws_signed;
pub mod clock;
#[cfg(feature = "aws")]
pub mod counted;
pub mod directory;
mod directory_files;
pub mod http;
pub mod lease;
pub mod machine;
pub mod patroni;
pub mod pg_dump;
pub mod pooler;
pub mod port;
mod port_buckets;
mod port_dns;
pub mod port_instances;
pub mod port_patroni;
mod port_replication;
mod port_rows;
pub mod port_server;
pub mod postgres;
mod postgres_cluster;
mod postgres_facts;
mod postgres_freeze;
mod postgres_keys;
mod postgres_rows;
mod postgres_rowsum;
mod postgres_sql;
mod postgres_wheel;
pub mod process;
#[cfg(feature = "aws")]
pub mod rds;
pub mod remote;
pub mod replication;
pub mod resolver;
pub mod rfc2136;
#[cfg(feature = "aws")]
pub mod route53;
#[cfg(feature = "aws")]
mod route53_health;
#[cfg(feature = "aws")]
mod route53_sets;
#[cfg(feature = "aws")]
pub mod s3;
#[cfg(feature = "aws")]
mod s3_parts;
#[cfg(feature = "aws")]
mod s3_sums;
#[cfg(feature = "aws")]
mod s3_whole;
pub mod secrets;
mod server_scripts;
pub mod servers;
pub mod sim;
pub mod store;
pub mod tsig;
pub mod who;
pub mod world;

//! `muster wal`: the write-ahead log of PostgreSQL clusters into a repository, and back.

pub mod ahead;
pub mod archive;
pub mod cluster;
pub mod fetch;
pub mod inflow;
pub mod receive;
pub mod server;
pub mod status;

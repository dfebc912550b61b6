//! A PostgreSQL cluster as a source: its base backup, streamed by the replication protocol straight into the repository,
//! and the log from its start to its stop beside it, so that what is in the repository is all that a restore needs.
//!
//! Read in this order: [`tar`] (the stream taken apart), [`page`] (checksums of pages), [`stream`] (the source that a
//! backup reads), [`wal`] (the log that goes along), [`backup`] (all of it together). Of a server on this machine:
//! [`files`] (its files read where they are), [`beside`].
//!
//! The list is in the order of paths and the stream is not: entries wait for its end, their content does not. A snapshot
//! is laid out as `pg_basebackup -Fp` lays a directory out, except that the content of tablespaces stands below
//! `pg_tblspc/OID/` where the server has a link; where the links led stands in the snapshot.

pub mod backup;
pub mod beside;
pub mod files;
pub mod page;
pub mod stream;
pub mod tar;
pub mod wal;

//! BACKUPS. A repository of content-addressed, encrypted, deduplicated chunks that knows what a model file is.
//! The stored form is documented byte for byte in `docs/repository-format.md`; this room is the only writer of it.
//!
//! Read in this order: [`wire`] (numbers and names as bytes), [`seal`] (one encrypted object), [`keys`] (who may
//! open it), `cut` and `codec` (from a file to chunks, from a chunk to its stored form), [`pack`] and [`index`]
//! (where chunks lie; [`places`]: where else), [`entry`] and [`list`] (what a snapshot holds), [`snapshot`], [`open`] (the
//! repository as a whole, with the keys in [`slots`]), [`write`] (from bytes to packs, in parallel), [`create`] over a source
//! ([`tree`], [`bucket`], [`stream`], or [`cluster`] for a database with [`pages`]), [`restore`], [`diff`], [`verify`],
//! [`prune`] (decided by [`prune_plan`]; what it keeps is read by [`twins`]), [`copy`] (and which keys go along:
//! [`copy_keys`]), [`proof`], [`rekey`]. Beside the snapshots lies the write-ahead log of databases: [`wal_name`],
//! [`wal_page`], [`wal_history`], [`wal`], what of it a recovery needs in [`wal_line`] and [`recovery`] ([`wal_fill`] brings
//! it, [`tablespaces`] go where they are told); [`wal_keep`] is what prune, verify and copy do with it, [`wal_twins`] what is
//! read before pieces of it go.
//!
//! Three rules hold it together. Objects are never changed: each is named by the BLAKE3 of its bytes, or written
//! only if it is not there. They are written in one order, packs, index, snapshot, and read in the opposite one, so
//! that a crash leaves garbage and never a snapshot without its data. Nothing is deleted but by [`prune`], in two
//! phases, so that nobody needs a lock.

mod attributes;
pub mod bucket;
pub mod cluster;
pub mod codec;
pub mod copy;
pub mod copy_keys;
pub mod create;
pub mod cut;
#[cfg(test)]
mod damage_sweep_tests;
#[cfg(test)]
mod damage_tests;
pub mod diff;
pub mod entry;
pub mod error;
pub mod globs;
pub mod index;
pub mod keys;
pub mod list;
pub mod lock;
pub mod marks;
pub mod names;
pub mod open;
pub mod pack;
pub mod pages;
pub mod places;
pub mod progress;
pub mod proof;
pub mod prune;
pub mod prune_plan;
#[cfg(test)]
mod race_tests;
pub mod recovery;
pub mod rekey;
pub mod rescue;
pub mod restore;
pub mod restore_bucket;
pub mod seal;
pub mod slots;
pub mod snapshot;
pub mod source;
pub mod stream;
#[cfg(test)]
mod sweep_tests;
pub mod tablespaces;
#[cfg(test)]
mod tests;
pub mod tree;
mod tree_body;
mod twins;
pub mod verify;
mod verify_packs;
pub mod wal;
pub mod wal_fill;
pub mod wal_history;
pub mod wal_keep;
pub mod wal_line;
pub mod wal_name;
pub mod wal_page;
#[cfg(test)]
mod wal_tests;
mod wal_twins;
pub mod wire;
#[cfg(test)]
mod wrapped;
pub mod write;

pub use error::{RepositoryError, Result};

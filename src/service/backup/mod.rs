//! Backups as use cases: what `muster backup` does, and later the API.
//!
//! [`place`] finds a repository and what opens it, [`watch`] is how somebody looks on while it works. Then one file a
//! use case: [`create`], [`look`] (list, show, stats, diff), [`restore`] ([`restore_cluster`] for base backups), [`verify`],
//! [`forget`], [`prune`], [`copy`], [`key`]. Each gives a value that serialises to
//! the JSON that machines read; nothing is printed here, and no value holds a secret.

pub mod copy;
pub mod create;
pub mod forget;
pub mod key;
pub mod look;
pub mod place;
pub mod postgres;
pub mod prune;
pub mod restore;
pub mod restore_cluster;
pub mod verify;
pub mod watch;

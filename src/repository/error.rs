//! What can go wrong with a repository, by what the person in front of it can do about it.

use super::{names::Id, wire::Malformed};
use crate::providers::{port::PortError, replication::PgError};
use std::path::PathBuf;

pub type Result<T> = std::result::Result<T, RepositoryError>;

#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// The place itself: it does not answer, or refuses.
    #[error("{key}: {error}")]
    Store { key: String, error: PortError },
    #[error("{place} holds no repository: `muster backup create` makes one in an empty place")]
    NoRepository { place: String },
    #[error("{place} is not empty and holds no repository (there is `{found}`): choose another place, or empty it")]
    Occupied { place: String, found: String },
    #[error("the repository has format version {found}; this Muster knows version {}: use a newer one", super::names::VERSION)]
    Version { found: u64 },
    /// No key slot opens with what was given. Those that are damaged are not among the slots.
    #[error(
        "the password or key file opens none of the repository's {slots} keys (or its `config` was changed: the keys are bound to it){}",
        besides(.damaged)
    )]
    WrongKey { slots: usize, damaged: Vec<String> },
    /// A stored object is not what was written.
    #[error("{object} is damaged: {why}")]
    Damaged { object: String, why: String },
    /// Something else stands where this should be written, and it is no damage.
    #[error("{object} is there already with other content: {why}")]
    Diverged { object: String, why: String },
    #[error("{object} is missing from the repository")]
    Missing { object: String },
    #[error("chunk {chunk} is in no pack that the index names")]
    NoChunk { chunk: Id },
    #[error("no snapshot `{0}`: `muster backup list` shows what there is")]
    NoSnapshot(String),
    #[error("`{name}` is the beginning of several snapshots: {}", .found.join(", "))]
    Ambiguous { name: String, found: Vec<String> },
    /// A file on this machine.
    #[error("{}: {why}", .path.display())]
    File { path: PathBuf, why: String },
    /// The server that is backed up.
    #[error("{0}")]
    Server(PortError),
    #[error("{0}")]
    Refused(String),
    /// Ctrl-C, or the process is ending.
    #[error("interrupted: {0}")]
    Interrupted(String),
}

/// Keys that could not be tried, since they are damaged: one of them may be the one that is meant.
fn besides(damaged: &[String]) -> String {
    const TOLD: usize = 3;
    let Some(last) = damaged.len().min(TOLD).checked_sub(1) else { return String::new() };
    let more = if damaged.len() > TOLD { format!("; and {} more", damaged.len() - TOLD) } else { String::new() };
    format!(". Besides, {}{more}", damaged[..=last].join("; "))
}

impl From<PgError> for RepositoryError {
    fn from(error: PgError) -> Self {
        Self::Server(error.into())
    }
}

impl RepositoryError {
    pub(crate) fn damaged(object: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::Damaged { object: object.into(), why: why.to_string() }
    }
    /// Is something of the repository damaged or gone, and the rest may be had all the same? Any other error is one of
    /// the place, or of this machine.
    #[must_use]
    pub fn is_loss(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Missing { .. } | Self::NoChunk { .. })
    }
    pub(crate) fn malformed(object: impl Into<String>) -> impl FnOnce(Malformed) -> Self {
        let object = object.into();
        move |why| Self::Damaged { object, why: why.to_string() }
    }
    pub(crate) fn store(key: impl Into<String>) -> impl FnOnce(PortError) -> Self {
        let key = key.into();
        move |error| match error {
            PortError::NotFound(_) => Self::Missing { object: key },
            error => Self::Store { key, error },
        }
    }
}

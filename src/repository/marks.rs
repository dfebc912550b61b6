//! Marks: packs that a prune has found unused, and will delete when the mark is old enough.
//!
//! Between the mark and the deletion lies the grace, which stands in the mark. A backup that is under way meanwhile may
//! use a marked pack, by way of its parent or since it looked before the mark was made. The rule that makes this safe
//! without a lock:
//! - who writes takes nothing from a marked pack that it knows of, but stores it anew;
//! - who commits a snapshot looks at the marks once more, and then whether every pack is there that it relies on, those that
//!   it has written itself included. What it uses of a pack whose mark is older than half the grace it stores anew before it
//!   commits; if some of it is gone, it commits nothing;
//! - who deletes a pack looks at all snapshots when the mark is older than the grace, and keeps the pack if one of them
//!   uses it.
//!
//! So a snapshot that relies on a marked pack was there half a grace before anybody deletes it, however long it took to make.
//! Marks are always looked at before packs: whoever deletes deletes the packs first. Ages are those of the
//! store's clock; half a grace (twelve hours, if nobody says otherwise) is what clocks may differ by.

use super::{
    RepositoryError, Result,
    names::{Id, MARKS},
    open::{Found, Repository},
    seal::Kind,
};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// What stands in a mark, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marked {
    pub packs: Vec<Id>,
    /// Objects of write-ahead logs, by their keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wal: Vec<String>,
    pub grace_s: u64,
}

/// One mark, and when the store says that it was made.
#[derive(Clone, Debug)]
pub struct Mark {
    pub id: Id,
    pub made: jiff::Timestamp,
    pub marked: Marked,
}

impl Mark {
    /// Seconds since it was made; a clock that was set back makes it young.
    #[must_use]
    pub fn age_s(&self, now: jiff::Timestamp) -> u64 {
        u64::try_from(now.as_second() - self.made.as_second()).unwrap_or(0)
    }
    /// Nobody who commits a snapshot relies on what it names any more.
    #[must_use]
    pub fn is_half_over(&self, now: jiff::Timestamp) -> bool {
        self.age_s(now) >= self.marked.grace_s / 2
    }
}

pub async fn load(repository: &Repository) -> Result<Found<Vec<Mark>>> {
    let mut found = Found { whole: Vec::new(), damaged: Vec::new() };
    for meta in repository.list(MARKS).await? {
        let Some(id) = Id::in_key(&meta.key, MARKS) else { continue };
        let marked = match repository.open_object(Kind::Marks, &id).await {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| RepositoryError::damaged(&meta.key, e)),
            Err(error) => Err(error),
        };
        match (marked, meta.modified) {
            (Ok(marked), Some(made)) => found.whole.push(Mark { id, made, marked }),
            (Ok(_), None) => return Err(RepositoryError::Refused(format!("{}: the store does not say when it was made", meta.key))),
            (Err(RepositoryError::Missing { .. }), _) => {}
            (Err(error @ RepositoryError::Damaged { .. }), _) => found.damaged.push(error),
            (Err(error), _) => return Err(error),
        }
    }
    Ok(found)
}

/// The packs of all marks, or of those that are older than half their grace.
#[must_use]
pub fn packs(marks: &[Mark], old_at: Option<jiff::Timestamp>) -> HashSet<Id> {
    let counts = |mark: &&Mark| old_at.is_none_or(|now| mark.is_half_over(now));
    marks.iter().filter(counts).flat_map(|mark| mark.marked.packs.iter().copied()).collect()
}

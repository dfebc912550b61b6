//! Proofs: that a snapshot was restored and compared, and when. Objects of the repository, so that they survive the
//! control plane, and whoever holds the repository can say what is proven.

use super::{
    RepositoryError, Result,
    names::{Id, PROOFS},
    open::{Found, Repository, put_sealed},
    seal::Kind,
};
use crate::providers::port::ObjectWrite;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    pub snapshot: Id,
    /// When it was complete.
    pub time: jiff::Timestamp,
    pub ok: bool,
    pub level: Level,
    pub files: u64,
    pub bytes: u64,
    pub duration_ms: u64,
    pub host: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// What failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What else was found, as who made it tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<serde_json::Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Every file was restored and compared with its digest.
    Restored,
    /// No proof: what tables of a cluster held at a position of its log, for a later restore to be compared with.
    Recorded,
}

/// Puts a proof on record. The same proof twice makes two objects, which say the same.
pub async fn write(repository: &Repository, store: &dyn ObjectWrite, proof: &Proof) -> Result<Id> {
    let plain = serde_json::to_vec(proof).map_err(|e| RepositoryError::Refused(e.to_string()))?;
    put_sealed(store, &repository.keyring, Kind::Proof, &plain).await.map(|(id, _)| id)
}

/// All proofs, oldest first.
pub async fn load(repository: &Repository) -> Result<Found<Vec<(Id, Proof)>>> {
    of(repository, Level::Restored).await
}

/// All records of what tables held, oldest first.
pub async fn records(repository: &Repository) -> Result<Found<Vec<(Id, Proof)>>> {
    of(repository, Level::Recorded).await
}

async fn of(repository: &Repository, level: Level) -> Result<Found<Vec<(Id, Proof)>>> {
    let objects = repository.load(Kind::Proof).await?;
    let mut found = Found { whole: Vec::new(), damaged: objects.damaged };
    for (id, bytes) in objects.whole {
        match serde_json::from_slice::<Proof>(&bytes) {
            Ok(proof) if proof.level == level => found.whole.push((id, proof)),
            Ok(_) => {}
            Err(why) => found.damaged.push(RepositoryError::damaged(id.key(PROOFS), why)),
        }
    }
    found.whole.sort_by_key(|(id, proof): &(Id, Proof)| (proof.time, *id));
    Ok(found)
}

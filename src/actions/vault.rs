//! What the actions over a backup repository share: finding it in the estate, opening it, and what its errors mean for
//! a step, and the proofs in it. It knows no single action.

use super::{contract::*, shared::*};
use crate::model::{effect::*, estate::Estate, estate::Repository as Named, estate::SecretRef, ids::*, node::Node};
use crate::providers::port::{ObjectWrite, PortError};
use crate::repository::{
    RepositoryError,
    globs::Globs,
    keys::Unlock,
    names::Id,
    open::Repository,
    progress::Progress,
    proof::{self, Proof},
    restore::{Into as Over, RestoreOptions, Restored, restore},
    snapshot::{Snapshot, Source},
};
use std::{sync::Arc, time::Duration};

/// Where the secret is sought when the estate gives the repository none.
const PASSWORD: &str = "MUSTER_REPO_PASSWORD";

pub(crate) fn named<'a>(cx: &'a ReadCx, name: &RepositoryName) -> Result<&'a Named, Refusal> {
    let known = &cx.estate.repositories;
    known.get(name).ok_or_else(|| {
        let names: Vec<&str> = known.keys().map(RepositoryName::as_str).collect();
        let has = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        Refusal::no("unknown_repository", format!("the estate has no repository `{name}`; it has: {has}"))
    })
}

pub(crate) fn unlock(cx: &ReadCx, name: &RepositoryName) -> Result<Unlock, Refusal> {
    let reference = named(cx, name)?.password.clone().unwrap_or_else(|| SecretRef::Env(PASSWORD.to_owned()));
    Ok(Unlock::Passphrase(cx.world.secret(&reference)?))
}

pub(crate) async fn open(cx: &ReadCx, name: &RepositoryName) -> Result<Arc<Repository>, Refusal> {
    let unlock = unlock(cx, name)?;
    let store = cx.world.store(name.as_str())?;
    let compression = named(cx, name)?.compression.unwrap_or_default();
    Ok(Arc::new(Repository::open(store, &place(name), &unlock).await?.compressing(compression)))
}

/// The same, and the store behind it for writing: only while this process owns the run.
pub(crate) async fn open_mut(cx: &WriteCx, name: &RepositoryName) -> Result<(Arc<Repository>, Arc<dyn ObjectWrite>), ApplyError> {
    let store = cx.world()?.store_mut(name.as_str())?;
    Ok((open(&cx.read, name).await.map_err(definite)?, store))
}

/// The newest proof that this very step left: a try that failed is made again, and may succeed.
pub(crate) async fn proof_of(cx: &ReadCx, name: &RepositoryName, mark: &str) -> Result<Option<Proof>, Refusal> {
    let repository = open(cx, name).await?;
    let found = proof::load(&repository).await?.whole.into_iter().rev();
    Ok(found.map(|(_, proof)| proof).find(|proof| proof.run.as_deref() == Some(mark)))
}

/// Puts a proof on record, if this process still owns the run.
pub(crate) async fn record(cx: &WriteCx, repository: &Repository, store: &dyn ObjectWrite, proof: &Proof) -> Result<(), ApplyError> {
    cx.world()?;
    proof::write(repository, store, proof).await?;
    Ok(())
}

/// A repository, for messages and changes.
pub(crate) fn place(name: &RepositoryName) -> String {
    format!("repository {name}")
}

/// What marks a snapshot or a proof as that of this very step of this very run.
pub(crate) fn mark(cx: &ReadCx) -> String {
    format!("{}/{}", cx.run, cx.step)
}

/// The machine in `person@machine`, and the person.
pub(crate) fn who(cx: &ReadCx) -> (String, String) {
    let who = cx.world.who();
    let (user, host) = who.split_once('@').unwrap_or(("", &who));
    (host.to_owned(), user.to_owned())
}

/// The region that a repository lies in; this machine, where the estate names none.
pub(crate) fn reach_vault(with: &Node, field: &str, estate: &Estate) -> Vec<Reach> {
    let region = text(with, field).and_then(|name| estate.repositories.get(name)?.region.clone());
    vec![region.map_or_else(reach_here, |region| Reach { place: Place::Region(region), plane: Plane::Data })]
}

/// The snapshot that is meant: the newest, of one source if one is named, or that of an identifier.
pub(crate) async fn choose(repository: &Repository, snapshot: &str, source: Option<&str>) -> Result<(Id, Snapshot), Refusal> {
    let Some(source) = source.filter(|_| snapshot == LATEST) else { return Ok(repository.snapshot(snapshot).await?) };
    let newest = repository.snapshots().await?.whole.into_iter().rfind(|(_, snapshot)| snapshot.source.shown() == source);
    newest.ok_or_else(|| {
        Refusal::no("no_snapshot", format!("{} has no snapshot of `{source}`", repository.place))
            .remedy("`muster backup list` shows what there is")
    })
}

pub(crate) const LATEST: &str = "latest";

pub(crate) fn latest() -> String {
    LATEST.to_owned()
}

/// `/srv/models of 2026-11-26T03:00:00.000Z (0123456789)`.
pub(crate) fn shown(id: &Id, snapshot: &Snapshot) -> String {
    format!("{} of {} ({})", snapshot.source.shown(), crate::model::time::rfc3339_ms(snapshot.time), id.short())
}

/// A path as a source: absolute, as a snapshot names it.
pub(crate) async fn tree_source(path: &std::path::Path) -> Result<(std::path::PathBuf, Source), Refusal> {
    let fail = |why: std::io::Error| Refusal::no("no_source", format!("{} cannot be backed up: {why}", path.display()));
    // It must be there; and one folder has one name, however one got there. A link keeps its own: it is what people know.
    let real = tokio::fs::canonicalize(path).await.map_err(fail)?;
    let winding = path.components().any(|part| part == std::path::Component::ParentDir);
    let whole: std::path::PathBuf = if winding { real } else { std::path::absolute(path).map_err(fail)?.components().collect() };
    let text = whole.to_str().ok_or_else(|| Refusal::no("no_source", format!("{} is not UTF-8", whole.display())))?.to_owned();
    Ok((whole, Source::Tree { path: text }))
}

/// Restores a snapshot as files: what cannot be had is told by name, and the rest comes back.
pub(crate) async fn bring_back(
    repository: &Arc<Repository>,
    snapshot: &Snapshot,
    to: &std::path::Path,
    include: Globs,
    into: Over,
    progress: &Arc<Progress>,
) -> Result<Restored, RepositoryError> {
    let options = RestoreOptions { include, into, owner: true, dry_run: false };
    restore(repository.clone(), snapshot, to, options, progress.clone()).await
}

/// Ends the work when whoever waits for it has gone: a step that ran out of time leaves no thread behind.
pub(crate) struct Watched(pub Arc<Progress>);

impl Watched {
    pub fn new() -> Self {
        Self(Arc::default())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.stop();
    }
}

fn code(error: &RepositoryError) -> &'static str {
    match error {
        RepositoryError::Store { .. } => "store",
        RepositoryError::NoRepository { .. } => "no_repository",
        RepositoryError::Occupied { .. } => "occupied",
        RepositoryError::Version { .. } => "version",
        RepositoryError::WrongKey { .. } => "wrong_key",
        RepositoryError::Damaged { .. } => "damaged",
        RepositoryError::Diverged { .. } => "diverged",
        RepositoryError::Missing { .. } => "missing",
        RepositoryError::NoChunk { .. } => "no_chunk",
        RepositoryError::NoSnapshot(_) => "no_snapshot",
        RepositoryError::Ambiguous { .. } => "ambiguous",
        RepositoryError::File { .. } => "file",
        RepositoryError::Server(_) => "server",
        RepositoryError::Refused(_) => "refused",
        RepositoryError::Interrupted(_) => "interrupted",
    }
}

impl From<RepositoryError> for Refusal {
    fn from(error: RepositoryError) -> Self {
        match error {
            RepositoryError::Store { key, error } => {
                let mut refusal = Self::from(error);
                refusal.failure.message = format!("{key}: {}", refusal.failure.message);
                refusal
            }
            RepositoryError::Server(error) => Self::from(error),
            error => {
                Self { failure: Failure::new(code(&error), error.to_string()), retry: matches!(error, RepositoryError::Interrupted(_)) }
            }
        }
    }
}

impl From<RepositoryError> for ApplyError {
    fn from(error: RepositoryError) -> Self {
        match error {
            // What may have been written is looked for before it is written again.
            RepositoryError::Store { error: PortError::Unknown(why), key } => {
                Self::Unknown(Failure::new("unknown", format!("{key}: {why}")))
            }
            RepositoryError::Store { error, .. } | RepositoryError::Server(error) => error.into(),
            RepositoryError::Interrupted(_) => Self::Retry { after: Duration::ZERO, failure: Refusal::from(error).failure },
            error => Self::Definite(Refusal::from(error).failure),
        }
    }
}

/// What an error means when it is asked whether something happened.
pub(crate) fn untold<O>(refusal: Refusal) -> Seen<O> {
    // Where there is no repository nothing was ever written to one.
    if refusal.failure.code == "no_repository" { Seen::Absent } else { Seen::CannotTell { why: refusal.failure.message } }
}

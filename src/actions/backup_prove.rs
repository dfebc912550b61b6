//! `backup.prove`: restore a snapshot into a folder of its own, compare every file with its digest, and put the proof on
//! record in the repository.
//!
//! **What it does.** The snapshot is chosen beforehand: the newest, or one by chance, which the run's key decides, so
//! that nobody chooses again after a crash. It is restored as `backup.restore` would, read back from the disk and
//! compared; then the folder is removed. The proof is an object of the repository, so it survives the control plane.
//! A restore that does not bring everything back is put on record as well, as a failure.
//!
//! **Half-done** it leaves a folder among the run's own, which the next try removes. The proof carries the run and the
//! step that made it: it is there, so it happened. It touches nothing that serves.

use super::{compared::compare, contract::*, shared::*, vault::*};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::clock::Clock;
use crate::repository::{
    RepositoryError,
    globs::Globs,
    names::Id,
    open::Repository,
    proof::{Level, Proof},
    restore::Into as Over,
    snapshot::Snapshot,
};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub repository: RepositoryName,
    /// `latest`, `random`, or the beginning of an identifier.
    #[serde(default = "latest")]
    pub snapshot: String,
    /// Only snapshots of this source, as `muster backup list` shows it.
    #[serde(default)]
    pub source: Option<String>,
    /// With `snapshot: random`: one that is not older than this.
    #[serde(default)]
    pub within: Option<Span>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    input: Input,
    snapshot: Id,
    source: String,
    recovered_point: Timestamp,
    mark: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// The snapshot's identifier.
    pub snapshot: String,
    /// What it is a snapshot of.
    pub source: String,
    /// The instant at which what came back had stood.
    #[schemars(with = "String")]
    pub recovered_point: Timestamp,
    /// When the first file was back and compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub first_file_at: Option<Timestamp>,
    /// When all was back, and the comparison began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub restored_at: Option<Timestamp>,
    /// When the last file was compared.
    #[schemars(with = "String")]
    pub verified_at: Timestamp,
    pub files: u64,
    pub bytes: u64,
    /// From the first request to the last comparison.
    pub duration_ms: u64,
}

const RANDOM: &str = "random";

pub struct Prove;

impl Action for Prove {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "backup.prove",
            version: 1,
            summary: "Restore a snapshot into scratch, compare every file, record the proof",
            effect: Effect::Observable,
            danger: Danger::None,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(6 * 3600),
            example: "id: prove\nuses: backup.prove\nwith: { repository: vault, snapshot: random, within: 30d }\n",
        }
    }
    fn aside(_with: &Node) -> bool {
        true
    }
    fn reach(with: &Node, estate: &Estate) -> Vec<Reach> {
        [reach_vault(with, "repository", estate), vec![reach_here()]].concat()
    }
    fn locks(_with: &Node) -> Vec<Resource> {
        Vec::new()
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        if input.within.is_some() && input.snapshot != RANDOM {
            return Err(Refusal::no("input", "`within` says from which snapshots one is chosen: it goes with `snapshot: random`"));
        }
        let repository = open(cx, &input.repository).await?;
        let (id, snapshot) = if input.snapshot == RANDOM {
            by_chance(cx, &repository, &input).await?
        } else {
            choose(&repository, &input.snapshot, input.source.as_deref()).await?
        };
        let what = format!("{}, proofs", place(&input.repository));
        let change = change(what, None, Some(format!("that {} comes back, or that it does not", shown(&id, &snapshot))));
        let (source, recovered_point) = (snapshot.source.shown().to_owned(), snapshot.time);
        Ok(Prepared {
            intent: Intent { input, snapshot: id, source, recovered_point, mark: mark(cx) },
            change: vec![change],
            notes: Vec::new(),
        })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        let clock = cx.read.world.clock();
        let begun = clock.monotonic();
        let (repository, store) = open_mut(cx, &intent.input.repository).await?;
        let folder = Scratch::new(cx.read.scratch.join(format!("prove-{}", short_key(&cx.read)))).await?;
        let tried = Tried::of(&repository, intent, &folder, &clock).await?;
        // A large tree takes its time to go.
        let _ = tokio::task::spawn_blocking(move || drop(folder)).await;
        let duration_ms = u64::try_from(clock.monotonic().saturating_sub(begun).as_millis()).unwrap_or(u64::MAX);
        let proof = Proof {
            snapshot: intent.snapshot,
            time: clock.now(),
            ok: tried.why.is_none(),
            level: Level::Restored,
            files: tried.files,
            bytes: tried.bytes,
            duration_ms,
            host: who(&cx.read).0,
            run: Some(intent.mark.clone()),
            why: tried.why.clone(),
            found: None,
        };
        record(cx, &repository, &*store, &proof).await?;
        match tried.why {
            None => Ok(Output { first_file_at: tried.first_file_at, restored_at: tried.restored_at, ..output(intent, &proof) }),
            Some(why) => {
                let message = format!("snapshot {} of {} does not restore: {why}", intent.snapshot.short(), intent.source);
                let remedy = "`muster backup verify --read-data` names what is damaged: take that object away, then back up again while the source is there, or copy it from a second place";
                Err(ApplyError::Definite(Failure::new("not_proven", message).remedy(remedy)))
            }
        }
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        match proof_of(cx, &intent.input.repository, &intent.mark).await {
            Err(refusal) => untold(refusal),
            Ok(Some(proof)) if proof.ok => Seen::Done(output(intent, &proof)),
            Ok(_) => Seen::Absent,
        }
    }

    async fn undo(_cx: &WriteCx, _intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        Ok(())
    }
}

fn output(intent: &Intent, proof: &Proof) -> Output {
    Output {
        snapshot: intent.snapshot.to_string(),
        source: intent.source.clone(),
        recovered_point: intent.recovered_point,
        first_file_at: None,
        restored_at: None,
        verified_at: proof.time,
        files: proof.files,
        bytes: proof.bytes,
        duration_ms: proof.duration_ms,
    }
}

/// The key of the run and the step decides, so the same intent chooses the same; it is journaled in any case.
async fn by_chance(cx: &ReadCx, repository: &Repository, input: &Input) -> Result<(Id, Snapshot), Refusal> {
    let since = input.within.map(|within| cx.world.clock().now() - within.signed());
    let mut fits = repository.snapshots().await?.whole;
    fits.retain(|(_, s)| {
        since.is_none_or(|since| s.time >= since) && input.source.as_ref().is_none_or(|source| s.source.shown() == source)
    });
    let seed = blake3::hash(cx.key.as_bytes());
    let chance = seed.as_bytes().iter().take(8).fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    let at = usize::try_from(chance % (fits.len() as u64).max(1)).unwrap_or(0);
    let chosen = fits.into_iter().nth(at);
    chosen.ok_or_else(|| Refusal::no("no_snapshot", format!("{} has no snapshot to choose from", repository.place)))
}

/// What came of restoring.
struct Tried {
    files: u64,
    bytes: u64,
    first_file_at: Option<Timestamp>,
    restored_at: Option<Timestamp>,
    /// Why it is no proof.
    why: Option<String>,
}

impl Tried {
    /// An error is one of the place or of this machine; damage is an answer.
    async fn of(repository: &Arc<Repository>, intent: &Intent, folder: &Scratch, clock: &Arc<dyn Clock>) -> Result<Self, ApplyError> {
        match Self::whole(repository, intent, folder, clock).await {
            Err(error @ (RepositoryError::Damaged { .. } | RepositoryError::Missing { .. } | RepositoryError::NoChunk { .. })) => {
                Ok(Self { files: 0, bytes: 0, first_file_at: None, restored_at: None, why: Some(error.to_string()) })
            }
            other => Ok(other?),
        }
    }

    async fn whole(
        repository: &Arc<Repository>,
        intent: &Intent,
        folder: &Scratch,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, RepositoryError> {
        let watched = Watched::new();
        let (_, snapshot) = repository.snapshot(&intent.snapshot.to_string()).await?;
        let everything = Globs::none();
        let restored = bring_back(repository, &snapshot, &folder.0, everything.clone(), Over::Empty, &watched.0).await?;
        let restored_at = Some(clock.now());
        let mut compared = compare(repository, &snapshot, &folder.0, &everything, clock, &watched.0).await?;
        // What the restore itself could not bring back is among what the comparison misses.
        let lost = restored.damaged;
        if compared.is_good() {
            lost.iter().for_each(|lost| compared.lost(&lost.path, &lost.why));
        }
        let why = (!compared.is_good()).then(|| match lost.first() {
            Some(lost) => format!("{}: {}; {}", lost.path, lost.why, compared.why()),
            None => compared.why(),
        });
        Ok(Self { files: compared.files, bytes: compared.bytes, first_file_at: compared.first_at, restored_at, why })
    }
}

/// A folder that is gone when its owner is.
struct Scratch(PathBuf);

impl Scratch {
    async fn new(path: PathBuf) -> Result<Self, ApplyError> {
        let fail_at = |e: std::io::Error| fail("scratch", format!("{}: {e}", path.display()));
        clear(&path).map_err(fail_at)?;
        tokio::fs::create_dir_all(&path).await.map_err(fail_at)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left is removed by the next try; the proof does not hang on it.
        let _ = clear(&self.0);
    }
}

/// Removes a restored tree: also one with folders in which nobody may write, as they were backed up.
fn clear(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            std::fs::remove_dir_all(path)
        }
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn open_up(folder: &Path) -> std::io::Result<()> {
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::with_vault(serde_json::json!({ "repository": "vault" }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::proof;
    use crate::actions::contract_tests::{Bench, with_vault};
    use serde_json::json;

    async fn proofs(bench: &Bench) -> Vec<Proof> {
        let repository = open(&bench.read, &"vault".into()).await.map_err(|r| r.failure).expect("open");
        proof::load(&repository).await.expect("loaded").whole.into_iter().map(|(_, proof)| proof).collect()
    }

    #[tokio::test]
    async fn the_newest_comes_back_and_leaves_a_proof_and_nothing_else() {
        let bench = Bench::new(&fixture());
        let out = bench.run::<Prove>().await.expect("proven");
        assert!(out.files > 0 && out.bytes > 0 && out.recovered_point.to_string().starts_with("2026-01-02"), "{out:?}");
        let proofs = proofs(&bench).await;
        assert_eq!((proofs.len(), proofs[0].ok, proofs[0].run.as_deref()), (1, true, Some("0190/step")));
        assert_eq!(std::fs::read_dir(&bench.read.scratch).expect("there").count(), 0, "the scratch was not cleaned up");
    }

    #[tokio::test]
    async fn what_does_not_come_back_is_on_record_as_failed_and_tried_again() {
        let bench = Bench::new(&fixture());
        let undamaged = bench.world.damage_pack();
        for tries in 1..=2 {
            let failure = bench.failed::<Prove>().await;
            assert!(failure.code == "not_proven" && failure.message.contains(".yaml"), "{failure}");
            let proofs = proofs(&bench).await;
            assert!(proofs.len() == tries && proofs.iter().all(|p| !p.ok && p.why.is_some()), "{proofs:?}");
        }
        bench.world.lock().objects.extend(undamaged);
        bench.world.time().advance(std::time::Duration::from_secs(1));
        assert!(bench.run::<Prove>().await.is_ok(), "what was repaired is proven by the next try");
    }

    #[tokio::test]
    async fn the_run_decides_which_by_chance_and_the_intent_keeps_it() {
        let mut bench = Bench::new(&with_vault(json!({ "repository": "vault", "snapshot": "random" })));
        let mut chosen = std::collections::BTreeSet::new();
        for key in ["1", "2", "3", "4", "5", "6", "7", "8", "9", "a", "b", "c"] {
            bench.again(key);
            let (first, again) = (bench.intent::<Prove>().await, bench.intent::<Prove>().await);
            assert_eq!(first.snapshot, again.snapshot);
            chosen.insert(first.snapshot);
        }
        assert_eq!(chosen.len(), 2, "either of the two is chosen by some run");
        // The clock stands at the first day; two days later only the second is of the last day and a half.
        let bench = Bench::new(&with_vault(json!({ "repository": "vault", "snapshot": "random", "within": "36h" })));
        bench.world.time().advance(std::time::Duration::from_secs(2 * 86_400));
        assert!(bench.intent::<Prove>().await.recovered_point.to_string().starts_with("2026-01-02"));
        let wrong = Bench::new(&with_vault(json!({ "repository": "vault", "within": "36h" })));
        assert_eq!(wrong.refused::<Prove>().await, "input");
    }
}

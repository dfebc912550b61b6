//! `backup.restore`: bring a snapshot back as files of this machine, and compare every file with its digest.
//!
//! **What it does.** The snapshot is chosen beforehand and named in the intent. It is restored into a folder of the run's
//! own, into a new one (`to`), or over what stands there (`in_place`), where only what differs is written. The step has
//! succeeded when everything was read back and compared; that is what its recovery time ends with.
//!
//! **Half-done** it leaves files that are whole, and others called `NAME.muster-incomplete`; the same intent again goes on
//! from there. Whether it happened is seen from the files themselves. It is not undone: what was overwritten is gone.

use super::{
    compared::{Compared, compare},
    contract::*,
    shared::*,
    vault::*,
};
use crate::model::{
    effect::*,
    estate::Estate,
    ids::*,
    node::{Node, NodeValue},
    runbook::UndoPolicy,
    time::Span,
};
use crate::repository::{
    globs::Globs,
    names::Id,
    restore::Into as Over,
    snapshot::{Snapshot, Source},
};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub repository: RepositoryName,
    /// `latest`, or the beginning of an identifier.
    #[serde(default = "latest")]
    pub snapshot: String,
    /// Only snapshots of this source, as `muster backup list` shows it.
    #[serde(default)]
    pub source: Option<String>,
    /// The folder that it is restored into, which is empty or not there; one of the run's own when left out.
    #[serde(default)]
    pub to: Option<PathBuf>,
    /// Over what stands in `to`, or, without it, in the place that was backed up: what differs is replaced.
    #[serde(default)]
    pub in_place: bool,
    /// With `in_place`: what is not in the snapshot is removed.
    #[serde(default)]
    pub delete: bool,
    /// Only what these patterns match, as in `.gitignore`; everything when left out.
    #[serde(default)]
    pub include: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    repository: RepositoryName,
    snapshot: Id,
    recovered_point: Timestamp,
    to: PathBuf,
    delete: bool,
    include: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// The snapshot's identifier.
    pub snapshot: String,
    /// Where it was restored to.
    pub to: PathBuf,
    pub files: u64,
    pub bytes: u64,
    /// The instant at which what came back had stood.
    #[schemars(with = "String")]
    pub recovered_point: Timestamp,
    /// When all was back, and the comparison began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub restored_at: Option<Timestamp>,
    /// When the first file was back and compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub first_file_at: Option<Timestamp>,
    /// When the last file was compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub verified_at: Option<Timestamp>,
}

pub struct Restore;

impl Action for Restore {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "backup.restore",
            version: 1,
            summary: "Restore a snapshot to files and compare every one",
            effect: Effect::Repeatable,
            danger: Danger::Irreversible,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(6 * 3600),
            example: "id: restore\nuses: backup.restore\nwith: { repository: vault, source: /srv/models, to: /srv/models-restored }\n",
        }
    }
    fn aside(with: &Node) -> bool {
        // Into a folder of the run's own.
        with.get("to").is_none()
            && with.get("in_place").is_none_or(|value| matches!(&value.value, NodeValue::Text { text, .. } if text == "false"))
    }
    fn reach(with: &Node, estate: &Estate) -> Vec<Reach> {
        [reach_vault(with, "repository", estate), vec![reach_here()]].concat()
    }
    fn locks(with: &Node) -> Vec<Resource> {
        // Two restores into one folder would mix.
        text(with, "to").map(|to| Resource(format!("folder/{to}"))).into_iter().collect()
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        if input.delete && !input.in_place {
            return Err(Refusal::no("input", "`delete` removes what is not in the snapshot: it goes with `in_place: true`"));
        }
        Globs::new(&input.include)?;
        let repository = open(cx, &input.repository).await?;
        let (id, snapshot) = choose(&repository, &input.snapshot, input.source.as_deref()).await?;
        let to = target(cx, &input, &snapshot)?;
        let (from, mut notes) = (stands(&to), Vec::new());
        if from.is_some() && !input.in_place && !marker(cx).exists() {
            let message = format!("{} is not empty, and a restore would mix with what is there", to.display());
            return Err(
                Refusal::no("occupied", message).remedy("restore into another folder, or say `in_place: true` to change what differs")
            );
        }
        if input.in_place {
            notes.push("what stands there and differs is replaced; it cannot be had back".to_owned());
        }
        let change = change(to.display().to_string(), from, Some(shown(&id, &snapshot)));
        let Input { repository, delete, include, .. } = input;
        let intent = Intent { repository, snapshot: id, recovered_point: snapshot.time, to, delete, include };
        Ok(Prepared { intent, change: vec![change], notes })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        cx.world()?;
        let repository = open(&cx.read, &intent.repository).await.map_err(definite)?;
        let (_, snapshot) = repository.snapshot(&intent.snapshot.to_string()).await?;
        // From here on what is found in the folder may be ours.
        let fail_at = |e: std::io::Error| fail("scratch", format!("{}: {e}", cx.read.scratch.display()));
        tokio::fs::create_dir_all(&cx.read.scratch).await.map_err(fail_at)?;
        tokio::fs::write(marker(&cx.read), b"").await.map_err(fail_at)?;
        let (watched, over) = (Watched::new(), Over::Place { delete: intent.delete });
        cx.world()?;
        let restored = bring_back(&repository, &snapshot, &intent.to, Globs::new(&intent.include)?, over, &watched.0).await?;
        if let Some(lost) = restored.damaged.first() {
            let message = format!("{} files could not be restored; the first is {}: {}", restored.damaged.len(), lost.path, lost.why);
            return Err(ApplyError::Definite(
                Failure::new("damaged", message).remedy("`muster backup verify --read-data` names what is damaged"),
            ));
        }
        let (files, bytes) = (restored.files, restored.bytes);
        Ok(Output { files, bytes, restored_at: Some(cx.read.world.clock().now()), ..output(intent) })
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        if !intent.to.is_dir() {
            return Seen::Absent;
        }
        let clock = cx.world.clock();
        match looked(cx, intent).await {
            Err(refusal) => Seen::CannotTell { why: refusal.failure.message },
            // A part of it is none of it: the same again goes on from there.
            Ok(found) if !found.is_good() => Seen::Absent,
            Ok(found) => Seen::Done(Output {
                files: found.files,
                bytes: found.bytes,
                first_file_at: found.first_at,
                verified_at: Some(clock.now()),
                ..output(intent)
            }),
        }
    }

    async fn undo(_cx: &WriteCx, _intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        Ok(())
    }
}

async fn looked(cx: &ReadCx, intent: &Intent) -> Result<Compared, Refusal> {
    let watched = Watched::new();
    let repository = open(cx, &intent.repository).await?;
    let (_, snapshot) = repository.snapshot(&intent.snapshot.to_string()).await?;
    Ok(compare(&repository, &snapshot, &intent.to, &Globs::new(&intent.include)?, &cx.world.clock(), &watched.0).await?)
}

fn output(intent: &Intent) -> Output {
    Output {
        snapshot: intent.snapshot.to_string(),
        to: intent.to.clone(),
        files: 0,
        bytes: 0,
        recovered_point: intent.recovered_point,
        restored_at: None,
        first_file_at: None,
        verified_at: None,
    }
}

/// That this step has begun to restore.
fn marker(cx: &ReadCx) -> PathBuf {
    cx.scratch.join(format!("restoring-{}", short_key(cx)))
}

/// Where it goes.
fn target(cx: &ReadCx, input: &Input, snapshot: &Snapshot) -> Result<PathBuf, Refusal> {
    if let Some(to) = &input.to {
        let wrong = |e: std::io::Error| Refusal::no("input", format!("`to: {}`: {e}", to.display()));
        return std::path::absolute(to).map_err(wrong);
    }
    if !input.in_place {
        return Ok(cx.scratch.join(format!("restored-{}", short_key(cx))));
    }
    match &snapshot.source {
        Source::Tree { path } if snapshot.host == who(cx).0 && Path::new(path).is_dir() => Ok(path.into()),
        Source::Tree { path } => {
            let message = format!("{path} was a folder of {}, and is none of this machine", snapshot.host);
            Err(Refusal::no("no_target", message).remedy("say where with `to`"))
        }
        other => Err(Refusal::no("no_target", format!("{} is no folder that could be restored in place", other.shown()))
            .remedy("say where with `to`")),
    }
}

/// What is in the folder already; `None` when it is empty or not there.
fn stands(folder: &Path) -> Option<String> {
    let entries = std::fs::read_dir(folder).ok()?.count();
    (entries > 0).then(|| format!("{entries} entries"))
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::with_vault(serde_json::json!({ "repository": "vault" })).local()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::{Bench, with_vault};
    use serde_json::json;

    const DRILL: &str = "region-loss.yaml";

    #[tokio::test]
    async fn what_comes_back_is_what_was_backed_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let to = folder.path().join("new");
        let bench = Bench::new(&with_vault(json!({ "repository": "vault", "to": to })));
        let out = bench.run::<Restore>().await.expect("restored");
        assert!(out.files > 0 && out.verified_at.is_some() && out.to == to, "{out:?}");
        let original = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("drills").join(DRILL)).expect("there");
        assert_eq!(std::fs::read(to.join(DRILL)).expect("restored"), original);
        // Whatever happens to it afterwards is seen.
        let intent = bench.intent::<Restore>().await;
        std::fs::write(to.join(DRILL), b"other").expect("written");
        assert!(matches!(Restore::observe(&bench.read, &intent).await, Seen::Absent));
    }

    #[tokio::test]
    async fn what_stands_there_is_touched_only_when_that_was_said() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("mine"), b"mine").expect("written");
        std::fs::write(folder.path().join(DRILL), b"older").expect("written");
        let with =
            |in_place: bool, delete: bool| json!({ "repository": "vault", "to": folder.path(), "in_place": in_place, "delete": delete });
        assert_eq!(Bench::new(&with_vault(with(false, false))).refused::<Restore>().await, "occupied");
        assert_eq!(Bench::new(&with_vault(with(false, true))).refused::<Restore>().await, "input");
        assert!(Bench::new(&with_vault(with(true, false))).run::<Restore>().await.is_ok());
        assert_eq!(std::fs::read(folder.path().join("mine")).expect("there"), b"mine");
        assert!(Bench::new(&with_vault(with(true, true))).run::<Restore>().await.is_ok());
        assert!(!folder.path().join("mine").exists());
    }

    #[tokio::test]
    async fn a_damaged_repository_restores_nothing_silently() {
        let bench = Bench::new(&fixture());
        bench.world.damage_pack();
        let failure = bench.failed::<Restore>().await;
        assert!(failure.message.contains(DRILL) || failure.code == "damaged", "{failure}");
    }

    #[test]
    fn only_into_a_folder_of_its_own_it_leaves_alone_what_serves() {
        let aside = |with: serde_json::Value| {
            let yaml = crate::model::node::Node::typed(with);
            Restore::aside(&yaml)
        };
        assert!(aside(json!({ "repository": "vault" })));
    }
}

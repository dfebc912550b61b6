//! `backup.create`: back a folder of this machine or a bucket up into a repository, as one more snapshot.
//!
//! **What it does.** Reads what changed since the last snapshot of the same source from the same machine, stores what
//! the repository does not hold yet, and writes the snapshot last. An empty place is made a repository first.
//!
//! **Half-done** it leaves chunks that no snapshot refers to: the next backup uses them, or `prune` removes them. The
//! snapshot carries the run and the step that made it, so after a crash it is known whether it is there; it is written
//! once. A snapshot from which files are missing, since they could not be read, is kept and is no success. It is not
//! undone: a snapshot more harms nothing, and `backup.forget` decides what is kept.

use super::{contract::*, shared::*, vault::*};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::repository::{
    bucket::Bucket,
    create::{About, Base, Created, create},
    globs::Globs,
    names::Id,
    open::Repository,
    snapshot::{Snapshot, Source},
    source::{Parent, Source as Reads},
    tree::{Options, Tree},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub repository: RepositoryName,
    /// A folder or file of the machine that Muster runs on. Either this or `bucket` is backed up.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// A bucket of the estate, in `region`.
    #[serde(default)]
    pub bucket: Option<BucketName>,
    #[serde(default)]
    pub region: Option<RegionName>,
    /// What the snapshot is found by later.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Of a path: leave out what these patterns match, as in `.gitignore`.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Files that cannot be read are named and left out, and the step succeeds.
    #[serde(default)]
    pub allow_unreadable: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    input: Input,
    from: What,
    source: Source,
    /// What the snapshot is recognised by.
    mark: String,
}

/// What is read.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum What {
    /// Whole.
    Path(PathBuf),
    Bucket(BucketName, RegionName),
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// The snapshot's identifier.
    pub snapshot: String,
    /// When reading began: what the snapshot holds is as of then.
    #[schemars(with = "String")]
    pub time: jiff::Timestamp,
    pub files: u64,
    pub bytes: u64,
    pub bytes_read: u64,
    pub bytes_new: u64,
    pub bytes_stored: u64,
    pub duration_ms: u64,
    /// Files that changed while they were read.
    pub changed_while_read: u64,
    /// Files that could not be read, and are not in the snapshot.
    pub unreadable: u64,
}

pub struct Create;

impl Action for Create {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "backup.create",
            version: 1,
            summary: "Back a folder or a bucket up into a repository",
            effect: Effect::Observable,
            danger: Danger::None,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(6 * 3600),
            example: "id: backup\nuses: backup.create\nwith: { repository: vault, path: /srv/models, tags: [nightly] }\n",
        }
    }
    fn reach(with: &Node, estate: &Estate) -> Vec<Reach> {
        let source = reach(with, "region", Plane::Data).unwrap_or_else(reach_here);
        [reach_vault(with, "repository", estate), vec![source]].concat()
    }
    fn locks(_with: &Node) -> Vec<Resource> {
        // Writers keep nobody out: neither each other nor readers.
        Vec::new()
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        globs(&input)?;
        let (from, source) = from(cx, &input).await?;
        let mut notes = Vec::new();
        match open(cx, &input.repository).await {
            Ok(_) => {}
            Err(refusal) if refusal.failure.code == "no_repository" => {
                notes.push(format!("there is no repository yet: it is made, with the password of `{}`", input.repository));
            }
            Err(refusal) => return Err(refusal),
        }
        let change = change(place(&input.repository), None, Some(format!("a snapshot of {}", source.shown())));
        Ok(Prepared { intent: Intent { input, from, source, mark: mark(cx) }, change: vec![change], notes })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        let (input, clock, watched) = (&intent.input, cx.read.world.clock(), Watched::new());
        let (host, user) = who(&cx.read);
        let store = cx.world()?.store_mut(input.repository.as_str())?;
        let unlock = unlock(&cx.read, &input.repository).map_err(definite)?;
        let label = format!("{user}@{host}");
        Repository::make(&*store, &place(&input.repository), &unlock, &label, clock.now()).await?;
        let (repository, store) = open_mut(cx, &input.repository).await?;
        let snapshots = repository.snapshots().await?.whole;
        // A bucket is the same from wherever it is read; a path is that of one machine.
        let anywhere = matches!(intent.from, What::Bucket(..));
        let parent = snapshots.into_iter().rfind(|(_, s)| s.source == intent.source && (s.host == host || anywhere));
        let base = Base::load(&repository, parent, &*clock).await?;
        let source = source(cx, intent, base.entries(&repository)).await?;
        let about = About { origin: intent.source.clone(), host, user, tags: input.tags.clone(), run: Some(intent.mark.clone()) };
        // Reading took no decision that the run's next owner could take otherwise; from here on it writes.
        cx.world()?;
        let made = create(repository, store, source, base, about, watched.0.clone(), clock).await?;
        complete(input, &made)?;
        Ok(output(&made.id, &made.snapshot))
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        let look = async {
            let repository = open(cx, &intent.input.repository).await?;
            Ok::<_, Refusal>(repository.snapshots().await?)
        };
        match look.await {
            Err(refusal) => untold(refusal),
            Ok(found) => {
                let ours = |(_, s): &&(Id, Snapshot)| s.run.as_ref() == Some(&intent.mark);
                match found.whole.iter().rfind(ours) {
                    // One with gaps is no success: it is tried again.
                    Some((id, s)) if s.stats.unreadable == 0 || intent.input.allow_unreadable => Seen::Done(output(id, s)),
                    Some(_) => Seen::Absent,
                    None if found.damaged.is_empty() => Seen::Absent,
                    None => {
                        Seen::CannotTell { why: format!("a snapshot cannot be read, and may be this step's: {}", join(&found.damaged)) }
                    }
                }
            }
        }
    }

    async fn undo(_cx: &WriteCx, _intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        Ok(())
    }
}

/// Which source the input means, and how a snapshot names it.
async fn from(cx: &ReadCx, input: &Input) -> Result<(What, Source), Refusal> {
    match (&input.path, &input.bucket, &input.region) {
        (Some(path), None, None) => {
            let (path, source) = tree_source(path).await?;
            Ok((What::Path(path), source))
        }
        (None, Some(bucket), Some(region)) if input.exclude.is_empty() => {
            let known = cx.estate.buckets.get(bucket).and_then(|regions| regions.get(region));
            let known =
                known.ok_or_else(|| Refusal::no("no_source", format!("the estate has no bucket `{bucket}` in region `{region}`")))?;
            // It must answer; what is in it is listed when it is read.
            cx.world.objects(bucket.as_str(), region.as_str())?.list("", None).await?;
            let url = format!("s3://{}/{}", known.bucket, known.prefix);
            Ok((What::Bucket(bucket.clone(), region.clone()), Source::Bucket { url: url.trim_end_matches('/').to_owned() }))
        }
        _ => Err(Refusal::no("input", "one source is backed up: `path`, with `exclude` if wanted, or `bucket` and `region`")),
    }
}

/// The source, to be read now.
async fn source(cx: &WriteCx, intent: &Intent, parent: Parent) -> Result<Box<dyn Reads>, ApplyError> {
    match &intent.from {
        What::Bucket(bucket, region) => Ok(Box::new(Bucket::new(cx.read.world.objects(bucket.as_str(), region.as_str())?, parent, false))),
        What::Path(path) => {
            let (path, options) = (path.clone(), Options { exclude: globs(&intent.input).map_err(definite)?, ..Options::default() });
            let tree = tokio::task::spawn_blocking(move || Tree::new(&path, parent, options));
            Ok(Box::new(tree.await.map_err(|e| fail("interrupted", e.to_string()))??))
        }
    }
}

fn globs(input: &Input) -> Result<Globs, Refusal> {
    Ok(Globs::new(&input.exclude)?)
}

fn join(errors: &[crate::repository::RepositoryError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Is everything in it that was to be?
fn complete(input: &Input, made: &Created) -> Result<(), ApplyError> {
    let lost = &made.unreadable;
    let Some(first) = lost.first().filter(|_| !input.allow_unreadable) else { return Ok(()) };
    let first = format!("{}: {}", String::from_utf8_lossy(&first.path), first.why);
    let message = format!("{} files could not be read and are not in snapshot {}; the first is {first}", lost.len(), made.id.short());
    let failure =
        Failure::new("unreadable", message).remedy("let Muster's user read them, `exclude` them, or say `allow_unreadable: true`");
    Err(ApplyError::Definite(failure))
}

fn output(id: &Id, snapshot: &Snapshot) -> Output {
    let stats = &snapshot.stats;
    Output {
        snapshot: id.to_string(),
        time: snapshot.time,
        files: stats.files,
        bytes: stats.bytes,
        bytes_read: stats.bytes_read,
        bytes_new: stats.bytes_new,
        bytes_stored: stats.bytes_stored,
        duration_ms: snapshot.duration_ms,
        changed_while_read: stats.changed_while_read,
        unreadable: stats.unreadable,
    }
}

/// Into an empty place: the repository is made as well.
#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/drills");
    super::contract_tests::Fixture::new(serde_json::json!({ "repository": "vault", "path": path, "tags": ["nightly"] })).sure()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::{Bench, Fixture, with_vault};
    use serde_json::json;

    #[tokio::test]
    async fn the_second_backup_holds_what_the_first_stored() {
        let mut bench = Bench::new(&fixture());
        let first = bench.run::<Create>().await.expect("backed up");
        assert!(first.files >= 1 && first.bytes_new > 0, "{first:?}");
        bench.another_run("0191");
        let second = bench.run::<Create>().await.expect("backed up");
        assert_ne!(second.snapshot, first.snapshot);
        assert_eq!((second.files, second.bytes_new), (first.files, 0));
    }

    #[tokio::test]
    async fn it_compresses_as_the_estate_says_of_the_repository() {
        use crate::model::estate::Compression;
        let mut stored = Vec::new();
        for compression in [Some(Compression::None), Some(Compression::Fast), None] {
            let mut bench = Bench::new(&fixture());
            let mut estate = (*bench.read.estate).clone();
            estate.repositories.get_mut("vault").expect("a repository").compression = compression;
            bench.read.estate = std::sync::Arc::new(estate.clone());
            bench.write.read.estate = std::sync::Arc::new(estate);
            stored.push(bench.run::<Create>().await.expect("backed up").bytes_stored);
        }
        assert!(stored[0] > stored[1] && stored[1] >= stored[2], "{stored:?}");
    }

    #[tokio::test]
    async fn what_cannot_be_backed_up_is_refused_beforehand() {
        let with = |path: &str| Fixture::new(json!({ "repository": "vault", "path": path }));
        assert_eq!(Bench::new(&with("/nonexistent")).refused::<Create>().await, "no_source");
        let unknown = Fixture::new(json!({ "repository": "valt", "path": "/" }));
        assert_eq!(Bench::new(&unknown).refused::<Create>().await, "unknown_repository");
        let wrong = with_vault(json!({ "repository": "vault", "path": "/", "exclude": [""] }));
        assert_eq!(Bench::new(&wrong).refused::<Create>().await, "refused");
        for both in [json!({ "repository": "vault" }), json!({ "repository": "vault", "path": "/", "bucket": "models", "region": "east" })]
        {
            assert_eq!(Bench::new(&Fixture::new(both)).refused::<Create>().await, "input");
        }
    }

    #[tokio::test]
    async fn a_bucket_is_backed_up_and_what_did_not_change_is_not_read_again() {
        let mut bench = Bench::new(&Fixture::new(json!({ "repository": "vault", "bucket": "models", "region": "east" })));
        let first = bench.run::<Create>().await.expect("backed up");
        assert_eq!((first.files, first.bytes_read), (3, first.bytes), "{first:?}");
        let now = bench.read.world.clock().now();
        bench.world.lock().object("models", "east", "model.onnx", b"new weights", now);
        bench.another_run("0191");
        let second = bench.run::<Create>().await.expect("backed up");
        assert_eq!((second.files, second.bytes_read), (3, 11), "{second:?}");
    }

    /// As root everything can be read; a file that vanishes between the walk and the reading cannot be arranged.
    #[test]
    fn a_snapshot_with_gaps_is_no_success() {
        let made = |unreadable: u64| {
            let lost =
                (0..unreadable).map(|n| crate::repository::source::Unreadable { path: format!("f{n}").into_bytes(), why: "denied".into() });
            let stats = crate::repository::snapshot::Stats { unreadable, ..Default::default() };
            let (time, source) = (jiff::Timestamp::UNIX_EPOCH, Source::Tree { path: "/a".into() });
            let snapshot = Snapshot {
                time,
                duration_ms: 0,
                host: String::new(),
                user: String::new(),
                program: String::new(),
                source,
                tags: Vec::new(),
                parent: None,
                run: None,
                list: Vec::new(),
                stats,
            };
            Created { id: Id([0; 32]), snapshot, stored: 0, unreadable: lost.collect(), changed: Vec::new(), corrupt: Vec::new() }
        };
        let input =
            |allow| serde_json::from_value::<Input>(json!({ "repository": "v", "path": "/a", "allow_unreadable": allow })).expect("valid");
        assert!(complete(&input(false), &made(0)).is_ok() && complete(&input(true), &made(2)).is_ok());
        let Err(ApplyError::Definite(failure)) = complete(&input(false), &made(2)) else { panic!("it passed") };
        assert!(failure.code == "unreadable" && failure.message.contains("f0: denied"), "{failure}");
    }
}

//! `database.prove`: bring a PostgreSQL cluster back from its base backup and its log on a throwaway server, see that it
//! answers and that what it holds is good, and put the proof on record in the repository.
//!
//! **What it does.** The base backup and the point are chosen beforehand. Its files and all the log that it takes are
//! restored into a folder of its own, and a server of Muster's is started on it that nobody takes for the real one: on
//! loopback, on a port that the system picked, archiving nothing and streaming from nowhere. The recovery time ends with
//! the first query that it answers; then come the checks, each named in the result. In the end the server is stopped
//! and everything is removed, whatever came of it. Where the database is named whose backup it is, its primary is asked
//! beforehand how far it is, and what the recovery lacks of that is counted; that it does not answer is no reason not to prove.
//!
//! **Half-done** it leaves a folder and perhaps a server on it, which the next try ends and removes. The proof carries
//! the run and the step that made it: it is there, so it happened. It touches nothing that serves.

use super::{
    contract::*,
    database_checks::{self, Checked, Checks, Recorded},
    database_record,
    loss::{self, Asked, Loss},
    loss_log::{self, Back},
    recovered::*,
    shared::*,
    vault::*,
};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::{
    clock::Clock,
    port::Lsn,
    servers::{ServerSpec, Servers},
};
use crate::repository::{
    names::Id,
    open::Repository,
    proof::{Level, Proof},
    recovery::{self, Until},
};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub repository: RepositoryName,
    /// `latest`, or the beginning of an identifier: a base backup.
    #[serde(default = "latest")]
    pub snapshot: String,
    /// Only base backups of this source, as `muster backup list` shows it.
    #[serde(default)]
    pub source: Option<String>,
    /// `latest`, `immediate`, a time with its zone, a log position, a transaction's number; or `recorded`: where
    /// `database.record` last put tables on record, which are compared then.
    #[serde(default)]
    pub until: Option<String>,
    /// What is asked of the restored server.
    #[serde(default)]
    pub checks: Checks,
    /// The role that asks: the one that the cluster was made with.
    #[serde(default = "postgres")]
    pub role: String,
    /// The folder of PostgreSQL's programs; looked for when left out.
    #[serde(default)]
    pub programs: Option<PathBuf>,
    /// Where there is room for the copy; among the run's own files when left out.
    #[serde(default)]
    pub scratch: Option<PathBuf>,
    /// Settings of the throwaway server, beyond those that make it harmless.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// The database that the backup is of: its primary is asked beforehand for its newest commit, and what the recovery lacks of
    /// that is told as `loss`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<DatabaseName>,
}

const RECORDED: &str = "recorded";

fn postgres() -> String {
    "postgres".to_owned()
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    input: Input,
    snapshot: Id,
    source: String,
    /// When the base backup was made.
    base_time: Timestamp,
    until: Until,
    mark: String,
    /// What `database.record` found at that position.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    recorded: Vec<Recorded>,
    /// How the primary and the repository's log stood before anything was restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    asked: Option<Asked>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// The snapshot's identifier.
    pub snapshot: String,
    /// What it is a base backup of.
    pub source: String,
    /// When the newest transaction was committed that came back; without any, when the base backup was made.
    #[schemars(with = "String")]
    pub recovered_point: Timestamp,
    /// The last of the log that was replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub position: Option<Lsn>,
    /// The timeline that the restored server was on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<u32>,
    /// When the files and the log were back, and the server was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub restored_at: Option<Timestamp>,
    /// When the server answered its first query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub first_file_at: Option<Timestamp>,
    /// The same: the recovery time ends here, and what comes after it is checks.
    #[schemars(with = "String")]
    pub verified_at: Timestamp,
    /// Every check, by name.
    #[serde(default)]
    pub checks: Vec<Checked>,
    pub files: u64,
    pub bytes: u64,
    /// Segments of the log.
    #[serde(default)]
    pub segments: u64,
    /// From the first request to the last check.
    pub duration_ms: u64,
    /// What the primary had at the moment of loss and the recovery lacks; absent where no `database` is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
}

pub struct Prove;

impl Action for Prove {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "database.prove",
            version: 2,
            summary: "Recover a database from its backup on a throwaway server, check it, record the proof",
            effect: Effect::Observable,
            danger: Danger::None,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(12 * 3600),
            example: "id: prove\nuses: database.prove\nwith:\n  repository: vault\n  checks:\n    tables: [{ table: predictions, rows: 1 }]\n    sql: [{ name: canary, sql: \"SELECT count(*) = 1 FROM canary\" }]\n",
        }
    }
    fn aside(_with: &Node) -> bool {
        true
    }
    fn measured() -> &'static [&'static str] {
        // Not which database, nor the timeline that the recovery follows: another one is another history.
        &["asked.lost_at", "asked.region", "asked.log_end", "asked.primary", "asked.why"]
    }
    fn reach(with: &Node, estate: &Estate) -> Vec<Reach> {
        [reach_vault(with, "repository", estate), vec![reach_here()]].concat()
    }
    fn locks(with: &Node) -> Vec<Resource> {
        // Nothing else in this repository is being proven at the same time: both would want the room.
        text(with, "repository").map(|name| Resource(format!("database-proof/{name}"))).into_iter().collect()
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let asked = input.until.as_deref().filter(|text| *text != RECORDED);
        let mut until = until(asked)?;
        let repository = open(cx, &input.repository).await?;
        let (id, snapshot, cluster) = choose_base(&repository, &input.snapshot, input.source.as_deref()).await?;
        let recorded = match (input.until.as_deref(), until) {
            (Some(RECORDED), _) => Some(database_record::of(&repository, &cluster, None).await?.ok_or_else(|| {
                Refusal::no("no_record", format!("no table is on record behind the base backup {}", shown(&id, &snapshot)))
                    .remedy("`database.record` puts tables on record; it has to run after the base backup")
            })?),
            (_, Until::Position(at)) => database_record::of(&repository, &cluster, Some(at)).await?,
            _ => None,
        };
        if let Some(recorded) = &recorded {
            until = Until::Position(recorded.position);
        }
        let recorded = recorded.map(|r| r.tables).unwrap_or_default();
        let mut asked = None;
        let mut notes = Vec::new();
        match recovery::plan(&repository, &cluster, until, None).await {
            Ok(planned) => {
                notes.push(format!("{} segments of log, up to {}", planned.reach.needed.len(), planned.reach.end));
                if let Some(name) = &input.database {
                    asked = Some(loss::ask(cx, name, &cluster.system, &planned.reach).await?);
                }
            }
            // That it does not come back is what a proof is there to tell, and to put on record.
            Err(why) => notes.push(why.to_string()),
        }
        notes.extend(asked.iter().map(Asked::note));
        let what = format!("{}, proofs", place(&input.repository));
        let change = change(what, None, Some(format!("that {} comes back and answers, or that it does not", shown(&id, &snapshot))));
        let (source, base_time) = (snapshot.source.shown().to_owned(), snapshot.time);
        let intent = Intent { input, snapshot: id, source, base_time, until, mark: mark(cx), recorded, asked };
        Ok(Prepared { intent, change: vec![change], notes })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        let clock = cx.read.world.clock();
        let begun = clock.monotonic();
        let (repository, store) = open_mut(cx, &intent.input.repository).await?;
        let servers = cx.read.world.servers();
        let ground = Ground { data: scratch_folder(&cx.read, intent.input.scratch.as_deref()), run: run_folder(&cx.read), servers };
        ground.clear().await?;
        let tried = attempt(&cx.read, &repository, intent, &ground, &clock).await;
        ground.clear().await?;
        let mut tried = match tried {
            Ok(tried) => tried,
            Err(Stuck::Backup(why)) => Tried { why: Some(why), ..Tried::default() },
            Err(Stuck::Other(error)) => return Err(error),
        };
        tried.why = tried.why.or_else(|| database_checks::wrong(&tried.checks));
        let duration_ms = u64::try_from(clock.monotonic().saturating_sub(begun).as_millis()).unwrap_or(u64::MAX);
        let mut proof = Proof {
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
        let (why, output) = (tried.why.take(), told(intent, &proof, tried));
        // So that whoever looks afterwards knows as much as who was there.
        proof.found = serde_json::to_value(&output).ok();
        record(cx, &repository, &*store, &proof).await?;
        match why {
            None => Ok(output),
            Some(why) => {
                let message = format!("base backup {} of {} is not proven: {why}", intent.snapshot.short(), intent.source);
                let remedy = "`muster wal status` and `muster backup verify --read-data` name what is missing or damaged";
                Err(ApplyError::Definite(Failure::new("not_proven", message).remedy(remedy)))
            }
        }
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        match proof_of(cx, &intent.input.repository, &intent.mark).await {
            Err(refusal) => untold(refusal),
            Ok(Some(proof)) if proof.ok => match proof.found.map(serde_json::from_value) {
                Some(Ok(output)) => Seen::Done(output),
                _ => Seen::CannotTell { why: "its proof is there, and does not say how far it came".to_owned() },
            },
            Ok(_) => Seen::Absent,
        }
    }

    async fn undo(_cx: &WriteCx, _intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        Ok(())
    }
}

/// Where it happens, and what must not be there before and after.
struct Ground {
    data: PathBuf,
    run: PathBuf,
    servers: Arc<dyn Servers>,
}

impl Ground {
    /// No server, no files.
    async fn clear(&self) -> Result<(), ApplyError> {
        self.servers.stop(&self.data).await?;
        for folder in [self.data.clone(), self.run.clone()] {
            let gone = tokio::task::spawn_blocking(move || remove(&folder)).await;
            gone.map_err(|e| fail("scratch", e.to_string()))?.map_err(|e| fail("scratch", e.to_string()))?;
        }
        Ok(())
    }
}

fn remove(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(std::io::Error::other(format!("{}: {e}", folder.display()))),
        _ => Ok(()),
    }
}

/// What came of it.
#[derive(Default)]
struct Tried {
    files: u64,
    bytes: u64,
    segments: u64,
    restored_at: Option<Timestamp>,
    answered_at: Option<Timestamp>,
    came: Option<Came>,
    loss: Option<Loss>,
    checks: Vec<Checked>,
    /// Why it is no proof.
    why: Option<String>,
}

async fn attempt(
    cx: &ReadCx,
    repository: &Arc<Repository>,
    intent: &Intent,
    ground: &Ground,
    clock: &Arc<dyn Clock>,
) -> Result<Tried, Stuck> {
    let input = &intent.input;
    let (id, snapshot, cluster) = choose_base(repository, &intent.snapshot.to_string(), None).await.map_err(|refusal| Stuck::Other(definite(refusal)))?;
    let asked = intent.asked.as_ref();
    let mut planned = recovery::plan(repository, &cluster, intent.until, asked.map(|asked| asked.timeline)).await?;
    if let Some(asked) = asked {
        planned = asked.keep(planned, cluster.segment_size);
    }
    let brought = bring(repository, (&id, &snapshot, &cluster), &planned, &*ground.servers, &ground.data).await?;
    let restored_at = Some(clock.now());
    let spec = ServerSpec {
        data: ground.data.clone(),
        version: cluster.version,
        programs: input.programs.clone(),
        run: ground.run.clone(),
        role: input.role.clone(),
        settings: input.settings.clone().into_iter().collect(),
    };
    let (running, came) = answer(&*ground.servers, &spec).await?;
    let answered_at = Some(clock.now());
    let mut lost = None;
    if let Some(asked) = asked {
        let back = Back { servers: &*ground.servers, spec: &spec, came: &came, segment_size: cluster.segment_size };
        lost = Some(asked.loss(&came, intent.base_time, loss_log::lacks(cx, asked, &back).await));
    }
    let mut checks = database_checks::running(&input.checks, &*ground.servers, &spec, &running).await?;
    checks.extend(database_checks::as_recorded(&input.checks, &*ground.servers, &running, &intent.recorded).await);
    ground.servers.stop(&ground.data).await?;
    checks.extend(database_checks::stopped(&input.checks, &*ground.servers, &spec).await?);
    let (files, bytes) = (brought.restored.files, brought.restored.bytes);
    Ok(Tried { files, bytes, segments: brought.segments, restored_at, answered_at, came: Some(came), loss: lost, checks, why: None })
}

fn told(intent: &Intent, proof: &Proof, tried: Tried) -> Output {
    let commit = tried.came.as_ref().and_then(|came| came.last_commit);
    Output {
        snapshot: intent.snapshot.to_string(),
        source: intent.source.clone(),
        recovered_point: commit.unwrap_or(intent.base_time),
        position: tried.came.as_ref().map(|came| came.position),
        timeline: tried.came.as_ref().map(|came| came.timeline),
        restored_at: tried.restored_at,
        first_file_at: tried.answered_at,
        verified_at: tried.answered_at.unwrap_or(proof.time),
        checks: tried.checks,
        files: proof.files,
        bytes: proof.bytes,
        segments: tried.segments,
        duration_ms: proof.duration_ms,
        loss: tried.loss,
    }
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::cluster_fixture::with_cluster(serde_json::json!({ "repository": "vault" }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::proof;
    use crate::actions::{cluster_fixture::{with_cluster, with_own_cluster}, contract_tests::Bench};
    use serde_json::json;

    async fn proofs(bench: &Bench) -> Vec<Proof> {
        let repository = open(&bench.read, &"vault".into()).await.map_err(|r| r.failure).expect("open");
        proof::load(&repository).await.expect("loaded").whole.into_iter().map(|(_, proof)| proof).collect()
    }

    #[tokio::test]
    async fn it_leaves_a_proof_and_nothing_else() {
        let bench = Bench::new(&fixture());
        let intent = bench.intent::<Prove>().await;
        let out = Prove::apply(&bench.write, &intent).await.expect("proven");
        assert_eq!((out.segments, out.timeline, out.checks.len()), (2, Some(2), 2), "{out:?}");
        assert!(out.checks.iter().all(|check| check.ok == Some(true)), "{out:?}");
        let seen = Prove::observe(&bench.read, &intent).await;
        assert!(matches!(&seen, Seen::Done(seen) if json!(seen) == json!(out)), "{seen:?}");
        let proofs = proofs(&bench).await;
        assert_eq!((proofs.len(), proofs[0].ok, proofs[0].run.as_deref()), (1, true, Some("0190/step")));
        for folder in [scratch_folder(&bench.read, None), run_folder(&bench.read)] {
            assert!(!folder.exists(), "{} is left", folder.display());
        }
    }

    #[tokio::test]
    async fn what_lacks_its_log_is_on_record_as_not_proven() {
        let bench = Bench::new(&fixture());
        bench.world.lock().objects.retain(|(_, _, key), _| !key.ends_with("000000010000000000000003"));
        let failure = bench.failed::<Prove>().await;
        assert!(failure.code == "not_proven" && failure.message.contains("000000010000000000000003"), "{failure}");
        let proofs = proofs(&bench).await;
        assert!(proofs.len() == 1 && !proofs[0].ok, "{proofs:?}");
    }

    #[tokio::test]
    async fn a_check_that_fails_is_no_proof() {
        let checks = json!({ "sql": [{ "name": "canary", "sql": "SELECT 'f'", "expect": "t" }] });
        let bench = Bench::new(&with_cluster(json!({ "repository": "vault", "checks": checks })));
        let failure = bench.failed::<Prove>().await;
        assert!(failure.message.contains("sql: canary: f"), "{failure}");
    }

    /// The primary of `orders`, whose backup it is, has its log up to here.
    fn with_primary(position: &str) -> Bench {
        let bench = Bench::new(&with_own_cluster(json!({ "repository": "vault", "database": "orders" })));
        let at = position.parse().unwrap();
        for server in bench.world.lock().servers.values_mut().filter(|server| !server.state.in_recovery) {
            server.state.position = at;
        }
        bench
    }

    #[tokio::test]
    async fn what_the_primary_had_is_on_record_before_and_held_against_what_came_back() {
        let bench = with_primary("0/300148");
        let intent = bench.intent::<Prove>().await;
        let asked = json!(intent)["asked"].clone();
        assert_eq!((&asked["primary"]["position"], &asked["log_end"], &asked["region"]), (&json!("0/300148"), &json!("0/400000"), &json!("east")), "{asked}");
        // What it writes afterwards is none of what was lost.
        bench.world.lock().servers.values_mut().for_each(|server| server.state.position = Lsn(0x90_0000));
        let loss = Prove::apply(&bench.write, &intent).await.expect("proven").loss.expect("a loss");
        assert_eq!((loss.lost_bytes, loss.lost_commits, loss.lost_ms, loss.upper_bound), (Some(0), Some(0), 0, false), "{loss:?}");
        // Its log cannot be read here, so its transactions are not counted, and nobody says that there were none.
        let bench = with_primary("0/300248");
        let loss = bench.intent::<Prove>().await;
        let loss = Prove::apply(&bench.write, &loss).await.expect("proven").loss.expect("a loss");
        assert_eq!((loss.lost_bytes, loss.lost_commits, loss.upper_bound), (Some(0x100), None, false), "{loss:?}");
        assert!(loss.why.as_deref().is_some_and(|why| why.contains("was not read")), "{loss:?}");
    }

    #[tokio::test]
    async fn a_primary_that_does_not_answer_is_said_and_keeps_nothing_from_being_proven() {
        let bench = with_primary("0/300148");
        bench.world.lock().machines.get_mut(&("orders".into(), "east".into())).expect("a machine").running = false;
        let intent = bench.intent::<Prove>().await;
        let out = Prove::apply(&bench.write, &intent).await.expect("proven");
        let loss = out.loss.expect("a loss");
        assert!(loss.upper_bound && loss.lost_bytes.is_none() && loss.primary_position.is_none(), "{loss:?}");
        assert!(loss.why.as_deref().is_some_and(|why| why.contains("no server of `orders` answers as its primary")), "{loss:?}");
        assert_eq!(u128::from(loss.lost_ms), loss.lost_at.duration_since(out.recovered_point).as_nanos().unsigned_abs().div_ceil(1_000_000));
    }

    #[tokio::test]
    async fn an_old_primary_that_was_fenced_is_not_asked() {
        let fenced = || {
            let bench = with_primary("0/300148");
            bench.world.lock().servers.get_mut(&("orders".into(), "east".into())).expect("east").state.read_only = true;
            bench
        };
        let bench = fenced();
        let nobody = json!(bench.intent::<Prove>().await)["asked"].clone();
        let why = nobody["why"].as_str().unwrap_or_default();
        assert!(nobody.get("primary").is_none() && why.contains("east: it takes no writes") && why.contains("west: it is a standby"), "{nobody}");
        // Beside the one that took over it is not a second one.
        let bench = fenced();
        let west = ("orders".into(), "west".into());
        bench.world.lock().servers.get_mut(&west).expect("west").state.in_recovery = false;
        let asked = json!(bench.intent::<Prove>().await)["asked"].clone();
        assert!(asked["region"] == "west" && asked["primary"].is_object(), "{asked}");
    }

    #[tokio::test]
    async fn another_clusters_primary_says_nothing_of_this_backup() {
        let bench = Bench::new(&with_cluster(json!({ "repository": "vault", "database": "orders" })));
        assert_eq!(bench.refused::<Prove>().await, "another_cluster");
    }

    #[tokio::test]
    async fn what_is_no_base_backup_is_refused() {
        let bench = Bench::new(&crate::actions::contract_tests::with_vault(json!({ "repository": "vault" })));
        assert_eq!(bench.refused::<Prove>().await, "no_snapshot");
        let bench = Bench::new(&with_cluster(json!({ "repository": "vault", "until": "yesterday" })));
        assert_eq!(bench.refused::<Prove>().await, "input");
    }
}
